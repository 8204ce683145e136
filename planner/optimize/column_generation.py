"""The master programme of a fleet too large to be decided configuration by configuration.

Columns are generated and priced on a part of the fleet (`fleet_columns`). Each model's part of a plan is then simulated
on all of its traffic, planned and fresh (`fleet_models`). Where that refutes it, more replicas of the same columns take
their place, and these columns are left just less load than what was refuted before the programme is solved again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from planner.candidates.family import Family
from planner.candidates.fleet_pricing import FleetPricer
from planner.candidates.pricing import Pricer
from planner.candidates.rungs import Bracket
from planner.optimize.decision import Bought, carries
from planner.optimize.fleet_columns import FLEET_FACTOR, SAMPLED, DrawOf, FleetColumns
from planner.optimize.fleet_models import (
    KnownJudge,
    KnownPlan,
    ModelRun,
    ModelTrial,
    Settled,
    by_model,
    more,
    settle_all,
)
from planner.optimize.fresh_seeds import Judge
from planner.optimize.judging import Judgement, Judging
from planner.optimize.parts import DEMAND_TOLERANCE, Programme, slot_gpus
from planner.optimize.solve import Solution
from planner.optimize.whole_plan import WholePlan
from planner.simulate import Workload, requirements
from specs.deployment import HardwareSpec
from specs.errors import NoPlanError

PAIRS = 600  # of families and their classes, from which on a fleet is large
MOST_GENERATIONS = 8


def is_large(programme: Programme, families: Iterable[Family], classes_of: dict[str, tuple[str, ...]]) -> bool:
    """Whether the programme over these families is decided by column generation."""
    pairs = sum(len(classes_of[family.model]) for family in families)
    plain = programme.quantity in ("cost", "gpus") and not programme.survive
    return plain and len(classes_of) > 1 and pairs > PAIRS


def fleet_master(
    template: Programme,
    families: tuple[Family, ...],
    pricer: Pricer,
    hardware: HardwareSpec,
    progress: Callable[[str], None],
    judge: Judge | None,
    fresh_of: DrawOf,
) -> FleetMaster:
    """The master of a large fleet, with the pricer that it needs; `fresh_of` draws the traffic of some classes."""
    pricing = FleetPricer(
        workload=pricer.workload,
        slos=pricer.slos,
        choices=pricer.choices,
        first_factor={(model, "unified"): FLEET_FACTOR for model in pricer.classes_of},
        measured=pricer.measured,
        classes_of=pricer.classes_of,
        throughputs=pricer.throughputs,
        router=pricer.router,
        sampled=SAMPLED,
    )
    classes_of = dict(pricer.classes_of)
    return FleetMaster(template, families, classes_of, pricing, hardware, judge, progress=progress, fresh_of=fresh_of)


@dataclass(frozen=True)
class _Held:
    """A plan each of whose models holds, its columns as they were then, and what simulation made of the models."""

    solution: Solution
    columns: dict[str, Bracket]
    runs: dict[str, ModelRun]


@dataclass
class FleetMaster(FleetColumns):
    """One master programme over many models, whose plans are simulated model by model."""

    _runs: dict[str, ModelRun] = field(default_factory=dict)  # by model, of the last plan
    _settled: dict[object, Settled] = field(default_factory=dict)  # by what was bought for a model
    _last: Solution | None = None  # the plan that was given out last
    _grown: dict[str, int] = field(default_factory=dict)  # its replicas by column, after it was refuted as a whole

    def _search(self, any_plan: bool) -> tuple[Solution, float] | None:
        """A plan whose models each hold in simulation, near the bound of the programme of all families.

        Where a model was refuted, more replicas of the same columns take the place of those that broke its limits, and
        these columns are left just less load than what was refuted. While the best such plan is far from the bound, all
        is solved again; models that are bought as before are not simulated again.
        """
        if self._last is not None and self._grown and (again := self._with_replicas(self._last, self._grown)):
            self._last = self._judged_by_bound(again)
            return self._last, self._least
        best: _Held | None = None
        kept: Mapping[str, int] = {}
        for _ in range(MOST_GENERATIONS):
            try:
                found = self._generated(kept)
            except NoPlanError:  # of what is left after refutations
                if best is None:
                    raise
                break
            if found is None and best is None:
                return None
            if found is None:
                break
            held, kept = self._held_by_model(found)
            if held is not None and (best is None or held.solution.value < best.solution.value):
                best = held
            if best is not None and (any_plan or self.late or self._near(best.solution)):
                break
        if best is None:
            raise NoPlanError(
                f"no plan was found: {MOST_GENERATIONS} plans were refuted, so the search gave up; this proves nothing"
            )
        self.brackets |= best.columns  # as they were when its models were simulated
        self._runs = best.runs
        self._last = self._judged_by_bound(best.solution)
        return self._last, self._least

    def _shrink(self, bought: tuple[Bought, ...], broken: tuple[str, ...], *, everything: bool = False) -> None:
        """After the whole plan was refuted, which its models by themselves were not: a little more for the guilty."""
        self._grown = {}
        for model, own in by_model(bought).items():
            guilty = any(text.startswith(f"{name}:") for text in broken for name in self.classes_of[model])
            counts = tuple(item.replicas for item in own)
            counts = more(counts)[0] if guilty else counts
            self._grown |= {item.column.key: count for item, count in zip(own, counts, strict=True)}

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

    def _held_by_model(self, solution: Solution) -> tuple[_Held | None, dict[str, int]]:
        """Simulate each model's part of the plan; more replicas where a model broke a limit. None: too many of them.

        Also the replicas, by column, of the models that hold as they are.
        """
        bought = tuple(Bought(self.brackets[key], count) for key, count in sorted(solution.replicas.items()))
        parts = by_model(bought)
        new = [model for model, own in parts.items() if _signature(own) not in self._settled]
        trials = {model: self._trial_of(model) for model in new}
        self.progress(f"simulating {len(new)} models, all of each")
        new.sort(key=lambda model: (-len(trials[model].planned), model))  # the longest first
        for model, found in zip(new, settle_all([(trials[model], parts[model]) for model in new]), strict=True):
            self.pricer.simulations += found.simulations
            self._settled[_signature(parts[model])] = found
        settled = {model: self._settled[_signature(own)] for model, own in parts.items()}
        replicas = {item.column.key: item.replicas for found in settled.values() for item in found.run.bought}
        held = solution if replicas == solution.replicas else self._with_replicas(solution, replicas)
        broken = any(found.run.broken for found in settled.values())
        columns = {item.column.key: replace(item.column) for item in bought}
        for found in settled.values():
            self._lower(found.refuted)
        runs = {model: found.run for model, found in settled.items()}
        kept = [item for model, own in parts.items() if not settled[model].refuted for item in own]
        return (
            None if held is None or broken else _Held(held, columns, runs),
            {item.column.key: item.replicas for item in kept},
        )

    def _lower(self, refuted: tuple[Bought, ...]) -> None:
        """Less load for the columns of a model whose replicas were refuted: just too little to buy them again."""
        carried = sum(carries(item) for item in refuted)
        if carried >= 1.0 - DEMAND_TOLERANCE:
            for item in refuted:
                bracket = self.brackets[item.column.key]
                bracket.take_in()
                bracket.factor *= (1.0 - 2.0 * DEMAND_TOLERANCE) / carried

    def _trial_of(self, model: str) -> ModelTrial:
        """How replicas of a model are simulated: on its planned traffic, and judged on fresh traffic of its own."""
        names, judge = self.classes_of[model], self.judge
        if judge is not None and self.fresh_of is not None:
            judge = replace(
                judge,
                draw=partial(_drawn, self.fresh_of, names),
                slos=_of(judge.slos, names),
                throughputs=_of(judge.throughputs, names),
                among=sum(len(requirements(slo)) for slo in judge.slos.values()),
            )
        return ModelTrial(names, self.pricer.own(names), _of(self.pricer.slos, names), self.pricer.router, judge)

    def judgement(self, whole: WholePlan, served: Mapping[str, float], *, any_plan: bool = False) -> Judgement:
        """The plan judged by what is known of its models, where all of them were simulated as they stand in it."""
        runs = tuple(self._runs[model] for model in sorted(self._runs))
        own = by_model(whole.bought)
        known = len(runs) == len(own) and all(_same(self._runs[model].bought, items) for model, items in own.items())
        if not known or served or any(run.broken for run in runs):
            return super().judgement(whole, served, any_plan=any_plan)
        plan = KnownPlan(
            whole.bought,
            whole.routes,
            whole.placement,
            whole.hardware,
            whole.router,
            runs=runs,
            planned=self.pricer.workload,
        )
        judge = None
        if self.judge is not None and not any_plan and not whole.measured:
            judge = KnownJudge(**vars(self.judge), runs=runs)
        self.pricing.let_go()
        judging = Judging(self.template, self.pricer, self.hardware, judge, self.progress)
        found = replace(judging.judgement(plan, served), whole=whole)
        self._settled, self._runs = {}, {}  # they hold every request of every model
        return found


def _same(bought: tuple[Bought, ...], other: tuple[Bought, ...]) -> bool:
    return [(item.column.key, item.replicas) for item in bought] == [(item.column.key, item.replicas) for item in other]


def _signature(bought: tuple[Bought, ...]) -> object:
    """What makes a simulation of one model's replicas another one: how many of what, and how requests are shared."""
    total = sum(carries(item) for item in bought)
    return tuple((item.column.key, item.column.variant, item.replicas, carries(item) / total) for item in bought)


def _drawn(fresh_of: DrawOf, names: tuple[str, ...], seed: int) -> Workload | None:
    return fresh_of(seed, names)


def _of(every: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: every[name] for name in names if name in every}
