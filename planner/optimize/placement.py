"""Which devices each replica takes: tensor-parallel ranks share a node, as do replicas that fit into one."""

from __future__ import annotations

from dataclasses import dataclass

from specs.plan import DeviceSlot, ReplicaPlacement


@dataclass(frozen=True, slots=True)
class Demand:
    """`replicas` replicas of `gpus` devices for one group."""

    group: str
    gpus: int
    replicas: int


def place(
    demands: tuple[Demand, ...], nodes: int, node_devices: int, last_node_devices: int | None = None
) -> dict[str, tuple[ReplicaPlacement, ...]] | None:
    """First fit, largest replicas first; None where they do not fit. Equal input, equal placement.

    `last_node_devices`: how many devices the last node holds, where it is partly filled.

    A replica larger than a node takes whole, consecutive nodes. For sizes that divide one another and the node, first
    fit decreasing is exact; the programme already counts the slots that odd sizes waste.
    """
    sizes = [node_devices] * nodes
    if nodes and last_node_devices is not None:
        sizes[-1] = last_node_devices
    free = list(sizes)
    placed: dict[str, list[ReplicaPlacement]] = {demand.group: [] for demand in demands}
    for demand in sorted(demands, key=lambda item: (-item.gpus, item.group)):
        for _ in range(demand.replicas):
            slots = _take(free, sizes, demand.gpus, node_devices)
            if slots is None:
                return None
            placed[demand.group].append(ReplicaPlacement(slots=slots))
    return {group: tuple(replicas) for group, replicas in placed.items()}


def _take(free: list[int], sizes: list[int], gpus: int, node_devices: int) -> tuple[DeviceSlot, ...] | None:
    if gpus > node_devices:
        span = -(-gpus // node_devices)
        for first in range(len(free) - span + 1):
            if all(free[node] == node_devices for node in range(first, first + span)):
                for node in range(first, first + span):
                    free[node] = 0
                ranks = [(node, device) for node in range(first, first + span) for device in range(node_devices)]
                return tuple(DeviceSlot(node=node, device=device) for node, device in ranks[:gpus])
        return None
    for node, count in enumerate(free):
        if count >= gpus:
            start = sizes[node] - count
            free[node] = count - gpus
            return tuple(DeviceSlot(node=node, device=start + index) for index in range(gpus))
    return None
