"""Watts of plans that minimise energy or carbon, beyond those of devices that run nothing.

A family takes at least the joules of its work in the largest steps there are, and of the seconds that the work takes in
the best batches. A priced column takes what its simulation at the highest load that passed says, in proportion for
less (never more than all of the traffic on one replica): smaller batches take more, which the simulation of the whole
plan finds out and `learn` remembers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from planner.candidates.disaggregated import priced_fleet
from planner.candidates.enumerate import MOST_BUDGET
from planner.candidates.family import Family
from planner.candidates.pricing import Pricer
from planner.candidates.rungs import Bracket
from planner.cost.energy import bounded_joules
from planner.cost.latency import latency_of
from planner.cost.operations import operations
from planner.cost.serving_power import Served, served_joules
from planner.group_power import group_power_w
from planner.optimize.decision import Bought
from planner.optimize.parts import Pool
from planner.optimize.whole_plan import WholePlan
from planner.simulate import FleetResult, Workload, simulate_fleet
from specs.catalog import load_power
from specs.plan import Route

SAME = 1e-3  # watts closer than this share are the same


@dataclass
class Meter:
    """Watts beyond idle of the `declared` traffic on what may be bought."""

    declared: Workload
    _least: dict[str, dict[str, float]] = field(default_factory=dict)  # by family and class
    _priced: dict[tuple[str, int | None], dict[str, float]] = field(default_factory=dict)  # by column and rung
    _learnt: dict[str, float] = field(default_factory=dict)  # by column: what whole plans took over what was priced

    def least(self, pricer: Pricer, family: Family) -> dict[str, float]:
        """By class: at least so many watts beyond idle take its whole demand."""
        if family.key not in self._least:
            names = pricer.classes_of.get(family.model) or tuple(self.declared.classes)
            self._least[family.key] = {name: self._least_of(pricer, family, name) for name in names}
        return self._least[family.key]

    def _least_of(self, pricer: Pricer, family: Family, name: str) -> float:
        own = self.declared.select(self.declared.of_class(name))
        idle_w, power = family.device.idle_power_w, load_power(family.device.name)
        busy_s = pricer.load(family, name) * pricer.workload.horizon_s  # work does not depend on when it arrives
        dynamic = 0.0
        if family.options.speculation is None and not family.options.prefix_caching:
            dynamic = _least_joules(family, own)
        joules = float(bounded_joules(dynamic, busy_s, family.device, power, family.pool.power_cap_w))
        return max(0.0, joules - idle_w * busy_s) * family.gpus / own.horizon_s

    def priced(self, pricer: Pricer, bracket: Bracket, *, learnt: bool) -> dict[str, float]:
        """By class: the watts beyond idle of its whole demand; `learnt`: as whole plans took them."""
        least = self.least(pricer, bracket.family)
        if bracket.passed is None or bracket.variant is None:
            return {name: least[name] for name in bracket.classes}
        key = bracket.key, bracket.passed
        if key not in self._priced:
            self._priced[key] = self._simulated(pricer, bracket, least)
        factor = self.learnt(bracket.key) if learnt else 1.0
        return {name: watts * factor for name, watts in self._priced[key].items()}

    def _simulated(self, pricer: Pricer, bracket: Bracket, least: Mapping[str, float]) -> dict[str, float]:
        if bracket.variant is None or bracket.passed is None:
            raise ValueError(f"{bracket.key} has no price")
        rung = bracket.rungs[bracket.passed]
        share = min(rung.share * bracket.factor, float(rung.replicas))
        fleet = priced_fleet(bracket.variant, rung.replicas, pricer.part(bracket.classes, share))
        routes = tuple(Route(request_class=name, group=fleet.entry, share=1.0) for name in fleet.workload.classes)
        result = simulate_fleet(fleet.groups, routes, fleet.workload, router=pricer.router, links=fleet.links)
        drawn = watts_of(result, fleet.workload, fleet.index, bracket.family)
        beyond = max(0.0, drawn - bracket.family.device.idle_power_w * bracket.family.gpus * rung.replicas)
        # as much work in the declared time, which headroom makes longer than the planned one
        whole = beyond / share * pricer.workload.horizon_s / self.declared.horizon_s
        together = sum(least[name] for name in bracket.classes) or 1.0
        return {name: max(least[name], whole * least[name] / together) for name in bracket.classes}

    def beyond(self, whole: WholePlan, result: FleetResult, workload: Workload) -> list[float]:
        """Watts beyond idle of each group of a plan that was simulated."""
        found = []
        for index, item in enumerate(whole.bought):
            family = item.column.family
            drawn = watts_of(result, workload, index, family)
            found.append(drawn - family.device.idle_power_w * family.gpus * item.replicas)
        return found

    def learnt(self, key: str) -> float:
        """What whole plans took of a column, over what was priced; at least 1."""
        return self._learnt.get(key, 1.0)

    def learn(self, pricer: Pricer, whole: WholePlan, beyond: list[float]) -> bool:
        """Remember what a simulated plan took; False where it took what was priced."""
        news = False
        for item, watts, taken in zip(whole.bought, beyond, _taken(whole), strict=True):
            priced = self.priced(pricer, item.column, learnt=False)
            expected = sum(priced[name] * share for name, share in taken.items() if name in priced)
            factor = max(1.0, watts / expected) if expected > 0 else 1.0
            news |= factor > self.learnt(item.column.key) * (1.0 + SAME)
            self._learnt[item.column.key] = max(factor, self.learnt(item.column.key))
        return news


def watts_of(result: FleetResult, workload: Workload, index: int, family: Family) -> float:
    """Mean watts of all devices of one simulated group."""
    return group_power_w(
        result,
        workload,
        index,
        family.architecture,
        family.layout,
        family.weights_dtype,
        family.kv_dtype,
        family.device,
        family.profile,
        load_power(family.device.name),
        family.pool.power_cap_w,
        family.options.speculation,
        [(stage, load_power(stage.device.name)) for stage in family.stage_devices],
    )


def idle_watts(pools: tuple[Pool, ...], bought: tuple[Bought, ...], nodes: Mapping[str, int]) -> float:
    """Watts of all rented devices if they ran nothing."""
    total = 0.0
    for pool in pools:
        working = sum(item.column.family.gpus * item.replicas for item in bought if _in(item, pool))
        rented = nodes.get(pool.name, 0) * pool.node_devices if pool.rent == "node" else working
        total += pool.idle_watts * rented
    return total


def _in(item: Bought, pool: Pool) -> bool:
    return item.column.family.pool.name == pool.name


def _taken(whole: WholePlan) -> list[dict[str, float]]:
    """By group: the share of each class that it serves; a decode group serves what its prefill groups are sent."""
    shares: list[dict[str, float]] = [{} for _ in whole.bought]
    ids = {f"group-{index}": index for index in range(len(whole.bought))}
    for route in whole.routes:
        index = ids[route.group]
        sender = whole.bought[index]
        own = [index]
        if sender.role == "prefill":
            model = sender.column.family.model
            own += [i for i, o in enumerate(whole.bought) if o.role == "decode" and o.column.family.model == model]
        for place in own:
            shares[place][route.request_class] = shares[place].get(route.request_class, 0.0) + route.share
    return shares


def _least_joules(family: Family, own: Workload) -> float:
    """Dynamic joules of one device for requests that are served in the largest steps there are."""
    prompts, outputs, contexts = own.prompt_tokens, own.output_tokens, own.prompt_tokens
    if family.options.role == "prefill":
        outputs = np.ones_like(outputs)
    elif family.options.role == "decode":
        prompts = np.zeros_like(prompts)
    tokens = float((prompts + outputs - 1).sum())
    steps = max(1e-9, tokens / (MOST_BUDGET * max(1, family.layout.attention_data_parallel)))
    served = Served(prompts, outputs, steps, 1.0, 1.0, contexts)
    every = operations(
        family.architecture,
        family.layout,
        family.weights_dtype,
        family.kv_dtype,
        family.device,
        family.profile,
        latency_of(family.device, family.profile),
    )
    window = family.architecture.window_tokens
    return served_joules(
        every, family.layout.pipeline_parallel, window, served, family.device, load_power(family.device.name)
    )
