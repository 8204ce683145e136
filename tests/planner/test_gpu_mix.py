"""Mixes of device types against brute force over counts and vertices, and the benchmark's file format."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from benchmarks import gpu_mix as benchmark
from benchmarks.published import run
from planner.optimize.gpu_mix import DeviceType, Mix, MixInstance, broken_laws, cheapest_mix
from specs.errors import InputError, NoPlanError

GRAIN = 840  # of a device: makes the loads of `random_instance` whole numbers


def random_instance(seed: int, *, inventory: bool = False) -> MixInstance:
    """All types are equally good at all buckets that they serve at all, so that feasibility is a maximum flow."""
    draw = random.Random(seed)
    rates = tuple(float(draw.choice([0, 1, 2, 3, 5])) for _ in range(3))
    throughputs = [float(draw.choice([1, 2, 3, 4, 7])) for _ in rates]
    types = tuple(
        DeviceType(
            name,
            draw.choice([1.0, 1.3, 2.5, 3.67]),
            tuple(throughput * draw.choice([0, 1, 1]) for throughput in throughputs),
            draw.randint(0, 3) if inventory else None,
        )
        for name in ("a", "b", "c")
    )
    return MixInstance(rates, types)


def feasible(instance: MixInstance, counts: tuple[int, ...]) -> bool:
    """Whether the work of all buckets flows into the devices that can do it."""
    graph: nx.DiGraph[Any] = nx.DiGraph()
    needed = 0
    graph.add_nodes_from(["source", "sink"])
    for bucket, rate in enumerate(instance.rates):
        best = max(kind.throughputs[bucket] for kind in instance.types)
        if rate > 0:
            work = round(GRAIN * rate / best)
            needed += work
            graph.add_edge("source", bucket, capacity=work)
        for kind, count in zip(instance.types, counts, strict=True):
            if rate > 0 and kind.throughputs[bucket] > 0:
                graph.add_edge(bucket, kind.name, capacity=10**9)
                graph.add_edge(kind.name, "sink", capacity=GRAIN * count)
    return bool(nx.maximum_flow_value(graph, "source", "sink") == needed)


def brute_force(instance: MixInstance) -> float:
    best = math.inf
    ranges = [range((8 if kind.most is None else kind.most) + 1) for kind in instance.types]
    for counts in itertools.product(*ranges):
        cost = sum(n * kind.cost for n, kind in zip(counts, instance.types, strict=True))
        if cost < best and feasible(instance, counts):
            best = cost
    return best


def make(seed: int, inventory: bool) -> MixInstance | None:
    try:
        return random_instance(seed, inventory=inventory)
    except (NoPlanError, InputError):
        return None


@pytest.mark.parametrize("inventory", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_optimum_is_that_of_brute_force(seed: int, inventory: bool) -> None:
    instance = make(seed, inventory)
    if instance is None:
        return
    optimum = brute_force(instance)
    if math.isinf(optimum):
        with pytest.raises(NoPlanError, match="cannot carry"):
            cheapest_mix(instance)
        return
    found = cheapest_mix(instance)
    assert found.cost == pytest.approx(optimum)
    assert found.bound == pytest.approx(optimum)
    assert broken_laws(instance, found) == []


def test_the_random_instances_are_of_both_kinds() -> None:
    made = [instance for seed in range(20) if (instance := make(seed, True)) is not None]
    outcomes = {math.isinf(brute_force(instance)) for instance in made}
    assert outcomes == {True, False}
    assert sum(make(seed, False) is not None for seed in range(20)) > 10


def test_splitting_a_bucket_saves_a_device() -> None:
    """1.5 devices of work in one bucket and half a device that only the dear type does: one of each is enough."""
    types = (DeviceType("cheap", 1.0, (2.0, 0.0)), DeviceType("dear", 3.0, (2.0, 2.0)))
    found = cheapest_mix(MixInstance((3.0, 1.0), types))
    assert (found.counts, found.cost) == ({"cheap": 1, "dear": 1}, 4.0)
    assert found.shares["cheap"][0] == pytest.approx(2 / 3)


def test_a_bucket_without_requests_needs_no_device() -> None:
    found = cheapest_mix(MixInstance((0.0, 1.0), (DeviceType("a", 1.0, (0.0, 1.0)),)))
    assert found.counts == {"a": 1}


def test_each_broken_law_is_told() -> None:
    instance = MixInstance((2.0, 1.0), (DeviceType("a", 1.0, (2.0, 0.0), 1), DeviceType("b", 1.0, (1.0, 1.0))))
    right = Mix({"a": 1, "b": 1}, {"a": (1.0, 0.0), "b": (0.0, 1.0)}, 2.0, 2.0, "made")
    assert broken_laws(instance, right) == []
    assert broken_laws(instance, replace(right, counts={"a": 0, "b": 1})) == ["a: 1.000000 devices of work for 0"]
    assert broken_laws(instance, replace(right, counts={"a": 2, "b": 1})) == ["a: 2 devices of 1"]
    wrong = replace(right, shares={"a": (0.5, 1.0), "b": (0.0, 0.0)})
    assert broken_laws(instance, wrong) == ["bucket 0: 0.500000 of it is served", "a: serves what it cannot"]


def document(**changes: Any) -> dict[str, Any]:
    kinds: dict[str, Any] = {"small": {"cost": 1.0, "tputs": [[2, 1]]}, "large": {"cost": 3.0, "tputs": [[8, 8]]}}
    data = {"gpu_info": kinds, "workload_distribution": [[0.5, 0.5]], "total_request_rate": 4.0, "slice_factor": 1}
    return {"input": {**data, **changes}}


def call(path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(content)
    monkeypatch.setattr("sys.argv", ["x", str(path)])
    run(benchmark.main)


def test_the_benchmark_prints_one_line_a_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [{"total_request_rate": 4.0, "slice_factor": 2, "only_small": {"cost": 3.0}}, {"total_request_rate": 20}]
    call(tmp_path / "a.json", json.dumps({**document(), "points": points}), monkeypatch)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["cost"] for line in lines] == [3.0, 8.0]
    assert [line["bound"] for line in lines] == [pytest.approx(3.0), pytest.approx(8.0)]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ('{"input": {', 2, r"a.json:1: is not JSON"),
        (json.dumps({**document(), "point": []}), 2, "point: unknown key; did you mean 'points'"),
        (json.dumps(document(gpu_info={})), 2, "there are no device types"),
        (json.dumps(document(gpu_info={"a": {"cost": 1, "tputs": [[2, 1]], "inventory": 0}})), 3, "inventory of zero"),
        (json.dumps(document(gpu_info={"a": {"cost": 1, "tputs": [[2]]}})), 2, "shape of workload_distribution"),
        (json.dumps(document(total_request_rate=-1)), 2, "input.total_request_rate: must be a finite number"),
        (json.dumps(document(gpu_info={"a": {"cost": 1, "tputs": [[2, 0]]}})), 3, "no device type serves bucket 1"),
        (json.dumps(document(gpu_info={"a": {"cost": 1, "tputs": [[2, 1]], "inventory": 1}})), 3, "cannot carry"),
    ],
)
def test_bad_files_end_with_one_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    code: int,
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(tmp_path / "a.json", content, monkeypatch)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (code, "")
    assert re.search(message, told.err)


def test_points_take_the_rate_of_the_input_and_further_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is not known and looks like none that is changes nothing, and is named."""
    path = tmp_path / "a.json"
    content = {
        **document(total_request_rate=4.0),
        "points": [{"slice_factor": 2}, {"total_request_rate": 1, "tool": "x"}],
    }
    path.write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["x", str(path)])
    run(benchmark.main)
    told = capsys.readouterr()
    assert [json.loads(line)["total_request_rate"] for line in told.out.splitlines()] == [4.0, 1.0]
    assert "warning: points[1].tool: key is not known and changes nothing" in told.err
