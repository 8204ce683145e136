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
from planner.optimize import expert_placement_pairs as pairs
from planner.optimize.expert_placement import ExpertLoads, device_loads, place_experts
from planner.optimize.expert_placement_bound import apportion, no_placement, plain_bound
from planner.optimize.expert_placement_pairs import close_pairs, no_pairing, pair_programme
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
    for counts in itertools.product(range(1, replicas + 1), repeat=len(loads)):
        if sum(counts) == replicas:
            sizes = [load / count for load, count in zip(loads, counts, strict=True) for _ in range(count)]
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


@pytest.mark.parametrize(("experts", "replicas", "devices"), [(4, 6, 3), (3, 6, 2), (5, 6, 6), (4, 8, 2), (5, 6, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_small_instances_lie_between_bound_and_brute_force(
    experts: int, replicas: int, devices: int, seed: int
) -> None:
    loads = draw_loads("zipf" if seed % 2 else "lognormal", 1, experts, seed)
    found = place_experts(ExpertLoads(loads, replicas, 1, 1, devices))
    optimum = brute_force(loads[0].tolist(), replicas, devices)
    assert found.bound[0] <= optimum * (1 + 1e-9)
    assert optimum * (1 - 1e-9) <= found.max_load[0] <= optimum * 1.12


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


def test_the_bound_with_nodes_is_below_every_parting_of_groups() -> None:
    loads = draw_loads("lognormal", 1, 8, 11)
    found = place_experts(ExpertLoads(loads, 12, 4, 2, 4))  # three slots a device
    optimum = math.inf
    for mine in itertools.combinations(range(4), 2):
        halves = (
            [loads[0, 2 * g + i] for g in range(4) if (g in mine) == side for i in (0, 1)] for side in (True, False)
        )
        optimum = min(optimum, max(brute_force(half, 6, 2) for half in halves))
    assert found.bound[0] <= optimum * (1 + 1e-9) <= found.max_load[0] * (1 + 2e-9)


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


@pytest.mark.parametrize("seed", range(6))
def test_two_slots_a_device_are_solved_exactly_where_choices_are_few(seed: int) -> None:
    loads = draw_loads("zipf" if seed % 2 else "lognormal", 2, 5, seed)
    found = place_experts(ExpertLoads(loads, 8, 1, 1, 4))
    assert found.max_load == pytest.approx([brute_force(row.tolist(), 8, 4) for row in loads])
    assert found.bound == pytest.approx(found.max_load, rel=2e-3)


@pytest.mark.parametrize("seed", range(8))
def test_prices_of_pairs_never_refute_what_exists(seed: int) -> None:
    """Whatever the limit and the layer that the prices were made for."""
    loads = draw_loads("zipf" if seed % 2 else "lognormal", 2, 5, seed)
    optima = np.array([brute_force(row.tolist(), 8, 4) for row in loads])
    for aim in (0.8, 0.97, 1.1):
        _, prices = pair_programme(loads[0] / (optima[0] * aim), 8)
        assert not no_pairing(loads, optima * (1 + 1e-9), 8, prices).any()
    size = np.array([0.2, 0.5, 0.6, 0.8, 1.0])
    companion = np.minimum(1 - size, 1.0)
    assert (prices.of(size) + prices.of(companion) <= 1e-9).all()


def test_prices_of_pairs_sharpen_the_bound_of_skewed_layers() -> None:
    loads = draw_loads("zipf", 2, 256, 1)
    found = place_experts(ExpertLoads(loads, 288, 8, 18, 144))
    assert (found.max_load <= 1.01 * found.bound).all()
    plain = plain_bound(loads, 288, 144)
    assert (found.bound > 1.5 * plain).all()


@pytest.mark.parametrize("seed", [2, 15])
def test_programmes_over_pairings_find_better_replicas_and_bounds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads without large experts, two slots a device: without programmes search and bound are 7 % apart."""
    loads = np.random.default_rng(seed).integers(0, 200, (1, 256)).astype(float)
    instance = ExpertLoads(loads, 320, 1, 1, 160)
    found = place_experts(instance)
    assert found.max_load[0] <= 1.01 * found.bound[0]
    monkeypatch.setattr(pairs, "MOST_PROGRAMMES", 0)
    without = place_experts(instance)
    assert without.max_load[0] > 1.02 * found.max_load[0]
    assert without.bound[0] < found.bound[0]


def test_a_programme_for_too_low_a_limit_gives_no_numbers_of_replicas() -> None:
    counts, _ = pair_programme(np.full(4, 1.5), 6)  # eight replicas are needed
    assert counts is None
    counts, _ = pair_programme(np.array([1.0, 0.4, 0.4, 0.2]), 6)
    assert counts is not None
    assert counts.sum() == 6


def test_closing_gaps_never_raises_a_load_or_lowers_a_bound() -> None:
    loads = draw_loads("lognormal", 3, 24, 2)
    value, bound = np.full(3, loads.sum(axis=1).max()), plain_bound(loads, 32, 16)
    better, raised = close_pairs(loads, value, bound, 32)
    assert (raised >= bound).all()
    assert better
    assert all(counts.sum() == 32 and counts.min() >= 1 for counts in better.values())


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
