"""Devices of stated replicas: on the nodes that a group states, the others wherever there is room."""

from __future__ import annotations

from collections.abc import Callable

from planner.stated.replicas import StatedReplicas
from specs.deployment import HardwareSpec, PoolSpec
from specs.deployment.cables import devices_of_node
from specs.errors import InputError
from specs.plan import DeviceSlot, ReplicaPlacement

Free = dict[int, list[int]]  # by node: devices that nobody has yet


def stated_places(
    replicas: tuple[StatedReplicas, ...], hardware: HardwareSpec, group_id: Callable[[int], str]
) -> dict[str, tuple[ReplicaPlacement, ...]]:
    """Placement by group. Groups that state their nodes come first, then the largest replicas (first fit).

    Raises `InputError` where a replica finds no room: devices are there, but not together in a node.
    """
    free = {
        pool.name: {node: list(range(devices_of_node(pool, node))) for node in range(pool.nodes)}
        for pool in hardware.pools
    }
    order = sorted(enumerate(replicas), key=lambda entry: (entry[1].group.nodes is None, -entry[1].family.gpus))
    placed: dict[str, tuple[ReplicaPlacement, ...]] = {}
    for index, item in order:
        standing: list[ReplicaPlacement] = []
        for _ in range(item.group.replicas):
            slots: list[DeviceSlot] = []
            for pool in item.family.pools:
                found = _take(free[pool.name], pool, item.family.gpus_in(pool.name), item.group.nodes)
                if found is None:
                    raise _no_room(item, pool, len(standing), replicas)
                slots += found
            standing.append(ReplicaPlacement(slots=tuple(slots)))
        placed[group_id(index)] = tuple(standing)
    return placed


def _take(free: Free, pool: PoolSpec, gpus: int, stated: tuple[int, ...] | None) -> list[DeviceSlot] | None:
    """Devices of one replica, taken out of `free`: in one node, or the first whole nodes; on `stated` ones if any."""
    nodes = stated or tuple(free)
    if gpus <= pool.gpus_per_node:
        for node in nodes:
            if len(free[node]) >= gpus:
                taken, free[node] = free[node][:gpus], free[node][gpus:]
                return [DeviceSlot(node=node, device=device) for device in taken]
        return None
    span = -(-gpus // pool.gpus_per_node)
    empty = [node for node in nodes if len(free[node]) == pool.gpus_per_node]
    if len(empty) < span:
        return None
    slots = []
    for node in empty[:span]:
        slots += [DeviceSlot(node=node, device=device) for device in free[node]]
        free[node] = []
    return slots[:gpus]


def _no_room(item: StatedReplicas, pool: PoolSpec, found: int, replicas: tuple[StatedReplicas, ...]) -> InputError:
    own = [other for other in replicas if other.family.model == item.family.model]
    place = own.index(item)
    where = f"nodes {', '.join(map(str, item.group.nodes))} of {pool.name}" if item.group.nodes else pool.name
    return InputError(
        f"{found} of {item.group.replicas} replicas of {item.family.gpus_in(pool.name)} devices find room in {where}, "
        f"whose nodes have {pool.gpus_per_node}",
        field=f"choices.{item.family.model}.groups[{place}].{'nodes' if item.group.nodes else 'replicas'}",
        expected="replicas that fit the nodes, beside those of other groups",
    )
