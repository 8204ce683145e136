"""Rows that keep every class carried when any N nodes fail.

    carried[k] - N loss[k] >= 1
    loss[k] >= sum over columns j of a pool: share[j,k] x (replicas of j that may share a node) x used[j]

How many replicas of a column may share a node is decided with it: `level[j,r]` is 1 where at most r do. Fewer on a node
lose less with it and need more nodes. A replica over several nodes is lost with any of them. Unpriced families lose
nothing, so that bounds stay bounds; in the certificate's own programme N nodes stand by instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pulp

from planner.optimize.parts import Column, Pool, Programme, Role, Variables, most_replicas, slot_gpus
from planner.optimize.rows import Rows


def levels(column: Column, pool: Pool) -> tuple[int, ...]:
    """Numbers of replicas on one node that are tried: 1, 2, 4, ... and as many as a node holds."""
    most = max(1, pool.node_devices // column.gpus)
    return tuple(sorted({most, *(2**power for power in range(int(math.log2(most)) + 1))}))


def losses_are_counted(programme: Programme, variables: Variables) -> Rows:
    """What a failing node takes away of a class is at least what the columns of any pool may have on a node."""
    if not programme.survive:
        return
    for (name, role), loss in variables.loss.items():
        for pool in programme.pools:
            own = [column for column in programme.columns if column.pool == pool.name and column.role == role]
            scale = 1.0 / min((share for column in own for of, share in column.shares if of == name), default=1.0)
            on_a_node = [
                scale * share * most * variables.level[column.key, most]
                for column in own
                for of_class, share in column.shares
                if of_class == name
                for most in levels(column, pool)
            ]
            if on_a_node:
                label = f"loss_{programme.classes.index(name)}_{role}_{pool.name}"
                yield _safe(label), scale * loss >= pulp.lpSum(on_a_node)


def replicas_are_spread(programme: Programme, variables: Variables) -> Rows:
    """A used column has one level, and at most so many of its replicas on each node that is there for them."""
    if not programme.survive:
        return
    pools = {pool.name: pool for pool in programme.pools}
    for index, column in enumerate(programme.columns):
        pool, replicas = pools[column.pool], variables.replicas[column.key]
        tried = levels(column, pool)
        most = most_replicas(column, pool)
        of_level = {number: variables.level[column.key, number] for number in tried}
        yield f"levels_{index}", pulp.lpSum(of_level.values()) <= 1
        yield f"level_{index}", replicas <= most * pulp.lpSum(of_level.values())
        nodes = _open_nodes(programme, variables, pool)
        for number in tried:
            if number < tried[-1]:
                yield f"spread_{index}_{number}", replicas <= number * nodes + most * (1 - of_level[number])


def _open_nodes(programme: Programme, variables: Variables, pool: Pool) -> Any:
    """Nodes of a pool that replicas smaller than a node can be spread over."""
    whole = pulp.lpSum(
        math.ceil(column.gpus / pool.node_devices) * variables.replicas[column.key]
        for column in programme.columns
        if column.pool == pool.name and column.gpus >= pool.node_devices
    )
    return (variables.nodes[pool.name] if pool.rent == "node" else pool.nodes) - whole


def nodes_stand_by(programme: Programme, variables: Variables) -> Rows:
    """Without priced columns: N nodes are left out of what carries the traffic, each with a replica at least.

    Whichever N nodes fail, those that are left are a plan; so any plan is one of these with N nodes beside it.
    """
    if not variables.spare:
        return
    yield "spare", pulp.lpSum(variables.spare[pool.name] for pool in programme.pools) >= programme.survive
    for index, pool in enumerate(programme.pools):
        if pool.rent == "node":
            continue  # whole nodes are paid for: `replicas_fit_the_pools`
        own = [family for family in programme.families if family.pool == pool.name]
        gone = pulp.lpSum(variables.spare[family.key] for family in own)
        yield f"spare_replicas_{index}", gone >= variables.spare[pool.name]
        left = pulp.lpSum(
            slot_gpus(family.gpus, pool.node_devices) * (variables.replicas[family.key] - variables.spare[family.key])
            for family in own
        )
        smallest = pool.devices % pool.node_devices or pool.node_devices
        yield f"spare_devices_{index}", left <= pool.devices - smallest * variables.spare[pool.name]


def spare_keys(programme: Programme) -> Iterable[str]:
    """Pools, and families in pools whose devices are rented one by one: where something may stand by."""
    if not programme.survive or programme.columns:
        return
    yield from (pool.name for pool in programme.pools)
    single = {pool.name for pool in programme.pools if pool.rent == "gpu"}
    yield from (family.key for family in programme.families if family.pool in single)


def loss_keys(programme: Programme) -> Iterable[tuple[str, Role]]:
    """(class, role) of everything that may be lost."""
    if not programme.survive:
        return
    roles: tuple[Role, ...] = ("unified", "prefill", "decode")
    for name in programme.classes:
        for role in roles:
            if any(column.role == role and name in dict(column.shares) for column in programme.columns):
                yield name, role


def _safe(label: str) -> str:
    return label.replace("-", "_").replace(" ", "_")
