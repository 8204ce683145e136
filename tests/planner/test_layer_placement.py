"""Layer placements against brute force on small clusters, their bounds, and the benchmark's file format."""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import layer_placement as benchmark
from benchmarks.published import run
from planner.optimize.layer_placement import anneal as annealing
from planner.optimize.layer_placement import bound as bound_module
from planner.optimize.layer_placement import boundaries, named, place
from planner.optimize.layer_placement.anneal import Flows, State, anneal
from planner.optimize.layer_placement.bound import throughput_bound
from planner.optimize.layer_placement.boundaries import place_on_boundaries
from planner.optimize.layer_placement.flow import pipeline_flow, placement_flow
from planner.optimize.layer_placement.instance import LayerInstance, Placement, max_flow
from planner.optimize.layer_placement.link_bound import link_bound, machine_classes, machines_for_handing_over
from planner.optimize.layer_placement.place import place_layers
from planner.optimize.layer_placement.ranges import RangeSearch, search_ranges
from planner.optimize.layer_placement.regions import groupings, region_levels, restricted
from planner.optimize.layer_placement.search import Effort, search_stages
from planner.optimize.layer_placement.stages import Stage, best_stages, patterns, stage_speed
from specs.errors import InputError, NoPlanError

PUBLISHED = Path(__file__).parents[1] / "data" / "helix_quality10_llama30b.json"


def cluster(
    types: tuple[str, ...], speeds: dict[str, dict[int, float]], layers: int, link: float = 1e6, **changes: Any
) -> LayerInstance:
    """Every machine linked with every other, with source and with sink."""
    machines = range(len(types))
    links = {(i, j): link for i in machines for j in machines if i != j}
    ends = dict.fromkeys(machines, 1e6)
    return LayerInstance(
        **{
            "layers": layers,
            "tokens_per_s": speeds,
            "types": types,
            "links": links,
            "sources": ends,
            "sinks": ends,
            **changes,
        }
    )


def random_cluster(seed: int, *, slow_links: bool = False) -> LayerInstance:
    draw = random.Random(seed)
    layers = draw.randint(2, 4)
    speeds = {
        kind: {k: round(draw.uniform(60, 140) / k ** draw.uniform(0.9, 1.3), 3) for k in range(1, draw.randint(3, 5))}
        for kind in ("a", "b")
    }
    types = tuple(draw.choice("ab") for _ in range(4))
    base = cluster(types, speeds, layers)
    if not slow_links:
        return base
    links = {pair: draw.choice([5.0, 20.0, 45.0]) for pair in base.links if draw.random() < 0.8}
    ends = [{i: draw.choice([30.0, 1e6]) for i in range(4) if i in (0, 1) or draw.random() < 0.7} for _ in range(2)]
    return cluster(types, speeds, layers, links=links, sources=ends[0], sinks=ends[1])


def brute_force(instance: LayerInstance) -> float:
    """Over all ranges of all machines."""
    ranges = [(s, e) for s in range(instance.layers) for e in range(s + 1, instance.layers + 1)]
    options = [
        [None, *(r for r in ranges if instance.speed(machine, r[1] - r[0]) > 0)]
        for machine in range(len(instance.types))
    ]
    best = 0.0
    for choice in itertools.product(*options):
        placement: Placement = {machine: span for machine, span in enumerate(choice) if span is not None}
        if {0, instance.layers} <= {end for span in placement.values() for end in span}:
            best = max(best, max_flow(instance, placement))
    return best


@pytest.fixture(scope="module")
def optima() -> dict[tuple[int, bool], float]:
    return {(seed, slow): brute_force(random_cluster(seed, slow_links=slow)) for seed, slow in CASES}


CASES = [(seed, False) for seed in (0, 1, 2, 4)] + [(seed, True) for seed in (1, 2, 5)]


@pytest.mark.parametrize(("seed", "slow"), CASES)
def test_small_clusters_lie_between_bound_and_brute_force(
    seed: int, slow: bool, optima: dict[tuple[int, bool], float]
) -> None:
    instance, optimum = random_cluster(seed, slow_links=slow), optima[seed, slow]
    found = place_layers(instance, time_limit_s=60.0)
    assert found.bound >= optimum * (1 - 1e-9)
    assert found.tokens_per_s <= optimum * (1 + 1e-9)
    assert found.tokens_per_s == pytest.approx(max_flow(instance, found.placement))
    assert found.tokens_per_s >= optimum * (1 - 1e-6)
    assert throughput_bound(instance).tokens_per_s >= optimum * (1 - 1e-9)


def test_ranges_that_do_not_align_are_found_where_they_are_better() -> None:
    """Two paths a -> a (2 + 2 layers) and b -> b (3 + 1) carry 20; no aligned stages do."""
    speeds = {"a": {2: 10.0}, "b": {1: 10.0, 3: 10.0}}
    instance = cluster(("a", "a", "b", "b"), speeds, 4)
    bound = throughput_bound(instance)
    assert best_stages(instance, bound.worth, bound.tokens_per_s, float("inf"))[0] == pytest.approx(10.0)
    found = place_layers(instance, time_limit_s=60.0)
    assert found.tokens_per_s == pytest.approx(20.0)
    assert found.bound == pytest.approx(20.0, rel=1e-5)


def test_the_boundary_programme_proves_small_optima(optima: dict[tuple[int, bool], float]) -> None:
    for seed in (0, 1, 2, 4):
        instance = random_cluster(seed)
        found = place_on_boundaries(instance, throughput_bound(instance).tokens_per_s, 10.0)
        assert found is not None
        assert max_flow(instance, found[0]) == pytest.approx(optima[seed, False])
        assert found[1] == pytest.approx(optima[seed, False], rel=1e-5)


def test_the_bound_is_tight_where_layers_pack_without_waste() -> None:
    """Six machines that carry 100 at two layers each, over four layers: three of them side by side."""
    instance = cluster(("a",) * 6, {"a": {1: 190.0, 2: 100.0}}, 4)
    assert throughput_bound(instance).tokens_per_s == pytest.approx(300.0, rel=1e-6)
    assert place_layers(instance, time_limit_s=60.0).tokens_per_s == pytest.approx(300.0)


def test_a_knapsack_that_is_cut_short_only_loosens_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = benchmark.parse(json.loads(PUBLISHED.read_text()))
    exact = throughput_bound(instance).tokens_per_s
    monkeypatch.setattr(bound_module, "NODES", 3)
    assert throughput_bound(instance).tokens_per_s >= exact * (1 - 1e-6)


def test_patterns_are_least_and_carry_what_is_asked() -> None:
    instance = cluster(("a", "a", "b", "b", "b"), {"a": {1: 50.0}, "b": {1: 30.0}}, 1)
    found = set(patterns(instance, 1, 80.0))
    assert {dict(p.machines).get("a", 0) * 10 + dict(p.machines).get("b", 0) for p in found} == {20, 11, 3}
    assert all(stage_speed(instance, pattern) >= 80.0 for pattern in found)
    assert Stage(1, (("a", 2),)) in found


def test_speeds_need_not_fall_with_layers() -> None:
    """A machine is faster with 3 layers than with 2: stages of 3 are taken."""
    instance = cluster(("a", "a"), {"a": {2: 5.0, 3: 9.0}}, 6)
    assert place_layers(instance, time_limit_s=60.0).tokens_per_s == pytest.approx(9.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_searchs_flow_is_networkx_flow(seed: int) -> None:
    instance, draw = random_cluster(seed % 5, slow_links=True), random.Random(seed)
    machines = draw.sample(range(4), 4)
    cut = draw.randint(1, 3)
    state = State([(1, frozenset(machines[:cut])), (instance.layers - 1, frozenset(machines[cut:]))], frozenset())
    flow = pipeline_flow(instance, state.stages)
    if all(instance.speed(m, instance.layers - 1) > 0 for m in machines[cut:]):
        assert flow == pytest.approx(max_flow(instance, state.placement()))
    assert flow <= min(Flows(instance).all(state.stages)) * (1 + 1e-9)


def test_annealing_puts_stages_where_the_links_are() -> None:
    """A ring of one-way links: only the machines' own order carries anything."""
    types, speeds = ("a",) * 6, {"a": {1: 100.0}}
    links = {(i, i + 1): 100.0 for i in range(5)}
    instance = cluster(types, speeds, 6, links=links, sources={0: 1e6}, sinks={5: 1e6})
    start = State([(1, frozenset({m})) for m in (3, 0, 5, 1, 4, 2)], frozenset())
    assert pipeline_flow(instance, start.stages) == 0
    flow, state = anneal(instance, start, 0.0, 100.0, 20_000, float("inf"), random.Random(1), Flows(instance))
    assert flow == pytest.approx(100.0)
    assert [set(machines) for _, machines in state.stages] == [{0}, {1}, {2}, {3}, {4}, {5}]


def test_maximum_flows_count_as_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time where many states look better than they are."""
    instance = random_cluster(2, slow_links=True)
    looked = []
    monkeypatch.setattr(annealing, "pipeline_flow", lambda *arguments: looked.append(arguments) or 0.0)
    start = State([(instance.layers, frozenset({0}))], frozenset({1, 2, 3}))
    for charge, most in ((10**6, 1), (0, 20_000)):
        monkeypatch.setattr(annealing, "FLOW_STEPS", charge)
        looked.clear()
        anneal(instance, start, 0.0, 100.0, 20_000, float("inf"), random.Random(1), Flows(instance))
        assert 1 <= len(looked) <= most
    assert len(looked) > 100


def test_links_that_bind_are_kept_and_bounds_stay_above() -> None:
    """Two machines a stage and thin links: four links of 30 between two stages carry 120 of 200."""
    instance = cluster(("a",) * 4, {"a": {1: 200.0, 2: 100.0}}, 4, link=30.0)
    found = place_layers(instance, time_limit_s=60.0)
    assert found.tokens_per_s == pytest.approx(120.0)
    assert found.bound == pytest.approx(120.0)
    assert throughput_bound(instance).tokens_per_s == pytest.approx(200.0)


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_without_the_exact_programmes_the_search_answers(
    seed: int, optima: dict[tuple[int, bool], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on instances too large for them: less than the optimum may be found, and more may be left open."""
    instance = random_cluster(seed, slow_links=True)
    monkeypatch.setattr(boundaries, "MOST_COLUMNS", 0)
    monkeypatch.setattr(boundaries, "TINY", 0)
    for steps in ("QUICK_STEPS", "PART_STEPS", "STAGE_STEPS", "RANGE_STEPS"):
        monkeypatch.setattr(place, steps, 10_000)
    found = place_layers(instance, time_limit_s=60.0)
    assert optima[seed, True] * 0.5 <= found.tokens_per_s <= optima[seed, True] * (1 + 1e-9) <= found.bound * (1 + 2e-9)
    assert found.tokens_per_s == pytest.approx(max_flow(instance, found.placement))


def regions(instance: LayerInstance, homes: tuple[int, ...], slow: float) -> LayerInstance:
    """The same machines, with `slow` links between those of different homes."""
    links = {(i, j): c if homes[i] == homes[j] else slow for (i, j), c in instance.links.items()}
    return replace(instance, links=links)


def test_pipelines_of_regions_work_side_by_side() -> None:
    """Two regions of unlike machines: 3 x 40 of one and 2 x 25 of the other; hardly anything passes between them."""
    speeds = {"a": {2: 40.0}, "b": {3: 25.0}}
    homes = (0, 1, 0, 1, 0, 1, 0, 1, 0, 0)
    types = tuple("ab"[home] for home in homes)
    instance = regions(cluster(types, speeds, 6, link=1000.0), homes, 1.0)
    assert [set(group) for group in groupings(instance)[0]] == [{0, 2, 4, 6, 8, 9}, {1, 3, 5, 7}]
    found = place_layers(instance, time_limit_s=60.0)
    assert found.tokens_per_s == pytest.approx(2 * 40.0 + 2 * 25.0)


def test_regions_are_looked_for_at_every_wide_step_of_capacity() -> None:
    links = {(0, 1): 100.0, (2, 3): 100.0, (1, 2): 10.0, (3, 4): 1.0, (4, 0): 1.0}
    instance = cluster(("a",) * 5, {"a": {1: 10.0}}, 2, links=links)
    assert sorted(region_levels(instance)) == [[(0, 1), (2, 3), (4,)], [(0, 1, 2, 3), (4,)]]
    assert [way for way in groupings(instance) if (0, 1) in way and len(way) == 2] == [((0, 1), (2, 3, 4))]
    part = restricted(instance, (1, 2))
    assert part is not None
    assert part.links == {(0, 1): 10.0}
    unlinked = cluster(
        ("a",) * 3, {"a": {1: 10.0}}, 1, links={(0, 1): 1.0, (1, 2): 1.0}, sources={0: 9.0}, sinks={2: 9.0}
    )
    assert restricted(unlinked, (0, 2)) is None


def test_no_groups_of_regions_that_cannot_hold_every_layer() -> None:
    instance = regions(cluster(("a",) * 6, {"a": {1: 10.0}}, 4), (0, 0, 0, 1, 1, 1), 1.0)
    assert region_levels(instance)
    assert groupings(instance) == []


def test_ranges_that_do_not_align_are_found_by_annealing() -> None:
    """Two paths a -> a (2 + 2 layers) and b -> b (3 + 1) carry 20, started from the one."""
    instance = cluster(("a", "a", "b", "b"), {"a": {2: 10.0}, "b": {1: 10.0, 3: 10.0}}, 4)
    start: Placement = {0: (0, 2), 1: (2, 4)}
    flow, placement = search_ranges(instance, start, 100.0, Effort(60_000, float("inf")), 0)
    assert flow == pytest.approx(20.0)
    assert max_flow(instance, placement) == pytest.approx(20.0)


@pytest.mark.parametrize("seed", range(20))
def test_cuts_of_ranges_bound_the_flow(seed: int) -> None:
    """Whatever the state; and the search's own maximum flow is that of networkx."""
    instance, draw = random_cluster(seed % 5, slow_links=True), random.Random(seed)
    search = RangeSearch(instance, draw)
    options = [(s, s + k) for s in range(instance.layers) for k in range(1, instance.layers - s + 1)]
    spans = tuple(
        draw.choice([None, *(span for span in options if instance.speed(machine, span[1] - span[0]) > 0)])
        for machine in range(4)
    )
    placement = {machine: span for machine, span in enumerate(spans) if span is not None}
    flow = max_flow(instance, placement)
    assert placement_flow(instance, placement) == pytest.approx(flow)
    assert flow <= min(search.cuts(spans)) * (1 + 1e-9)


def test_equal_effort_gives_equal_answers() -> None:
    instance = regions(cluster(("a", "b") * 5, {"a": {1: 90.0, 2: 40.0}, "b": {1: 50.0}}, 6), (0,) * 5 + (1,) * 5, 20.0)
    proof = throughput_bound(instance)
    states = [search_stages(instance, 200.0, proof, Effort(10_000, float("inf")), 3) for _ in range(2)]
    assert states[0] == states[1] is not None
    placements = [
        search_ranges(instance, states[0].placement(), 1e9, Effort(20_000, float("inf")), 3)  # type: ignore[union-attr]
        for _ in range(2)
    ]
    assert placements[0] == placements[1]


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_the_link_bound_holds(seed: int, optima: dict[tuple[int, bool], float]) -> None:
    instance = random_cluster(seed, slow_links=True)
    loose = sum(max(instance.tokens_per_s[kind].values()) for kind in instance.types)
    assert link_bound(instance, loose, float("inf")) >= optima[seed, True] * (1 - 1e-9)


def test_the_link_bound_knows_slow_ends_hubs_and_thin_links() -> None:
    types, speeds = ("a",) * 6, {"a": {1: 100.0}}
    free = cluster(types, speeds, 3)
    assert link_bound(free, 200.0, float("inf")) == pytest.approx(200.0, rel=1e-4)
    slow_ends = replace(free, sources=dict.fromkeys(range(6), 30.0))
    assert 100.0 <= link_bound(slow_ends, 200.0, float("inf")) <= 115.0  # the optimum is 100
    star = replace(free, links={(i, j): 1e6 for i in range(6) for j in range(6) if i != j and 0 in (i, j)})
    assert link_bound(star, 200.0, float("inf")) == pytest.approx(100.0, rel=1e-3)  # the middle layer is the hub's
    thin = cluster(types, speeds, 3, link=20.0)
    assert 80.0 <= link_bound(thin, 200.0, float("inf")) <= 102.0  # two machines a layer, four links of 20: 80


def test_machines_for_handing_over() -> None:
    """2 machines hand over one link's capacity, 3 two links', 4 four links', 5 six."""
    assert machines_for_handing_over(10.0, 10.0) == pytest.approx(2 / 10)
    assert machines_for_handing_over(10.0, 5.0) == pytest.approx(2 / 5)
    assert machines_for_handing_over(10.0, 40.0) == pytest.approx(4 / 40)
    assert machines_for_handing_over(10.0, 60.0) == pytest.approx(5 / 60)
    assert machines_for_handing_over(10.0, 1e-3) == pytest.approx(2 / 1e-3)


def test_machines_that_can_change_places_are_one_class() -> None:
    instance = cluster(("a", "b", "a", "a"), {"a": {1: 1.0}, "b": {1: 1.0}}, 1)
    assert [kind.machines for kind in machine_classes(instance)] == [(0, 2, 3), (1,)]
    apart = replace(instance, links={**instance.links, (0, 1): 5.0})
    assert [kind.machines for kind in machine_classes(apart)] == [(0,), (1,), (2, 3)]


def test_hardly_any_time_loses_no_proof_of_a_small_cluster() -> None:
    instance = benchmark.parse(json.loads(PUBLISHED.read_text()))
    found = place_layers(instance, time_limit_s=1e-6)
    assert found.proven
    assert found.tokens_per_s == pytest.approx(286.5874, abs=1e-3)


def test_a_programme_without_links_is_left_where_stages_reach_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links bind, stages without them reach more: it could lower nothing, and takes long on larger clusters."""
    instance = random_cluster(1, slow_links=True)
    monkeypatch.setattr(place, "place_named", lambda *arguments: None)
    monkeypatch.setattr(place, "link_bound", lambda instance, bound, deadline: bound * 0.9)
    for steps in ("QUICK_STEPS", "PART_STEPS", "STAGE_STEPS", "RANGE_STEPS"):
        monkeypatch.setattr(place, steps, 1_000)
    asked = []
    monkeypatch.setattr(place, "place_on_boundaries", lambda *arguments: asked.append(arguments))
    task_bound = throughput_bound(instance)
    unlinked, _ = best_stages(instance, task_bound.worth, task_bound.tokens_per_s, float("inf"))
    assert unlinked >= 0.9 * task_bound.tokens_per_s
    place_layers(instance, time_limit_s=60.0)
    assert not asked


def test_trees_of_exact_programmes_end_by_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    certified = named.certified

    def recorded(problem: Any, *, time_limit_s: float, most_nodes: int | None = None) -> Any:
        limits.append(most_nodes)
        return certified(problem, time_limit_s=time_limit_s, most_nodes=most_nodes)

    monkeypatch.setattr(named, "certified", recorded)
    monkeypatch.setattr(boundaries, "certified", recorded)
    instance = random_cluster(1, slow_links=True)
    named.place_named(instance, throughput_bound(instance).tokens_per_s, 10.0)
    place_on_boundaries(instance, throughput_bound(instance).tokens_per_s, 10.0)
    assert limits == [named.MOST_NODES, boundaries.MOST_NODES]


@pytest.mark.parametrize("seed", range(4))
def test_machines_that_are_alike_are_one_node_of_a_pipelines_flow(seed: int) -> None:
    draw = random.Random(seed)
    speeds = {"a": {1: 30.0, 2: 17.0}, "b": {1: 20.0, 2: 11.0}}
    base = cluster(("a", "a", "a", "b", "b", "a", "b", "a"), speeds, 4)
    homes = (0, 0, 1, 0, 0, 1, 1, 0)
    instance = replace(base, links={(i, j): 9.0 if homes[i] == homes[j] else 2.0 for i, j in base.links})
    assert len(set(instance.alike)) == 4  # of two types, in two regions
    machines = draw.sample(range(8), 8)
    stages = [(1, frozenset(machines[:3])), (2, frozenset(machines[3:6])), (1, frozenset(machines[6:]))]
    flow = pipeline_flow(instance, stages)
    assert flow == pytest.approx(max_flow(instance, State(stages, frozenset()).placement()))


def test_a_published_optimum_is_proven() -> None:
    """Helix, 10 machines, LLaMA-30B: 286.58741 tokens/s (Gurobi: 3803 s on 20 threads)."""
    instance = benchmark.parse(json.loads(PUBLISHED.read_text()))
    found = place_layers(instance, time_limit_s=60.0)
    assert found.tokens_per_s == pytest.approx(286.58741, rel=1e-7)
    assert found.bound <= found.tokens_per_s * 1.001
    assert sum(end - first for first, end in found.placement.values()) >= 60


def document(**changes: Any) -> dict[str, Any]:
    return {
        "layers": 2,
        "machine_types": {"a": {"1": 10.0}},
        "machines": ["a", "a"],
        "links": [[0, 1, 8.0]],
        "source_links": {"0": 100.0},
        "sink_links": {"1": 100.0},
        "status": "made here",
        **changes,
    }


def call(path: Path, content: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    monkeypatch.setattr("sys.argv", ["x", str(path), "--time-limit", "0.2"])
    run(benchmark.main)


def test_the_benchmark_prints_one_line_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(tmp_path / "a.json", document(), monkeypatch)
    line = json.loads(capsys.readouterr().out)
    assert line["placement"] == {"0": [0, 1], "1": [1, 2]}
    assert (line["objective"], line["bound"]) == (8.0, pytest.approx(8.0))
    assert line["gap"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("[1", 2, "a.json:1: is not JSON"),
        (document(layer=3), 2, "layer: unknown key; did you mean 'layers'"),
        (document(layers=0), 2, "layers: must be a whole number of at least 1"),
        (document(machines=[]), 2, "there are no machines"),
        (document(machines=["a", "z"]), 2, "unknown machine type 'z'"),
        (document(machine_types={"a": {"one": 3}}), 2, "machine_types.a: 'one' is no whole number"),
        (document(machine_types={"a": {"0": 3, "1": 3}}), 2, "machine_types: a machine holds at least 1 layer"),
        (document(machine_types={"a": {}}), 3, "all machines together hold 0 layers of 2"),
        (document(machine_types={"a": {"1": 0.0}}), 3, "all machines together hold 0 layers of 2"),
        (document(links=[[0, 1]]), 2, r"links\[0\]: must be \[machine, machine, tokens/s\]"),
        (document(links=[[0, 1, 3], [0, 1, 4]]), 2, r"links\[1\]: joins"),
        (document(links=[[0, 5, 3]]), 2, "machine 5 does not exist; there are 2"),
        (document(links=[]), 3, "no machine lies on a path of links from source to sink"),
        (document(layers=3), 3, "all machines together hold 2 layers of 3"),
        (document(links=[[0, 1, 0.0]]), 3, "no placement carries anything: links without capacity"),
    ],
)
def test_bad_files_end_with_one_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: Any,
    code: int,
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(tmp_path / "a.json", content, monkeypatch)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (code, "")
    assert re.search(message, told.err)


def test_what_is_no_instance_or_placement_is_refused() -> None:
    with pytest.raises(NoPlanError, match="hold 2 layers of 3"):
        cluster(("a", "a"), {"a": {1: 1.0}}, 3)
    with pytest.raises(InputError, match="unknown machine type"):
        cluster(("b",), {"a": {1: 1.0}}, 1)
    with pytest.raises(ValueError, match="machine 0 cannot hold layers 0 to 2"):
        max_flow(cluster(("a", "a"), {"a": {1: 1.0}}, 2), {0: (0, 2)})


def test_machines_that_nothing_reaches_are_left_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine 2 has no links but one to itself."""
    call(tmp_path / "a.json", document(machines=["a"] * 3, links=[[0, 1, 8.0], [2, 2, 5.0]]), monkeypatch)
    line = json.loads(capsys.readouterr().out)
    assert line["objective"] == pytest.approx(8.0)
    assert line["bound"] == pytest.approx(8.0)
    with pytest.raises(NoPlanError, match="hold 2 layers of 3, without 1 on no path"):
        benchmark.parse(document(layers=3, machines=["a"] * 3))
