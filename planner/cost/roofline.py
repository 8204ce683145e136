"""Seconds of single operators on one device: the larger of compute and memory time, plus a launch.

Method: the roofline model (Williams, Waterman, Patterson 2009) with four fitted corrections, each with one physical
meaning: a launch floor, a weight-streaming curve (small matrices do not reach the memory bandwidth), a reached share
of the compute peak, and a ramp (`rows` below which a matrix unit is not filled: compute time is that of rows + ramp).
Everything is vectorised over the tokens of a step.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from specs.architecture.model import SCALE_BYTES_PER_ELEMENT
from specs.document import DType
from specs.errors import InputError
from specs.profile import DeviceFacts, DeviceProfile

Floats = NDArray[np.float64]

ACTIVATION_BYTES = 2.0  # activations and residual stream are 16 bit


def weight_bytes_per_element(dtype: DType) -> float:
    """Bytes that one stored weight takes, block scales included (per-channel scales are too few to count)."""
    return dtype.bytes + SCALE_BYTES_PER_ELEMENT.get(dtype, 0.0)


def compute_dtype(weights: DType, device: DeviceFacts) -> DType:
    """The type that the matrix units of `device` compute in for weights stored as `weights`.

    Where the device has no units for the stored type, weights are dequantised on the way in (weight-only kernels
    such as Marlin): bytes of the small type, arithmetic of bf16. int4 weights are always weight-only.
    """
    if weights is DType.INT4 or weights not in device.flops:
        return DType.BF16 if DType.BF16 in device.flops else DType.FP16
    return weights


def peak_flops(dtype: DType, device: DeviceFacts) -> float:
    """Dense peak of `device` in `dtype`; `InputError` where the device does not have it."""
    if dtype not in device.flops:
        raise InputError(
            f"{device.name} does not compute in {dtype.value}",
            field="weights",
            expected=f"one of {', '.join(name.value for name in device.flops)}",
        )
    return device.flops[dtype]


@lru_cache(maxsize=64)
def _streaming_curve(points: tuple[tuple[float, float], ...]) -> tuple[Floats, Floats]:
    sizes = np.array([size for size, _ in points])
    return np.log(sizes), np.array([rate for _, rate in points])


def stream_weights_s(weight_bytes: Floats | float, profile: DeviceProfile) -> Floats:
    """Seconds to read `weight_bytes` once from memory (launch not counted): bandwidth interpolated in log(bytes)."""
    logs, rates = _streaming_curve(tuple((point.bytes, point.bytes_per_s) for point in profile.weight_streaming))
    sizes = np.asarray(weight_bytes, dtype=np.float64)
    seconds: Floats = sizes / np.interp(np.log(np.maximum(sizes, 1.0)), logs, rates)
    return seconds


def gemm_s(
    tokens: Floats,
    in_features: Floats | float,
    out_features: Floats | float,
    weights: DType,
    device: DeviceFacts,
    profile: DeviceProfile,
) -> Floats:
    """Seconds of y[tokens, out] = x[tokens, in] W[out, in]^T with weights stored as `weights`.

    8- and 4-bit arithmetic first quantises x: one more launch, 16-bit read and 8-bit write of every element.
    """
    arithmetic = compute_dtype(weights, device)
    rate = peak_flops(arithmetic, device) * profile.compute_efficiency[arithmetic]
    ramp = profile.gemm_ramp_tokens[arithmetic]
    compute = 2.0 * in_features * out_features / rate * (tokens + ramp)
    weight_bytes = in_features * out_features * weight_bytes_per_element(weights)
    activations = tokens * (in_features + out_features) * ACTIVATION_BYTES
    memory = stream_weights_s(weight_bytes, profile) + activations / device.hbm_bytes_per_s
    seconds: Floats = profile.launch_s + np.maximum(compute, memory)
    if arithmetic.bytes < 2.0:
        seconds = seconds + elementwise_s(tokens * in_features * (ACTIVATION_BYTES + 1.0), device, profile)
    return seconds


def elementwise_s(moved_bytes: Floats, device: DeviceFacts, profile: DeviceProfile) -> Floats:
    """Seconds of a kernel that only moves `moved_bytes` (reads plus writes): norms, activations, rotary, copies."""
    seconds: Floats = profile.launch_s + moved_bytes / (device.hbm_bytes_per_s * profile.elementwise_efficiency)
    return seconds
