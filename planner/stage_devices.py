"""On what the pipeline stages of a replica stand, pool by pool: one law for plans in the making and for documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.cost.power_cap import cap_of
from planner.cost.unlike_stages import StageDevice
from planner.facts import in_pool
from planner.handover import towards
from specs.deployment import HardwareSpec, PoolSpec
from specs.profile import DeviceFacts, DeviceProfile, PowerProfile


def stage_devices(
    pools: Sequence[PoolSpec],
    ranks: int,
    hardware: HardwareSpec,
    devices: Mapping[str, DeviceFacts],
    profiles: Mapping[str, DeviceProfile],
    power: Mapping[str, PowerProfile] | None = None,
) -> tuple[StageDevice, ...]:
    """Of the stages in `pools`, in order, `ranks` devices each.

    `devices`, `profiles` and `power` by the pools' device names, as datasheets and the catalogue say; `power` None: the
    catalogue's. Stages of one pool stand in its nodes one after the other, as many in a node as fit.
    """
    found = []
    own = [in_pool(devices[pool.device], pool, hardware) for pool in pools]
    for index, (pool, device) in enumerate(zip(pools, own, strict=True)):
        onward: tuple[DeviceFacts, ...] = ()
        same_node = False
        if index + 1 < len(pools):
            there = pools[index + 1]
            onward = (device,)
            same_node = there == pool and _same_node(pools, index, ranks)
            if there != pool:
                onward = (towards(device, hardware, pool, there), towards(own[index + 1], hardware, there, pool))
        cap = cap_of(pool, device, None if power is None else power.get(pool.device))
        found.append(StageDevice(device, profiles[pool.device], cap, onward, same_node))
    return tuple(found)


def _same_node(pools: Sequence[PoolSpec], index: int, ranks: int) -> bool:
    """Whether a stage and the next one, of the same pool, share a node."""
    pool = pools[index]
    before = sum(1 for other in pools[:index] if other == pool)
    in_a_node = max(1, pool.gpus_per_node // ranks)
    return before // in_a_node == (before + 1) // in_a_node
