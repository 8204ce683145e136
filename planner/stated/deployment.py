"""A deployment as it stands: its groups placed, routed, simulated and judged, with nothing searched.

Every limit is looked at to the end, kept or broken. The bound beside the value is that of the relaxation over the same
configurations, in any number and with any routes: what the traffic needs of them even if nothing ever queued.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from planner.candidates.pricing import Pricer, broken_limits
from planner.candidates.rungs import Bracket, Rung
from planner.optimize.decision import Bought, Decision, group_id
from planner.optimize.master import Master
from planner.optimize.objectives import natural
from planner.optimize.watts import idle_watts
from planner.optimize.whole_plan import Node, WholePlan
from planner.problem import Problem
from planner.simulate import FleetResult, meets
from planner.simulate.result import good_requests
from planner.stated.places import stated_places
from planner.stated.replicas import StatedReplicas
from planner.stated.routing import stated_routes
from planner.throughput import short_loops, unsustained
from specs.plan import DeviceSlot, Route

STATED = "stated"  # status of a plan that nobody searched for
OVERLOADED = "even if nothing ever queued, the traffic would keep more of these configurations busy than there are"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Standing:
    """What simulation makes of the groups; `broken`: the promises that do not hold, in words."""

    problem: Problem
    master: Master
    whole: WholePlan
    decision: Decision
    broken: tuple[str, ...]


def standing(problem: Problem, progress: Progress = lambda text: None) -> Standing:
    """The stated deployment of `problem`, all of whose models are stated; simulated at its traffic.

    Raises `InputError` where its replicas find no room in their nodes.
    """
    master = _master(problem, progress)
    classes = [(traffic.name, traffic.model) for traffic in problem.spec.traffic]

    def load(item: StatedReplicas, name: str) -> float:
        return master.pricer.load(item.family, name)

    routes = stated_routes(problem.stated, classes, load, group_id)
    bought = tuple(_bought(index, problem, routes, master.pricer) for index in range(len(problem.stated)))
    placement = stated_places(problem.stated, problem.spec.hardware, group_id)
    whole = StatedWhole(bought, routes, placement, problem.spec.hardware, problem.spec.choices.router)
    progress("simulating the deployment")
    judged = master.judgement(whole, {})
    result, broken = judged.result, judged.broken
    if judged.broken:  # that run may have ended at the first broken limit
        result = whole.simulate(problem.workload, None)
        broken = _broken(whole, result, problem, master.pricer) or judged.broken
    if problem.declared is not problem.workload:  # judged with headroom, and predicted without
        result = whole.simulate(problem.declared, None)
        multiple = problem.declared.horizon_s / problem.workload.horizon_s
        broken = tuple(f"{text}, at {multiple:.3g} times the traffic (limits.utilisation)" for text in broken)
    decision = _decision(problem, master, whole, result)
    decision = replace(decision, fresh=judged.fresh, notes=(*decision.notes, *judged.notes))
    return Standing(problem, master, whole, decision, broken)


def _master(problem: Problem, progress: Progress) -> Master:
    """A master over the stated configurations, in any number, by the cost model alone."""
    families = tuple(item.family for item in problem.stated)
    posed = replace(
        problem,
        spec=problem.spec.model_copy(update={"measured": None}),
        families=tuple(family for family in families if family.options.role == "unified"),
        role_families=tuple(family for family in families if family.options.role != "unified"),
        template=replace(problem.template, model_replicas={}),
    )
    return posed.master(progress)


def _bought(index: int, problem: Problem, routes: tuple[Route, ...], pricer: Pricer) -> Bought:
    """A group in the planner's terms, with the classes that it serves; its capacity is that of the utilisation law."""
    item, model = problem.stated[index], problem.stated[index].family.model
    own = [(other_index, other) for other_index, other in enumerate(problem.stated) if other.family.model == model]
    senders = {i for i, other in own if other.group.hands_over_to == item.group.name and item.group.role == "decode"}
    routed = {route.request_class for route in routes if route.group in map(group_id, (index, *senders))}
    classes = tuple(name for name in problem.classes_of[model] if name in routed)
    load = sum(pricer.load(item.family, name) for name in classes)
    rung = Rung(item.group.replicas, item.group.replicas / max(load, 1e-12))
    column = Bracket(item.family, classes, load, [rung], passed=0, variant=item.variant, factor=1.0)
    targets = [other.family.key for _, other in own if other.group.name == item.group.hands_over_to]
    return Bought(column, item.group.replicas, targets[0] if targets else "")


class StatedWhole(WholePlan):
    """A whole plan with routes of its own: where replicas are gone, requests go on as before to those that are left."""

    def without(self, nodes: frozenset[Node]) -> WholePlan:
        rest = super().without(nodes)
        keys = {group_id(index): item.column.family.key for index, item in enumerate(self.bought)}
        replicas = {item.column.family.key: item.replicas for item in self.bought}
        left = {item.column.family.key: (i, item.replicas) for i, item in enumerate(rest.bought)}
        shares: dict[str, dict[int, float]] = {}
        for route in self.routes:
            key = keys[route.group]
            if key in left:
                index, standing = left[key]
                shares.setdefault(route.request_class, {})[index] = route.share * standing / replicas[key]
        routes = tuple(
            Route(request_class=name, group=group_id(index), share=share / sum(own.values()))
            for name, own in shares.items()
            for index, share in own.items()
        )
        return replace(rest, routes=routes)


def _broken(whole: WholePlan, result: FleetResult, problem: Problem, pricer: Pricer) -> tuple[str, ...]:
    """Every promise that a run to the end breaks."""
    broken, _ = broken_limits(result, problem.workload, pricer.slos)
    return (
        *broken,
        *unsustained(result, problem.workload, pricer.throughputs),
        *short_loops(whole, problem.workload, pricer.throughputs),
    )


def _decision(problem: Problem, master: Master, whole: WholePlan, result: FleetResult) -> Decision:
    nodes = {pool.name: len({slot.node for slot in slots_in(whole, pool.name)}) for pool in problem.spec.hardware.pools}
    value = _value(problem, master, whole, result, nodes)
    bound = natural(master.template.quantity, master.bound()[0])
    notes: tuple[str, ...] = ()
    if not math.isfinite(bound) or (bound < value if master.template.maximises else bound > value):
        # laws hold of plans that carry their traffic: of the value of this one they prove nothing
        notes = (OVERLOADED,)
        bound = value if master.template.maximises else 0.0
    return Decision(
        bought=whole.bought,
        routes=whole.routes,
        nodes=nodes,
        value=value,
        bound=bound,
        priced_bound=bound,
        status=STATED,
        solver="none",
        columns=len(problem.stated),
        result=result,
        second_opinion=None,
        placement=whole.placement,
        notes=notes,
        priced=False,
    )


def slots_in(whole: WholePlan, pool: str) -> list[DeviceSlot]:
    """Devices that are taken of a pool."""
    return [
        slot
        for index, item in enumerate(whole.bought)
        for replica in whole.placement[group_id(index)]
        for name, slot in item.column.family.places(replica)
        if name == pool
    ]


def _value(problem: Problem, master: Master, whole: WholePlan, result: FleetResult, nodes: Mapping[str, int]) -> float:
    """What the deployment is worth in the spec's objective, all of its traffic let in."""
    template = master.template
    if template.quantity == "traffic":
        return 1.0
    if template.worth:
        return sum(served_worth(problem, master, result).values())
    if master.meter is not None:
        idle = idle_watts(template.pools, whole.bought, nodes)
        return template.per_watt * (idle + sum(master.meter.beyond(whole, result, problem.declared)))
    total = 0.0
    for pool in template.pools:
        used = len(slots_in(whole, pool.name))
        rented = nodes[pool.name] * pool.node_devices if pool.rent == "node" else used
        total += rented * ((pool.price or 0.0) if template.quantity == "cost" else 1.0)
    return total


def served_worth(problem: Problem, master: Master, result: FleetResult) -> dict[str, float]:
    """By class, of `maximise throughput` and `goodput`: output tokens/s or requests/s served within its limits.

    A class that keeps its promises counts whole, as in any plan. Of one that does not, those requests count that meet
    every limit; of one without limits, where the queue grows through the window, those that end inside it.
    """
    workload, slos = problem.declared, master.pricer.slos
    broken = {miss.request_class for miss in meets(result, workload, slos).misses}
    good, promised = good_requests(result, workload, slos)
    ended = result.arrivals_s(workload) + result.e2e_s <= workload.horizon_s
    counted = np.where(promised, good, ended | (not result.saturated))
    units = workload.output_tokens if problem.spec.objective.quantity == "throughput" else np.ones(len(workload))

    def within_limits(name: str) -> float:
        own = workload.of_class(name) & counted
        return float(units[own].sum()) / workload.horizon_s

    kept = set(slos) - broken
    return {name: worth if name in kept else within_limits(name) for name, worth in master.template.worth.items()}
