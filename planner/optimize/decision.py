"""A plan in the planner's own terms: what is bought, what it carries, where requests go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from planner.candidates.family import Family
from planner.candidates.rungs import Bracket
from planner.optimize.fresh_seeds import FreshTest
from planner.optimize.parts import Pool, Role, slot_gpus
from planner.simulate import FleetResult
from specs.plan import ReplicaPlacement, Route

LEAST_ROUTED = 1e-6  # of a class, where it is sent on purpose
EVERYTHING = 1.0 - 1e-9  # a class that is served to this share is served in full


@dataclass(frozen=True)
class Bought:
    """`replicas` replicas of one priced column."""

    column: Bracket
    replicas: int
    hands_over_to: str = ""  # key of the decode family of its requests, where that is stated; "": that of its model

    @property
    def role(self) -> Role:
        return self.column.family.options.role


@dataclass(frozen=True)
class Decision:
    """What was bought, its routes, the evidence and the bound; values are as users state them (positive)."""

    bought: tuple[Bought, ...]
    routes: tuple[Route, ...]
    nodes: dict[str, int]
    value: float
    bound: float
    priced_bound: float
    status: str
    solver: str
    columns: int
    result: FleetResult
    second_opinion: float | None
    fresh: FreshTest | None = None  # on traffic that planning did not see; None: not tested
    served: Mapping[str, float] = field(default_factory=dict)  # share of a class that is admitted; absent: all of it
    placement: Mapping[str, tuple[ReplicaPlacement, ...]] = field(default_factory=dict)  # by group
    notes: tuple[str, ...] = ()
    measured: frozenset[str] = frozenset()  # classes that only replicas priced by measured rates serve
    multiple: float = 1.0  # of the declared traffic that was planned for
    refuted: int = 0  # better plans that did not keep every promise when they were simulated whole
    priced: bool = True  # whether its columns were priced at this traffic; False: they only serve it, simulated whole


def group_id(index: int) -> str:
    return f"group-{index}"


def carries(item: Bought, availability: Mapping[str, float] | None = None) -> float:
    """Share of each of its classes that an item carries; of replicas that come and go, on average (by pool)."""
    there = math.prod((availability or {}).get(pool.name, 1.0) for pool in item.column.family.pools)
    return item.column.lower * item.replicas * there


def capacity_of(
    bought: Iterable[Bought], name: str, role: Role, availability: Mapping[str, float] | None = None
) -> float:
    """Share of a class that all groups of one role carry."""
    own = (item for item in bought if item.role == role and name in item.column.classes)
    return sum(carries(item, availability) for item in own)


def served_by(
    bought: tuple[Bought, ...], classes: Iterable[str], availability: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Share of each class that is carried, at most all of it; only those of which something is left out."""
    found = {}
    for name in classes:
        unified, prefill, decode = (
            capacity_of(bought, name, role, availability) for role in ("unified", "prefill", "decode")
        )
        share = unified + min(prefill, decode)
        if share < EVERYTHING:
            found[name] = share
    return found


def routes_of(bought: tuple[Bought, ...], classes: Iterable[str]) -> tuple[Route, ...]:
    """Each class is split in proportion to what the bought replicas carry of it; decode groups are handed theirs.

    Prefill groups carry no more than the decode group behind them.
    """
    routes = []
    for name in classes:
        prefill, decode = capacity_of(bought, name, "prefill"), capacity_of(bought, name, "decode")
        behind = min(1.0, decode / prefill) if prefill > 0 else 0.0
        carried = [
            (index, carries(item) * (behind if item.role == "prefill" else 1.0))
            for index, item in enumerate(bought)
            if name in item.column.classes and item.role != "decode"
        ]
        total = sum(share for _, share in carried)
        routes += [
            Route(request_class=name, group=group_id(index), share=share / total)
            for index, share in carried
            if share > 0
        ]
    return tuple(routes)


def frugal_routes(
    bought: tuple[Bought, ...], classes: Iterable[str], watts: Mapping[str, Mapping[str, float]]
) -> tuple[Route, ...]:
    """Each class goes to the groups that serve it on the fewest watts, up to what they carry.

    `watts`: by column and class, of its whole demand; a prefill group counts with the decode group behind it.
    """
    routes = []
    for name in classes:
        decode = next((item for item in bought if item.role == "decode" and name in item.column.classes), None)
        left, handed = 1.0, capacity_of(bought, name, "decode")
        ranked = sorted(
            (_watts_of(item, decode, name, watts), index)
            for index, item in enumerate(bought)
            if name in item.column.classes and item.role != "decode"
        )
        shares = {}
        for _, index in ranked:
            item = bought[index]
            share = min(left, carries(item), handed if item.role == "prefill" else math.inf)
            if share > LEAST_ROUTED:
                shares[index] = share
                left -= share
                handed -= share if item.role == "prefill" else 0.0
        total = sum(shares.values())
        routes += [
            Route(request_class=name, group=group_id(index), share=share / total)
            for index, share in sorted(shares.items())
        ]
    return tuple(routes)


def _watts_of(item: Bought, decode: Bought | None, name: str, watts: Mapping[str, Mapping[str, float]]) -> float:
    own = watts[item.column.key].get(name, 0.0)
    if decode is None or item.role != "prefill":
        return own
    return own + watts[decode.column.key].get(name, 0.0)


def alone(family: Family, pools: Iterable[Pool], share: float, quantity: str) -> tuple[int, float] | None:
    """Replicas and value if this family carried its model's demand alone; None where its pools are too small."""
    used = [pool for pool in pools if family.gpus_in(pool.name)]
    share *= math.prod(pool.availability for pool in used)
    if share <= 0:
        return None
    replicas = math.ceil(1.0 / share - 1e-6)
    if replicas > family.most_replicas:
        return None
    return replicas, sum(
        _devices(replicas, family.gpus_in(pool.name), pool) * ((pool.price or 0.0) if quantity == "cost" else 1.0)
        for pool in used
    )


def _devices(replicas: int, gpus: int, pool: Pool) -> float:
    """Devices of a pool that are rented for replicas which take so many each."""
    if pool.rent == "gpu":
        return float(replicas * gpus)
    return math.ceil(replicas * slot_gpus(gpus, pool.node_devices) / pool.node_devices - 1e-9) * pool.node_devices
