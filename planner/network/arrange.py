"""Which node is which: replicas stay together as they were placed, and nodes change places until the cables carry it.

Minimises the fullest cable's load, then the bytes times the cables they pass, by exchanging two nodes of a pool for as
long as that helps. Where all nodes reach each other alike there is nothing to exchange.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from planner.facts import in_pool
from planner.network.flows import Flow, flows
from planner.network.laws import FULL
from planner.network.ports import Cable, Ports
from specs.deployment import HardwareSpec
from specs.deployment.cables import devices_of_node, node_name
from specs.errors import NoPlanError
from specs.plan import CableLoad, DeviceSlot, Plan, ReplicaPlacement

if TYPE_CHECKING:
    from planner.network.topology import Network

MOST_EXCHANGES = 20_000  # tried in one search
EQUAL = 1e-9
Score = tuple[float, float]


def arranged(plan: Plan, hardware: HardwareSpec, *, fixed: bool = False) -> Plan:
    """The plan with its nodes chosen so that the network carries it, and the load of every cable that is used.

    `fixed`: its nodes are stated, and stay. Raises `NoPlanError` where no exchange that was found makes the flows fit.
    """
    found = flows(plan)
    if not found:
        return plan
    network = _network(plan, hardware)
    if not fixed and not isinstance(network, Ports):
        renamed = _search(plan, hardware, network, found)
        plan = _with_nodes(plan, renamed)
        found = flows(plan)
    loads = _loads(network, found)
    fullest = max(loads, key=lambda cable: (loads[cable] / network.capacity(cable), cable))
    if loads[fullest] > FULL * network.capacity(fullest):
        raise _too_narrow(network, found, fullest, loads[fullest])
    return plan.model_copy(
        update={
            "network": tuple(
                CableLoad(between=cable, bytes_per_s=load, capacity_bytes_per_s=network.capacity(cable))
                for cable, load in sorted(loads.items())
                if network.capacity(cable) != float("inf")
            )
        }
    )


def _network(plan: Plan, hardware: HardwareSpec) -> Network | Ports:
    if not hardware.network.graph:
        return Ports(hardware, _ports(plan, hardware))
    from planner.network.topology import declared_network  # brings networkx, which most plans have no need of

    return declared_network(hardware)


def _ports(plan: Plan, hardware: HardwareSpec) -> dict[str, float]:
    """Bytes per second of one device's port, by pool."""
    return {pool.name: in_pool(plan.devices[pool.device], pool, hardware).nic_bytes_per_s for pool in hardware.pools}


def _loads(
    network: Network | Ports, found: tuple[Flow, ...], place: Mapping[str, str] | None = None
) -> dict[Cable, float]:
    """Bytes per second by cable and direction; `place`: new names of nodes."""
    loads: dict[Cable, float] = defaultdict(float)
    for flow in found:
        ends = (flow.source, flow.target) if place is None else (place[flow.source], place[flow.target])
        for cable in network.cables(*ends):
            loads[cable] += flow.bytes_per_s
    return dict(loads)


def _search(plan: Plan, hardware: HardwareSpec, network: Network, found: tuple[Flow, ...]) -> dict[str, str]:
    """Old name of a node -> new one: exchanges of two nodes of a pool, the first that helps, until none does."""
    nodes = [
        [node_name(pool.name, index) for index in range(pool.nodes) if devices_of_node(pool, index) == size]
        for pool in hardware.pools
        for size in sorted({devices_of_node(pool, index) for index in range(pool.nodes)})
    ]
    used = {flow.source for flow in found} | {flow.target for flow in found}
    place = {name: name for names in nodes for name in names}
    best = _score(network, found, place)
    tried, improved = 0, True
    while improved and tried < MOST_EXCHANGES:
        improved = False
        for names in nodes:
            for a in names:
                for b in names:
                    if a >= b or not {a, b} & used or tried >= MOST_EXCHANGES:
                        continue
                    tried += 1
                    place[a], place[b] = place[b], place[a]
                    score = _score(network, found, place)
                    if _better(score, best):
                        best, improved = score, True
                    else:
                        place[a], place[b] = place[b], place[a]
    return place


def _better(score: Score, best: Score) -> bool:
    """Less in the first, or equal there and less in the second; what rounding tells apart is equal."""
    if abs(score[0] - best[0]) > EQUAL * best[0]:
        return score[0] < best[0]
    return score[1] < best[1] * (1.0 - EQUAL)


def _score(network: Network, found: tuple[Flow, ...], place: dict[str, str]) -> Score:
    """(load of the fullest cable as a share of it, but no less than half; bytes times cables)."""
    loads = _loads(network, found, place)
    fullest = max((load / network.capacity(cable) for cable, load in loads.items()), default=0.0)
    return max(fullest, FULL / 2), sum(loads.values())


def _with_nodes(plan: Plan, place: dict[str, str]) -> Plan:
    """The plan with its nodes renamed."""
    groups = tuple(
        group.model_copy(
            update={
                "placement": tuple(
                    ReplicaPlacement(slots=tuple(_moved(pool, slot, place) for pool, slot in group.places(replica)))
                    for replica in group.placement
                )
            }
        )
        for group in plan.groups
    )
    return plan.model_copy(update={"groups": groups})


def _moved(pool: str, slot: DeviceSlot, place: dict[str, str]) -> DeviceSlot:
    return DeviceSlot(node=int(place[node_name(pool, slot.node)].rpartition("/")[2]), device=slot.device)


def _too_narrow(network: Network | Ports, found: tuple[Flow, ...], cable: Cable, load: float) -> NoPlanError:
    inside = [flow for flow in found if cable in network.cables(flow.source, flow.target)]
    kinds = sorted({flow.what for flow in inside})
    name = f"{cable[0]} to {cable[1]}"
    return NoPlanError(
        f"the network does not carry the plan: from {name} it would send {load / 1e9:.3g} GB/s, "
        f"{FULL:.0%} of {network.capacity(cable) / 1e9:.3g} GB/s can be used",
        conflict=("hardware.network: " + name, *kinds),
        mends=(f"hardware.network: at least {load / FULL * 8 / 1e9:.3g} Gb/s from {name}",),
    )
