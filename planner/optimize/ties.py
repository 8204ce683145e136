"""Goals among plans of equal value, in a fixed order, so that equal inputs give equal plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pulp

from planner.optimize.objectives import objective
from planner.optimize.parts import Programme, Variables, devices_in, members, scale_of, split_of
from planner.optimize.rows import Rows, surviving

Ties = Literal["any", "operable", "all"]

EQUAL = 1e-6  # values closer than this share of themselves are equal


@dataclass(frozen=True)
class TieBreak:
    """One goal, minimised among plans of equal value; later goals may give back `slack` of it (a share)."""

    goal: Any
    slack: float


def tie_breaks(programme: Programme, variables: Variables, ties: Ties) -> tuple[TieBreak, ...]:
    """What is minimised next, in order, at the value reached so far.

    Of what is maximised, first the cheapest plan. Devices rented; then the traffic left without headroom, so that
    devices that are paid for anyway work; then, within 5 % of the most headroom, the groups to operate and the
    replicas: fewer and larger ones answer faster and pool their caches; then the devices left idle in rented nodes;
    then the order of the columns, so that equal plans come out equal.
    """
    groups = TieBreak(pulp.lpSum(variables.used.values()), EQUAL)
    replicas = TieBreak(pulp.lpSum(variables.replicas.values()), EQUAL)
    working = pulp.lpSum(member.gpus * variables.replicas[member.key] for member in members(programme))
    idle = TieBreak(-1.0 * working, EQUAL)
    gpus = TieBreak(objective(replace(programme, quantity="gpus"), variables), EQUAL)
    first: tuple[TieBreak, ...] = ()
    if programme.maximises:  # nothing is left to carry more with
        cost = TieBreak(objective(replace(programme, quantity="cost"), variables), EQUAL)
        first = (cost, gpus) if programme.priced else (gpus,)
        headroom: tuple[TieBreak, ...] = ()
    else:
        headroom = (TieBreak(-1.0 * variables.headroom, 0.05),)
    if ties == "operable":
        return *first, *headroom, groups, replicas, idle
    order = pulp.lpSum(index * variable for index, variable in enumerate(variables.replicas.values()))
    return *(first or (gpus,)), *headroom, groups, replicas, idle, TieBreak(order, EQUAL)


def headroom_is_carried(programme: Programme, variables: Variables) -> Rows:
    """Of every class, priced columns carry the headroom's multiple of the demand (tie-breaks only)."""
    for index, name in enumerate(programme.classes):
        scale = scale_of(programme, name, "unified")
        carried = surviving(programme, variables, name, "unified", scale) + scale * split_of(variables, name)
        yield f"headroom_{index}", carried >= scale * variables.headroom


def used_groups_are_counted(programme: Programme, variables: Variables) -> Rows:
    """Replicas are bought only of what counts as used (tie-breaks only)."""
    devices = {pool.name: pool.devices for pool in programme.pools}
    for index, member in enumerate(members(programme)):
        most = devices[member.pool] // devices_in(member, member.pool)
        yield f"used_{index}", variables.replicas[member.key] <= most * variables.used[member.key]
