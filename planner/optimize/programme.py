"""The master programme on paper, then in PuLP.

Sets
    p in pools, m in models, k in request classes (each of one model), j in columns (each of one model and one pool).
Parameters
    share[j,k]   share of class k's demand that one replica of column j carries within every SLO (priced by simulation)
    load[f,k]    replicas of family f that class k's whole demand keeps busy at the least (utilisation law)
    miss[f,k]    share of class k's requests that break a limit on family f even alone, without any queue
    allow[k]     share of class k's requests that may break their limits
    gpus[j]      devices of one replica, counted with the slots that its size makes unusable in a node
    G[p], N[p]   devices of a node, devices in the pool;  price[p]  per device-hour;  rent[p] in {node, gpu}
Variables
    n[j], n[f] integer >= 0   replicas of column j, of family f
    z[f,k] >= 0               share of class k's demand that family f takes (above 1 it is headroom)
    late[f,k] >= 0            the part of it that breaks its limits there
    y[p] integer >= 0   nodes rented in pool p (only where rent is by node)
    picked[m,c] in {0,1}      model m has c replicas (only where the user pinned their number)
Objective
    cost = sum_p price[p] G[p] y[p] + sum over j in pools rented by device of price gpus[j] n[j]; or devices likewise

Priced columns are what a plan may use; unpriced families are optimistic (no queue, no SLO), so a programme that holds
some of them bounds from below every plan that prices them later, and one that holds nothing else is the certificate's
bound: no plan under this cost model can be better.

Shares are scaled per class so that the smallest coefficient of a row is 1, and demand is met to one part in 1e6:
solvers have been seen to return wrong optima where coefficients fall below their feasibility tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pulp

Ties = Literal["any", "operable", "all"]

DEMAND_TOLERANCE = 1e-6
EQUAL = 1e-6  # values closer than this share of themselves are equal
MOST_HEADROOM = 4.0  # spare capacity beyond this multiple of the traffic is worth nothing in a tie


@dataclass(frozen=True, slots=True)
class Pool:
    """What can be rented: `devices` in nodes of `node_devices`, at `price` $/h a device."""

    name: str
    devices: int
    node_devices: int
    price: float | None
    rent: Literal["node", "gpu"]

    @property
    def nodes(self) -> int:
        return self.devices // self.node_devices


@dataclass(frozen=True, slots=True)
class Column:
    """One configuration with the load that one replica of it carries; `shares` by class name, positive."""

    key: str
    model: str
    pool: str
    gpus: int
    shares: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class OptimisticFamily:
    """A configuration not priced yet; `loads` by class name: replicas that the class's demand keeps busy, at least.

    `misses` by class name: the share of its requests that break a limit even alone; only shares above 0 are listed.
    """

    key: str
    model: str
    pool: str
    gpus: int
    loads: tuple[tuple[str, float], ...]
    misses: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Programme:
    """The data of one master programme; `None` where the user stated no such limit."""

    pools: tuple[Pool, ...]
    columns: tuple[Column, ...]
    families: tuple[OptimisticFamily, ...]
    classes: tuple[str, ...]
    quantity: Literal["cost", "gpus"]
    allowed_misses: dict[str, float] = field(default_factory=dict)  # by class; classes without an SLO are not listed
    budget: float | None = None
    model_gpus: dict[str, int] = field(default_factory=dict)
    model_replicas: dict[str, tuple[int, ...]] = field(default_factory=dict)  # pinned: the allowed numbers


@dataclass(frozen=True)
class Variables:
    replicas: dict[str, Any]  # of columns and of families
    nodes: dict[str, Any]
    taken: dict[tuple[str, str], Any]  # (family, class): z
    late: dict[tuple[str, str], Any]  # (family, class): late; only where some requests miss
    picked: dict[tuple[str, int], Any]  # (model, allowed number of replicas): whether it is that one
    used: dict[str, Any]  # 1 where any replica of a column or family is bought; used in tie-breaks only
    headroom: Any  # multiple of the demand that priced columns carry; used in tie-breaks only


def members(programme: Programme) -> tuple[Column | OptimisticFamily, ...]:
    """Everything that replicas can be bought of: priced columns, then unpriced families."""
    return (*programme.columns, *programme.families)


def slot_gpus(gpus: int, node_devices: int) -> float:
    """Devices that one replica takes away, with what its size leaves unusable (3 of 8 fit twice: 4 each)."""
    if gpus >= node_devices:
        return float(math.ceil(gpus / node_devices) * node_devices)
    return node_devices / (node_devices // gpus)


def build(programme: Programme) -> tuple[Any, Variables]:
    """The PuLP problem with the primary objective set. Columns of the data become integer variables in order."""
    problem = pulp.LpProblem("capstan", pulp.LpMinimize)
    variables = Variables(
        replicas={
            member.key: pulp.LpVariable(f"n_{index}", lowBound=0, cat=pulp.LpInteger)
            for index, member in enumerate(members(programme))
        },
        nodes={
            pool.name: pulp.LpVariable(f"y_{index}", lowBound=0, upBound=pool.nodes, cat=pulp.LpInteger)
            for index, pool in enumerate(programme.pools)
            if pool.rent == "node"
        },
        taken={
            (family.key, name): pulp.LpVariable(f"z_{index}_{position}", lowBound=0, upBound=MOST_HEADROOM)
            for index, family in enumerate(programme.families)
            for position, (name, _) in enumerate(family.loads)
        },
        late={
            (family.key, name): pulp.LpVariable(f"late_{index}_{position}", lowBound=0, upBound=MOST_HEADROOM)
            for index, family in enumerate(programme.families)
            for position, (name, _) in enumerate(family.misses)
        },
        used={
            member.key: pulp.LpVariable(f"used_{index}", cat=pulp.LpBinary)
            for index, member in enumerate(members(programme))
        },
        picked={
            (model, count): pulp.LpVariable(f"picked_{index}_{count}", cat=pulp.LpBinary)
            for index, (model, allowed) in enumerate(sorted(programme.model_replicas.items()))
            for count in sorted(set(allowed))
        },
        headroom=pulp.LpVariable("headroom", lowBound=0, upBound=MOST_HEADROOM),
    )
    problem += objective(programme, variables)
    for name, constraint in constraints(programme, variables):
        problem += constraint, name
    return problem, variables


def objective(programme: Programme, variables: Variables) -> Any:
    """Dollars an hour, or devices: whole nodes where they are rented so, devices elsewhere."""
    terms = []
    for pool in programme.pools:
        weight = (pool.price or 0.0) if programme.quantity == "cost" else 1.0
        if pool.rent == "node":
            terms.append(weight * pool.node_devices * variables.nodes[pool.name])
        else:
            terms += [
                weight * member.gpus * variables.replicas[member.key]
                for member in members(programme)
                if member.pool == pool.name
            ]
    return pulp.lpSum(terms)


def constraints(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """All constraint families, each with its law."""
    yield from demand_is_met(programme, variables)
    yield from families_are_not_overloaded(programme, variables)
    yield from few_requests_are_late(programme, variables)
    yield from replicas_fit_the_pools(programme, variables)
    yield from budget_is_kept(programme, variables)
    yield from model_gpus_are_kept(programme, variables)
    yield from pinned_replicas(programme, variables)


def demand_is_met(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """The replicas of all columns and families together carry the whole demand of each class."""
    for index, name in enumerate(programme.classes):
        scale = _scale(programme, name)
        yield f"demand_{index}", _carried(programme, variables, name, scale) >= scale * (1.0 - DEMAND_TOLERANCE)


def _scale(programme: Programme, name: str) -> float:
    """Makes the smallest share of a class's row 1."""
    shares = [share for column in programme.columns for of_class, share in column.shares if of_class == name]
    return 1.0 / min(shares, default=1.0)


def _carried(programme: Programme, variables: Variables, name: str, scale: float) -> Any:
    """Scaled share of a class's demand that the plan carries."""
    fixed = [
        scale * share * variables.replicas[column.key]
        for column in programme.columns
        for of_class, share in column.shares
        if of_class == name
    ]
    flexible = [scale * taken for (_, of_class), taken in variables.taken.items() if of_class == name]
    return pulp.lpSum(fixed + flexible)


def families_are_not_overloaded(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """The work that an unpriced family takes keeps its replicas busy at most all of the time."""
    for index, family in enumerate(programme.families):
        work = pulp.lpSum(load * variables.taken[family.key, name] for name, load in family.loads)
        yield f"load_{index}", work <= variables.replicas[family.key]


def few_requests_are_late(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """On time, a family takes at most the requests that keep their limits there; all others are late, and few may be.

    Which requests go where is left open, so this holds for every routing.
    """
    for index, family in enumerate(programme.families):
        for position, (name, miss) in enumerate(family.misses):
            taken, late = variables.taken[family.key, name], variables.late[family.key, name]
            yield f"on_time_{index}_{position}", taken - late <= 1.0 - miss
    for index, name in enumerate(programme.classes):
        late_ones = [late for (_, of_class), late in variables.late.items() if of_class == name]
        if late_ones and name in programme.allowed_misses:
            yield f"late_{index}", pulp.lpSum(late_ones) <= programme.allowed_misses[name]


def replicas_fit_the_pools(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """Replicas of a pool fit into its rented nodes, or into its devices."""
    for index, pool in enumerate(programme.pools):
        taken = pulp.lpSum(
            slot_gpus(member.gpus, pool.node_devices) * variables.replicas[member.key]
            for member in members(programme)
            if member.pool == pool.name
        )
        if pool.rent == "node":
            yield f"nodes_{index}", taken <= pool.node_devices * variables.nodes[pool.name]
        else:
            yield f"devices_{index}", taken <= pool.devices


def budget_is_kept(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """Dollars an hour stay within the stated budget."""
    if programme.budget is not None:
        yield "budget", objective(replace(programme, quantity="cost"), variables) <= programme.budget


def model_gpus_are_kept(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """A model's replicas work on at most the devices stated for it."""
    for index, (model, limit) in enumerate(sorted(programme.model_gpus.items())):
        used = pulp.lpSum(
            member.gpus * variables.replicas[member.key] for member in members(programme) if member.model == model
        )
        yield f"gpus_{index}", used <= limit


def pinned_replicas(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """A model with pinned replicas has exactly one of the stated numbers of them."""
    for index, model in enumerate(sorted(programme.model_replicas)):
        count = pulp.lpSum(variables.replicas[member.key] for member in members(programme) if member.model == model)
        own = [(number, picked) for (of_model, number), picked in variables.picked.items() if of_model == model]
        yield f"replicas_one_{index}", pulp.lpSum(picked for _, picked in own) == 1
        yield f"replicas_{index}", count == pulp.lpSum(number * picked for number, picked in own)


def headroom_is_carried(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """Of every class, priced columns carry the headroom's multiple of the demand (tie-breaks only)."""
    for index, name in enumerate(programme.classes):
        scale = _scale(programme, name)
        yield f"headroom_{index}", _carried(programme, variables, name, scale) >= scale * variables.headroom


def used_groups_are_counted(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """Replicas are bought only of what counts as used (tie-breaks only)."""
    devices = {pool.name: pool.devices for pool in programme.pools}
    for index, member in enumerate(members(programme)):
        most = devices[member.pool] // member.gpus
        yield f"used_{index}", variables.replicas[member.key] <= most * variables.used[member.key]


@dataclass(frozen=True)
class TieBreak:
    """One goal, minimised among plans of equal value; later goals may give back `slack` of it (a share)."""

    goal: Any
    slack: float


def tie_breaks(programme: Programme, variables: Variables, ties: Ties) -> tuple[TieBreak, ...]:
    """What is minimised next, in order, at the value reached so far.

    Devices rented; then the traffic left without headroom, so that devices that are paid for anyway work; then, within
    5 % of the most headroom, the groups to operate and the replicas: fewer and larger ones answer faster and pool their
    caches; then the devices left idle in rented nodes; then the order of the columns, so that equal plans come out
    equal.
    """
    headroom = TieBreak(-1.0 * variables.headroom, 0.05)
    groups = TieBreak(pulp.lpSum(variables.used.values()), EQUAL)
    replicas = TieBreak(pulp.lpSum(variables.replicas.values()), EQUAL)
    working = pulp.lpSum(member.gpus * variables.replicas[member.key] for member in members(programme))
    idle = TieBreak(-1.0 * working, EQUAL)
    if ties == "operable":
        return headroom, groups, replicas, idle
    gpus = TieBreak(objective(replace(programme, quantity="gpus"), variables), EQUAL)
    order = pulp.lpSum(index * variable for index, variable in enumerate(variables.replicas.values()))
    return gpus, headroom, groups, replicas, idle, TieBreak(order, EQUAL)
