"""Configurations that boot, before anything is known of their speed, and those of them that nothing needs."""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost.unlike_stages import StageDevice
from planner.facts import Facts
from specs.deployment import ModelChoices, PoolSpec
from specs.plan import Configuration, Discarded, Layout


@dataclass(frozen=True)
class Bootable:
    """A configuration that memory, types and topology allow; nothing is known of its speed yet."""

    pool: PoolSpec
    configuration: Configuration
    layout: Layout
    stage_pools: tuple[PoolSpec, ...] = ()  # where stages stand in several
    stage_devices: tuple[StageDevice, ...] = ()


def prune_wide(bootable: list[Bootable], facts: Facts, choices: ModelChoices) -> tuple[list[Bootable], list[Discarded]]:
    """Pipeline stages, and ranks in several nodes, are tried only where they are pinned or nothing else does it.

    Over a fast link, tensor parallelism over the same devices reads the same bytes with a lower latency; where it fits,
    stages only add latency. Over PCIe, where all-reduces are slow, stages stay in the race.
    """

    def types(item: Bootable) -> tuple[object, ...]:
        chosen = item.configuration
        return item.pool.name, chosen.engine, chosen.weights_dtype, chosen.kv_dtype

    flat = [item for item in bootable if item.layout.pipeline_parallel == 1]
    same_devices = {(*types(item), item.layout.gpus) for item in flat}
    one_node = {types(item) for item in flat if item.layout.gpus <= item.pool.gpus_per_node}
    remaining: list[Bootable] = []
    dropped: list[Discarded] = []
    for item in bootable:
        layout = item.layout
        piped, wide = layout.pipeline_parallel > 1, layout.gpus > item.pool.gpus_per_node
        pinned = choices.pipeline_parallel if piped else choices.attention_data_parallel
        fast = facts.devices[item.pool.device].link in ("nvlink", "xgmi")
        needless = piped and fast and (*types(item), layout.gpus) in same_devices
        across = wide and types(item) in one_node
        if pinned is not None or not (needless or across):
            remaining.append(item)
            continue
        detail = (
            "tensor parallelism over the same devices fits and has the lower latency"
            if needless
            else f"a replica inside one node fits; {'stages' if piped else 'ranks'} across nodes would only add latency"
        )
        dropped.append(
            Discarded(configuration=item.configuration, reason="pipeline" if piped else "node", detail=detail)
        )
    return remaining, dropped
