"""Blocks of the host tier: how many a node's memory holds for each rank, and what moving them takes."""

from __future__ import annotations

from dataclasses import replace

from planner.candidates.family import Family
from planner.cost.margin import Margin
from planner.cost.memory import memory_budget
from planner.cost.step_times import StepTimes
from planner.cost.transfer import host_link
from specs.architecture.mixers import Attention
from specs.deployment import HardwareSpec
from specs.engine_rules import capable
from specs.plan import Limits

HOST_SHARE = 0.8  # of the host's memory; the system and the engines' processes take the rest


def host_blocks(family: Family, hardware: HardwareSpec) -> int:
    """KV blocks that the host keeps for one rank; 0 where no memory is declared or the engine keeps nothing there."""
    dram = hardware.host.dram_bytes
    if dram is None or not moves_blocks(family):
        return 0
    return host_blocks_of(family, HOST_SHARE * dram / family.pool.gpus_per_node)


def moves_blocks(family: Family) -> bool:
    """Whether the engine moves this model's blocks: of plain attention only, every layer of it, none with a window, no
    rank by itself."""
    plain = all(
        isinstance(layer.mixer, Attention) and layer.window is None for layer, _ in family.architecture.distinct_layers
    )
    apart = family.layout.attention_data_parallel > 1
    return plain and not apart and capable(family.engine.name, "host_tier")


def host_blocks_of(family: Family, rank_bytes: float) -> int:
    """KV blocks that so many bytes of host memory for each rank hold."""
    return int(rank_bytes / (_bytes_per_token(family) * family.engine.block_size_tokens))


def with_host_link(family: Family, margin: Margin) -> StepTimes:
    """The family's step times with those of a token that moves between device and host, longer by `margin`.

    A batch crosses the stages one after the other, each over the link of its own device.
    """
    link = host_link(family.device)
    token_s = family.layout.pipeline_parallel * _bytes_per_token(family) / link.reached_bytes_per_s
    return replace(family.times, host_token_s=margin.steps * token_s)


def _bytes_per_token(family: Family) -> float:
    """Of one rank; no limits matter to it."""
    limits = Limits(max_num_seqs=1, max_num_batched_tokens=1, max_model_len=1)
    budget = memory_budget(
        family.architecture, family.layout, family.weights_dtype, family.kv_dtype, family.device, family.engine, limits
    )
    return budget.kv_bytes_per_token
