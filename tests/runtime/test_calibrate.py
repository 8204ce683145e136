"""From measurements to a profile: known machines are found again, and impossible input is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.calibrated import MeasuredModel, fit_profile, nonnegative_least_squares, predict_steps
from runtime.tiny import TINY_LLAMA
from specs.architecture import load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.document import DType
from specs.errors import InputError
from specs.measurements import Environment, KernelRow, Measurements, StepRow

MODEL = MeasuredModel(load_architecture(TINY_LLAMA), DType.FP32, DType.FP32, load_engine("capstan"))


def product(side: int, rows: int, seconds: float, dtype: DType = DType.FP32) -> KernelRow:
    return KernelRow(
        family="gemm", implementation="torch", dtype=dtype, shapes={"m": rows, "n": side, "k": side},
        seconds=seconds, bytes=side * side * dtype.bytes, flops=2.0 * rows * side * side,
    )  # fmt: skip


def machine(gflops: float, bandwidth: float, launch: float) -> list[KernelRow]:
    """Products of a machine with one rate, one bandwidth and one launch."""
    rows = []
    for side in (64, 256, 1024, 4096):
        for m in (1, 16, 256):
            work = 2.0 * m * side * side / (gflops * 1e9)
            rows.append(product(side, m, launch + max(work, side * side * 4 / bandwidth)))
    rows.append(
        KernelRow(family="elementwise", implementation="torch", dtype=DType.FP32, shapes={"bytes": 2**24},
                  seconds=2**25 / bandwidth, bytes=2.0**25, flops=0.0)
    )  # fmt: skip
    return rows


def measured(kernels=(), steps=(), device: str = "cpu") -> Measurements:
    return Measurements(
        source="a test", environment=Environment(device=device), kernels=tuple(kernels), steps=tuple(steps)
    )


def test_hand_solved_least_squares():
    """x + y = 3, x - y = 1 has (2, 1); with x - y = 5 the free optimum is (4, -1), the one with y >= 0 is (4, 0)."""
    matrix = np.array([[1.0, 1.0], [1.0, -1.0]])
    assert nonnegative_least_squares(matrix, np.array([3.0, 1.0])) == pytest.approx([2, 1], abs=1e-4)
    assert nonnegative_least_squares(matrix, np.array([3.0, 5.0])) == pytest.approx([4, 0], abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_least_squares_meets_the_conditions_of_an_optimum(seed):
    """No gradient along what may grow, none at all along what is positive (Karush, Kuhn, Tucker)."""
    random = np.random.default_rng(seed)
    matrix, wanted = random.normal(size=(12, 4)), random.normal(size=12)
    x = nonnegative_least_squares(matrix, wanted)
    gradient = matrix.T @ (matrix @ x - wanted)
    assert (x >= 0).all()
    assert (gradient > -1e-3).all()
    assert np.abs(gradient[x > 1e-4]).max(initial=0.0) < 1e-3


def test_the_rates_of_a_simple_machine_are_found_again():
    device = load_device("cpu")
    profile = fit_profile(measured(machine(100.0, 40e9, 2e-6)), device, load_profile("cpu"))
    assert profile.compute_efficiency[DType.FP32] * device.flops[DType.FP32] == pytest.approx(100e9, rel=0.1)
    assert profile.elementwise_efficiency * device.hbm_bytes_per_s == pytest.approx(40e9)
    large = profile.weight_streaming[-1]
    assert large.bytes == 4096 * 4096 * 4
    assert large.bytes_per_s == pytest.approx(40e9, rel=0.02)
    assert profile.confidence == "calibrated"


def test_the_floors_of_a_known_profile_are_found_again_from_its_steps():
    """Steps are timed by the cost model itself under a profile; a fit that starts elsewhere predicts them again."""
    device = load_device("cpu")
    base = fit_profile(measured(machine(100.0, 40e9, 2e-6)), device, load_profile("cpu"))
    truth = base.model_copy(
        update={
            "launch_s": 7e-6,
            "decode_attention_launch_s": 3e-5,
            "decode_attention_row_s": 4e-6,
            "prefill_attention_launch_s": 8e-5,
            "decode_attention_efficiency": {DType.FP32: 0.2},
            "prefill_attention_efficiency": 0.02,
            "prefill_attention_ramp_tokens": 0.0,
        }
    )
    random = np.random.default_rng(0)
    shapes = []
    for _ in range(60):
        decodes, chunks = int(random.integers(0, 9)), int(random.integers(0, 4))
        chunks = max(chunks, 1 - decodes)
        length = int(random.integers(1, 60))
        shapes.append(
            StepRow(
                seconds=1.0,
                tokens=decodes + chunks * length,
                sequences=decodes + chunks,
                decodes=decodes,
                decode_context_tokens=decodes * int(random.integers(1, 500)),
                prefill_chunks=chunks,
                prefill_pairs=chunks * length * (length + 1) // 2,
            )
        )
    seconds = predict_steps(truth, shapes, device, MODEL)
    steps = [row.model_copy(update={"seconds": float(time)}) for row, time in zip(shapes, seconds, strict=True)]
    fitted = fit_profile(measured(machine(100.0, 40e9, 2e-6), steps), device, load_profile("cpu"), MODEL)
    assert fitted.error_quantiles["p90"] < 0.01
    assert predict_steps(fitted, shapes, device, MODEL) == pytest.approx(seconds, rel=0.02)
    assert fitted.decode_attention_efficiency[DType.FP32] == pytest.approx(0.2, rel=0.1)


def test_rows_of_another_device_or_without_products_are_refused():
    device, base = load_device("cpu"), load_profile("cpu")
    with pytest.raises(InputError, match="'l4'"):
        fit_profile(measured(machine(1.0, 1e9, 1e-6), device="l4"), device, base)
    with pytest.raises(InputError, match="holds no matrix products"):
        fit_profile(measured(), device, base)


def test_this_machines_rows_obey_arithmetic():
    """A few real rows: times are positive, and a larger product is not faster than a much smaller one."""
    pytest.importorskip("torch")
    from runtime import calibrate

    copy = calibrate._copy(2**16)
    assert copy.bytes == 2**17
    assert 1e7 < copy.bytes / copy.seconds < 1e13
    small, _ = calibrate._median(lambda: sum(range(10)), 0.005)
    large, samples = calibrate._median(lambda: sum(range(10_000)), 0.005)
    assert large > 5 * small
    assert samples >= 3
