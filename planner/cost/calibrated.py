"""From measurements of a machine to its `DeviceProfile`: the shares and floors of the cost model, fitted to rows.

Matrix products give the streaming curve and the reached share of the compute peak, copies the share of the memory
bandwidth, directly. The floors that nothing but a whole step shows (a launch, an attention launch, a row of attention,
a cached token, a prefill pair) come from step rows: with the rest fixed a step's time is nearly linear in them, so they
are fitted by non-negative least squares on relative errors (Lawson and Hanson 1974; here by coordinate descent), made
linear again at each solution (Gauss and Newton).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.step import step_times
from specs.architecture import Architecture
from specs.document import DType
from specs.errors import InputError
from specs.measurements import KernelRow, Measurements, StepRow
from specs.plan import Layout
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile, StreamingPoint

Floats = NDArray[np.float64]
LEAST_S = 1e-9  # floors are positive in a profile
MOST_SHARE = 1e4  # shares are positive too: where a cost does not show, this makes it vanish
LINEARISATIONS = 3  # the step time is linear in the unknowns but for a few maxima among them
RIDGE = 1e-6  # where rows cannot tell two floors apart, the smaller sum wins


@dataclass(frozen=True)
class MeasuredModel:
    """The model whose steps were measured, and how it was held."""

    architecture: Architecture
    weights_dtype: DType
    kv_dtype: DType
    engine: EngineProfile


def fit_profile(
    measurements: Measurements, device: DeviceFacts, base: DeviceProfile, model: MeasuredModel | None = None
) -> DeviceProfile:
    """`base` with everything that `measurements` show replaced; `confidence` becomes "calibrated".

    With `model`, every second step row is fitted and the others give `error_quantiles` (relative errors of a step).
    Raises `InputError` where the rows are of another device, or there are no matrix products among them.
    """
    if measurements.environment.device != device.name:
        raise InputError(
            f"rows were measured on {measurements.environment.device!r}", field="device", expected=repr(device.name)
        )
    profile = _with_kernels(base, measurements.kernels, device)
    if model is not None and measurements.steps:
        profile = _with_steps(profile, measurements.steps, device, model)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(measurements.environment.versions.items()))
    fitted = profile.model_copy(
        update={
            "confidence": "calibrated",
            "relative_of": None,
            "licence": "measured by the user",
            "provenance": f"measured on {measurements.source} ({versions}) by `capstan calibrate`: "
            f"{len(measurements.kernels)} kernel rows, {len(measurements.steps)} step rows; collectives as before",
        }
    )
    return DeviceProfile.model_validate(fitted.model_dump())


def _with_kernels(base: DeviceProfile, rows: Sequence[KernelRow], device: DeviceFacts) -> DeviceProfile:
    products = [row for row in rows if row.family == "gemm"]
    if not products:
        raise InputError("holds no matrix products", field="kernels", expected="rows of family gemm")
    floor = min(row.seconds for row in products) / 2.0  # the smallest product is mostly launch
    streams = sorted((_weight_bytes(row), row) for row in products if row.shapes["m"] == 1 and row.dtype is DType.FP32)
    points: list[StreamingPoint] = []
    for size, row in streams:
        points.append(StreamingPoint(bytes=size, bytes_per_s=size / max(row.seconds - floor, row.seconds / 10)))
    efficiency = dict(base.compute_efficiency)
    for dtype, peak in device.flops.items():
        full = [row.flops / row.seconds for row in products if row.dtype is dtype and row.shapes["m"] >= 64]
        if full:  # the better half: small matrices say more about launches than about arithmetic
            efficiency[dtype] = float(np.median(sorted(full)[len(full) // 2 :])) / peak
    measured = {row.dtype for row in products}
    for dtype in device.flops:
        if dtype not in measured and DType.FP32 in measured:
            efficiency[dtype] = efficiency[DType.FP32] * device.flops[DType.FP32] / device.flops[dtype]
    copies = [row.bytes / row.seconds for row in rows if row.family == "elementwise" and row.bytes >= 2**17]
    return base.model_copy(
        update={
            "launch_s": floor,
            "weight_streaming": tuple(points) or base.weight_streaming,
            "compute_efficiency": efficiency,
            "gemm_ramp_tokens": dict.fromkeys(base.gemm_ramp_tokens, 0.0),
            "elementwise_efficiency": float(np.median(copies)) / device.hbm_bytes_per_s
            if copies
            else base.elementwise_efficiency,
            "error_quantiles": {},
        }
    )


def _weight_bytes(row: KernelRow) -> float:
    return row.shapes["n"] * row.shapes["k"] * row.dtype.bytes


def _with_steps(
    profile: DeviceProfile, steps: Sequence[StepRow], device: DeviceFacts, model: MeasuredModel
) -> DeviceProfile:
    kv_dtype = model.kv_dtype

    def predicted(unknowns: Floats) -> Floats:
        return predict_steps(_apply(profile, unknowns, kv_dtype), steps, device, model)

    units = np.array([1e-5, 1e-5, 1e-6, 1e-5, 1.0, 1.0])  # of the size of the unknowns, so that differences are exact
    seconds = np.array([row.seconds for row in steps])
    fitted = np.arange(len(steps)) % 2 == 0
    unknowns = np.zeros(len(units))
    for _ in range(LINEARISATIONS):
        here = predicted(unknowns)
        moved = unknowns + np.diag(units)
        columns = np.stack([predicted(row) - here for row in moved], axis=1)  # per unit
        rest = here - columns @ (unknowns / units)
        # rows weigh by their own time (relative errors); units scale the unknowns for the solver
        matrix, wanted = columns / seconds[:, None], 1.0 - rest / seconds
        unknowns = nonnegative_least_squares(matrix[fitted], wanted[fitted]) * units
    held = ~fitted if (~fitted).any() else fitted
    errors = np.abs(predicted(unknowns) / seconds - 1.0)[held]
    quantiles = {"p50": float(np.quantile(errors, 0.5)), "p90": float(np.quantile(errors, 0.9))}
    return _apply(profile, unknowns, kv_dtype).model_copy(
        update={"error_quantiles": {name: round(value, 4) for name, value in quantiles.items()}}
    )


def _apply(profile: DeviceProfile, unknowns: Floats, kv_dtype: DType) -> DeviceProfile:
    """Unknowns: launch, attention launch, attention row, more per chunk (s); 1 / shares of decode and prefill."""
    launch, attention, row, chunk, decode, prefill = (float(value) for value in unknowns)
    decode_share = min(MOST_SHARE, 1.0 / decode if decode > 0 else MOST_SHARE)
    return profile.model_copy(
        update={
            "launch_s": max(LEAST_S, launch),
            "decode_attention_launch_s": max(LEAST_S, attention),
            "decode_attention_row_s": row,
            "prefill_attention_launch_s": max(LEAST_S, attention + chunk),
            "decode_attention_efficiency": {
                **dict.fromkeys(profile.decode_attention_efficiency, decode_share),
                kv_dtype: decode_share,
            },
            "prefill_attention_efficiency": min(MOST_SHARE, 1.0 / prefill if prefill > 0 else MOST_SHARE),
            "prefill_attention_ramp_tokens": 0.0,
        }
    )


def predict_steps(
    profile: DeviceProfile, steps: Sequence[StepRow], device: DeviceFacts, model: MeasuredModel
) -> Floats:
    """Seconds that the cost model gives these steps (prefills without cached context, no windows)."""
    times = step_times(
        model.architecture,
        Layout(pipeline_stages=(len(model.architecture.layers),)),
        model.weights_dtype,
        model.kv_dtype,
        device,
        profile,
        model.engine,
        max(row.sequences for row in steps),
        max(row.tokens for row in steps),
    )
    return np.array(
        [
            times.step_s(
                tokens=row.tokens,
                sampled=row.sequences,
                sequences=row.sequences,
                decodes=row.decodes,
                decode_context=row.decode_context_tokens,
                decode_window=0,
                chunks=[((row.tokens - row.decodes) // max(1, row.prefill_chunks), 0)] * row.prefill_chunks,
            )
            for row in steps
        ]
    )


def nonnegative_least_squares(matrix: Floats, wanted: Floats, sweeps: int = 2000) -> Floats:
    """x >= 0 that minimises |matrix x - wanted|^2, by coordinate descent: convex, so it ends at the optimum."""
    gram = matrix.T @ matrix
    gram[np.diag_indices_from(gram)] += RIDGE * max(1.0, float(np.trace(gram)) / len(gram))
    target = matrix.T @ wanted
    x = np.zeros(matrix.shape[1])
    for _ in range(sweeps):
        before = x.copy()
        for j in range(len(x)):
            x[j] = max(0.0, x[j] + (target[j] - gram[j] @ x) / gram[j, j])
        if np.abs(x - before).max() <= 1e-10 * max(1.0, float(x.max())):
            break
    return x
