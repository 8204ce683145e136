"""The master programme of a fleet too large to be decided configuration by configuration.

What couples models is what they rent; classes of one model share its replicas. So a model's demand is one row, which
every column of it carries in proportion, and the programme has as many rows as models and pools. Columns are priced as
in `master`: those that an optimum wants and nobody has priced yet get one simulation more, first the optima of the
continuous relaxation, whose columns are those of the best reduced costs, then those of the programme itself, to `GAP`.

A price comes from a part of the fleet: `SAMPLED` replicas with their share of the traffic (a larger group, over which
requests are spread, is never busier at its worst). The plan is then simulated model by model on all of its traffic, and
on traffic that it has not seen: where that refutes it, the largest load that passes is looked for with the same columns
before the programme is solved again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from planner.candidates.family import Family
from planner.candidates.pricing import FIRST_FACTOR, Bracket, broken_limits, busiest_part
from planner.optimize.decision import Bought, carries, group_id, routes_of
from planner.optimize.judging import Judgement
from planner.optimize.master import Master
from planner.optimize.parts import DEMAND_TOLERANCE, MOST_HEADROOM, Column, OptimisticFamily, Programme, slot_gpus
from planner.optimize.solve import Solution, relaxation, solve
from planner.simulate import FleetGroup, Workload, simulate_fleet
from planner.simulate.apart import only
from specs.errors import NoPlanError
from specs.plan import Route

PAIRS = 600  # of families and their classes, from which on a fleet is large
SAMPLED = 4  # replicas that are simulated for a price
MOST_TABLES = 1_000  # families whose step tables are all kept
GAP, ENOUGH = 0.003, 0.009  # of one solve; between the plan and the bound
TIME_LIMIT_S, MOST_NODES = 120.0, 300  # of one solve; the tree ends first, so that busy machines plan alike
ENDED_EARLY = "bound not reached"
MOST_ROUNDS, MOST_PROGRAMMES, MOST_GENERATIONS = 400, 6, 2
FLEET_FACTOR = 0.97  # of a priced load, that plans of a large fleet count on: what one sample passes, another may not
STEP = 0.97  # between two loads that are tried on a refuted plan
LEAST_LOAD = 0.3  # of the priced one, below which a refuted plan is given up


def is_large(programme: Programme, families: Iterable[Family], classes_of: dict[str, tuple[str, ...]]) -> bool:
    """Whether the programme over these families is decided by column generation."""
    pairs = sum(len(classes_of[family.model]) for family in families)
    plain = programme.quantity in ("cost", "gpus") and not programme.survive
    return plain and len(classes_of) > 1 and pairs > PAIRS


@dataclass
class FleetMaster(Master):
    """One master programme over many models, each of which carries its classes together."""

    _loads: dict[str, float] = field(default_factory=dict)  # by family: replicas that its model's demand keeps busy
    _held: dict[tuple[object, ...], bool] = field(default_factory=dict)  # replicas of one model, simulated
    _least: float = math.inf  # bound of any programme that was solved
    _last: Solution | None = None  # the plan that was given out last
    _grown: dict[str, int] = field(default_factory=dict)  # its replicas by column, after it was refuted as a whole
    _fresh: dict[tuple[str, ...], Workload] = field(default_factory=dict)  # by the classes of a model

    def bound(self) -> tuple[float, float | None]:
        """As for any fleet, of the relaxation in which nothing has to be whole."""
        self.progress(f"bounding the fleet over {len(self.families)} configurations")
        families = tuple(self._law_of_work(family) for family in self.families)
        programme = replace(self.template, families=families, allowed_misses={})
        return relaxation(programme, time_limit_s=TIME_LIMIT_S)[0], None

    def _law_of_work(self, family: Family) -> OptimisticFamily:
        """What the utilisation law alone says; latencies without a queue would make the bound a little tighter."""
        there = self._availability(family)
        loads = tuple((name, self.pricer.load(family, name) / there) for name in self.classes_of[family.model])
        if len(self.families) > MOST_TABLES:
            family.forget_times()
        return OptimisticFamily(family.key, family.model, family.pool.name, family.gpus, loads)

    def open(self, family: Family) -> list[Bracket]:
        """The column of all classes of the family's model, in proportion."""
        bracket = self.pricer.bracket(family, self.classes_of[family.model])
        self.brackets[bracket.key] = bracket
        return [bracket]

    def _search(self, any_plan: bool) -> tuple[Solution, float] | None:
        """A plan whose models each hold in simulation, near the bound of the programme of all families.

        Where a model was refuted, more replicas of the same columns take the place of those that broke its limits, and
        what is left to its columns is less. While the best such plan is far from the least bound, all is solved again.
        """
        if self._last is not None and self._grown and (again := self._with_replicas(self._last, self._grown)):
            self._last = self._judged_by_bound(again)
            return self._last, self._least
        best: Solution | None = None
        for attempt in range(MOST_GENERATIONS):
            found = self._generated()
            if found is None:
                return None
            solution, bound = found
            self._least = min(self._least, bound)
            replicas = self._held_by_model(solution)
            held = solution if replicas == solution.replicas else self._with_replicas(solution, replicas)
            if held is not None and (best is None or held.value < best.value):
                best = held
            if best is None:
                continue
            self._last = self._judged_by_bound(best)
            if self._last.status != ENDED_EARLY or any_plan or attempt == MOST_GENERATIONS - 1:
                return self._last, self._least
        raise NoPlanError(
            f"no plan was found: {MOST_GENERATIONS} plans were refuted, so the search gave up; this proves nothing"
        )

    def _judged_by_bound(self, plan: Solution) -> Solution:
        """The plan with the status that the least bound gives it."""
        near = plan.value - self._least <= ENOUGH * plan.value
        return replace(plan, status=f"optimal within {ENOUGH:.1%}" if near else ENDED_EARLY)

    def _shrink(self, bought: tuple[Bought, ...], broken: tuple[str, ...], *, everything: bool = False) -> None:
        """After the whole plan was refuted: more replicas for the models that break a limit on all of their traffic."""
        grown: dict[str, int] = {}
        for model, own in _by_model(bought):
            self.progress(f"simulating all of {model}")
            held = self._held_by(model, own, whole=True)
            guilty = any(text.startswith(f"{name}:") for text in broken for name in self.classes_of[model])
            if guilty and held == own:  # only together with others, or on other seeds: a little more
                more = _more(tuple(item.replicas for item in own))[0]
                held = tuple(replace(item, replicas=count) for item, count in zip(own, more, strict=True))
            grown |= {item.column.key: item.replicas for item in held}
        self._grown = grown

    def _retuned(self, judged: Judgement, nodes: Mapping[str, int], any_plan: bool) -> Judgement:
        """As it stands: every other limit would cost a simulation of the whole fleet."""
        return judged

    def _with_replicas(self, solution: Solution, replicas: dict[str, int]) -> Solution | None:
        """The plan of these replicas, in as many nodes as they need; None where something stated is not kept so."""
        template = self.template
        if template.model_gpus or template.model_replicas or template.power_w is not None:
            return None
        value, spent, nodes = 0.0, 0.0, {}
        for pool in template.pools:
            own = [(self.brackets[key].family, n) for key, n in replicas.items() if self._pool_of(key) == pool.name]
            slots = sum(n * slot_gpus(family.gpus, pool.node_devices) for family, n in own)
            rented = float(sum(n * family.gpus for family, n in own))
            if pool.rent == "node":
                count = math.ceil(slots / pool.node_devices - 1e-9)
                rented, slots = float(count * pool.node_devices), count * pool.node_devices
                if count:
                    nodes[pool.name] = count
            if slots > pool.devices:
                return None
            spent += rented * (pool.price or 0.0)
            value += rented * ((pool.price or 0.0) if template.quantity == "cost" else 1.0)
        if template.budget is not None and spent > template.budget:
            return None
        return replace(solution, value=value, replicas=replicas, nodes=nodes)

    def _pool_of(self, key: str) -> str:
        return self.brackets[key].family.pool.name

    def _generated(self) -> tuple[Solution, float] | None:
        """A plan of priced columns and a bound on every plan, at most `ENOUGH` apart where that can be reached.

        The bound is that of the relaxation, or of the programme over columns at the most that they may still carry.
        What that programme wants and nobody has priced is priced, until the bound and the best plan are close.
        """
        bound = self._price_relaxed()
        best: Solution | None = None
        for _ in range(MOST_PROGRAMMES):
            self.progress(f"solving the fleet ({self.pricer.simulations} simulations)")
            best = solve(self._fleet(closed=True), gap=GAP, time_limit_s=TIME_LIMIT_S, most_nodes=MOST_NODES)
            if best.status != "infeasible" and best.value - bound <= ENOUGH * best.value:
                break
            hopeful = solve(self._fleet(), gap=GAP, time_limit_s=TIME_LIMIT_S, most_nodes=MOST_NODES)
            if hopeful.status == "infeasible":
                return None
            bound = max(bound, hopeful.bound)
            unknown = self._wanted(hopeful.replicas)
            if not unknown:
                best = hopeful
                break
            self._close_all(unknown)
        if best is None or best.status == "infeasible":
            raise NoPlanError(
                "no plan was found: the search for columns ended early; this does not prove that there is none"
            )
        status = f"optimal within {ENOUGH:.1%}" if best.value - bound <= ENOUGH * best.value else ENDED_EARLY
        return replace(best, status=status), bound

    def _price_relaxed(self) -> float:
        """Price what optima of the continuous relaxation use, until they use nothing unknown; the value of the last."""
        value = 0.0
        for _ in range(MOST_ROUNDS):
            value, used = relaxation(self._fleet())
            unknown = self._wanted(used)
            if not unknown:
                break
            for bracket in unknown:
                self._narrow(bracket)
        return value

    def _close_all(self, brackets: list[Bracket]) -> None:
        for bracket in brackets:
            while not bracket.closed:
                self._narrow(bracket)

    def _wanted(self, used: Iterable[str]) -> list[Bracket]:
        """The columns among `used` whose price is not known, of families used for the first time, too."""
        found = []
        families = {family.key: family for family in self.families}
        for key in sorted(used):
            if key in families:
                found += self.open(families[key])
            elif not self.brackets[key].closed:
                found.append(self.brackets[key])
        return [bracket for bracket in found if not bracket.closed]

    def _fleet(self, *, closed: bool = False) -> Programme:
        """The programme with one row a model; shares as high as they may still be, or of `closed` columns only."""
        opened = {bracket.family.key for bracket in self.brackets.values()}
        columns = [
            self._whole_column(key, bracket.family, bracket.upper)
            for key, bracket in sorted(self.brackets.items())
            if bracket.closed or not closed
        ]
        columns += [
            self._whole_column(family.key, family, 1.0 / max(self._load(family), 1e-9))
            for family in self.families
            if family.key not in opened and not closed
        ]
        carrying = [column for column in columns if column.shares[0][1] > 0]
        if not self.template.model_replicas:
            carrying = undominated(carrying)
        return replace(self.template, columns=tuple(carrying), classes=tuple(self.classes_of), allowed_misses={})

    def _whole_column(self, key: str, family: Family, share: float) -> Column:
        share = min(share * self._availability(family), MOST_HEADROOM)
        return Column(key, family.model, family.pool.name, family.gpus, ((family.model, share),))

    def _load(self, family: Family) -> float:
        """Replicas that the model's whole demand keeps busy at the least; no share where a class is hopeless there."""
        if family.key not in self._loads:
            classes = self.classes_of[family.model]
            self._loads[family.key] = sum(self.pricer.load(family, name) for name in classes)
        return self._loads[family.key]

    def _held_by_model(self, solution: Solution) -> dict[str, int]:
        """Simulate each model's part of the plan; replicas by column, more of them where a model broke a limit."""
        bought = tuple(Bought(self.brackets[key], count) for key, count in sorted(solution.replicas.items()))
        held: dict[str, int] = {}
        for model, own in _by_model(bought):
            self.progress(f"simulating {model}")
            held |= {item.column.key: item.replicas for item in self._held_by(model, own)}
        return held

    def _held_by(self, model: str, bought: tuple[Bought, ...], *, whole: bool = False) -> tuple[Bought, ...]:
        """The fewest of these replicas, in proportion, that keep the model's limits; its columns are left less load.

        Judged on a part of them and of the traffic, or on the `whole` of both.
        """
        if self._holds(model, bought, seen=True, whole=whole) and self._holds(model, bought, seen=False, whole=whole):
            return bought
        scaled = [
            tuple(replace(item, replicas=count) for item, count in zip(bought, counts, strict=True))
            for counts in _more(tuple(item.replicas for item in bought))
        ]
        first = self._first_that_holds(model, scaled, whole)
        while first < len(scaled) - 1 and not self._holds(model, scaled[first], seen=False, whole=whole):
            first += 1
        refuted = scaled[first - 1] if first else bought
        left = min(1.0, (1.0 - 2.0 * DEMAND_TOLERANCE) / sum(carries(item) for item in refuted))
        for bracket in self.brackets.values():
            if bracket.family.model == model:
                bracket.factor *= left
        self.pricer.first_factor[model] = left * self.pricer.first_factor.get(model, FIRST_FACTOR)
        return scaled[first]

    def _first_that_holds(self, model: str, scaled: list[tuple[Bought, ...]], whole: bool) -> int:
        """By strides of growing length and bisection; the last where none holds."""
        low, high, stride = -1, 0, 1
        while high < len(scaled) - 1 and not self._holds(model, scaled[high], seen=True, whole=whole):
            low, high, stride = high, min(len(scaled) - 1, high + stride), 2 * stride
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._holds(model, scaled[middle], seen=True, whole=whole) else (middle, high)
        return high

    def _holds(self, model: str, bought: tuple[Bought, ...], *, seen: bool, whole: bool) -> bool:
        """Whether these replicas keep every limit of the model, on planned traffic or on traffic not `seen` yet."""
        names = self.classes_of[model]
        part, share = (bought, 1.0) if whole else _part(bought)
        routes = routes_of(part, names)
        key = (
            seen,
            whole,
            share,
            tuple((item.column.key, item.replicas, route.share) for item, route in zip(part, routes, strict=False)),
        )
        if key not in self._held:
            groups = tuple(
                FleetGroup(id=group_id(index), replicas=item.replicas, model=item.column.variant.replica)
                for index, item in enumerate(part)
                if item.column.variant is not None
            )
            workload = self._traffic(names, seen)
            if workload is not None:
                self._held[key] = self._keeps(groups, routes, workload if whole else self._some(workload, names, share))
        return self._held.get(key, True)

    def _keeps(self, groups: tuple[FleetGroup, ...], routes: tuple[Route, ...], workload: Workload) -> bool:
        self.pricer.simulations += 1
        slos = {name: slo for name, slo in self.pricer.slos.items() if name in workload.classes}
        result = simulate_fleet(groups, routes, workload, router=self.pricer.router, refute=slos)
        return not broken_limits(result, workload, slos)[0]

    def _some(self, workload: Workload, names: tuple[str, ...], share: float) -> Workload:
        """A share of the requests, in the busiest stretch that holds enough of them."""
        thinned = self.pricer.thinned(workload, names, share)
        return busiest_part(thinned, self.pricer.sample(thinned))

    def _traffic(self, names: tuple[str, ...], seen: bool) -> Workload | None:
        """The planned traffic of these classes, or that of the first seed that plans are judged on."""
        if seen or self.judge is None:
            return self.pricer.own(names)
        fresh = self.judge.workload(self.judge.seed + 1)
        if fresh is not None and names not in self._fresh:
            self._fresh[names] = only(fresh, names)
        return self._fresh.get(names)


def undominated(columns: list[Column]) -> list[Column]:
    """Without columns that as many devices in replicas of another one of the same model and pool never carry less than.

    Replicas of a size that divides another one's fit wherever that one does.
    """
    kept: list[Column] = []
    best: dict[tuple[str, str], list[Column]] = {}
    for column in sorted(columns, key=lambda item: (item.gpus, -item.shares[0][1], item.key)):
        own = best.setdefault((column.model, column.pool), [])
        share = column.shares[0][1]
        if not any(
            column.gpus % other.gpus == 0 and other.shares[0][1] * (column.gpus // other.gpus) >= share for other in own
        ):
            own.append(column)
            kept.append(column)
    return sorted(kept, key=lambda item: item.key)


def _part(bought: tuple[Bought, ...]) -> tuple[tuple[Bought, ...], float]:
    """About `SAMPLED` replicas of a larger purchase, and the share of the traffic that they carry of it."""
    times = sum(item.replicas for item in bought) / SAMPLED
    if times <= 2.0:
        return bought, 1.0
    part = tuple(replace(item, replicas=max(1, round(item.replicas / times))) for item in bought)
    return part, sum(carries(item) for item in part) / sum(carries(item) for item in bought)


def _by_model(bought: tuple[Bought, ...]) -> list[tuple[str, tuple[Bought, ...]]]:
    models = sorted({item.column.family.model for item in bought})
    return [(model, tuple(item for item in bought if item.column.family.model == model)) for model in models]


def _more(counts: tuple[int, ...]) -> list[tuple[int, ...]]:
    """More and more replicas: one in thirty at a time, at least one, wherever the proportions are kept best."""
    found: list[tuple[int, ...]] = []
    now = list(counts)
    while sum(now) < sum(counts) / LEAST_LOAD:
        for _ in range(max(1, round(sum(now) * (1.0 / STEP - 1.0)))):
            index = min(range(len(now)), key=lambda place: ((now[place] + 1) / counts[place], place))
            now[index] += 1
        found.append(tuple(now))
    return found
