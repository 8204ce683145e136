"""Mean watts of a replica group that serves simulated requests; one rule for plans and for `capstan simulate`."""

from __future__ import annotations

from planner.cost.latency import latency_of
from planner.cost.operations import operations
from planner.cost.serving_power import Served, serving_power_w
from planner.simulate import FleetResult, Workload
from specs.architecture import Architecture
from specs.document import DType
from specs.plan import Layout
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
) -> float:
    """Watts of all devices of replica group `group` together, a mean over the arrival window. `device`: in its pool."""
    load, mask = result.groups[group], result.group_index == group
    sent = workload.select(mask)
    computed = sent.prompt_tokens
    if result.cached_tokens is not None:
        computed = computed - result.cached_tokens[mask]
    replicas = len(load.busy_s)
    horizon_s = workload.horizon_s * replicas  # of all replicas, one after the other
    served = Served(computed, sent.output_tokens, load.steps, min(sum(load.busy_s), horizon_s), horizon_s)
    every = operations(architecture, layout, weights_dtype, kv_dtype, device, profile, latency_of(device, profile))
    watts = serving_power_w(every, layout.pipeline_parallel, architecture.window_tokens, served, device, power)
    return watts * layout.gpus * replicas
