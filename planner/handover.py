"""How KV caches go from a prefill group to a decode group: one law for plans in the making and for plans as documents.

There is one link from each prefill group to its decode group. It carries what the ports of all devices of a side carry
together (of the side that carries less), so that load finds the right limit. One transfer alone uses the ports of one
replica only: the time that it takes longer for that, at the mean prompt, is a latency of the link. Links do not slow
each other, nor collectives that share their ports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from planner.cost.step_times import StepTimes
from planner.cost.transfer import KVShards, Reach, device_link, kv_shards, kv_transfer_s
from planner.network.reach import port_between
from planner.simulate import FleetGroup, Handoff, Link, ReplicaModel
from specs.architecture import Architecture
from specs.deployment import HardwareSpec, PoolSpec
from specs.document import DType
from specs.plan import DeviceSlot, Layout
from specs.profile import DeviceFacts

REACHES: dict[Reach, str] = {
    "domain": "the link between the devices",
    "node": "PCIe inside the node",
    "network": "the network",
}


@dataclass(frozen=True)
class Side:
    """One of the two groups. `device`: as it stands in its pool."""

    pool: str
    device: DeviceFacts
    layout: Layout
    replicas: int


@dataclass(frozen=True)
class Handover:
    """`bytes_per_token` of a request cross `link`; a mean prompt alone takes `alone_s`."""

    reach: Reach
    link: Link
    bytes_per_token: float
    alone_s: float


def handover(
    architecture: Architecture, kv_dtype: DType, tokens: int, sender: Side, receiver: Side, reach: Reach
) -> Handover:
    """The link between two groups (see the head of this file), for prompts of `tokens` tokens in the mean.

    KV caches are weighed at that prompt: exact where all layers keep every token, a mean where some keep a window or a
    state. Raises `InputError` where the devices have no link of this reach.
    """
    paths = (device_link(sender.device, reach), device_link(receiver.device, reach))
    slower = min(paths, key=lambda path: path.reached_bytes_per_s)
    path = replace(slower, latency_s=max(path.latency_s for path in paths))
    together = min(
        path.reached_bytes_per_s * side.layout.gpus * side.replicas
        for path, side in zip(paths, (sender, receiver), strict=True)
    )
    kv_bytes = _kv_bytes(architecture, kv_dtype, receiver.layout, tokens)
    shards: KVShards = kv_shards(architecture, tokens, kv_dtype, sender.layout, receiver.layout)
    latency_s = max(path.latency_s, kv_transfer_s(shards, path) - kv_bytes / together)
    link = Link(bytes_per_s=together, latency_s=latency_s)
    return Handover(reach, link, kv_bytes / tokens, kv_bytes / together + latency_s)


def _kv_bytes(architecture: Architecture, kv_dtype: DType, receiver: Layout, tokens: int) -> float:
    """Bytes of a request that cross the link: every tensor-parallel rank of the receiver takes a shard of its own."""
    ranks = receiver.tensor_parallel
    return ranks * architecture.sequence_bytes(tokens, kv_dtype, ranks)


def reach_between(sender: Side, receiver: Side, slots: Iterable[DeviceSlot]) -> Reach:
    """How groups that take these devices reach each other: through the network unless all of it lies on one node."""
    slots = tuple(slots)
    if sender.pool != receiver.pool or len({slot.node for slot in slots}) != 1:
        return "network"
    return "domain" if len({slot.device // sender.device.fast_domain for slot in slots}) == 1 else "node"


def towards(device: DeviceFacts, hardware: HardwareSpec, pool: PoolSpec, other: PoolSpec) -> DeviceFacts:
    """A device of `pool` as it reaches devices of `other`; as within its own pool where nothing else is declared."""
    rate, latency = port_between(hardware, pool, other)
    declared = {"nic_bytes_per_s": rate, "network_latency_s": latency}
    return device.model_copy(update={name: value for name, value in declared.items() if value is not None})


def beyond_prefill_s(receiver: StepTimes, tokens: int, alone_s: float) -> float:
    """Seconds from the end of a prefill until the client has the first token, when nothing else is under way.

    Engines pass it on from the decode side (vLLM samples it there, SGLang sends it with the cache): the second
    frontend, the transfer, a step.
    """
    context = tokens + 1
    window = context if receiver.window_tokens is None else min(context, receiver.window_tokens)
    return receiver.request_s + alone_s + receiver.step_s(1, 1, 1, 1, context, window, ())


def waiting(model: ReplicaModel, seconds: float) -> ReplicaModel:
    """With so much more that a request takes before it may be scheduled."""
    return replace(model, times=replace(model.times, request_s=model.times.request_s + seconds))


def prefilling(group: FleetGroup, handoff: Handoff, beyond_s: float) -> FleetGroup:
    """As a prefill group. What comes between a prefill and the client's first token is charged before the prefill: the
    simulator has first tokens when prefills end. The transfer alone is so counted in TTFT, and again in TPOT."""
    return replace(group, role="prefill", handoff=handoff, model=waiting(group.model, beyond_s))


def decoding(group: FleetGroup) -> FleetGroup:
    """As a decode group: what a request costs its frontend once is charged before its first token."""
    return replace(group, role="decode", model=waiting(group.model, -group.model.times.request_s))
