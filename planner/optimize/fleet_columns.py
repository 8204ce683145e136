"""The columns of a large fleet and the programme over them: what is priced, how exactly, and to what bound.

What couples models is what they rent; classes of one model share its replicas. So a model's demand is one row, which
every column of it carries in proportion, and the programme has as many rows as models and pools.

Columns come by their reduced cost. The relaxation over the columns that simulation has passed puts a price on each
model's demand and on each pool's devices (`fleet_relaxation`). A configuration that may carry more than it costs by
these prices is asked, in one trial, for just that much: most fail, and are out for good; what passes is a better
column. When none is left, the relaxation is that of all configurations, and the programme of whole replicas is solved
over the same columns to `GAP`.

A price comes from a part of the fleet: `SAMPLED` replicas with their share of the traffic, on two draws of it (a larger
group, over which requests are spread, is never busier at its worst).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from planner.candidates.family import Family
from planner.candidates.fleet_pricing import FleetPricer
from planner.candidates.rungs import Bracket
from planner.candidates.shared_times import MOST_TABLES, tables_of
from planner.optimize.fleet_relaxation import ShadowPrices, fewest_devices, shadow_prices
from planner.optimize.master import Master
from planner.optimize.parts import MOST_HEADROOM, Column, OptimisticFamily, Programme
from planner.optimize.solve import Solution, relaxation, solve
from planner.simulate import Workload
from specs.errors import NoPlanError

SAMPLED = 4  # replicas that are simulated for a price
GAP, ENOUGH = 0.003, 0.009  # of one solve; between the plan and the bound
TIME_LIMIT_S, MOST_NODES = 120.0, 300  # of one solve; the tree ends first, so that busy machines plan alike
ENDED_EARLY = "bound not reached"
MOST_ROUNDS, MOST_PROGRAMMES = 400, 6
AT_ONCE = 3  # configurations of a model that are tried between two relaxations
CLOSE = 1e-3  # of a share, by which a configuration has to exceed what it costs to be asked
FLEET_FACTOR = 1.0  # of a priced load, that plans count on: at 1.05 or 1.1 more are refuted, and none was cheaper
ANOTHER_SEED = 1_000  # after that of planning: of the second draw that prices come from, far from those of the judge

DrawOf = Callable[[int, tuple[str, ...]], Workload | None]


@dataclass
class FleetColumns(Master):
    """The programme over all configurations of a fleet, each model of which carries its classes together."""

    fresh_of: DrawOf | None = None  # traffic of some classes, by seed
    _loads: dict[str, float] = field(default_factory=dict)  # by family: replicas that its model's demand keeps busy
    _least: float = -math.inf  # what no mix of the configurations is below, at the loads that simulation allows

    @property
    def pricing(self) -> FleetPricer:
        """The pricer, as the one that it is."""
        assert isinstance(self.pricer, FleetPricer)
        return self.pricer

    def later_bound(self) -> Callable[[], tuple[float, float | None]]:
        found = self.bound()
        return lambda: found

    def bound(self) -> tuple[float, float | None]:
        """As for any fleet, of the relaxation in which nothing has to be whole."""
        self.progress(f"bounding the fleet over {len(self.families)} configurations")
        forgetful = tables_of(self.families) > MOST_TABLES
        families = tuple(self._law_of_work(family, forgetful) for family in self.families)
        fewest = fewest_devices(families, self.template)
        programme = replace(self.template, families=fewest, allowed_misses={})
        self.pricing.keep_few()
        return relaxation(programme, time_limit_s=TIME_LIMIT_S)[0], None

    def _law_of_work(self, family: Family, forgetful: bool) -> OptimisticFamily:
        """What the utilisation law alone says; latencies without a queue would make the bound a little tighter."""
        there = self._availability(family)
        loads = tuple((name, self.pricer.load(family, name) / there) for name in self.classes_of[family.model])
        if forgetful:
            family.forget_times()
        return OptimisticFamily(family.key, family.model, family.pool.name, family.gpus, loads)

    def open(self, family: Family) -> list[Bracket]:
        """The column of all classes of the family's model, in proportion."""
        bracket = self.pricer.bracket(family, self.classes_of[family.model])
        self.brackets[bracket.key] = bracket
        return [bracket]

    def _near(self, plan: Solution) -> bool:
        return math.isfinite(plan.value) and plan.value - self._least <= ENOUGH * plan.value

    def _judged_by_bound(self, plan: Solution) -> Solution:
        """The plan with the status that the bound gives it."""
        return replace(plan, status=f"optimal within {ENOUGH:.1%}" if self._near(plan) else ENDED_EARLY)

    def _generated(self, kept: Mapping[str, int]) -> Solution | None:
        """A plan of priced columns, at most `ENOUGH` from the bound where that can be reached; the bound grows along.

        The bound is that of the relaxation, or of the programme over columns at the most that they may still carry.
        What that programme wants and nobody has priced is priced, until the bound and the best plan are close. Replicas
        that are `kept`, by column, stay where that is good enough.
        """
        if not self._price_relaxed():
            return None
        self._least = max(self._least, relaxation(self._fleet(), time_limit_s=TIME_LIMIT_S)[0])
        best = self._solved(self._fleet(proven=True, kept=kept), kept) if kept else None
        if best is not None and self._near(best):
            return self._judged_by_bound(best)
        for _ in range(MOST_PROGRAMMES):
            self.progress(f"solving the fleet ({self.pricer.simulations} simulations)")
            best = self._solved(self._fleet(proven=True))
            if self._near(best):
                break
            hopeful = self._solved(self._fleet())
            if hopeful.status == "infeasible":
                return None
            self._least = max(self._least, hopeful.bound)
            known = len(self.brackets)
            unknown = self._wanted(hopeful.replicas)
            if not unknown and len(self.brackets) == known:
                best = hopeful
                break
            self._close_all(unknown)
        if best is None or best.status == "infeasible":
            raise NoPlanError(
                "no plan was found: the search for columns ended early; this does not prove that there is none"
            )
        return self._judged_by_bound(best)

    @staticmethod
    def _solved(programme: Programme, fixed: Mapping[str, int] | None = None) -> Solution:
        return solve(programme, gap=GAP, time_limit_s=TIME_LIMIT_S, most_nodes=MOST_NODES, fixed=fixed)

    def _price_relaxed(self) -> bool:
        """Price what the relaxation over proven columns could gain by, until nothing is left; whether it is feasible.

        Between two relaxations, the configurations of each model that promise the most are tried.
        """
        for _ in range(MOST_ROUNDS):
            prices = shadow_prices(self._fleet(proven=True))
            asked = self._promising(prices)
            if not asked:
                return not prices.short
            self.progress(f"pricing {len(self.brackets)} configurations ({self.pricer.simulations} simulations)")
            self._narrow_all(asked)
        return True

    def _promising(self, prices: ShadowPrices) -> list[tuple[Bracket, float]]:
        """Of each model, columns that may carry more than they cost, the best first, and the share that they cost.

        Some are new, and their price may be known as soon as they are opened (measured rates; limits that never boot).
        """
        pools = {pool.name: pool for pool in self.template.pools}
        found: dict[str, list[tuple[float, str, Family, float]]] = {}
        brackets = {bracket.family.key: bracket for bracket in self.brackets.values()}
        for family in self.families:
            bracket, there = brackets.get(family.key), self._availability(family)
            if bracket is not None and bracket.closed:
                continue
            upper = 1.0 / max(self._load(family), 1e-9) if bracket is None else bracket.upper
            least = prices.least_share(family.model, pools[family.pool.name], family.gpus) / there
            known = least if bracket is None else max(least, bracket.lower)
            if upper > known * (1.0 + CLOSE):
                found.setdefault(family.model, []).append((-upper / least, family.key, family, least))
        asked = []
        carried = {bracket.family.model for bracket in self.brackets.values() if bracket.passed is not None}
        for model, own in found.items():
            for _, _, family, least in sorted(own, key=lambda item: item[:2])[: AT_ONCE if model in carried else 1]:
                asked.append((brackets.get(family.key) or self.open(family)[0], least))
        return asked

    def _narrow_all(self, asked: list[tuple[Bracket, float]]) -> None:
        """One trial for each, on two draws of the traffic of its model."""
        if self.judge is not None and self.fresh_of is not None:
            for model in dict.fromkeys(bracket.family.model for bracket, _ in asked):
                names = self.classes_of[model]
                if not self.pricing.has_unseen(names):
                    self.pricing.take_unseen(names, self.fresh_of(self.judge.seed + ANOTHER_SEED, names))
        self.pricing.narrow_for(asked)

    def _close_all(self, brackets: list[Bracket]) -> None:
        while left := [(bracket, 0.0) for bracket in brackets if not bracket.closed]:
            self._narrow_all(left)

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

    def _fleet(self, *, proven: bool = False, kept: Iterable[str] = ()) -> Programme:
        """The programme with one row a model; shares as high as they may still be, or as simulation has passed.

        Without columns that another one beats, but for those that are `kept`.
        """
        opened = {bracket.family.key for bracket in self.brackets.values()}
        columns = [
            self._whole_column(key, bracket.family, bracket.lower if proven else bracket.upper)
            for key, bracket in sorted(self.brackets.items())
        ]
        columns += [
            self._whole_column(family.key, family, 1.0 / max(self._load(family), 1e-9))
            for family in self.families
            if family.key not in opened and not proven
        ]
        carrying = [column for column in columns if column.shares[0][1] > 0]
        if not self.template.model_replicas:
            stay = set(kept)
            best = {column.key for column in undominated(carrying)}
            carrying = [column for column in carrying if column.key in best or column.key in stay]
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
