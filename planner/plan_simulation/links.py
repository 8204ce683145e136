"""Prefill groups that hand over to decode groups: the links between them, from what the plan embeds.

There is one link from each prefill group to its decode group. It carries what the ports of all devices of a side carry
together (of the side that carries less), so that load finds the right limit. One transfer alone uses the ports of one
replica only: the time that it takes longer for that, at the mean prompt, is a latency of the link. Links do not slow
each other, nor collectives that share their ports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.cost.transfer import KVShards, Reach, device_link, kv_shards, kv_transfer_s
from planner.cost.transfer import Link as DeviceLink
from planner.facts import in_pool
from planner.simulate import FleetGroup, Handoff, Link, Workload
from specs.architecture import Architecture, load_architecture
from specs.deployment import DeploymentSpec
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup
from specs.profile import DeviceFacts

_REACHES: dict[Reach, str] = {
    "domain": "the link between the devices",
    "node": "PCIe inside the node",
    "network": "the network",
}


@dataclass(frozen=True)
class Handoffs:
    """A fleet with its handoffs, the links that they cross by name, and a sentence on each."""

    groups: tuple[FleetGroup, ...]
    links: dict[str, Link]
    notes: tuple[str, ...]


def with_handoffs(plan: Plan, groups: tuple[FleetGroup, ...], workload: Workload) -> Handoffs:
    """`groups` (those of the plan, in its order) with the roles of the plan, and the links that follow from it.

    KV caches are weighed at the mean prompt of what arrives at a prefill group: exact where all layers keep every
    token, a mean where some keep a window or a state. Raises `InputError` where devices have no link between them.
    """
    spec = DeploymentSpec.model_validate(plan.spec)
    changed, links, notes = [], {}, []
    for index, (group, fleet_group) in enumerate(zip(plan.groups, groups, strict=True)):
        if group.hands_over_to is None:
            changed.append(_decoding(fleet_group) if group.role == "decode" else fleet_group)
            continue
        receiver = plan.group(group.hands_over_to)
        try:
            reach, paths = _paths(plan, spec, group, receiver)
        except InputError as error:
            error.field = f"groups[{index}].hands_over_to"
            error.expected = "spec.hardware.network.bandwidth, or both groups on one node of linked devices"
            raise
        name, tokens = f"{group.id} to {receiver.id}", _mean_prompt(plan, group, workload)
        architecture = load_architecture(plan.architectures[group.model])
        kv_bytes = _kv_bytes(architecture, receiver, tokens)
        shards = kv_shards(architecture, tokens, receiver.cache.kv_dtype, group.layout, receiver.layout)
        links[name] = link = _link(group, receiver, kv_bytes, shards, paths)
        handoff = Handoff(receiver.id, kv_bytes / tokens, name)
        changed.append(replace(fleet_group, role="prefill", handoff=handoff))
        alone_s = kv_bytes / link.bytes_per_s + link.latency_s
        notes.append(
            f"{name}: over {_REACHES[reach]}, {link.bytes_per_s / 1e9:,.1f} GB/s in all (predicted); "
            f"{kv_bytes / tokens / 1e3:,.1f} kB a token, so {1e3 * alone_s:,.2f} ms for a mean prompt alone"
        )
    return Handoffs(tuple(changed), links, tuple(notes))


def _decoding(group: FleetGroup) -> FleetGroup:
    """As a decode group: what a request costs a frontend once, it has cost on the prefill side."""
    model = replace(group.model, times=replace(group.model.times, request_s=0.0))
    return replace(group, role="decode", model=model)


def _mean_prompt(plan: Plan, group: ReplicaGroup, workload: Workload) -> int:
    """Mean prompt tokens, at least 1, of the classes that are routed to `group`."""
    routed = {route.request_class for route in plan.routes if route.group == group.id}
    own = np.isin(workload.class_index, [workload.classes.index(name) for name in workload.classes if name in routed])
    return max(1, round(float(workload.prompt_tokens[own].mean()))) if own.any() else 1


def _kv_bytes(architecture: Architecture, receiver: ReplicaGroup, tokens: int) -> float:
    """Bytes of a request that cross the link: every tensor-parallel rank of the receiver takes a shard of its own."""
    ranks = receiver.layout.tensor_parallel
    return ranks * architecture.sequence_bytes(tokens, receiver.cache.kv_dtype, ranks)


def _paths(
    plan: Plan, spec: DeploymentSpec, sender: ReplicaGroup, receiver: ReplicaGroup
) -> tuple[Reach, tuple[DeviceLink, DeviceLink]]:
    """How the groups reach each other, and the path as one device of either side has it.

    Through the network unless all replicas of both groups lie on one node.
    """
    devices = [_device(plan, spec, group) for group in (sender, receiver)]
    slots = [slot for group in (sender, receiver) for item in group.placement for slot in item.slots]
    reach: Reach = "network"
    if sender.pool == receiver.pool and len({slot.node for slot in slots}) == 1:
        reach = "domain" if len({slot.device // devices[0].fast_domain for slot in slots}) == 1 else "node"
    return reach, (device_link(devices[0], reach), device_link(devices[1], reach))


def _device(plan: Plan, spec: DeploymentSpec, group: ReplicaGroup) -> DeviceFacts:
    pool = spec.hardware.pool(group.pool)
    return in_pool(plan.devices[pool.device], pool, spec.hardware.network)


def _link(
    sender: ReplicaGroup,
    receiver: ReplicaGroup,
    kv_bytes: float,
    shards: KVShards,
    paths: tuple[DeviceLink, DeviceLink],
) -> Link:
    """The link between two groups (see the head of this file); `kv_bytes` and `shards` are of the mean prompt."""
    slower = min(paths, key=lambda path: path.reached_bytes_per_s)
    path = replace(slower, latency_s=max(path.latency_s for path in paths))
    together = min(
        path.reached_bytes_per_s * group.layout.gpus * group.replicas
        for path, group in zip(paths, (sender, receiver), strict=True)
    )
    alone_s = kv_transfer_s(shards, path)
    return Link(bytes_per_s=together, latency_s=max(path.latency_s, alone_s - kv_bytes / together))
