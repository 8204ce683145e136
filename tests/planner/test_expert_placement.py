"""Expert placements against brute force on small instances, laws on large ones, and the benchmark's file format."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import expert_placement as benchmark
from benchmarks.published import run
from planner.optimize.expert_placement import few, place
from planner.optimize.expert_placement.bound import apportion, no_placement, plain_bound
from planner.optimize.expert_placement.instance import ExpertLoads, device_loads
from planner.optimize.expert_placement.place import place_experts
from planner.optimize.expert_placement.prices import STEPS, fullest, price_steps, unaffordable
from specs.errors import InputError, NoPlanError


def best_packing(sizes: list[float], devices: int) -> float:
    """The least maximum over all ways to put equally many of the sizes on each device."""
    if devices == 1:
        return sum(sizes)
    slots = len(sizes) // devices
    best = math.inf
    for others in itertools.combinations(range(1, len(sizes)), slots - 1):
        chosen = {0, *others}
        rest = [size for index, size in enumerate(sizes) if index not in chosen]
        best = min(best, max(sum(sizes[index] for index in chosen), best_packing(rest, devices - 1)))
    return best


def brute_force(loads: list[float], replicas: int, devices: int) -> float:
    """The optimum over all numbers of replicas and all packings."""
    best = math.inf
    for cuts in itertools.combinations(range(1, replicas), len(loads) - 1):
        counts = [end - start for start, end in itertools.pairwise((0, *cuts, replicas))]
        sizes = [load / count for load, count in zip(loads, counts, strict=True) for _ in range(count)]
        if max(sizes) < best:
            best = min(best, best_packing(sizes, devices))
    return best


def greedy(loads: np.ndarray, replicas: int, devices: int) -> float:
    """Replicas to the largest, then largest first to the least loaded device with a free slot."""
    counts = np.ones(len(loads))
    for _ in range(replicas - len(loads)):
        counts[np.argmax(loads / counts)] += 1
    carried, used = np.zeros(devices), np.zeros(devices)
    for size in sorted(np.repeat(loads / counts, counts.astype(int)), reverse=True):
        device = np.argmin(np.where(used < replicas // devices, carried, np.inf))
        carried[device] += size
        used[device] += 1
    return float(carried.max())


def draw_loads(kind: str, layers: int, experts: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    if kind == "zipf":
        return np.stack([draw.permutation(1e5 / np.arange(1, experts + 1)) for _ in range(layers)])
    return draw.lognormal(5, 1.2, (layers, experts)).round(1)


@pytest.mark.parametrize(
    ("experts", "replicas", "devices"),
    [(4, 6, 3), (3, 6, 2), (5, 6, 6), (4, 8, 2), (5, 6, 2), (5, 8, 4), (8, 10, 5), (6, 9, 3)],
)
@pytest.mark.parametrize("seed", range(4))
def test_few_experts_are_placed_as_brute_force_would(experts: int, replicas: int, devices: int, seed: int) -> None:
    loads = draw_loads("zipf" if seed % 2 else "lognormal", 1, experts, seed)
    found = place_experts(ExpertLoads(loads, replicas, 1, 1, devices))
    assert found.max_load[0] == pytest.approx(brute_force(loads[0].tolist(), replicas, devices))
    assert found.bound[0] == pytest.approx(found.max_load[0])


@pytest.mark.parametrize(("experts", "replicas", "devices"), [(8, 12, 4), (8, 16, 8), (12, 16, 4)])
def test_eight_and_twelve_experts_are_proven_optimal(experts: int, replicas: int, devices: int) -> None:
    loads = draw_loads("lognormal", 3, experts, 8)
    found = place_experts(ExpertLoads(loads, replicas, 1, 1, devices))
    assert found.bound == pytest.approx(found.max_load)


@pytest.mark.parametrize("seed", range(3))
def test_little_work_leaves_a_true_bound(seed: int) -> None:
    """A search that ran out of work has proved nothing more than it knew, and its placement counts."""
    loads = draw_loads("lognormal", 1, 6, seed)
    optimum = brute_force(loads[0].tolist(), 9, 3)
    for work in (0, 50, 500):
        found = place_experts(ExpertLoads(loads, 9, 1, 1, 3), searched=work)
        assert found.bound[0] <= optimum * (1 + 1e-9)
        assert found.max_load[0] >= optimum * (1 - 1e-9)


def test_many_choices_are_searched_near_the_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = draw_loads("lognormal", 1, 8, 3)
    before = place_experts(ExpertLoads(loads, 12, 1, 1, 4))
    monkeypatch.setattr(few, "MOST_WAYS", 0)
    found = place_experts(ExpertLoads(loads, 12, 1, 1, 4))
    assert before.max_load[0] * (1 - 1e-9) <= found.max_load[0] <= before.max_load[0] * 1.02
    assert found.bound[0] <= before.max_load[0] * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_what_some_device_must_carry_is_no_more_than_the_best_packing(seed: int) -> None:
    sizes = np.sort(np.random.default_rng(seed).lognormal(0, 1, 9))[::-1]
    assert few.crowded(sizes[None], 3)[0] <= best_packing(sizes.tolist(), 3) * (1 + 1e-9)


def test_equal_layers_in_another_order_are_placed_alike() -> None:
    loads = draw_loads("zipf", 4, 48, 6)
    found = place_experts(ExpertLoads(loads, 64, 1, 1, 32))
    assert len(set(found.max_load.tolist())) == len(set(found.bound.tolist())) == 1


def test_one_slot_a_device_is_solved_exactly() -> None:
    loads = draw_loads("lognormal", 5, 40, 1)
    found = place_experts(ExpertLoads(loads, 60, 1, 1, 60))
    assert found.max_load == pytest.approx(found.bound)
    for limit, row in zip(found.max_load, loads, strict=True):
        assert np.ceil(row / (limit * (1 - 1e-9))).sum() > 60  # a lower limit needs more replicas than there are


@pytest.mark.parametrize("kind", ["zipf", "lognormal"])
@pytest.mark.parametrize(("replicas", "devices"), [(72, 36), (72, 24), (72, 8)])
def test_no_layer_is_above_greedy_balancing(kind: str, replicas: int, devices: int) -> None:
    loads = draw_loads(kind, 6, 64, 3)
    found = place_experts(ExpertLoads(loads, replicas, 1, 1, devices))
    for row, value in zip(loads, found.max_load, strict=True):
        assert value <= greedy(row, replicas, devices) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_no_layer_is_above_greedy_balancing_within_nodes(seed: int) -> None:
    """Groups to nodes largest first, then each node greedily: what the placement starts from."""
    loads = draw_loads("zipf" if seed % 2 else "lognormal", 3, 32, seed)
    found = place_experts(ExpertLoads(loads, 48, 8, 4, 16))
    for row, value in zip(loads, found.max_load, strict=True):
        nodes: list[list[int]] = [[] for _ in range(4)]
        totals = row.reshape(8, 4).sum(axis=1)
        for group in np.argsort(-totals, kind="stable"):
            free = [node for node in range(4) if len(nodes[node]) < 2]
            nodes[min(free, key=lambda node: sum(totals[g] for g in nodes[node]))].append(int(group))
        greedy_max = max(greedy(row.reshape(8, 4)[groups].ravel(), 12, 4) for groups in nodes)
        assert value <= greedy_max * (1 + 1e-12)


def test_a_balance_that_is_attainable_is_attained() -> None:
    loads = draw_loads("lognormal", 8, 128, 5)
    found = place_experts(ExpertLoads(loads, 144, 1, 1, 16))
    assert (found.max_load <= 1.02 * loads.sum(axis=1) / 16).all()


def test_groups_stay_within_nodes() -> None:
    instance = ExpertLoads(draw_loads("lognormal", 3, 32, 7), 48, 8, 4, 16)
    found = place_experts(instance)
    for layer in found.experts:
        homes: dict[int, set[int]] = {}
        for device, experts in enumerate(layer):
            for expert in experts:
                homes.setdefault(int(expert) // 4, set()).add(device // 4)
        assert all(len(nodes) == 1 for nodes in homes.values())
    assert (found.bound <= found.max_load).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("replicas", "devices"), [(12, 4), (12, 6)])
def test_few_experts_in_nodes_are_placed_as_the_best_parting_of_groups(seed: int, replicas: int, devices: int) -> None:
    loads = draw_loads("zipf" if seed % 2 else "lognormal", 1, 8, seed)
    found = place_experts(ExpertLoads(loads, replicas, 4, 2, devices))
    optimum = math.inf
    for mine in itertools.combinations(range(4), 2):
        halves = (
            [loads[0, 2 * g + i] for g in range(4) if (g in mine) == side for i in (0, 1)] for side in (True, False)
        )
        optimum = min(optimum, max(brute_force(half, replicas // 2, devices // 2) for half in halves))
    assert found.max_load[0] == pytest.approx(optimum)
    assert found.bound[0] == pytest.approx(optimum)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_refuted_has_no_placement(seed: int) -> None:
    loads = draw_loads("zipf" if seed % 2 else "lognormal", 1, 4, seed)
    replicas, devices = ((6, 3), (6, 2), (8, 4))[seed % 3]
    optimum = brute_force(loads[0].tolist(), replicas, devices)
    assert not no_placement(loads, np.array([optimum * (1 + 1e-9)]), replicas, devices)[0]
    assert no_placement(loads, np.array([optimum * 0.5]), replicas, devices)[0]


def test_loads_are_counted_from_the_placement() -> None:
    carried = device_loads(np.array([[6.0, 2.0]]), np.array([[[0, 0], [0, 1]]]))
    assert carried.tolist() == [[4.0, 4.0]]
    with pytest.raises(ValueError, match="every expert"):
        device_loads(np.array([[6.0, 2.0]]), np.array([[[0, 0]]]))


@pytest.mark.parametrize(("experts", "replicas", "devices"), [(5, 8, 4), (5, 9, 3), (5, 8, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_prices_never_refute_what_exists(experts: int, replicas: int, devices: int, seed: int) -> None:
    """Whatever the limit and the layer that the prices were made for."""
    loads = draw_loads("zipf" if seed % 2 else "lognormal", 2, experts, seed)
    optima = np.array([brute_force(row.tolist(), replicas, devices) for row in loads])
    for aim in (0.8, 0.97, 1.1):
        for steps in (6, 25):
            priced = price_steps(loads[0] / (optima[0] * aim), replicas, replicas // devices, steps)
            assert priced is not None
            assert not unaffordable(loads, optima * (1 + 1e-9), replicas, priced.prices).any()


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_prices_of_a_device_sum_to_nothing_at_most(slots: int) -> None:
    """Over every choice of replicas that fit into the limit together."""
    sizes = draw_loads("lognormal", 1, 40, slots)[0]
    priced = price_steps(sizes / (0.8 * sizes.sum() / (48 / slots)), 48, slots, STEPS[slots][0])  # too low a limit
    assert priced is not None
    starts, prices = priced.prices.starts, priced.prices.prices
    for choice in itertools.combinations_with_replacement(range(len(starts)), slots):
        if starts[list(choice)].sum() <= 1:
            assert prices[list(choice)].sum() <= 1e-9
    assert prices.max() > 0 > prices.min()


def test_the_fullest_choices_of_steps() -> None:
    assert fullest(np.array([0.0, 0.3, 0.5, 0.7]), 2).tolist() == [[0, 3], [1, 3], [2, 2]]


def test_prices_sharpen_the_bound_of_skewed_layers() -> None:
    loads = draw_loads("zipf", 2, 256, 1)
    found = place_experts(ExpertLoads(loads, 288, 8, 18, 144))
    assert (found.max_load <= 1.01 * found.bound).all()
    plain = plain_bound(loads, 288, 144)
    assert (found.bound > 1.5 * plain).all()


def test_even_lognormal_loads_in_two_slots_come_within_two_percent_of_the_bound() -> None:
    loads = np.random.default_rng(4).lognormal(5, 0.5, (3, 256))
    found = place_experts(ExpertLoads(loads, 288, 1, 1, 144))
    assert (found.max_load <= 1.02 * found.bound).all()


def test_zipf_loads_in_three_slots_come_within_two_percent_of_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of replicas come from the programme: without it the search ends above."""
    instance = ExpertLoads(draw_loads("zipf", 2, 256, 2), 432, 1, 1, 144)
    found = place_experts(instance)
    assert (found.max_load <= 1.02 * found.bound).all()
    monkeypatch.setattr(place, "MOST_ROWS", 0)
    assert (place_experts(instance).max_load > 1.008 * found.max_load).all()


@pytest.mark.parametrize("seed", [2, 15])
def test_programmes_find_better_replicas_and_bounds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads without large experts, two slots a device: without programmes search and bound are 7 % apart."""
    loads = np.random.default_rng(seed).integers(0, 200, (1, 256)).astype(float)
    instance = ExpertLoads(loads, 320, 1, 1, 160)
    found = place_experts(instance)
    assert found.max_load[0] <= 1.012 * found.bound[0]
    monkeypatch.setattr(place, "MOST_ROWS", 0)
    without = place_experts(instance)
    assert without.max_load[0] > 1.02 * found.max_load[0]
    assert without.bound[0] < found.bound[0]


def test_a_programme_for_too_low_a_limit_gives_no_numbers_of_replicas() -> None:
    priced = price_steps(np.full(4, 1.5), 6, 2, 20)  # eight replicas are needed
    assert priced is not None
    assert priced.counts is None
    priced = price_steps(np.array([1.0, 0.4, 0.4, 0.2]), 6, 2, 20)
    assert priced is not None
    assert priced.counts is not None
    assert priced.counts.sum() == 6


def test_without_a_solver_the_search_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = ExpertLoads(draw_loads("lognormal", 1, 48, 3), 64, 1, 1, 32)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = place_experts(instance)
    assert found.bound[0] <= found.max_load[0]


def test_a_hot_expert_without_spare_slots_is_placed() -> None:
    """As many slots as experts: no replica can move."""
    loads = np.ones((48, 128))
    loads[:, 5] = 40.0
    found = place_experts(ExpertLoads(loads, 128, 1, 1, 8))
    assert found.max_load == pytest.approx(np.full(48, 55.0))  # 40 and fifteen others
    assert (found.bound <= found.max_load).all()


@pytest.mark.parametrize("seed", range(40))
def test_any_shape_is_placed(seed: int) -> None:
    """Few experts, one slot, no spare slots, equal or no loads, groups that do and do not divide among nodes."""
    draw = np.random.default_rng(seed)
    experts, devices = int(draw.choice([1, 2, 3, 4, 8, 16])), int(draw.choice([1, 2, 4, 8]))
    nodes = int(draw.choice([k for k in (1, 2, 4) if devices % k == 0]))
    groups = int(draw.choice([k for k in (1, 2, 4, 8) if experts % k == 0]))
    slots = -(-experts // devices) + int(draw.choice([0, 0, 1, 2]))
    kinds = (draw.lognormal(0, 1, (2, experts)), draw.integers(0, 3, (2, experts)), np.full((2, experts), seed % 2))
    loads = kinds[seed % 3].astype(float)
    found = place_experts(ExpertLoads(loads, slots * devices, groups, nodes, devices))
    assert found.max_load == pytest.approx(device_loads(loads, found.experts).max(axis=1))
    assert (found.bound <= found.max_load * (1 + 1e-9)).all()


def test_apportionment_gives_replicas_to_the_largest_share() -> None:
    assert apportion(np.array([[9.0, 4.0, 1.0]]), 6).tolist() == [[3, 2, 1]]


def test_experts_without_any_load_are_placed() -> None:
    found = place_experts(ExpertLoads(np.zeros((2, 4)), 6, 1, 1, 3))
    assert found.max_load.tolist() == found.bound.tolist() == [0.0, 0.0]


def test_the_same_input_gives_the_same_placement() -> None:
    instance = ExpertLoads(draw_loads("zipf", 3, 32, 2), 48, 1, 1, 16)
    assert (place_experts(instance).experts == place_experts(instance).experts).all()


def test_inputs_that_are_none_are_refused() -> None:
    loads = np.ones((1, 8))
    with pytest.raises(InputError, match="do not divide among 3 devices"):
        ExpertLoads(loads, 8, 1, 1, 3)
    with pytest.raises(InputError, match="not negative"):
        ExpertLoads(-loads, 8, 1, 1, 4)
    with pytest.raises(NoPlanError, match="8 experts need at least as many replicas") as error:
        ExpertLoads(loads, 4, 1, 1, 4)
    assert error.value.mends == ("allow 8 replicas",)


def write(path: Path, **changes: object) -> Path:
    case = {"name": "a", "weight": [[4, 2, 2]], "num_replicas": 4, "num_groups": 1, "num_nodes": 1, "num_gpus": 2}
    path.write_text(json.dumps({"source": "made here", "cases": [{**case, **changes}]}))
    return path


def test_the_benchmark_prints_one_line_a_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["x", str(write(tmp_path / "a.json"))])
    benchmark.main()
    line = json.loads(capsys.readouterr().out)
    assert line["max_gpu_load"] == line["bound"] == line["mean_gpu_load"] == [4.0]
    assert sorted(line["phy2log"][0]) == [0, 0, 1, 2]
    assert {"seconds", "cpu_seconds"} <= line.keys()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"num_gpu": 2}, 2, r"a.json: cases\[0\].num_gpu: unknown key; did you mean 'num_gpus'"),
        ({"weight": [[1, 2], [3]]}, 2, "rows of equal length"),
        ({"weight": [[1, 2, "x"]]}, 2, r"weight\[0\]\[2\]: must be a finite number"),
        ({"num_gpus": 0}, 2, "num_gpus: must be a whole number of at least 1"),
        ({"num_replicas": 2}, 3, "3 experts need at least as many replicas"),
    ],
)
def test_bad_files_end_with_one_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["x", str(write(tmp_path / "a.json", **changes))])
    with pytest.raises(SystemExit) as ended:
        run(benchmark.main)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (code, "")
    assert re.search(message, told.err)
