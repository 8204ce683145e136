"""Measuring a GPU without one: the design of the points, the budget, the torch calls on the CPU, tables and clocks."""

# ruff: noqa: E402 - what is imported needs packages that may be absent; then the file is skipped
from __future__ import annotations

import csv
import io
import subprocess
from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from made_gpu import MadeTimer, made_gpu, naming_its_point

from planner.operators import read_columns
from runtime import calibrate_gpu
from runtime.calibrate_gpu import Seen, call_of, csv_text, kernel_tables, measure_gpu
from runtime.calibrate_gpu_points import MOST_FLOPS, SHARES, Point, designed_points
from runtime.calibrate_gpu_timer import Clocks, read_clocks
from specs.document import DType

BF16, FP8 = DType.BF16, DType.FP8
HEADS = {"heads": 4, "kv_heads": 2, "head_dim": 32}


@pytest.fixture(autouse=True)
def _named_calls(monkeypatch):
    monkeypatch.setattr(calibrate_gpu, "call_of", naming_its_point(call_of))


def test_the_design_is_the_same_every_time_and_each_point_stands_once():
    points = designed_points([BF16, FP8], BF16, 1e10)
    assert points == designed_points([BF16, FP8], BF16, 1e10)
    assert len({point.text for point in points}) == len(points)
    assert all(point.bytes <= 1e10 and point.flops <= MOST_FLOPS for point in points)


def test_any_beginning_holds_the_families_by_their_shares():
    points = [point for point in designed_points([BF16], BF16, 1e10) if point.family != "copy"]
    for count in (20, 100, 250):
        found = Counter(point.family for point in points[:count])
        for family, share in SHARES.items():
            assert found[family] == pytest.approx(share * count, abs=1)


def test_the_essential_points_come_first():
    """Launch floors and weight streaming need rows of few tokens."""
    products = [point.shape["m"] for point in designed_points([BF16], BF16, 1e10) if point.family == "gemm"]
    few = sum(tokens <= 4 for tokens in products)
    assert few >= 50
    assert all(tokens <= 4 for tokens in products[:few])
    assert designed_points([BF16], BF16, 1e10)[0].family == "copy"


@pytest.mark.parametrize(
    ("point", "flops", "moved"),
    [
        (Point("gemm", BF16, {"m": 2, "n": 3, "k": 5}), 2 * 2 * 3 * 5, 2 * (15 + 6 + 10)),
        (Point("gemm", FP8, {"m": 2, "n": 3, "k": 5}), 2 * 2 * 3 * 5, 15 + 2 * (6 + 10)),
        (Point("generation_attention", BF16, {**HEADS, "batch": 3, "keys": 7}),
         4 * 3 * 4 * 32 * 7, 2 * 3 * 7 * 2 * 32 * 2 + 2 * 2 * 3 * 4 * 32),
        (Point("context_attention", BF16, {**HEADS, "batch": 1, "tokens": 3}),
         4 * 4 * 32 * (1 + 2 + 3), 2 * 3 * 2 * 32 * 2 + 2 * 2 * 3 * 4 * 32),
        (Point("copy", DType.FP32, {"bytes": 4096}), 0, 8192),
    ],
)  # fmt: skip
def test_operations_and_bytes_by_hand(point, flops, moved):
    assert point.flops == flops
    assert point.bytes == moved


@pytest.mark.parametrize(
    ("point", "shape"),
    [
        (Point("gemm", BF16, {"m": 16, "n": 32, "k": 64}), (16, 32)),
        (Point("gemm", FP8, {"m": 16, "n": 32, "k": 64}), (16, 32)),
        (Point("generation_attention", BF16, {**HEADS, "batch": 3, "keys": 7}), (3, 4, 1, 32)),
        (Point("context_attention", BF16, {**HEADS, "batch": 2, "tokens": 5}), (2, 4, 5, 32)),
        (Point("copy", DType.FP32, {"bytes": 4096}), (1024,)),
    ],
)
def test_the_calls_compute_what_their_points_say(point, shape):
    result = call_of(point, "cpu")()
    assert tuple(result.shape) == shape
    assert result.isfinite().all()
    assert result.float().std() > 0.05  # of random operands, not of zeros


def test_everything_is_measured_in_time_enough():
    told = []
    seen, points = measure_gpu(
        made_gpu("NVIDIA L4"), "l4", MadeTimer("l4", "warm"), 1e9, lambda share, what: told.append(share)
    )
    designed = designed_points((BF16,), BF16, 0.25 * 8e6)
    assert [one.point for one in points] == designed
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(seen.kernels) == len(designed) + 2
    assert seen.notes[0] == f"{len(designed)} of {len(designed)} designed points measured"
    assert any("clocks" in note for note in seen.notes)
    assert {row.l2 for row in seen.kernels if row.family != "launch"} == {"warm"}
    assert {row.implementation: row.seconds for row in seen.kernels if row.family == "launch"} == {
        "eager": 5e-6, "graph": 2e-6
    }  # fmt: skip


def test_the_budget_ends_a_measurement():
    clock = iter(range(10_000))  # a second for every point
    seen, points = measure_gpu(
        made_gpu("NVIDIA L4"), "l4", MadeTimer("l4", "cold"), 30.0, now=lambda: float(next(clock))
    )
    assert len(points) == 30
    assert seen.notes[0].startswith("30 of ")


def test_points_that_do_not_fit_the_memory_are_left_out_and_counted(monkeypatch):
    real = calibrate_gpu.call_of

    def out_of_memory(point, device):
        if point.family == "generation_attention":
            raise torch.OutOfMemoryError
        return real(point, device)

    monkeypatch.setattr(calibrate_gpu, "call_of", out_of_memory)
    seen, points = measure_gpu(made_gpu("NVIDIA L4"), "l4", MadeTimer("l4", "cold"), 1e9)
    left_out = [point for point in designed_points((BF16,), BF16, 2e6) if point.family == "generation_attention"]
    assert "generation_attention" not in {one.point.family for one in points}
    assert f"{len(left_out)} points did not fit the free memory" in seen.notes


def test_clocks_and_versions_are_in_the_environment():
    at_work = Clocks(1.98e9, 3.2e9, 700.0, "580.1")
    seen, _ = measure_gpu(made_gpu("NVIDIA L4"), "l4", MadeTimer("l4", "cold"), 0.0, clocks=lambda: at_work)
    assert seen.environment.clock_hz == 1.98e9
    assert seen.environment.power_cap_w == 700.0
    assert seen.environment.versions["driver"] == "580.1"
    assert not any("clocks" in note for note in seen.notes)


def test_tables_are_in_the_published_schema():
    points = designed_points((BF16, FP8), BF16, 1e7)
    tables = kernel_tables(
        [Seen(point, 1e-5 * (1 + number), 5) for number, point in enumerate(points)], "NVIDIA L4", "cold"
    )
    assert set(tables) == {"gemm", "generation_attention", "context_attention"}
    for family, columns in tables.items():
        lines = list(csv.reader(io.StringIO(csv_text(columns))))
        read = read_columns({name: [line[place] for line in lines[1:]] for place, name in enumerate(lines[0])})
        assert read.family == family
        times = {round(1e5 * seconds) for seconds in read.seconds}
        assert times == {1 + number for number, point in enumerate(points) if point.family == family}
        assert set(columns["l2"]) == {"cold"}
    decode = tables["generation_attention"]
    wanted = {point.shape["keys"] for point in points if point.family == "generation_attention"}
    assert {isl + step for isl, step in zip(decode["isl"], decode["step"], strict=True)} == wanted
    assert {"gemm_dtype", "m", "n", "k"} <= set(tables["gemm"])
    assert len(set(tables["gemm"]["kernel_source"])) == 2


def answers(text: str, code: int = 0):
    return lambda *args, **kwargs: subprocess.CompletedProcess(args, code, text, "")


def test_clocks_as_the_driver_tells_them():
    assert read_clocks("0a1b", answers("1980, 3201, 700.00, 580.65.06\n")) == Clocks(
        1.98e9, 3.201e9, 700.0, "580.65.06"
    )
    assert read_clocks("0a1b", answers("1980, [N/A], [N/A], 580\n")) == Clocks(1.98e9, None, None, "580")
    assert read_clocks("0a1b", answers("No devices were found\n", 6)) == Clocks()

    def missing(*args, **kwargs):
        raise FileNotFoundError("nvidia-smi")

    assert read_clocks("0a1b", missing) == Clocks()
