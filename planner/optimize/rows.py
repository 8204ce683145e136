"""Constraint families of the master programme on what is carried, what there is, and what the user stated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pulp

from planner.optimize.objectives import objective
from planner.optimize.parts import (
    DEMAND_TOLERANCE,
    MOST_HEADROOM,
    Column,
    OptimisticFamily,
    Programme,
    Role,
    Variables,
    devices_in,
    members,
    scale_of,
    slot_gpus,
    split_of,
)

TINY = 1e-5  # of the largest coefficient of a row; ten times the solver's feasibility tolerance
Rows = Iterable[tuple[str, Any]]


def demand_is_met(programme: Programme, variables: Variables) -> Rows:
    """Replicas that do both phases, and what is split over two, together carry the demand of each class."""
    for index, name in enumerate(programme.classes):
        scale = scale_of(programme, name, "unified")
        carried = surviving(programme, variables, name, "unified", scale) + scale * split_of(variables, name)
        yield f"demand_{index}", carried >= (scale * (1.0 - DEMAND_TOLERANCE)) * variables.demand[name]


def capacity(programme: Programme, variables: Variables, name: str, role: Role, scale: float, channel: str = "") -> Any:
    """Scaled share of a class's demand that members of one role carry over one channel."""
    fixed = [
        scale * share * variables.replicas[column.key]
        for column in programme.columns
        if column.role == role and column.channel == channel
        for of_class, share in column.shares
        if of_class == name
    ]
    flexible = [
        scale * variables.taken[family.key, name]
        for family in programme.families
        if family.role == role and family.channel == channel and (family.key, name) in variables.taken
    ]
    return pulp.lpSum(fixed + flexible)


def surviving(
    programme: Programme, variables: Variables, name: str, role: Role, scale: float, channel: str = ""
) -> Any:
    """As `capacity`, without what failing nodes may take away."""
    carried = capacity(programme, variables, name, role, scale, channel)
    if (name, role) in variables.loss:
        carried -= scale * programme.survive * variables.loss[name, role]
    return carried


def taken_is_carried(programme: Programme, variables: Variables) -> Rows:
    """A column takes at most what its replicas carry, and all demand is taken (only where watts are minimised)."""
    if not programme.meters:
        return
    for index, column in enumerate(programme.columns):
        for position, (name, share) in enumerate(column.shares):
            scale = 1.0 / min(1.0, share)
            taken = scale * variables.taken[column.key, name]
            yield f"taken_{index}_{position}", taken <= scale * share * variables.replicas[column.key]
    for index, name in enumerate(programme.classes):
        whole = _taken(programme, variables, name, "unified", "") + split_of(variables, name)
        yield f"taken_{index}", whole >= (1.0 - DEMAND_TOLERANCE) * variables.demand[name]
    for index, (name, channel) in enumerate(variables.split):
        for role in ("prefill", "decode"):
            taken = _taken(programme, variables, name, role, channel)
            yield f"taken_{role}_{index}", taken >= (1.0 - DEMAND_TOLERANCE) * variables.split[name, channel]


def _taken(programme: Programme, variables: Variables, name: str, role: str, channel: str) -> Any:
    return pulp.lpSum(
        variables.taken[member.key, name]
        for member in members(programme)
        if member.role == role and member.channel == channel and (member.key, name) in variables.taken
    )


def families_are_not_overloaded(programme: Programme, variables: Variables) -> Rows:
    """The work that an unpriced family takes keeps its replicas busy at most all of the time.

    A load too small to stand beside a whole replica in one row (solvers decide to a tolerance) is left out of it, and
    asks for a replica in a row of its own: whatever part of it is taken, one replica is needed and enough.
    """
    for index, family in enumerate(programme.families):
        replicas = variables.replicas[family.key] - variables.spare.get(family.key, 0)
        least = TINY * max(1.0, max((load for _, load in family.loads), default=0.0))
        work = pulp.lpSum(load * variables.taken[family.key, name] for name, load in family.loads if load >= least)
        yield f"load_{index}", work <= replicas
        for position, (name, load) in enumerate(family.loads):
            if load < least:
                taken = variables.taken[family.key, name]
                yield f"load_{index}_{position}", (1.0 / (taken.upBound or MOST_HEADROOM)) * taken <= replicas


def few_requests_are_late(programme: Programme, variables: Variables) -> Rows:
    """On time, a family takes at most the requests that keep their limits there; all others are late, and few may be.

    Which requests go where is left open, so this holds for every routing. A request that is split counts on either
    side: the late ones of both phases may be the same.
    """
    for index, family in enumerate(programme.families):
        for position, (name, miss) in enumerate(family.misses):
            taken, late = variables.taken[family.key, name], variables.late[family.key, name]
            yield f"on_time_{index}_{position}", taken - late <= (1.0 - miss) * variables.demand[name]
    roles = {family.key: family.role for family in programme.families}
    halved = {name for name, _ in variables.split}
    for index, name in enumerate(programme.classes):
        if name not in programme.allowed_misses:
            continue
        for side in ("prefill", "decode"):
            late_ones = [
                late for (key, of_class), late in variables.late.items() if of_class == name and roles[key] != side
            ]
            allowed = programme.allowed_misses[name] * variables.demand[name]
            if late_ones:
                yield (
                    f"late_{index}" + (f"_{side}" if name in halved else ""),
                    pulp.lpSum(late_ones) <= allowed,
                )
            if name not in halved:
                break


def replicas_fit_the_pools(programme: Programme, variables: Variables) -> Rows:
    """Replicas of a pool fit into its rented nodes, or into its devices."""
    for index, pool in enumerate(programme.pools):
        taken = pulp.lpSum(
            slot_gpus(devices_in(member, pool.name), pool.node_devices) * variables.replicas[member.key]
            for member in members(programme)
            if devices_in(member, pool.name)
        )
        if pool.rent == "node":
            nodes = variables.nodes[pool.name] - variables.spare.get(pool.name, 0)
            yield f"nodes_{index}", taken <= pool.node_devices * nodes
        else:
            yield f"devices_{index}", taken <= pool.devices


def budget_is_kept(programme: Programme, variables: Variables) -> Rows:
    """Dollars an hour stay within the stated budget."""
    if programme.budget is not None:
        yield "budget", objective(replace(programme, quantity="cost"), variables) <= programme.budget


def power_is_kept(programme: Programme, variables: Variables) -> Rows:
    """Devices at work draw at most the stated watts, each as much as it may (its cap, or its own limit)."""
    if programme.power_w is None:
        return
    drawn = pulp.lpSum(
        sum(pool.most_watts * devices_in(member, pool.name) for pool in programme.pools)
        * variables.replicas[member.key]
        for member in members(programme)
    )
    yield "power", drawn <= programme.power_w


def model_gpus_are_kept(programme: Programme, variables: Variables) -> Rows:
    """A model's replicas work on at most the devices stated for it."""
    for index, (model, limit) in enumerate(sorted(programme.model_gpus.items())):
        used = pulp.lpSum(member.gpus * variables.replicas[member.key] for member in _of_model(programme, model))
        yield f"gpus_{index}", used <= limit


def pinned_replicas(programme: Programme, variables: Variables) -> Rows:
    """A model with pinned replicas has exactly one of the stated numbers of them."""
    for index, model in enumerate(sorted(programme.model_replicas)):
        count = pulp.lpSum(variables.replicas[member.key] for member in _of_model(programme, model))
        own = [(number, picked) for (of_model, number), picked in variables.picked.items() if of_model == model]
        yield f"replicas_one_{index}", pulp.lpSum(picked for _, picked in own) == 1
        yield f"replicas_{index}", count == pulp.lpSum(number * picked for number, picked in own)


def _of_model(programme: Programme, model: str) -> Iterable[Column | OptimisticFamily]:
    return (member for member in members(programme) if member.model == model)
