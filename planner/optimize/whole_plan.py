"""A chosen plan as a whole: where its replicas stand, and what simulation makes of it, nodes failing included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from planner.admission import admitted as admitted
from planner.candidates.disaggregated import Part, whole_fleet
from planner.optimize.decision import Bought, group_id, routes_of
from planner.optimize.placement import Demand, placements
from planner.simulate import Fault, FleetResult, Workload, simulate_fleet
from planner.simulate.apart import simulate_parts
from specs.deployment import SLO, HardwareSpec
from specs.plan import ReplicaPlacement, Route, RouterName

Placement = Mapping[str, tuple[ReplicaPlacement, ...]]  # by group
Node = tuple[str, int]  # pool, node of it

MOST_FAILURES = 8  # sets of failing nodes that are simulated
_SPOT_SEED = 41_113


@dataclass(frozen=True)
class WholePlan:
    """Bought replicas on their devices, with the shares of each class that their groups take."""

    bought: tuple[Bought, ...]
    routes: tuple[Route, ...]
    placement: Placement
    hardware: HardwareSpec
    router: RouterName = "least_outstanding"

    def simulate(
        self,
        workload: Workload,
        slos: Mapping[str, SLO] | None,
        faults: Iterable[Fault] = (),
        progress: Callable[[float], None] | None = None,
    ) -> FleetResult:
        """`workload` on all groups; where `slos` are given, a run ends as soon as one of them is broken."""
        parts = tuple(
            Part(
                group_id(index),
                item.column.variant,
                item.replicas,
                tuple(slot for replica in self.placement[group_id(index)] for slot in replica.slots),
                item.hands_over_to,
            )
            for index, item in enumerate(self.bought)
            if item.column.variant is not None
        )
        groups, links = whole_fleet(parts, self.routes, workload, self.hardware)
        failing = tuple(faults)
        if not links and not failing:
            return simulate_parts(groups, self.routes, workload, router=self.router, refute=slos, progress=progress)
        return simulate_fleet(
            groups,
            self.routes,
            workload,
            router=self.router,
            links=links,
            faults=failing,
            refute=slos,
            progress=progress,
        )

    @property
    def measured(self) -> frozenset[str]:
        """Classes that only groups priced by measured rates serve: the cost model has no say in them."""
        sure = {group_id(index) for index, item in enumerate(self.bought) if item.column.measured}
        return frozenset(
            {route.request_class for route in self.routes}
            - {route.request_class for route in self.routes if route.group not in sure}
        )

    def without(self, nodes: frozenset[Node]) -> WholePlan:
        """What is left when `nodes` fail: their replicas are gone, and classes are split anew over the others."""
        left: list[tuple[Bought, tuple[ReplicaPlacement, ...]]] = []
        for index, item in enumerate(self.bought):
            places = item.column.family.places
            standing = tuple(
                replica
                for replica in self.placement[group_id(index)]
                if not any((pool, slot.node) in nodes for pool, slot in places(replica))
            )
            if standing:
                left.append((replace(item, replicas=len(standing)), standing))
        decoding = {item.column.family.model for item, _ in left if item.role == "decode"}
        left = [(item, at) for item, at in left if item.role != "prefill" or item.column.family.model in decoding]
        bought = tuple(item for item, _ in left)
        classes = dict.fromkeys(route.request_class for route in self.routes)
        placement = {group_id(index): standing for index, (_, standing) in enumerate(left)}
        return WholePlan(bought, routes_of(bought, classes), placement, self.hardware, self.router)

    def heaviest_nodes(self, count: int) -> list[frozenset[Node]]:
        """Sets of `count` nodes whose loss should hurt most: of each class and phase, and of devices in each pool."""
        loads: dict[tuple[str, str], dict[Node, float]] = {}
        for index, item in enumerate(self.bought):
            for replica in self.placement[group_id(index)]:
                places = item.column.family.places(replica)
                for pool, node in dict.fromkeys((pool, slot.node) for pool, slot in places):
                    for name in item.column.classes:
                        _add(loads.setdefault((name, item.role), {}), (pool, node), item.column.lower)
                    devices = sum(other == pool for other, _ in places)
                    _add(loads.setdefault(("devices", pool), {}), (pool, node), devices)
        sets = [
            frozenset(node for node, _ in sorted(load.items(), key=lambda entry: (-entry[1], entry[0]))[:count])
            for _, load in sorted(loads.items())
        ]
        return list(dict.fromkeys(sets))[:MOST_FAILURES]

    def interruptions(self, horizon_s: float) -> tuple[Fault, ...]:
        """Interruptions of spot machines, drawn at their rate: each time a node of theirs goes until it is replaced."""
        random = np.random.default_rng(_SPOT_SEED)
        found = []
        for pool in self.hardware.pools:
            if pool.spot is None or pool.spot.interruptions_per_hour <= 0:
                continue
            own = [index for index, item in enumerate(self.bought) if item.column.family.gpus_in(pool.name)]
            for node in sorted({node for index in own for of in self._nodes_of(index, pool.name) for node in of}):
                down_s = pool.spot.recovery_s
                at_s = float(random.exponential(3600.0 / pool.spot.interruptions_per_hour))
                while at_s < horizon_s:
                    for index in own:
                        for number, nodes in enumerate(self._nodes_of(index, pool.name)):
                            if node in nodes:
                                found.append(Fault(group_id(index), number, at_s, at_s + down_s))
                    at_s += down_s + float(random.exponential(3600.0 / pool.spot.interruptions_per_hour))
        return tuple(found)

    def _nodes_of(self, index: int, pool: str) -> list[set[int]]:
        """Nodes of a pool that each replica of a group stands on."""
        places = self.bought[index].column.family.places
        return [
            {slot.node for name, slot in places(replica) if name == pool} for replica in self.placement[group_id(index)]
        ]


def _add(load: dict[Node, float], node: Node, amount: float) -> None:
    load[node] = load.get(node, 0.0) + amount


def placed(
    bought: tuple[Bought, ...], hardware: HardwareSpec, nodes: Mapping[str, int] | None = None, *, spread: bool = False
) -> dict[str, tuple[ReplicaPlacement, ...]]:
    """Devices of every group's replicas. `nodes`: rented, by pool; `spread`: few of a group on each node."""
    demands: dict[str, tuple[Demand, ...]] = {}
    for index, item in enumerate(bought):
        family = item.column.family
        for part, pool in enumerate(family.pools):
            wanted = Demand(group_id(index), family.gpus_in(pool.name), item.replicas, part)
            demands[pool.name] = (*demands.get(pool.name, ()), wanted)
    return placements(hardware.pools, demands, nodes or {}, spread=spread)


def availability_of(hardware: HardwareSpec) -> dict[str, float]:
    """Share of the time that a device is there, by pool; 1 where it is not interrupted."""
    found = {}
    for pool in hardware.pools:
        if pool.spot is not None:
            found[pool.name] = 1.0 / (1.0 + pool.spot.interruptions_per_hour * pool.spot.recovery_s / 3600.0)
    return found


def nodes_in_words(nodes: frozenset[Node]) -> str:
    return ", ".join(f"{pool} node {node}" for pool, node in sorted(nodes))
