"""Lazy pricing: solve with upper bounds, simulate only what the optimum wants to use, until it wants nothing unknown.

Every family starts with the share that the utilisation law allows. The optimum of that relaxed programme is at most the
value of any plan. What it uses and is not yet known gets one simulation more, which lowers its upper bound or proves a
lower one; then the programme is solved again. When an optimum uses only what is proven, or a proven plan has the same
value, no other configuration can beat it, and those that it never wanted never cost a simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from planner.candidates.family import Family
from planner.candidates.pricing import FIRST_FACTOR, Bracket, Pricer, broken_limits
from planner.optimize.programme import MOST_HEADROOM, Column, OptimisticFamily, Pool, Programme, slot_gpus
from planner.optimize.solve import Solution, second_opinion, solve
from planner.simulate import FleetGroup, FleetResult, Workload, simulate_fleet
from specs.errors import NoPlanError
from specs.plan import Route

VALUE_TOLERANCE = 1e-6
TIE_ROUNDS = 4  # rounds of simulation spent on plans of equal value that promise more headroom
SHRINK = 0.95  # load that is left to a column when the whole plan is refuted
MOST_REFUTATIONS = 30


@dataclass(frozen=True)
class Bought:
    """`replicas` replicas of one priced column."""

    column: Bracket
    replicas: int


@dataclass(frozen=True)
class Decision:
    """A plan in the planner's own terms: bought columns, routes, the evidence, the bound."""

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


@dataclass
class Master:
    """One master programme over the families of all models."""

    template: Programme  # pools, classes, limits; no columns, no families
    families: tuple[Family, ...]
    classes_of: dict[str, tuple[str, ...]]  # model -> its request classes
    pricer: Pricer
    progress: Callable[[str], None] = lambda text: None
    brackets: dict[str, Bracket] = field(default_factory=dict)  # by column key
    _optimistic: dict[str, OptimisticFamily] = field(default_factory=dict)

    def optimistic(self, family: Family) -> OptimisticFamily:
        """What the utilisation law and latencies without a queue say of a family."""
        if family.key not in self._optimistic:
            self._optimistic[family.key] = self._law(family)
        return self._optimistic[family.key]

    def _law(self, family: Family) -> OptimisticFamily:
        misses = ((name, self.pricer.miss(family, name)) for name in self.classes_of[family.model])
        return OptimisticFamily(
            key=family.key,
            model=family.model,
            pool=family.pool.name,
            gpus=family.gpus,
            loads=tuple((name, self.pricer.load(family, name)) for name in self.classes_of[family.model]),
            misses=tuple((name, miss) for name, miss in misses if miss > 0),
        )

    def bound(self) -> tuple[float, float | None]:
        """The certificate's bound and CBC's opinion of it; infinite where even optimists find no plan."""
        programme = replace(self.template, families=tuple(self.optimistic(family) for family in self.families))
        solution = solve(programme)
        opinion = second_opinion(programme) if solution.status != "infeasible" else None
        return (solution.bound if opinion is None else min(solution.bound, opinion)), opinion

    def decide(self, *, any_plan: bool = False) -> Decision | None:
        """The best certified plan, or None where there is none; with `any_plan`, the first one that is found.

        Raises `NoPlanError` where so many plans in a row were refuted that the search gave up: that proves nothing.
        """
        bound, opinion = self.bound()
        broken: tuple[str, ...] = ()
        for attempt in range(MOST_REFUTATIONS):
            found = self._solve_lazily(any_plan)
            if found is None:
                return None
            solution, priced_bound = found
            bought = tuple(Bought(self.brackets[key], count) for key, count in sorted(solution.replicas.items()))
            routes = self._routes(bought)
            self.progress("simulating the whole plan")
            result = self.simulate(bought, routes)
            broken, _ = broken_limits(result, self.pricer.workload, self.pricer.slos)
            if not broken:
                return Decision(
                    bought=bought,
                    routes=routes,
                    nodes=solution.nodes,
                    value=solution.value,
                    # rounding is set aside; a bound above the value beyond that is a fault, which the re-check finds
                    bound=min(bound, solution.value) if bound <= solution.value * (1 + VALUE_TOLERANCE) else bound,
                    priced_bound=min(priced_bound, solution.value),
                    status=solution.status,
                    solver=solution.solver,
                    columns=len(self.families),
                    result=result,
                    second_opinion=opinion,
                )
            self._shrink(bought, broken, everything=attempt >= MOST_REFUTATIONS // 2)
        raise NoPlanError(
            f"no plan was found: {MOST_REFUTATIONS} in a row were refuted when simulated whole, so the search gave up; "
            "this does not prove that there is none",
            conflict=broken,
        )

    def simulate(
        self, bought: tuple[Bought, ...], routes: tuple[Route, ...], workload: Workload | None = None
    ) -> FleetResult:
        """The planned traffic (or `workload`) on all groups; a refuted run ends as soon as that is certain."""
        self.pricer.simulations += 1
        groups = tuple(
            FleetGroup(id=group_id(index), replicas=item.replicas, model=item.column.variant.replica)
            for index, item in enumerate(bought)
            if item.column.variant is not None
        )
        return simulate_fleet(groups, routes, workload or self.pricer.workload, refute=self.pricer.slos)

    def _programme(self, *, proven: bool) -> Programme:
        """With lower shares only (`proven`), or with upper shares and families that nothing is known of."""
        columns = tuple(
            Column(
                key=key,
                model=bracket.family.model,
                pool=bracket.family.pool.name,
                gpus=bracket.family.gpus,
                # one replica that carries more than the most headroom is as good as one that carries just that
                shares=tuple(
                    (name, min(bracket.lower if proven else bracket.upper, MOST_HEADROOM)) for name in bracket.classes
                ),
            )
            for key, bracket in sorted(self.brackets.items())
            if (bracket.lower if proven else bracket.upper) > 0
        )
        opened = {bracket.family.key for bracket in self.brackets.values()}
        unknown = tuple(self.optimistic(family) for family in self.families if family.key not in opened)
        return replace(self.template, columns=columns, families=() if proven else unknown)

    def _solve_lazily(self, any_plan: bool = False) -> tuple[Solution, float] | None:
        """The best proven plan (the first one with `any_plan`), and the bound of the relaxed programme beside it."""
        tie_rounds = 0
        programme, proven = None, None
        while True:
            relaxed = solve(self._programme(proven=False))
            if relaxed.status == "infeasible":
                return None
            if proven is None or programme != self._programme(proven=True):  # most trials refute and prove nothing new
                programme = self._programme(proven=True)
                proven = solve(programme)
            if any_plan and proven.status != "infeasible":
                return proven, relaxed.bound
            if proven.value <= relaxed.value * (1 + VALUE_TOLERANCE):  # proven; is there a better one of this value?
                tie_rounds += 1
                relaxed = solve(self._programme(proven=False), ties="operable")
            unknown = self._unknown(relaxed)
            if not unknown or tie_rounds > TIE_ROUNDS:
                best = solve(self._programme(proven=True), ties="all")
                return (best, relaxed.bound) if best.status != "infeasible" else None
            for bracket in unknown:
                self._narrow(bracket)
                if bracket.passed is None:  # what differs in the KV dtype alone would be asked next
                    for sibling in self._siblings(bracket):
                        if sibling not in unknown and not sibling.closed and sibling.failed < bracket.failed:
                            self._narrow(sibling)

    def _narrow(self, bracket: Bracket) -> None:
        self.progress(f"simulating {bracket.family.key}")
        self.pricer.narrow(bracket)

    def _siblings(self, bracket: Bracket) -> list[Bracket]:
        """Brackets for the same classes of the families that differ from `bracket`'s in the KV dtype alone."""

        def kind(family: Family) -> tuple[object, ...]:
            return family.model, family.pool.name, family.engine.name, family.layout, family.weights_dtype

        found = []
        for family in self.families:
            if family is not bracket.family and kind(family) == kind(bracket.family):
                own = [known for known in self.brackets.values() if known.family is family] or self.open(family)
                found += [known for known in own if known.classes == bracket.classes]
        return found

    def _unknown(self, relaxed: Solution) -> list[Bracket]:
        """What a relaxed optimum uses without its price being known; families used for the first time are opened."""
        unknown = [
            self.brackets[key]
            for key in sorted(relaxed.replicas)
            if key in self.brackets and not self.brackets[key].closed
        ]
        for family in self.families:
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

    def _routes(self, bought: tuple[Bought, ...]) -> tuple[Route, ...]:
        """Each class is split in proportion to what the bought replicas carry of it."""
        routes = []
        for name in self.template.classes:
            carried = [
                (index, item.column.lower * item.replicas)
                for index, item in enumerate(bought)
                if name in item.column.classes
            ]
            total = sum(share for _, share in carried)
            routes += [
                Route(request_class=name, group=group_id(index), share=share / total) for index, share in carried
            ]
        return tuple(routes)

    def _shrink(self, bought: Iterable[Bought], broken: tuple[str, ...], *, everything: bool = False) -> None:
        """Less load for the models that broke a limit (for all, where that is not known).

        Above the screened load the whole model shrinks, as its window, not its columns, was judged too kindly; below
        it only the columns that were used, or `everything`, which ends a search among many equals.
        """
        guilty = {
            model
            for model, classes in self.classes_of.items()
            if any(text.startswith(f"{name}:") for text in broken for name in classes)
        } or set(self.classes_of)
        used = {item.column.key for item in bought}
        for key, bracket in self.brackets.items():
            if bracket.family.model in guilty and (everything or bracket.factor > 1.0 or key in used):
                bracket.factor *= SHRINK
        for model in guilty:
            self.pricer.first_factor[model] = max(1.0, self.pricer.first_factor.get(model, FIRST_FACTOR) * SHRINK)


def group_id(index: int) -> str:
    return f"group-{index}"


def alone(family: Family, pool: Pool, share: float, quantity: str) -> tuple[int, float] | None:
    """Replicas and value if this family carried its model's demand alone; None where the pool is too small for that."""
    if share <= 0:
        return None
    replicas = math.ceil(1.0 / share - 1e-6)
    if replicas > family.most_replicas:
        return None
    devices = replicas * slot_gpus(family.gpus, pool.node_devices)
    if pool.rent == "node":
        devices = math.ceil(devices / pool.node_devices - 1e-9) * pool.node_devices
    else:
        devices = replicas * family.gpus
    return replicas, devices * ((pool.price or 0.0) if quantity == "cost" else 1.0)
