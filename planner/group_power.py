"""Mean watts of a replica group that serves simulated requests; one rule for plans and for `capstan simulate`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.cost.latency import latency_of
from planner.cost.operations import operations
from planner.cost.serving_power import Served, serving_power_w
from planner.cost.unlike_stages import StageDevice, parts, stage_operations
from planner.simulate import FleetResult, Workload
from specs.architecture import Architecture
from specs.document import DType
from specs.plan import Layout, Speculation
from specs.profile import DeviceFacts, DeviceProfile, PowerProfile


def group_power_w(
    result: FleetResult,
    workload: Workload,
    group: int,
    architecture: Architecture,
    layout: Layout,
    weights_dtype: DType,
    kv_dtype: DType,
    device: DeviceFacts,
    profile: DeviceProfile,
    power: PowerProfile,
    power_cap_w: float | None = None,
    speculation: Speculation | None = None,
    stages: Sequence[tuple[StageDevice, PowerProfile]] = (),
) -> float:
    """Watts of all devices of replica group `group` together, a mean over the arrival window. `device`: in its pool.

    `stages`: what each pipeline stage stands on, where that differs; `device` and what follows are then not used.
    """
    load = result.groups[group]
    replicas = len(load.busy_s)
    horizon_s = workload.horizon_s * replicas  # of all replicas, one after the other
    computed, outputs, contexts = _served(result, workload, group)
    busy_s, more = min(sum(load.busy_s), horizon_s), decoded_per_token(speculation)
    served = Served(computed, outputs, load.steps, busy_s, horizon_s, contexts, more)
    if stages:
        watts = sum(
            serving_power_w(
                stage_operations(architecture, layout, weights_dtype, kv_dtype, stage, part),
                1,
                architecture.window_tokens,
                served,
                stage.device,
                its_power,
                None if stage.cap is None else stage.cap.watts,
            )
            for part, (stage, its_power) in zip(parts(layout), stages, strict=True)
        )
        return watts * layout.tensor_parallel * layout.attention_data_parallel * replicas
    every = operations(architecture, layout, weights_dtype, kv_dtype, device, profile, latency_of(device, profile))
    watts = serving_power_w(
        every, layout.pipeline_parallel, architecture.window_tokens, served, device, power, power_cap_w
    )
    return watts * layout.gpus * replicas


def decoded_per_token(speculation: Speculation | None) -> float:
    """Tokens that decodes compute for one that they yield: (1 + k) / (1 + a + ... + a^k) with k drafts."""
    if speculation is None:
        return 1.0
    drafts, accepted = speculation.draft_tokens, speculation.acceptance
    return (1 + drafts) / sum(accepted**length for length in range(drafts + 1))


def _served(
    result: FleetResult, workload: Workload, group: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """By request that a group had: prompt tokens computed, output tokens, tokens of context.

    Of a request that was handed over, the prefill side computes the prompt and samples one token; the decode side
    computes no prompt, and decodes all tokens but the first.
    """
    mask = result.had(group)
    contexts, outputs = workload.prompt_tokens[mask], workload.output_tokens[mask]
    computed = contexts if result.cached_tokens is None else contexts - result.cached_tokens[mask]
    if result.decode_group_index is None:
        return computed, outputs, contexts
    decoded = result.decode_group_index[mask]
    computed = np.where(decoded == group, 0, computed)
    outputs = np.where((decoded >= 0) & (decoded != group), 1, outputs)
    return computed, outputs, contexts
