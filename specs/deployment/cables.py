"""Ends of the cables of a declared network: `POOL/3`, `POOL/0-3`, `POOL/*`, or a switch by any other name."""

from __future__ import annotations

import re

from specs.deployment.models import CableSpec, HardwareSpec, PoolSpec
from specs.errors import InputError

_NODES = re.compile(r"(?P<first>\d{1,6})(?:-(?P<last>\d{1,6}))?")


def node_name(pool: str, node: int) -> str:
    """What the network calls a node of a pool."""
    return f"{pool}/{node}"


def devices_of_node(pool: PoolSpec, node: int) -> int:
    """Devices of a node; the last one may be partly filled."""
    return min(pool.gpus_per_node, pool.count - node * pool.gpus_per_node)


def cable_ends(end: str, pools: tuple[PoolSpec, ...]) -> tuple[str, ...]:
    """The nodes that an end of a cable names, or the switch alone. Raises `InputError` for nodes that there are not."""
    name, slash, which = end.partition("/")
    pool = next((pool for pool in pools if pool.name == name), None)
    if pool is None or not slash:
        return (end,)
    if which == "*":
        return tuple(node_name(name, index) for index in range(pool.nodes))
    found = _NODES.fullmatch(which)
    first, last = (int(found["first"]), int(found["last"] or found["first"])) if found else (1, 0)
    if not first <= last < pool.nodes:
        expected = f"{name}/*, or nodes from {name}/0 to {name}/{pool.nodes - 1}"
        raise InputError(f"{end!r} names no nodes of pool {name!r}", expected=expected)
    return tuple(node_name(name, index) for index in range(first, last + 1))


def cables(spec: CableSpec, pools: tuple[PoolSpec, ...]) -> tuple[tuple[str, str], ...]:
    """Every cable of a statement: from each node of one end to each of the other."""
    left, right = (cable_ends(end, pools) for end in spec.between)
    return tuple((a, b) for a in left for b in right if a != b)


def check_network(hardware: HardwareSpec) -> None:
    """`InputError` (field from `hardware.network` on) for a network that contradicts itself or leaves a node apart."""
    network = hardware.network
    if not network.graph:
        return
    if network.links:
        raise InputError("stands beside `graph`", field="links", expected="one of the two")
    joined: dict[str, str] = {}

    def root(name: str) -> str:
        while joined.setdefault(name, name) != name:
            name = joined[name]
        return name

    for index, item in enumerate(network.graph):
        try:
            for a, b in cables(item, hardware.pools):
                joined[root(a)] = root(b)
        except InputError as error:
            error.field = f"graph[{index}].between"
            raise
    nodes = [node_name(pool.name, index) for pool in hardware.pools for index in range(pool.nodes)]
    apart = [name for name in nodes if root(name) != root(nodes[0])]
    if apart:
        more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
        raise InputError(
            f"no cables lead from {nodes[0]} to {apart[0]}{more}",
            field="graph",
            expected=f"a cable from {apart[0]} to a switch or node that {nodes[0]} reaches",
        )
