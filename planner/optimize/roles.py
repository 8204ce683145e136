"""Rows on requests that one replica prefills and another one decodes.

Of each class, `split` is served so over each channel: prefill columns of the channel carry it, and decode columns of
the channel do. A model has at most one decode column, so that every prefill group has one place to hand over to. Of
unpriced families that is not asked: without it a bound is a little lower, and far quicker to find.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pulp

from planner.optimize.parts import (
    DEMAND_TOLERANCE,
    Column,
    Pool,
    Programme,
    Variables,
    members,
    most_replicas,
    scale_of,
)
from planner.optimize.rows import Rows, surviving

ENOUGH = 2  # a decode column takes at most so many times the replicas that carry all traffic


def split_is_carried(programme: Programme, variables: Variables) -> Rows:
    """What is split of a class over a channel is carried by its prefill columns, and by its decode columns."""
    for index, (name, channel) in enumerate(variables.split):
        for role in ("prefill", "decode"):
            scale = scale_of(programme, name, role, channel)
            carried = surviving(programme, variables, name, role, scale, channel)
            yield f"{role}_{index}", carried >= (scale * (1.0 - DEMAND_TOLERANCE)) * variables.split[name, channel]


def one_decode_column_a_model(programme: Programme, variables: Variables) -> Rows:
    """A model decodes apart in at most one column."""
    pools = {pool.name: pool for pool in programme.pools}
    decodes = [column for column in programme.columns if column.role == "decode"]
    for index, model in enumerate(dict.fromkeys(column.model for column in decodes)):
        own = [column for column in decodes if column.model == model]
        if len(own) < 2:
            continue
        yield f"decodes_{index}", pulp.lpSum(variables.decodes[column.key] for column in own) <= 1
        for position, column in enumerate(own):
            most = _most(programme, column, pools[column.pool])
            chosen = variables.decodes[column.key]
            yield f"decodes_{index}_{position}", variables.replicas[column.key] <= most * chosen


def _most(programme: Programme, column: Column, pool: Pool) -> int:
    """Replicas that a decode column may have: as many as are there, or as are of use."""
    there = most_replicas(column, pool)
    if programme.survive or programme.maximises:
        return there
    return min(there, ENOUGH * math.ceil(1.0 / min(share for _, share in column.shares)))


def channels(programme: Programme) -> Iterable[tuple[str, str]]:
    """(class, channel) wherever there is something to prefill a class on, and something to decode it on."""
    for name in programme.classes:
        sides: dict[str, set[str]] = {}
        for member in members(programme):
            carried = member.shares if isinstance(member, Column) else member.loads
            if member.role != "unified" and any(of_class == name for of_class, _ in carried):
                sides.setdefault(member.channel, set()).add(member.role)
        for channel in sorted(sides):
            if len(sides[channel]) == 2:
                yield name, channel
