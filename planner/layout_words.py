"""How a replica is laid out and what it does beside that, in the words of people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from specs.plan import Configuration, ReplicaGroup


class Layouted(Protocol):
    """A layout, or a configuration, which has the same sizes."""

    @property
    def tensor_parallel(self) -> int: ...
    @property
    def pipeline_parallel(self) -> int: ...
    @property
    def attention_data_parallel(self) -> int: ...
    @property
    def expert_parallel(self) -> int: ...


def layout_words(layout: Layouted, *, always: tuple[str, ...] = ("TP",), between: str = " ") -> str:
    """`TP 4 PP 2 EP 4`: what is not 1, and the kinds in `always`."""
    sizes = {
        "TP": layout.tensor_parallel,
        "PP": layout.pipeline_parallel,
        "attention DP": layout.attention_data_parallel,
        "EP": layout.expert_parallel,
    }
    return between.join(f"{name} {size}" for name, size in sizes.items() if size > 1 or name in always)


def pools_words(where: ReplicaGroup | Configuration) -> str:
    """`old + new`: the pools that a replica takes devices of, in the order of its stages."""
    stages = [stage.pool for stage in where.stages] if isinstance(where, ReplicaGroup) else where.stage_pools
    return " + ".join(dict.fromkeys(stages)) or where.pool


def stages_words(where: ReplicaGroup | Configuration) -> str:
    """`53 layers on old, 27 on new`: of stages in several pools; empty for others."""
    if isinstance(where, ReplicaGroup):
        pools, layers = [stage.pool for stage in where.stages], where.layout.pipeline_stages
    else:
        pools, layers = list(where.stage_pools), where.pipeline_stages
    if not pools or not layers:
        return ""
    each = [f"{count} on {pool}" for count, pool in zip(layers, pools, strict=True)]
    return ", ".join([each[0].replace(" on ", " layers on ", 1), *each[1:]])


def group_options(group: ReplicaGroup) -> tuple[str, ...]:
    """The options of a group that are not neutral."""
    speculation = group.scheduling.speculation
    return tuple(
        _options(
            group.cache.prefix_caching,
            group.cache.host_blocks,
            0 if speculation is None else speculation.draft_tokens,
            group.scheduling.order,
        )
    )


def configuration_options(configuration: Configuration) -> tuple[str, ...]:
    """The options of a configuration that are not neutral; its role first."""
    role = () if configuration.role == "unified" else (configuration.role,)
    options = _options(
        configuration.prefix_caching, configuration.host_blocks, configuration.draft_tokens, configuration.order
    )
    return (*role, *options)


def _options(prefix_caching: bool, host_blocks: int, draft_tokens: int, order: str) -> Iterator[str]:
    if prefix_caching:
        yield "prefix cache"
    if host_blocks:
        yield f"{host_blocks:,} blocks on the host"
    if draft_tokens:
        yield f"drafts of {draft_tokens}"
    if order != "fcfs":
        yield f"{order} order"
