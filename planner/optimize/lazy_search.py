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
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from planner.candidates.family import Family
from planner.candidates.pricing import Pricer
from planner.candidates.rungs import Bracket
from planner.optimize.decision import alone
from planner.optimize.programme import MOST_HEADROOM, Column, OptimisticFamily, Programme
from planner.optimize.pruned import least_loaded, undominated
from planner.optimize.solve import RELATIVE_GAP, Solution, solve
from planner.optimize.ties import Ties
from planner.optimize.watts import Meter
from specs.errors import CapstanError

VALUE_TOLERANCE = 1e-6
TIE_ROUNDS = 4  # rounds of simulation spent on plans of equal value that promise more headroom
ANY_GAP = 0.5  # of the programme's value, where any plan will do
ROUGH_GAP, ROUGH_NODES = 0.02, 20  # of programmes that only say what to price next
AT_ONCE = 4  # configurations that are priced between two programmes, where so many would each be an optimum
REMEMBERED = 8  # programmes and their solutions
LAST_S = 5.0  # for the solver, once time is up

Found = tuple[Solution, float]  # the best proven plan, and the bound of the relaxed programme beside it


@dataclass
class LazySearch:
    """The mixes of priced columns over the families of all models."""

    template: Programme  # pools, classes, limits; no columns, no families
    families: tuple[Family, ...]
    classes_of: dict[str, tuple[str, ...]]  # model -> its request classes
    pricer: Pricer
    progress: Callable[[str], None] = field(default=lambda text: None, kw_only=True)
    apart: tuple[Family, ...] = field(default=(), kw_only=True)  # with a role, asked for where they may be better
    meter: Meter | None = field(default=None, kw_only=True)  # where watts are minimised
    deadline: float | None = field(default=None, kw_only=True)  # of `time.monotonic`: then any proven plan is taken
    brackets: dict[str, Bracket] = field(default_factory=dict, kw_only=True)  # by column key
    _optimistic: dict[str, OptimisticFamily] = field(default_factory=dict, kw_only=True)
    _solutions: list[tuple[Programme, tuple[object, ...], Solution]] = field(default_factory=list, kw_only=True)

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
            elsewhere=family.elsewhere,
        )

    def _availability(self, family: Family) -> float:
        """Share of the time that the family's devices are there."""
        return math.prod(pool.availability for pool in self.template.pools if family.gpus_in(pool.name))

    def relative_value(self) -> float:
        """The best value, as minimised, of mixes at the loads that simulation allows; not judged as a whole."""
        found = self._search(any_plan=False)
        return found[0].value if found is not None else 0.0

    def _search(self, any_plan: bool) -> Found | None:
        """The best proven plan and the bound beside it; prefill and decode apart only where that is better."""
        together = self._solve_lazily(self.families, any_plan) if self.families else None
        if together is None:
            return (
                self._with_ties(self.every, self._solve_lazily(self.every, any_plan), any_plan) if self.apart else None
            )
        if any_plan or not self.apart:
            return self._with_ties(self.families, together, any_plan)
        solution, bound = together
        relaxed = self._solution_of(self._programme(self.every, proven=False))
        if self.late or reaches(solution.value, relaxed.value):
            return self._with_ties(self.families, (solution, min(bound, relaxed.bound)))
        both = self._solve_lazily(self.every)
        if both is not None and not reaches(solution.value, both[0].value):
            return self._with_ties(self.every, both)
        return self._with_ties(self.families, (solution, min(bound, both[1] if both is not None else bound)))

    def _solve_lazily(self, families: tuple[Family, ...], any_plan: bool = False) -> Found | None:
        """A proven plan of the best value (the first one with `any_plan`), ties left open."""
        gap = ANY_GAP if any_plan else self._first_gap
        while True:
            nodes = ROUGH_NODES if gap == ROUGH_GAP else None
            relaxed = self._solution_of(self._programme(families, proven=False), gap=gap, most_nodes=nodes)
            if relaxed.status == "infeasible":
                return None
            proven = self._solution_of(self._programme(families, proven=True), gap=gap, most_nodes=nodes)
            if proven.status != "infeasible" and proven.replicas:
                if any_plan:
                    return proven, relaxed.bound
                if self.late:
                    return replace(self._at_last(families, proven), status="time limit"), relaxed.bound
            reached = reaches(proven.value, relaxed.value)
            unknown = self._unknown(families, relaxed)
            if gap > RELATIVE_GAP and (not unknown or reached):
                gap = RELATIVE_GAP  # all that a rough optimum asks for is known; what does the true one ask for?
            elif reached or not unknown:
                return (proven, relaxed.bound) if proven.status != "infeasible" else None
            else:
                self._narrow(families, [*unknown, *self._as_good(families, relaxed.value, unknown)])

    def _at_last(self, families: tuple[Family, ...], rough: Solution) -> Solution:
        """When time is up: the best of what is proven, so that nothing is rented which a rough solution left over."""
        try:
            best = solve(self._programme(families, proven=True), ties="operable", time_limit_s=LAST_S)
        except CapstanError:
            return rough
        return best if best.replicas and best.value <= rough.value else rough

    def _with_ties(self, families: tuple[Family, ...], found: Found | None, any_plan: bool = False) -> Found | None:
        """Of plans of the value that was found, the one that tie-breaks choose.

        Without roles, a few more trials look for one that promises more headroom.
        """
        if found is None or any_plan or found[0].status == "time limit":
            return found
        for _ in range(0 if any(family.options.role != "unified" for family in families) else TIE_ROUNDS):
            relaxed = self._solution_of(self._programme(families, proven=False), ties="operable")
            unknown = self._unknown(families, relaxed)
            if not unknown:
                break
            self._narrow(families, unknown)
        best = self._solution_of(self._programme(families, proven=True), ties="all")
        return (best, found[1]) if best.status != "infeasible" else None

    def _solution_of(
        self, programme: Programme, *, ties: Ties = "any", gap: float = RELATIVE_GAP, most_nodes: int | None = None
    ) -> Solution:
        """As `solve`; most trials leave one of the programmes as it was."""
        how = (ties, gap, most_nodes)
        for known, asked, solution in self._solutions:
            if asked == how and known == programme:
                return solution
        solution = solve(programme, ties=ties, gap=gap, most_nodes=most_nodes)
        self._solutions = [(programme, how, solution), *self._solutions[: REMEMBERED - 1]]
        return solution

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def _first_gap(self) -> float:
        """How exactly programmes are solved while prices come in: roughly, where each takes the solver long."""
        return ROUGH_GAP if self.template.survive or len(self.classes_of) > 1 else RELATIVE_GAP

    def _narrow(self, families: tuple[Family, ...], brackets: list[Bracket]) -> None:
        """Know more of these prices, and of those that would be asked next where no trial passed."""
        self.progress(f"simulating {brackets[0].family.key}")
        self.pricer.narrow(*brackets)
        if siblings := self._to_ask_next(families, brackets):
            self.pricer.narrow(*siblings)

    def _to_ask_next(self, families: tuple[Family, ...], asked: list[Bracket]) -> list[Bracket]:
        """What differs in the KV dtype alone from brackets that no trial passed."""
        found: list[Bracket] = []
        for bracket in asked:
            for sibling in self._siblings(families, bracket) if bracket.passed is None else ():
                known = sibling.closed or sibling.failed >= bracket.failed
                if not known and not any(sibling is other for other in (*asked, *found)):
                    found.append(sibling)
        return found

    def _siblings(self, families: tuple[Family, ...], bracket: Bracket) -> list[Bracket]:
        """Brackets for the same classes of the families that differ from `bracket`'s in the KV dtype alone."""

        def kind(family: Family) -> tuple[object, ...]:
            return (
                family.model,
                family.pools,
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

    def _as_good(self, families: tuple[Family, ...], least: float, asked: list[Bracket]) -> list[Bracket]:
        """What would be an optimum of this value by itself: it is asked before the value may rise, so why not now."""
        quantity, pools = self.template.quantity, self.template.pools
        if len(self.classes_of) > 1 or quantity not in ("cost", "gpus") or self.template.survive:
            return []
        found: list[Bracket] = []
        for family in families:
            if len(asked) + len(found) >= AT_ONCE:
                break
            key = f"{family.key}|{'+'.join(self.classes_of[family.model])}"
            known = self.brackets.get(key)
            if family.options.role != "unified" or any(bracket.key == key for bracket in asked):
                continue
            load = sum(self.pricer.load(family, name) for name in self.classes_of[family.model])
            value = alone(family, pools, known.upper if known else 1.0 / max(load, 1e-9), quantity)
            if value is not None and reaches(value[1], least) and not (known and known.closed):
                found.append(known or self.open(family)[0])
        return found

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
            elsewhere=family.elsewhere,
        )


def reaches(value: float, other: float) -> bool:
    """Whether a minimised value is as good as another one, rounding set aside (either may be negative)."""
    return value <= other + VALUE_TOLERANCE * abs(other)
