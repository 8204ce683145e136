"""One model of a large fleet as a plan serves it: all of its replicas under all of its traffic, planned and fresh.

Models share nothing but what they rent, so each is simulated and judged by itself, on its own threads. Fresh traffic is
drawn when it is simulated and let go afterwards: what is kept of it is the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from planner.candidates.pricing import broken_limits
from planner.optimize.decision import Bought, group_id, routes_of
from planner.optimize.fresh_seeds import ERROR, ZONE, FreshTest, Judge
from planner.optimize.whole_plan import WholePlan
from planner.simulate import Fault, FleetGroup, FleetResult, Workload, simulate_fleet
from planner.simulate.apart import joined, places_in
from planner.simulate.together import together
from specs.deployment import SLO
from specs.plan import FreshSeeds, RouterName

STEP = 0.97  # between two loads that are tried on a refuted plan
LEAST_LOAD = 0.3  # of the priced one, below which a refuted plan is given up


@dataclass(frozen=True)
class ModelRun:
    """What simulation makes of one model's replicas; `broken` names the limits that do not hold (none: it stands)."""

    bought: tuple[Bought, ...]
    result: FleetResult  # on the planned traffic
    broken: tuple[str, ...]
    fresh: FreshTest | None  # None: there is no judge, or the planned traffic broke a limit
    simulations: int


@dataclass(frozen=True)
class Settled:
    """The fewest replicas of one model, in the proportions of a purchase, that hold; the most that were refuted."""

    run: ModelRun
    refuted: tuple[Bought, ...]  # empty: the purchase held as it was
    simulations: int


@dataclass(frozen=True)
class ModelTrial:
    """How replicas of one model are simulated."""

    names: tuple[str, ...]  # classes
    planned: Workload
    slos: Mapping[str, SLO]
    router: RouterName
    judge: Judge | None  # of the model's own fresh traffic

    def settle(self, bought: tuple[Bought, ...]) -> Settled:
        """By strides of growing length and bisection; the last run may break limits where nothing held."""
        run = self.run(bought)
        if not run.broken:
            return Settled(run, (), run.simulations)
        scaled = [
            tuple(replace(item, replicas=count) for item, count in zip(bought, counts, strict=True))
            for counts in more(tuple(item.replicas for item in bought))
        ]
        simulations, last = run.simulations, run

        def holds(index: int) -> bool:
            nonlocal simulations, last
            found = self.run(scaled[index])
            simulations += found.simulations
            last = found if not found.broken or last.broken else last
            return not found.broken

        low, high, stride = -1, 0, 1
        while not (passed := holds(high)) and high < len(scaled) - 1:
            low, high, stride = high, min(len(scaled) - 1, high + stride), 2 * stride
        while high - low > 1 and passed:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return Settled(last, scaled[low] if low >= 0 else bought, simulations)

    def run(self, bought: tuple[Bought, ...]) -> ModelRun:
        """All of the planned traffic, until a limit is lost; where none is, fresh traffic until each is judged."""
        result = self._serve(bought, self.planned, refute=True)
        broken, _ = broken_limits(result, self.planned, self.slos)
        if broken or self.judge is None:
            return ModelRun(bought, result, broken, None, 1)
        runs = [1]

        def simulate(workload: Workload) -> FleetResult:
            runs.append(1)
            return self._serve(bought, workload, refute=False)

        fresh = replace(self.judge, drawn={})(simulate)  # what it draws goes with it
        return ModelRun(bought, result, fresh.broken, fresh, len(runs))

    def _serve(self, bought: tuple[Bought, ...], workload: Workload, *, refute: bool) -> FleetResult:
        groups = tuple(
            FleetGroup(id=group_id(index), replicas=item.replicas, model=item.column.variant.replica)
            for index, item in enumerate(bought)
            if item.column.variant is not None
        )
        routes = routes_of(bought, self.names)
        return simulate_fleet(groups, routes, workload, router=self.router, refute=self.slos if refute else None)


@dataclass(frozen=True)
class KnownPlan(WholePlan):
    """A plan whose models were simulated one by one: on the planned traffic the answer is known."""

    runs: tuple[ModelRun, ...] = ()
    planned: Workload | None = None

    def simulate(
        self,
        workload: Workload,
        slos: Mapping[str, SLO] | None,
        faults: Iterable[Fault] = (),
        progress: Callable[[float], None] | None = None,
    ) -> FleetResult:
        failing = tuple(faults)
        if workload is not self.planned or failing:
            return super().simulate(workload, slos, failing)
        places = {item.column.key: index for index, item in enumerate(self.bought)}
        parts = []
        for run in self.runs:
            members = [places[item.column.key] for item in run.bought]
            loads = zip(run.result.groups, members, strict=True)
            result = replace(run.result, groups=tuple(replace(load, group=group_id(place)) for load, place in loads))
            parts.append((result, members, places_in(workload, run.bought[0].column.classes)))
        return joined(len(self.bought), workload, parts)


@dataclass(frozen=True)
class KnownJudge(Judge):
    """What judges of single models found, as the judge of the whole plan."""

    runs: tuple[ModelRun, ...] = ()

    def __call__(self, simulate: Callable[[Workload], FleetResult]) -> FreshTest:
        tests = [run.fresh for run in self.runs if run.fresh is not None]
        order = {name: index for index, name in enumerate((*self.slos, *self.throughputs))}
        limits = [limit for test in tests for limit in test.evidence.limits]
        evidence = FreshSeeds(
            seeds=tuple(sorted({seed for test in tests for seed in test.evidence.seeds})),
            requests=sum(test.evidence.requests for test in tests),
            error=ERROR,
            zone=ZONE,
            limits=tuple(sorted(limits, key=lambda limit: order[limit.request_class])),
        )
        return FreshTest(evidence, tuple(text for test in tests for text in test.broken))


def more(counts: tuple[int, ...]) -> list[tuple[int, ...]]:
    """More and more replicas: one in thirty at a time, at least one, wherever the proportions are kept best."""
    found: list[tuple[int, ...]] = []
    now = list(counts)
    while sum(now) < sum(counts) / LEAST_LOAD:
        for _ in range(max(1, round(sum(now) * (1.0 / STEP - 1.0)))):
            index = min(range(len(now)), key=lambda place: ((now[place] + 1) / counts[place], place))
            now[index] += 1
        found.append(tuple(now))
    return found


def by_model(bought: tuple[Bought, ...]) -> dict[str, tuple[Bought, ...]]:
    """The purchase of each model, by its name."""
    models = sorted({item.column.family.model for item in bought})
    return {model: tuple(item for item in bought if item.column.family.model == model) for model in models}


def settle_all(asked: Sequence[tuple[ModelTrial, tuple[Bought, ...]]]) -> list[Settled]:
    """`ModelTrial.settle` of several models at the same time."""
    return together(partial(trial.settle, bought) for trial, bought in asked)
