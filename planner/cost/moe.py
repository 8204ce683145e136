"""Routed experts on one rank: how many distinct experts a step touches, and the grouped GEMM over them."""

from __future__ import annotations

import numpy as np

from planner.cost.roofline import ACTIVATION_BYTES, Floats, compute_dtype, peak_flops, weight_bytes_per_element
from specs.document import DType
from specs.profile import DeviceFacts, DeviceProfile


def expected_experts(tokens: Floats, experts: int, experts_per_token: int) -> Floats:
    """Expected distinct experts that `tokens` tokens reach when each draws `experts_per_token` of `experts` evenly.

    E (1 - (1 - k/E)^n): exact for independent tokens. Real routers are skewed and touch fewer; at equal load per
    expert this is the slow, hence careful, end.
    """
    share = experts_per_token / experts
    if share >= 1.0:
        return np.where(tokens > 0, float(experts), 0.0)
    touched: Floats = -experts * np.expm1(tokens * np.log1p(-share))
    return touched


def experts_s(
    tokens: Floats,
    experts: int,
    experts_per_token: int,
    hidden_size: int,
    intermediate_size: float,
    gated: bool,
    weights: DType,
    device: DeviceFacts,
    profile: DeviceProfile,
    expert_ranks: int = 1,
) -> Floats:
    """Seconds of the experts (gate where gated, up, activation, down) for `tokens` tokens on a rank that holds
    `experts / expert_ranks` of them at width `intermediate_size` each (already divided by the tensor-parallel size).

    Memory: the touched experts' weights, and the routed activations in and out. Compute: every touched expert pays
    for its rows plus the ramp of a matrix unit that its few rows do not fill.
    """
    arithmetic = compute_dtype(weights, device)
    touched = expected_experts(tokens, experts, experts_per_token) / expert_ranks
    expert_elements = (3.0 if gated else 2.0) * hidden_size * intermediate_size
    routed = tokens * experts_per_token / expert_ranks
    rate = peak_flops(arithmetic, device) * profile.moe_compute_efficiency[arithmetic]
    compute = 2.0 * expert_elements * (routed + touched * profile.gemm_ramp_tokens[arithmetic]) / rate
    activations = routed * (2.0 * hidden_size + 3.0 * intermediate_size) * ACTIVATION_BYTES
    bandwidth = device.hbm_bytes_per_s * profile.moe_memory_efficiency
    memory = (touched * expert_elements * weight_bytes_per_element(weights) + activations) / bandwidth
    seconds: Floats = profile.moe_launch_s + np.maximum(compute, memory)
    return seconds
