"""Which devices each replica takes: tensor-parallel ranks share a node, as do replicas that fit into one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specs.deployment import PoolSpec
from specs.errors import CapstanError
from specs.plan import DeviceSlot, ReplicaPlacement


@dataclass(frozen=True, slots=True)
class Demand:
    """`replicas` replicas of `gpus` devices for one group, or parts of them: those whose stages stand in this pool."""

    group: str
    gpus: int
    replicas: int
    part: int = 0  # of a replica with stages in several pools: which one, in rank order


def placements(
    pools: tuple[PoolSpec, ...],
    demands: Mapping[str, tuple[Demand, ...]],
    nodes: Mapping[str, int],
    *,
    spread: bool = False,
) -> dict[str, tuple[ReplicaPlacement, ...]]:
    """Devices of every group's replicas, by group. `demands`: by pool; `nodes`: rented, by pool, where it is by node.
    `spread`: each replica to the node that has the fewest of its group, so that a failing node takes few of them.

    Raises `CapstanError` where a pool does not hold what was chosen for it: the programme counts slots so that it does.
    """
    parts: dict[str, dict[int, tuple[ReplicaPlacement, ...]]] = {}
    for pool in pools:
        wanted = demands.get(pool.name, ())
        if not wanted:
            continue
        count = nodes.get(pool.name, math.ceil(pool.count / pool.gpus_per_node))
        rest = pool.count - (count - 1) * pool.gpus_per_node if pool.rent == "gpu" else None
        found = place(wanted, count, pool.gpus_per_node, rest, spread=spread)
        if found is None:
            raise CapstanError(f"the replicas chosen for pool {pool.name} cannot be placed on {count} nodes")
        for demand in wanted:
            parts.setdefault(demand.group, {})[demand.part] = found[demand.group]
    return {group: _joined([found[part] for part in sorted(found)]) for group, found in parts.items()}


def _joined(parts: list[tuple[ReplicaPlacement, ...]]) -> tuple[ReplicaPlacement, ...]:
    """The replicas of one group from their parts in several pools, in rank order."""
    if len(parts) == 1:
        return parts[0]
    return tuple(
        ReplicaPlacement(slots=tuple(slot for part in replica for slot in part.slots))
        for replica in zip(*parts, strict=True)
    )


def place(
    demands: tuple[Demand, ...],
    nodes: int,
    node_devices: int,
    last_node_devices: int | None = None,
    *,
    spread: bool = False,
) -> dict[str, tuple[ReplicaPlacement, ...]] | None:
    """First fit, largest replicas first; None where they do not fit. Equal input, equal placement.

    `last_node_devices`: how many devices the last node holds, where it is partly filled.

    A replica larger than a node takes whole, consecutive nodes. For sizes that divide one another and the node, first
    fit decreasing is exact; the programme already counts the slots that odd sizes waste. With `spread`, a replica goes
    to the node with the fewest of its group, and of those to the first: sizes that divide one another fit as well.
    """
    sizes = [node_devices] * nodes
    if nodes and last_node_devices is not None:
        sizes[-1] = last_node_devices
    free = list(sizes)
    placed: dict[str, list[ReplicaPlacement]] = {demand.group: [] for demand in demands}
    for demand in sorted(demands, key=lambda item: (-item.gpus, item.group)):
        here = [0] * nodes  # replicas of this group
        for _ in range(demand.replicas):
            order = sorted(range(nodes), key=lambda node: here[node]) if spread else range(nodes)
            slots = _take(free, sizes, demand.gpus, node_devices, order)
            if slots is None:
                return None
            here[slots[0].node] += 1
            placed[demand.group].append(ReplicaPlacement(slots=slots))
    return {group: tuple(replicas) for group, replicas in placed.items()}


def _take(
    free: list[int], sizes: list[int], gpus: int, node_devices: int, order: Sequence[int]
) -> tuple[DeviceSlot, ...] | None:
    if gpus > node_devices:
        span = -(-gpus // node_devices)
        for first in range(len(free) - span + 1):
            if all(free[node] == node_devices for node in range(first, first + span)):
                for node in range(first, first + span):
                    free[node] = 0
                ranks = [(node, device) for node in range(first, first + span) for device in range(node_devices)]
                return tuple(DeviceSlot(node=node, device=device) for node, device in ranks[:gpus])
        return None
    for node in order:
        count = free[node]
        if count >= gpus:
            start = sizes[node] - count
            free[node] = count - gpus
            return tuple(DeviceSlot(node=node, device=start + index) for index in range(gpus))
    return None
