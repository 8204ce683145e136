"""Messages between devices: all-reduce over tensor-parallel ranks, hand-over between pipeline stages."""

from __future__ import annotations

from planner.cost.roofline import Floats
from specs.errors import InputError
from specs.profile import DeviceFacts, DeviceProfile

# One message between two devices: a send and its receive, no reduction. Estimate: NCCL point-to-point inside a node
# takes 8-12 us on the machines whose all-reduce of two ranks takes 6-10 us; between nodes the network adds its own.
_POINT_TO_POINT_S = 10e-6


def all_reduce_s(message_bytes: Floats, ranks: int, device: DeviceFacts, profile: DeviceProfile) -> Floats:
    """Seconds of an all-reduce of `message_bytes` per rank: latency of `ranks` plus the ring's 2 (r - 1) / r passes.

    Raises `InputError` where `ranks` do not fit the fast domain: tensor parallelism across nodes is not modelled.
    """
    if ranks == 1:
        return message_bytes * 0.0
    if ranks > device.fast_domain:
        raise InputError(
            f"tensor parallelism over {ranks} devices leaves the fast domain of {device.fast_domain} {device.name}",
            field="tensor_parallel",
            expected=f"at most {device.fast_domain}",
        )
    known = sorted(profile.allreduce_latency_s)
    nearest = next((size for size in known if size >= ranks), known[-1])
    latency = profile.allreduce_latency_s[nearest] * max(1.0, ranks / nearest)
    bandwidth = device.link_bytes_per_s * profile.allreduce_efficiency[nearest]
    seconds: Floats = latency + message_bytes * (2.0 * (ranks - 1) / ranks / bandwidth)
    return seconds


def stage_transfer_s(message_bytes: Floats, same_node: bool, device: DeviceFacts) -> Floats:
    """Seconds to hand `message_bytes` of hidden states from one device to the next pipeline stage."""
    bandwidth = device.link_bytes_per_s if same_node else min(device.nic_bytes_per_s, device.pcie_bytes_per_s)
    latency = _POINT_TO_POINT_S + (0.0 if same_node else device.network_latency_s)
    seconds: Floats = latency + message_bytes / max(bandwidth, 1.0)
    return seconds
