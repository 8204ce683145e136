"""Lazy pricing: solve with upper bounds, simulate only what the optimum wants to use, until it wants nothing unknown.

Every family starts with the share that the utilisation law allows. The optimum of that relaxed programme is at most the
value of any plan. What it uses and is not yet known gets one simulation more, which lowers its upper bound or proves a
lower one; then the programme is solved again. When an optimum uses only what is proven, or a proven plan has the same
value, no other configuration can beat it, and those that it never wanted never cost a simulation.

Families with a role (prefill and decode apart) are asked for where they could beat the best plan without them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from planner.candidates.family import Family
from planner.candidates.pricing import Bracket, Pricer
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
from planner.optimize.objectives import natural
from planner.optimize.programme import MOST_HEADROOM, Column, OptimisticFamily, Programme
from planner.optimize.pruned import least_loaded, undominated
from planner.optimize.retune import retuned
from planner.optimize.shrink import shrink
from planner.optimize.solve import RELATIVE_GAP, Solution, second_opinion, solve
from planner.optimize.watts import Meter, idle_watts
from planner.optimize.whole_plan import Placement, WholePlan, placed
from planner.simulate import FleetResult, Workload
from specs.deployment import HardwareSpec
from specs.errors import NoPlanError
from specs.plan import Route

__all__ = ["Bought", "Decision", "Master", "alone", "group_id"]

VALUE_TOLERANCE = 1e-6
TIE_ROUNDS = 4  # rounds of simulation spent on plans of equal value that promise more headroom
MOST_REFUTED_APART = 5  # plans with roles, before the search goes on without
GIVEN_UP_APART = (
    f"prefill and decode apart might be cheaper: {MOST_REFUTED_APART} such plans were refuted when simulated whole, "
    "and the search went on without"
)
ROLE_TRIALS = 5  # programmes with roles take longer to solve than a trial takes
MOST_REFUTATIONS = 30
ANY_GAP = 0.5  # of the programme's value, where any plan will do
ROUGH_GAP, ROUGH_NODES = 0.02, 20  # of programmes that only say what to price next
MOST_RETUNED = 3  # refuted plans whose limits are changed before their loads shrink
MOST_METERED = 5  # plans that are simulated for their watts


@dataclass
class Master:
    """One master programme over the families of all models."""

    template: Programme  # pools, classes, limits; no columns, no families
    families: tuple[Family, ...]
    classes_of: dict[str, tuple[str, ...]]  # model -> its request classes
    pricer: Pricer
    hardware: HardwareSpec
    progress: Callable[[str], None] = lambda text: None
    judge: Judge | None = None  # of whole plans, on fresh seeds; None: they are not tested
    apart: tuple[Family, ...] = ()  # families with a role, asked for where they may beat the others
    meter: Meter | None = None  # where watts are minimised
    bounded: bool = True  # whether decisions carry the bound that no plan can beat
    deadline: float | None = None  # of `time.monotonic`: from then on the first proven plan is taken
    brackets: dict[str, Bracket] = field(default_factory=dict)  # by column key
    _optimistic: dict[str, OptimisticFamily] = field(default_factory=dict)
    _found: tuple[list[tuple[str, float, float, float]], tuple[Solution, float] | None] | None = None

    @property
    def every(self) -> tuple[Family, ...]:
        return (*self.families, *self.apart)

    def optimistic(self, family: Family) -> OptimisticFamily:
        """What the utilisation law and latencies without a queue say of a family."""
        if family.key not in self._optimistic:
            self._optimistic[family.key] = self._law(family)
        return self._optimistic[family.key]

    def _law(self, family: Family) -> OptimisticFamily:
        there = self._availability(family)
        misses = ((name, self.pricer.miss(family, name)) for name in self.classes_of[family.model])
        return OptimisticFamily(
            key=family.key,
            model=family.model,
            pool=family.pool.name,
            gpus=family.gpus,
            loads=tuple((name, self.pricer.load(family, name) / there) for name in self.classes_of[family.model]),
            misses=tuple((name, miss) for name, miss in misses if miss > 0),
            role=family.options.role,
            channel=family.channel,
            watts=tuple(self.meter.least(self.pricer, family).items()) if self.meter is not None else (),
        )

    @property
    def _spreads(self) -> bool:
        """Whether few replicas of a group should share a node: nodes may fail, or be taken away."""
        return self.template.survive > 0 or any(pool.availability < 1.0 for pool in self.template.pools)

    def _availability(self, family: Family) -> float:
        """Share of the time that the family's devices are there."""
        return next(pool.availability for pool in self.template.pools if pool.name == family.pool.name)

    def bound(self) -> tuple[float, float | None]:
        """The certificate's bound and CBC's opinion of it, as minimised; infinite where even optimists find no plan."""
        programme = replace(self.template, families=least_loaded(self.optimistic(family) for family in self.every))
        solution = solve(programme)
        opinion = second_opinion(programme) if solution.status != "infeasible" else None
        return (solution.bound if opinion is None else min(solution.bound, opinion)), opinion

    def decide(self, *, any_plan: bool = False) -> Decision | None:
        """The best certified plan, or None where there is none; with `any_plan`, the first one that is found.

        Raises `NoPlanError` where so many plans in a row were refuted that the search gave up: that proves nothing.
        """
        bound, opinion = self.bound() if self.bounded else (-math.inf, None)
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
            if best is not None and _reaches(best.value, solution.value):
                return self._unlearnt(best)
            bought = tuple(Bought(self.brackets[key], count) for key, count in sorted(solution.replicas.items()))
            judged = self._judged(bought, solution.nodes, any_plan)
            if judged.broken and judged.fresh is None and attempt < MOST_RETUNED:
                judged = self._retuned(judged, solution.nodes, any_plan)
            if not judged.broken:
                solution, news = self._as_simulated(judged, solution)
                decision = replace(self._decision(judged, solution, bound, least, opinion), refuted=refuted)
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

    def relative_value(self) -> float:
        """The best value, as minimised, of mixes at the loads that simulation allows; not judged as a whole."""
        found = self._search(any_plan=False)
        return found[0].value if found is not None else 0.0

    def _decision(
        self, judged: Judgement, solution: Solution, bound: float, priced_bound: float, opinion: float | None
    ) -> Decision:
        quantity, value = self.template.quantity, solution.value
        # rounding is set aside; a bound above the value beyond that is a fault, which the re-check finds
        bound = min(bound, value) if _reaches(bound, value) else bound
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

    def _programme(self, families: tuple[Family, ...], *, proven: bool, learnt: bool = True) -> Programme:
        """With lower shares only (`proven`), or with upper shares and families that nothing is known of."""
        asked = {family.key for family in families}
        columns = undominated(
            self._column(key, bracket, proven=proven, learnt=learnt)
            for key, bracket in sorted(self.brackets.items())
            if (bracket.lower if proven else bracket.upper) > 0 and bracket.family.key in asked
        )
        opened = {bracket.family.key for bracket in self.brackets.values()}
        unknown = least_loaded(self.optimistic(family) for family in families if family.key not in opened)
        return replace(self.template, columns=columns, families=() if proven else unknown)

    def _column(self, key: str, bracket: Bracket, *, proven: bool, learnt: bool) -> Column:
        family, share = bracket.family, bracket.lower if proven else bracket.upper
        # one replica that carries more than the most headroom is as good as one that carries just that
        share = min(share * self._availability(family), MOST_HEADROOM)
        watts: dict[str, float] = {}
        if self.meter is not None:
            known = proven or bracket.closed
            watts = (
                self.meter.priced(self.pricer, bracket, learnt=learnt)
                if known
                else self.meter.least(self.pricer, family)
            )
        return Column(
            key=key,
            model=family.model,
            pool=family.pool.name,
            gpus=family.gpus,
            shares=tuple((name, share) for name in bracket.classes),
            role=family.options.role,
            channel=family.channel,
            watts=tuple((name, watts[name]) for name in bracket.classes if name in watts),
        )

    def _search(self, any_plan: bool) -> tuple[Solution, float] | None:
        """The best proven plan and the bound beside it; prefill and decode apart only where that is better."""
        found = self._together(any_plan) if self.families else None
        if not self.apart or (found is not None and any_plan):
            return found
        if found is None:
            return self._solve_lazily(self.every, any_plan, tie_rounds=0)
        together, bound = found
        relaxed = solve(self._programme(self.every, proven=False))
        if self.late or _reaches(together.value, relaxed.value):
            return together, min(bound, relaxed.bound)
        both = self._solve_lazily(self.every, any_plan, tie_rounds=0)
        if both is None or _reaches(together.value, both[0].value):
            return together, min(bound, both[1] if both is not None else bound)
        return both

    def _together(self, any_plan: bool) -> tuple[Solution, float] | None:
        """The best plan without roles; as it was found last time, while nothing else is known of these families."""
        if self._found is None or self._found[0] != self._known():
            found = self._solve_lazily(self.families, any_plan)
            self._found = self._known(), found
        return self._found[1]

    def _known(self) -> list[tuple[str, float, float, float]]:
        """What is known of families without roles."""
        return [
            (key, bracket.lower, bracket.upper, 1.0 if self.meter is None else self.meter.learnt(key))
            for key, bracket in self.brackets.items()
            if bracket.family.options.role == "unified"
        ]

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _solve_lazily(
        self, families: tuple[Family, ...], any_plan: bool = False, tie_rounds: int = TIE_ROUNDS
    ) -> tuple[Solution, float] | None:
        """The best proven plan (the first one with `any_plan`), and the bound of the relaxed programme beside it."""
        programme, proven = None, None
        gap = ANY_GAP if any_plan else self._first_gap
        while True:
            nodes = ROUGH_NODES if gap == ROUGH_GAP else None
            relaxed = solve(self._programme(families, proven=False), gap=gap, most_nodes=nodes)
            if relaxed.status == "infeasible":
                return None
            if proven is None or programme != self._programme(families, proven=True):  # most trials prove nothing new
                programme = self._programme(families, proven=True)
                proven = solve(programme, gap=gap, most_nodes=nodes)
            if proven.status != "infeasible" and proven.replicas:
                if any_plan:
                    return proven, relaxed.bound
                if self.late:
                    return replace(proven, status="time limit"), relaxed.bound
            reached = _reaches(proven.value, relaxed.value)
            if reached and tie_rounds and gap <= RELATIVE_GAP:  # proven; is there a better one of this value?
                relaxed = solve(self._programme(families, proven=False), ties="operable")
            unknown = self._unknown(families, relaxed)
            if gap > RELATIVE_GAP and (not unknown or reached):
                gap = RELATIVE_GAP  # all that a rough optimum asks for is known; what does the true one ask for?
                continue
            if not unknown or (reached and not tie_rounds):
                best = solve(self._programme(families, proven=True), ties="all")
                return (best, relaxed.bound) if best.status != "infeasible" else None
            tie_rounds -= reached
            for bracket in unknown:
                self._narrow(bracket)
                if bracket.passed is None:  # what differs in the KV dtype alone would be asked next
                    for sibling in self._siblings(families, bracket):
                        if sibling not in unknown and not sibling.closed and sibling.failed < bracket.failed:
                            self._narrow(sibling)

    @property
    def _first_gap(self) -> float:
        """How exactly programmes are solved while prices come in: roughly, where each takes the solver long."""
        return ROUGH_GAP if self.template.survive or len(self.classes_of) > 1 else RELATIVE_GAP

    def _narrow(self, bracket: Bracket) -> None:
        """One trial; a few for families with a role, whose programmes take longer to solve."""
        self.progress(f"simulating {bracket.family.key}")
        for _ in range(1 if bracket.family.options.role == "unified" else ROLE_TRIALS):
            self.pricer.narrow(bracket)

    def _siblings(self, families: tuple[Family, ...], bracket: Bracket) -> list[Bracket]:
        """Brackets for the same classes of the families that differ from `bracket`'s in the KV dtype alone."""

        def kind(family: Family) -> tuple[object, ...]:
            return (
                family.model,
                family.pool.name,
                family.engine.name,
                family.layout,
                family.weights_dtype,
                family.options,
            )

        found = []
        for family in families:
            if family is not bracket.family and kind(family) == kind(bracket.family):
                own = [known for known in self.brackets.values() if known.family is family] or self.open(family)
                found += [known for known in own if known.classes == bracket.classes]
        return found

    def _unknown(self, families: tuple[Family, ...], relaxed: Solution) -> list[Bracket]:
        """What a relaxed optimum uses without its price being known; families used for the first time are opened."""
        unknown = [
            self.brackets[key]
            for key in sorted(relaxed.replicas)
            if key in self.brackets and not self.brackets[key].closed
        ]
        for family in families:
            if family.key in relaxed.replicas:
                unknown += self.open(family)
        return unknown

    def open(self, family: Family) -> list[Bracket]:
        """Columns of a family: all classes of its model in proportion, and each class alone."""
        classes = self.classes_of[family.model]
        subsets = [classes] if len(classes) == 1 else [classes, *((name,) for name in classes)]
        opened = [self.pricer.bracket(family, subset) for subset in subsets]
        self.brackets |= {bracket.key: bracket for bracket in opened}
        return opened

    def _shrink(self, bought: tuple[Bought, ...], broken: tuple[str, ...], *, everything: bool = False) -> None:
        """Less load for the models that broke a limit; `everything` of theirs ends a search among many equals."""
        on_purpose = self.template.survive > 0 or self.template.maximises  # more is carried than what is asked for
        shrink(self.brackets, self.pricer, self.classes_of, bought, broken, everything=everything, spare=on_purpose)


def _reaches(value: float, other: float) -> bool:
    """Whether a minimised value is as good as another one, rounding set aside (either may be negative)."""
    return value <= other + VALUE_TOLERANCE * abs(other)
