"""Pipeline partitions against brute force, and the benchmark on a profile."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from pathlib import Path

import networkx as nx
import pytest

from benchmarks import pipeline_partition as benchmark
from benchmarks.published import run
from planner.optimize import pipeline_partition as module
from planner.optimize.pipeline_partition import Operator, ordered_ideals, partition, stage_seconds
from specs.errors import InputError

SPEED = 1e9


def random_graph(seed: int, *, chain: bool) -> nx.DiGraph[str]:
    draw = random.Random(seed)
    graph: nx.DiGraph[str] = nx.DiGraph()
    names = [f"n{i}" for i in range(6)]
    for index, name in enumerate(names):
        graph.add_node(name, operator=Operator(draw.uniform(0.1, 1.0), draw.choice([0.0, 1e7, 4e8])))
        earlier = names[max(0, index - 1) : index] if chain else draw.sample(names[:index], min(index, 2))
        graph.add_edges_from((tail, name) for tail in earlier)
    return graph


def brute_force(graph: nx.DiGraph[str], machines: int) -> float:
    """Over all ways to give each operator a stage that no predecessor comes after, and all machines of stages."""
    names, best = list(graph), math.inf
    for stages in range(1, machines + 1):
        for of in itertools.product(range(stages), repeat=len(names)):
            stage = dict(zip(names, of, strict=True))
            if len(set(of)) < stages or any(stage[tail] > stage[head] for tail, head in graph.edges):
                continue
            for shares in itertools.product(range(1, machines + 1), repeat=stages):
                if sum(shares) <= machines:
                    slowest = 0.0
                    for index, share in enumerate(shares):
                        inside = [graph.nodes[name]["operator"] for name in names if stage[name] == index]
                        compute = sum(operator.compute_s for operator in inside)
                        weights = sum(operator.weight_bytes for operator in inside)
                        slowest = max(slowest, (compute + 4 * (share - 1) * weights / (share * SPEED)) / share)
                    best = min(best, slowest)
    return best


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("machines", [1, 3])
def test_the_optimum_is_that_of_brute_force(seed: int, chain: bool, machines: int) -> None:
    graph = random_graph(seed, chain=chain)
    found = partition(graph, machines, SPEED)
    assert found.seconds == pytest.approx(brute_force(graph, machines))
    assert sum(stage.machines for stage in found.stages) <= machines
    assert sorted(name for stage in found.stages for name in stage.operators) == sorted(graph)
    position = {name: index for index, stage in enumerate(found.stages) for name in stage.operators}
    assert all(position[tail] <= position[head] for tail, head in graph.edges)


def test_replicas_pay_for_agreeing_on_gradients() -> None:
    """1 s on two machines, and 2 x 1e9 bytes of gradients at 1e9 B/s, every other minibatch."""
    assert stage_seconds(1.0, 1e9, 1, SPEED) == 1.0
    assert stage_seconds(1.0, 1e9, 2, SPEED) == pytest.approx(1.5)


def test_more_machines_are_never_slower() -> None:
    graph = random_graph(3, chain=True)
    seconds = [partition(graph, machines, SPEED).seconds for machines in range(1, 7)]
    assert seconds == sorted(seconds, reverse=True)


def test_ideals_of_a_chain_are_its_prefixes() -> None:
    assert [len(ideal) for ideal in ordered_ideals(random_graph(0, chain=True))] == list(range(7))


def test_graphs_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cycles"):
        ordered_ideals(nx.DiGraph([("a", "b"), ("b", "a")]))
    monkeypatch.setattr(module, "MOST_IDEALS", 3)
    with pytest.raises(InputError, match="branches into more than 3 ideals"):
        ordered_ideals(random_graph(0, chain=True))


FIELDS = "forward_compute_time={}, backward_compute_time={}, activation_size=8.0, parameter_size={}"
PROFILE = [
    f"node1 -- Input -- {FIELDS.format(9.0, 0.0, 0.0)}",
    f"node2 -- Conv2d(3, 64) -- {FIELDS.format(10.0, 20.0, 0.0)}",
    f"node3 -- Linear(in_features=4, bias=True) -- {FIELDS.format(5.0, 5.0, 1e9)}",
    "\tnode1 -- node2",
    "\tnode2 -- node3",
]


def call(path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    path.write_text("\n".join(lines))
    monkeypatch.setattr("sys.argv", ["x", str(path), *more])
    run(benchmark.main)


def test_a_profile_is_split_where_the_weights_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first operator is replicated, having no weights; the second is not. The input operator is left out."""
    call(tmp_path / "p.txt", PROFILE, monkeypatch, "--machines", "4")
    line = json.loads(capsys.readouterr().out)
    assert line["stages"] == [{"range": [0, 1], "machines": 3}, {"range": [1, 2], "machines": 1}]
    assert line["objective"] == line["bound"] == pytest.approx(0.010)
    assert line["speedup"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("index", "line", "message"),
    [
        (1, "node2 -- Conv2d(3, 64)", "p.txt:2: is neither an operator nor an edge"),
        (1, f"node2 -- Conv2d -- {FIELDS.format(-1, 0, 0)}", "p.txt:2: is neither"),
        (3, "\tnode1 -- node7", "p.txt:4: edge to unknown operator 'node7'"),
        (4, "\tnode2 -- node3 -- node4", "p.txt:5: is neither"),
    ],
)
def test_bad_profiles_end_with_one_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    index: int,
    line: str,
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(tmp_path / "p.txt", [*PROFILE[:index], line, *PROFILE[index + 1 :]], monkeypatch)
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_published_splits_of_vgg16_come_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Path(__file__).parents[1] / "data" / "pipedream_vgg16.graph.txt"
    monkeypatch.setattr("sys.argv", ["x", str(profile)])
    benchmark.main()
    four, eight = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert four["stages"] == [{"range": [0, 15], "machines": 3}, {"range": [15, 40], "machines": 1}]
    assert four["objective"] == pytest.approx(0.175732624, rel=1e-9)
    assert eight["objective"] == pytest.approx(0.09351323, rel=1e-9)


def test_profiles_with_several_outputs_and_stages_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes in brackets are those of several outputs; the stage of an earlier partition changes nothing."""
    call(tmp_path / "p.txt", PROFILE, monkeypatch, "--machines", "4")
    plain = json.loads(capsys.readouterr().out)
    sizes = [re.sub(r"activation_size=([\d.]+)", r"activation_size=[\1; 3.0]", line) for line in PROFILE]
    staged = [line if line.startswith("\t") else f"{line} -- stage_id=1" for line in sizes]
    assert staged != PROFILE
    call(tmp_path / "p.txt", staged, monkeypatch, "--machines", "4")
    read = json.loads(capsys.readouterr().out)
    assert (read["stages"], read["objective"]) == (plain["stages"], plain["objective"])
