"""Whole plans: the best proven mix of columns, simulated as a whole; where that refutes it, less load, another mix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from planner.optimize.decision import (
    Bought,
    Decision,
    alone,
    frugal_routes,
    group_id,
    routes_of,
    served_by,
)
from planner.optimize.fresh_seeds import Judge
from planner.optimize.judging import Judgement, Judging
from planner.optimize.lazy_search import LazySearch, reaches
from planner.optimize.objectives import natural
from planner.optimize.pruned import least_loaded
from planner.optimize.retune import retuned
from planner.optimize.shrink import shrink
from planner.optimize.solve import Solution, second_opinion, solve
from planner.optimize.watts import idle_watts
from planner.optimize.whole_plan import Placement, WholePlan, placed
from planner.simulate import FleetResult, Workload
from planner.simulate.together import meanwhile
from specs.deployment import HardwareSpec
from specs.errors import NoPlanError
from specs.plan import Route

__all__ = ["Bought", "Decision", "Master", "alone", "group_id"]

MOST_REFUTED_APART = 5  # plans with roles, before the search goes on without
GIVEN_UP_APART = (
    f"prefill and decode apart might be cheaper: {MOST_REFUTED_APART} such plans were refuted when simulated whole, "
    "and the search went on without"
)
MOST_REFUTATIONS = 30
MOST_RETUNED = 3  # refuted plans whose limits are changed before their loads shrink
MOST_METERED = 5  # plans that are simulated for their watts


@dataclass
class Master(LazySearch):
    """One master programme over the families of all models."""

    hardware: HardwareSpec
    judge: Judge | None = None  # of whole plans, on fresh seeds; None: they are not tested
    bounded: bool = True  # whether decisions carry the bound that no plan can beat

    @property
    def _spreads(self) -> bool:
        """Whether few replicas of a group should share a node: nodes may fail, or be taken away."""
        return self.template.survive > 0 or any(pool.availability < 1.0 for pool in self.template.pools)

    def bound(self) -> tuple[float, float | None]:
        """The certificate's bound and CBC's opinion of it, as minimised; infinite where even optimists find no plan."""
        return self.later_bound()()

    def later_bound(self) -> Callable[[], tuple[float, float | None]]:
        """`bound`, when it is asked for: CBC, a process of its own, works meanwhile."""
        programme = replace(self.template, families=least_loaded(self.optimistic(family) for family in self.every))
        solution = solve(programme)
        if solution.status == "infeasible":
            return lambda: (solution.bound, None)
        opinion = meanwhile(partial(second_opinion, programme))

        def agreed() -> tuple[float, float | None]:
            found = opinion()
            return (solution.bound if found is None else min(solution.bound, found)), found

        return agreed

    def decide(self, *, any_plan: bool = False) -> Decision | None:
        """The best certified plan, or None where there is none; with `any_plan`, the first one that is found.

        Raises `NoPlanError` where so many plans in a row were refuted that the search gave up: that proves nothing.
        """
        bound = self.later_bound() if self.bounded else lambda: (-math.inf, None)
        judged: Judgement | None = None
        refuted = refuted_apart = 0
        least = math.inf  # of all attempts: loads that shrank after a refutation are no proof for other mixes
        best: Decision | None = None  # where watts are minimised, which plans show only when they are simulated
        for attempt in range(MOST_REFUTATIONS):
            found = self._search(any_plan)
            if found is None or not found[0].replicas:
                return best if best is None else self._unlearnt(best)
            solution, priced_bound = found
            least = min(least, priced_bound)
            if best is not None and reaches(best.value, solution.value):
                return self._unlearnt(best)
            bought = tuple(Bought(self.brackets[key], count) for key, count in sorted(solution.replicas.items()))
            judged = self._judged(bought, solution.nodes, any_plan)
            if judged.broken and judged.near and attempt < MOST_RETUNED:
                judged = self._retuned(judged, solution.nodes, any_plan)
            if not judged.broken:
                solution, news = self._as_simulated(judged, solution)
                decision = replace(self._decision(judged, solution, least, *bound()), refuted=refuted)
                if refuted_apart >= MOST_REFUTED_APART and not self.apart:
                    decision = replace(decision, notes=(*decision.notes, GIVEN_UP_APART))
                best = decision if best is None or decision.value < best.value else best
                if not news or any_plan or attempt >= MOST_METERED:
                    return self._unlearnt(best)
                continue
            refuted += 1
            refuted_apart += any(item.role != "unified" for item in bought)
            if refuted_apart == MOST_REFUTED_APART and self.families:
                self.apart = ()  # they were asked for where they might be better: if they are, then not by much
            self._shrink(bought, judged.broken, everything=attempt >= MOST_REFUTATIONS // 2)
        if best is not None:
            return best
        raise NoPlanError(
            f"no plan was found: {MOST_REFUTATIONS} in a row were refuted when simulated whole, so the search gave up; "
            "this does not prove that there is none",
            conflict=judged.broken if judged is not None else (),
        )

    def _retuned(self, judged: Judgement, nodes: Mapping[str, int], any_plan: bool) -> Judgement:
        """The same replicas under other limits that keep every promise, or the refuted plan as it stands."""
        for bought in retuned(judged.whole.bought, judged.broken, self.pricer):
            other = self._judged(bought, nodes, any_plan)
            if not other.broken:
                return other
        return judged

    def _unlearnt(self, best: Decision) -> Decision:
        """With the bound that holds whatever the load of a replica: what whole plans took is of their loads alone."""
        if self.meter is None:
            return best
        relaxed = solve(self._programme(self.every, proven=False, learnt=False))
        return replace(best, priced_bound=min(relaxed.bound, best.value))

    def _decision(
        self, judged: Judgement, solution: Solution, priced_bound: float, bound: float, opinion: float | None
    ) -> Decision:
        quantity, value = self.template.quantity, solution.value
        # rounding is set aside; a bound above the value beyond that is a fault, which the re-check finds
        bound = min(bound, value) if reaches(bound, value) else bound
        return Decision(
            bought=judged.whole.bought,
            routes=judged.whole.routes,
            nodes=solution.nodes,
            value=natural(quantity, value),
            bound=natural(quantity, bound),
            priced_bound=natural(quantity, min(priced_bound, value)),
            status=solution.status,
            solver=solution.solver,
            columns=len(self.every),
            result=judged.result,
            second_opinion=opinion,
            fresh=judged.fresh,
            served=judged.served,
            placement=judged.whole.placement,
            notes=judged.notes,
            measured=judged.whole.measured,
        )

    def _as_simulated(self, judged: Judgement, solution: Solution) -> tuple[Solution, bool]:
        """The solution with the value that was simulated, and whether its watts are news."""
        if self.template.worth:
            served = {name: judged.served.get(name, 1.0) for name in self.template.worth}
            value = -sum(worth * served[name] for name, worth in self.template.worth.items())
            return replace(solution, value=value), False
        if self.meter is None:
            return solution, False
        whole, workload, result = judged.whole, self.meter.declared, judged.result
        if workload is not self.pricer.workload:  # planned with headroom
            self.pricer.simulations += 1
            result = whole.simulate(workload, None)
        beyond = self.meter.beyond(whole, result, workload)
        idle = idle_watts(self.template.pools, whole.bought, solution.nodes)
        value = self.template.per_watt * (idle + sum(beyond))
        return replace(solution, value=value), self.meter.learn(self.pricer, whole, beyond)

    def _judged(self, bought: tuple[Bought, ...], nodes: Mapping[str, int], any_plan: bool) -> Judgement:
        """What was bought, placed and routed, then judged as a whole."""
        served = self._served(bought)
        classes = [name for name in self.template.classes if served.get(name, 1.0) > 0]
        placement = placed(bought, self.hardware, nodes, spread=self._spreads)
        whole = WholePlan(bought, self._routes(bought, classes), placement, self.hardware, self.pricer.router)
        self.progress("simulating the whole plan")
        return self.judgement(whole, served, any_plan=any_plan)

    def _routes(self, bought: tuple[Bought, ...], classes: list[str]) -> tuple[Route, ...]:
        if self.meter is None or self.template.survive:
            return routes_of(bought, classes)
        watts = {item.column.key: self.meter.priced(self.pricer, item.column, learnt=True) for item in bought}
        return frugal_routes(bought, classes, watts)

    def judgement(self, whole: WholePlan, served: Mapping[str, float], *, any_plan: bool = False) -> Judgement:
        """What simulation makes of a whole plan; with `any_plan`, not on fresh seeds."""
        judge = None if any_plan else self.judge
        return Judging(self.template, self.pricer, self.hardware, judge, self.progress).judgement(whole, served)

    def _served(self, bought: tuple[Bought, ...]) -> dict[str, float]:
        """Share of each class that is let in, where not all of it is."""
        if self.template.quantity not in ("throughput", "goodput"):
            return {}
        there = {pool.name: pool.availability for pool in self.template.pools}
        return served_by(bought, self.template.classes, there)

    def simulate(
        self,
        bought: tuple[Bought, ...],
        routes: tuple[Route, ...],
        workload: Workload | None = None,
        *,
        placement: Placement | None = None,
        refute: bool = True,
    ) -> FleetResult:
        """The planned traffic (or `workload`) on all groups; to `refute`, a run ends as soon as a limit is broken."""
        self.pricer.simulations += 1
        workload = workload or self.pricer.workload
        whole = WholePlan(bought, routes, placement or placed(bought, self.hardware), self.hardware, self.pricer.router)
        slos = {name: slo for name, slo in self.pricer.slos.items() if name in workload.classes}
        return whole.simulate(workload, slos if refute else None)

    def _shrink(self, bought: tuple[Bought, ...], broken: tuple[str, ...], *, everything: bool = False) -> None:
        """Less load for the models that broke a limit; `everything` of theirs ends a search among many equals."""
        on_purpose = self.template.survive > 0 or self.template.maximises  # more is carried than what is asked for
        shrink(self.brackets, self.pricer, self.classes_of, bought, broken, everything=everything, spare=on_purpose)
