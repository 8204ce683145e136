"""The master programme on paper, then in PuLP.

Sets
    p in pools, m in models, k in request classes (each of one model), j in columns (each of one model and one pool).
Parameters
    share[j,k]   share of class k's demand that one replica of column j carries within every SLO (priced by simulation)
    role[j]      unified, or the phase that it serves: prefill, decode;   channel[j]  what both sides have to share
    load[f,k]    replicas of family f that class k's whole demand keeps busy at the least (utilisation law)
    miss[f,k]    share of class k's requests that break a limit on family f even alone, without any queue
    allow[k]     share of class k's requests that may break their limits
    watts[j,k]   beyond idle ones, that class k's whole demand draws on column j (where watts are minimised)
    gpus[j]      devices of one replica, counted with the slots that its size makes unusable in a node
    G[p], N[p]   devices of a node, devices in the pool;  price[p]  per device-hour;  rent[p] in {node, gpu}
Variables
    n[j], n[f] integer >= 0   replicas of column j, of family f
    z[f,k] >= 0               share of class k's demand that family f takes (above 1 it is headroom); z[j,k] likewise
                              where watts are minimised
    late[f,k] >= 0            the part of it that breaks its limits there
    split[k,c] >= 0           share of class k that prefill and decode columns serve together over channel c
    decodes[j] in {0,1}       decode column j is the one of its model
    demand[k]                 share of class k that is to be carried: 1; or s >= 0 for all alike, where the multiple of
                              the traffic is maximised; or in [0,1], where throughput or goodput is
    loss[k], level[j,r]       what a failing node takes away (`failures.py`)
    y[p] integer >= 0   nodes rented in pool p (only where rent is by node)
    picked[m,c] in {0,1}      model m has c replicas (only where the user pinned their number)
Objective: `objectives.py`. Constraints: `rows.py`, `roles.py`, `failures.py`, one function a family. Ties: `ties.py`.

Priced columns are what a plan may use; unpriced families are optimistic (no queue, no SLO), so a programme that holds
some of them bounds from below every plan that prices them later, and one that holds nothing else is the certificate's
bound: no plan under this cost model can be better.

Shares are scaled per class so that the smallest coefficient of a row is 1, and demand is met to one part in 1e6:
solvers have been seen to return wrong optima where coefficients fall below their feasibility tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pulp

from planner.optimize.failures import (
    levels,
    loss_keys,
    losses_are_counted,
    nodes_stand_by,
    replicas_are_spread,
    spare_keys,
)
from planner.optimize.objectives import objective
from planner.optimize.parts import (
    DEMAND_TOLERANCE,
    MOST_HEADROOM,
    MOST_MULTIPLE,
    Column,
    OptimisticFamily,
    Pool,
    Programme,
    Variables,
    members,
    slot_gpus,
)
from planner.optimize.roles import channels, one_decode_column_a_model, split_is_carried
from planner.optimize.rows import (
    budget_is_kept,
    demand_is_met,
    families_are_not_overloaded,
    few_requests_are_late,
    model_gpus_are_kept,
    pinned_replicas,
    power_is_kept,
    replicas_fit_the_pools,
    taken_is_carried,
)
from planner.optimize.ties import EQUAL, TieBreak, Ties, headroom_is_carried, tie_breaks, used_groups_are_counted

__all__ = [
    "DEMAND_TOLERANCE",
    "EQUAL",
    "MOST_HEADROOM",
    "Column",
    "OptimisticFamily",
    "Pool",
    "Programme",
    "TieBreak",
    "Ties",
    "Variables",
    "build",
    "constraints",
    "headroom_is_carried",
    "members",
    "objective",
    "slot_gpus",
    "tie_breaks",
    "used_groups_are_counted",
]


def build(programme: Programme) -> tuple[Any, Variables]:
    """The PuLP problem with the primary objective set. Columns of the data become integer variables in order."""
    problem = pulp.LpProblem("capstan", pulp.LpMinimize)
    variables = _variables(programme)
    problem += objective(programme, variables)
    for name, constraint in constraints(programme, variables):
        problem += constraint, name
    return problem, variables


def constraints(programme: Programme, variables: Variables) -> Iterable[tuple[str, Any]]:
    """All constraint families, each with its law."""
    yield from demand_is_met(programme, variables)
    yield from split_is_carried(programme, variables)
    yield from taken_is_carried(programme, variables)
    yield from families_are_not_overloaded(programme, variables)
    yield from few_requests_are_late(programme, variables)
    yield from one_decode_column_a_model(programme, variables)
    yield from replicas_fit_the_pools(programme, variables)
    yield from losses_are_counted(programme, variables)
    yield from replicas_are_spread(programme, variables)
    yield from nodes_stand_by(programme, variables)
    yield from budget_is_kept(programme, variables)
    yield from power_is_kept(programme, variables)
    yield from model_gpus_are_kept(programme, variables)
    yield from pinned_replicas(programme, variables)


def _variables(programme: Programme) -> Variables:
    pools = {pool.name: pool for pool in programme.pools}
    every = members(programme)
    most = MOST_MULTIPLE if programme.quantity == "traffic" else MOST_HEADROOM
    multiple = pulp.LpVariable("multiple", 0, MOST_MULTIPLE) if programme.quantity == "traffic" else None
    takers = list(enumerate(programme.families))
    return Variables(
        replicas={
            member.key: pulp.LpVariable(f"n_{index}", lowBound=0, cat=pulp.LpInteger)
            for index, member in enumerate(every)
        },
        nodes={
            pool.name: pulp.LpVariable(f"y_{index}", lowBound=0, upBound=pool.nodes, cat=pulp.LpInteger)
            for index, pool in enumerate(programme.pools)
            if pool.rent == "node"
        },
        taken={
            (family.key, name): pulp.LpVariable(f"z_{index}_{position}", 0, most)
            for index, family in takers
            for position, (name, _) in enumerate(family.loads)
        }
        | {
            (column.key, name): pulp.LpVariable(f"taken_{index}_{position}", 0, most)
            for index, column in enumerate(programme.columns if programme.meters else ())
            for position, (name, _) in enumerate(column.shares)
        },
        late={
            (family.key, name): pulp.LpVariable(f"late_{index}_{position}", 0, most)
            for index, family in takers
            for position, (name, _) in enumerate(family.misses)
        },
        picked={
            (model, count): pulp.LpVariable(f"picked_{index}_{count}", cat=pulp.LpBinary)
            for index, (model, allowed) in enumerate(sorted(programme.model_replicas.items()))
            for count in sorted(set(allowed))
        },
        split={
            (name, channel): pulp.LpVariable(f"split_{index}", 0, most)
            for index, (name, channel) in enumerate(channels(programme))
        },
        decodes={
            column.key: pulp.LpVariable(f"decodes_{index}", cat=pulp.LpBinary)
            for index, column in enumerate(programme.columns)
            if column.role == "decode"
        },
        demand={name: _demand(programme, index, multiple) for index, name in enumerate(programme.classes)},
        multiple=multiple,
        level={
            (column.key, number): pulp.LpVariable(f"level_{index}_{number}", cat=pulp.LpBinary)
            for index, column in enumerate(programme.columns if programme.survive else ())
            for number in levels(column, pools[column.pool])
        },
        loss={key: pulp.LpVariable(f"loss_{index}", 0) for index, key in enumerate(loss_keys(programme))},
        spare={
            key: pulp.LpVariable(f"spare_{index}", 0, cat=pulp.LpInteger)
            for index, key in enumerate(spare_keys(programme))
        },
        used={member.key: pulp.LpVariable(f"used_{index}", cat=pulp.LpBinary) for index, member in enumerate(every)},
        headroom=pulp.LpVariable("headroom", lowBound=0, upBound=MOST_HEADROOM),
    )


def _demand(programme: Programme, index: int, multiple: Any) -> Any:
    """Share of a class's traffic that is to be carried: a number, or a variable where more of it is the objective."""
    if multiple is not None:
        return multiple
    return pulp.LpVariable(f"served_{index}", 0, 1) if programme.maximises else 1.0
