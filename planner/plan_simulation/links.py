"""Prefill groups that hand over to decode groups: the links between them, from what the plan embeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.facts import in_pool
from planner.handover import (
    REACHES,
    Side,
    beyond_prefill_s,
    decoding,
    handover,
    prefilling,
    reach_between,
    towards,
)
from planner.simulate import FleetGroup, Handoff, Link, Workload
from specs.architecture import load_architecture
from specs.deployment import DeploymentSpec
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup


@dataclass(frozen=True)
class Handoffs:
    """A fleet with its handoffs, the links that they cross by name, and a sentence on each."""

    groups: tuple[FleetGroup, ...]
    links: dict[str, Link]
    notes: tuple[str, ...]


def with_handoffs(plan: Plan, groups: tuple[FleetGroup, ...], workload: Workload) -> Handoffs:
    """`groups` (those of the plan, in its order) with the roles of the plan, and the links that follow from it.

    KV caches are weighed at the mean prompt of what arrives at a prefill group. Raises `InputError` where devices have
    no link between them.
    """
    spec = DeploymentSpec.model_validate(plan.spec)
    changed, links, notes = [], {}, []
    models = {fleet_group.id: fleet_group.model for fleet_group in groups}
    for index, (group, fleet_group) in enumerate(zip(plan.groups, groups, strict=True)):
        if group.hands_over_to is None:
            changed.append(decoding(fleet_group) if group.role == "decode" else fleet_group)
            continue
        receiver = plan.group(group.hands_over_to)
        sides = _side(plan, spec, group, receiver), _side(plan, spec, receiver, group)
        slots = [slot for each in (group, receiver) for item in each.placement for slot in item.slots]
        architecture = load_architecture(plan.architectures[group.model])
        tokens, kv_dtype = mean_prompt(plan, group, workload), receiver.cache.kv_dtype
        try:
            found = handover(architecture, kv_dtype, tokens, *sides, reach_between(*sides, slots))
        except InputError as error:
            error.field = f"groups[{index}].hands_over_to"
            error.expected = "spec.hardware.network.bandwidth, or both groups on one node of linked devices"
            raise
        name = f"{group.id} to {receiver.id}"
        links[name] = found.link
        handoff = Handoff(receiver.id, found.bytes_per_token, name)
        beyond_s = beyond_prefill_s(models[receiver.id].times, tokens, found.alone_s)
        changed.append(prefilling(fleet_group, handoff, beyond_s))
        notes.append(
            f"{name}: over {REACHES[found.reach]}, {found.link.bytes_per_s / 1e9:,.1f} GB/s in all (predicted); "
            f"{found.bytes_per_token / 1e3:,.1f} kB a token, so {1e3 * found.alone_s:,.2f} ms for a mean prompt alone; "
            f"first tokens reach clients {1e3 * beyond_s:,.1f} ms after their prefill, which is in TTFT"
        )
    return Handoffs(tuple(changed), links, tuple(notes))


def mean_prompt(plan: Plan, group: ReplicaGroup, workload: Workload) -> int:
    """Mean prompt tokens, at least 1, of the classes that are routed to `group`."""
    routed = {route.request_class for route in plan.routes if route.group == group.id}
    own = np.isin(workload.class_index, [workload.classes.index(name) for name in workload.classes if name in routed])
    return max(1, round(float(workload.prompt_tokens[own].mean()))) if own.any() else 1


def _side(plan: Plan, spec: DeploymentSpec, group: ReplicaGroup, other: ReplicaGroup) -> Side:
    pool, there = spec.hardware.pool(group.pool), spec.hardware.pool(other.pool)
    device = in_pool(plan.devices[pool.device], pool, spec.hardware)
    return Side(pool.name, towards(device, spec.hardware, pool, there), group.layout, group.replicas)
