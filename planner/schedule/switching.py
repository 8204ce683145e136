"""Changing from one plan to the next, from the plans alone: what starts, what stops, what both together rent.

A replica is kept where both plans run the same configuration on the same devices. All else that the new plan runs is
started beside the old one, `start_s` before the change, and what the old plan runs beyond drains for as long as its
slowest requests take (the largest simulated p99 from end to end). So whoever asks is served throughout, and pools hold
both plans meanwhile; where they cannot, the change is not made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from specs.deployment import DeploymentSpec, PoolSpec
from specs.plan import Plan, ReplicaGroup
from specs.schedule import Switch

ENGINE_START_S = 60.0  # process, graphs, first request; an assumption, `schedule.switching.start` replaces it
_Devices = frozenset[tuple[str, int, int]]  # (pool, node, device)


@dataclass(frozen=True)
class _Replica:
    """One running copy: what it is, and where."""

    configuration: str
    devices: _Devices
    start_s: float


def switch(
    plans: tuple[Plan | None, Plan | None], names: tuple[str | None, str | None], spec: DeploymentSpec, at_s: float
) -> Switch | None:
    """The change at `at_s` of the cycle; None where a pool does not hold what is up meanwhile.

    `plans`: before and after, None where nothing runs; `names`: what the schedule calls them.
    """
    before, after = plans
    old, new = _replicas(before, spec), _replicas(after, spec)
    kept = old & new
    clashing = _clashing(old, new, kept)
    kept = {replica for replica in kept if not any(pool in clashing for pool, _, _ in replica.devices)}
    started, stopped = new - kept, old - kept
    devices: dict[str, int] = {}
    for pool in spec.hardware.pools:
        rented = _meanwhile(pool, old, new, started, clashing)
        if rented > _stock(pool):
            return None
        if rented:
            devices[pool.name] = rented
    start_s = max((replica.start_s for replica in started), default=0.0)
    drain_s = _slowest_s(before) if before is not None and stopped else 0.0
    return Switch(
        at_s=at_s,
        before=names[0],
        after=names[1],
        started=len(started),
        stopped=len(stopped),
        kept=len(kept),
        start_s=start_s,
        drain_s=drain_s,
        devices=devices,
        value=_value(spec, devices, before, after, start_s, drain_s) + _stated(spec, len(started)),
    )


def _replicas(plan: Plan | None, spec: DeploymentSpec) -> set[_Replica]:
    if plan is None:
        return set()
    return {
        _Replica(
            _configuration(group),
            frozenset((pool, slot.node, slot.device) for pool, slot in group.places(placement)),
            start_s(group, plan, spec),
        )
        for group in plan.groups
        for placement in group.placement
    }


def _configuration(group: ReplicaGroup) -> str:
    """What a replica is, whatever its group is called and however many there are."""
    own = group.model_dump(mode="json", exclude={"id", "replicas", "placement", "hands_over_to", "carries"})
    return json.dumps(own, sort_keys=True)


def start_s(group: ReplicaGroup, plan: Plan, spec: DeploymentSpec) -> float:
    """Seconds until a replica of `group` serves: as stated, or its weights through what they come by, and the engine.

    Weights come from the NVMe of each node where its bandwidth is declared, else over the network port of each device.
    """
    stated = spec.schedule.switching.start_s
    if stated is not None:
        return stated
    pool = spec.hardware.pool(group.pool)
    weights_bytes, nvme = group.cache.memory.weights_bytes, spec.hardware.host.nvme_bytes_per_s
    if nvme is not None:
        load_s = weights_bytes * min(group.layout.gpus, pool.gpus_per_node) / nvme
    else:
        port = spec.hardware.network.bandwidth_bytes_per_s or plan.devices[pool.device].nic_bytes_per_s
        load_s = weights_bytes / port
    return load_s + ENGINE_START_S


def _clashing(old: set[_Replica], new: set[_Replica], kept: set[_Replica]) -> set[str]:
    """Pools in which something new would start on devices that the old plan still holds.

    There the new plan starts on other nodes as a whole (its node numbers are then those of other nodes).
    """
    held = {device for replica in old for device in replica.devices}
    return {device[0] for replica in new - kept for device in replica.devices if device in held}


def _meanwhile(
    pool: PoolSpec, old: set[_Replica], new: set[_Replica], started: set[_Replica], clashing: set[str]
) -> int:
    """Devices of the pool that are rented while both plans are up."""
    before, after = (
        {(node, device) for replica in replicas for name, node, device in replica.devices if name == pool.name}
        for replicas in (old, new)
    )
    apart = pool.name in clashing
    if pool.rent == "node":
        nodes, others = ({node for node, _ in devices} for devices in (before, after))
        return pool.gpus_per_node * (len(nodes) + len(others) if apart else len(nodes | others))
    return len(before) + len(after) if apart else len(before | after)


def _stock(pool: PoolSpec) -> int:
    return pool.count if pool.rent == "gpu" else pool.count // pool.gpus_per_node * pool.gpus_per_node


def _slowest_s(plan: Plan) -> float:
    return max((item.e2e_s.get("p99", 0.0) for item in plan.predictions.classes), default=0.0)


def _value(
    spec: DeploymentSpec,
    devices: dict[str, int],
    before: Plan | None,
    after: Plan | None,
    start_s: float,
    drain_s: float,
) -> float:
    """What is rented beyond the old plan before the change, and beyond the new one after it."""
    meanwhile = sum(_weight(spec, spec.hardware.pool(name)) * count for name, count in devices.items())
    old, new = (plan.certificate.value if plan is not None else 0.0 for plan in (before, after))
    return (max(0.0, meanwhile - old) * start_s + max(0.0, meanwhile - new) * drain_s) / 3600.0


def _weight(spec: DeploymentSpec, pool: PoolSpec) -> float:
    """Of one device and hour in the objective."""
    if spec.objective.quantity != "cost":
        return 1.0
    return pool.usd_per_hour or 0.0


def _stated(spec: DeploymentSpec, started: int) -> float:
    return spec.schedule.switching.usd_per_replica * started if spec.objective.quantity == "cost" else 0.0
