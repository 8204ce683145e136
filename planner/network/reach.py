"""How far a device of a pool reaches through the declared network: what one port gets, and after how long."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from specs.deployment import HardwareSpec, PoolSpec
from specs.deployment.cables import devices_of_node, node_name

if TYPE_CHECKING:
    from planner.network.topology import Network


@lru_cache(maxsize=64)
def port_in_pool(hardware: HardwareSpec, pool: PoolSpec) -> tuple[float | None, float | None]:
    """Bytes per second and seconds of latency from a device to one on another node of its pool; None: not declared.

    A graph gives a device its part of the narrowest path between any two nodes of the pool, and the longest latency:
    whichever nodes a replica takes, it is planned at no more than it has.
    """
    network = hardware.network
    if network.graph and pool.nodes > 1:
        return _worst(_network(hardware), pool, pool)
    rate, latency = network.bandwidth_bytes_per_s, network.latency_s
    for link in network.links:
        if link.between == (pool.name, pool.name):
            rate, latency = link.bandwidth_bytes_per_s, latency if link.latency_s is None else link.latency_s
    return rate, latency


@lru_cache(maxsize=256)
def port_between(hardware: HardwareSpec, one: PoolSpec, other: PoolSpec) -> tuple[float | None, float | None]:
    """As `port_in_pool`, from a device of `one` to a device of `other`; None: not declared for this pair."""
    if one.name == other.name:
        return port_in_pool(hardware, one)
    if hardware.network.graph:
        return _worst(_network(hardware), one, other)
    for link in hardware.network.links:
        if set(link.between) == {one.name, other.name}:
            return link.bandwidth_bytes_per_s, link.latency_s
    return None, None


@lru_cache(maxsize=8)
def _network(hardware: HardwareSpec) -> Network:
    from planner.network.topology import declared_network  # brings networkx, which most specs have no need of

    return declared_network(hardware)


def _worst(network: Network, one: PoolSpec, other: PoolSpec) -> tuple[float, float]:
    """The narrowest part of a path that a device has, and the longest latency, over nodes that are not cabled alike."""
    width, latency = float("inf"), 0.0
    targets = _representatives(network, other)
    for source in _representatives(network, one):
        for target in targets:
            if source == target:
                continue
            devices = max(devices_of_node(one, 0), devices_of_node(other, 0))
            width = min(width, network.bytes_per_s(source, target) / devices)
            latency = max(latency, network.latency_s(source, target))
    return width, latency


def _representatives(network: Network, pool: PoolSpec) -> list[str]:
    """Two nodes of each kind: nodes are alike where the same ends are cabled to them alike."""
    kinds: dict[object, list[str]] = {}
    for index in range(pool.nodes):
        name = node_name(pool.name, index)
        kind = tuple(sorted((end, edge["bytes_per_s"], edge["latency_s"]) for end, edge in network.graph[name].items()))
        kinds.setdefault(kind, []).append(name)
    return [name for names in kinds.values() for name in names[:2]]
