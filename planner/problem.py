"""The planning problem: facts loaded, traffic drawn, configurations enumerated, the programme's frame written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planner.candidates.disaggregated import by_role
from planner.candidates.dominance import drop_dominated
from planner.candidates.enumerate import families, model_length
from planner.candidates.family import Family
from planner.candidates.options import Asked
from planner.candidates.prefix_hits import most_cached
from planner.candidates.pricing import Pricer
from planner.candidates.shared_times import MOST_TABLES, Known, with_shared_times
from planner.facts import Facts, Machine, load_facts
from planner.frame import frame as frame
from planner.measured_rates import load_measured
from planner.optimize.fresh_seeds import Judge
from planner.optimize.fresh_traffic import fresh_workload
from planner.optimize.master import Master
from planner.optimize.programme import Programme
from planner.optimize.watts import Meter
from planner.simulate import BUSIEST_S as BUSIEST_S
from planner.simulate import LEAST_REQUESTS, Workload, declared_workload, slos_of
from planner.simulate.apart import only
from planner.simulate.traffic.window import window_s
from planner.throughput import throughputs_of, with_arrivals
from specs.deployment import DeploymentSpec, ModelChoices
from specs.engine_rules import capable
from specs.errors import InputError
from specs.plan import Discarded, SimulatedWindow

if TYPE_CHECKING:
    from planner.stated.replicas import StatedReplicas

NOT_IN_FLEETS = "replicas over several pools are not planned in fleets this large"


@dataclass(frozen=True)
class Problem:
    """Everything that planning needs, loaded and drawn once."""

    spec: DeploymentSpec
    base_dir: Path
    seed: int
    machine: Machine | None
    facts: Facts
    declared: Workload  # the busiest window of every class
    workload: Workload  # what is planned for: the same requests in `utilisation` times the time
    windows: tuple[SimulatedWindow, ...]
    families: tuple[Family, ...]
    dropped: tuple[Discarded, ...]
    template: Programme
    classes_of: dict[str, tuple[str, ...]]
    role_families: tuple[Family, ...] = ()  # prefill and decode sides, asked for where they could beat `families`
    stated: tuple[StatedReplicas, ...] = ()  # of models whose replicas are not chosen

    def master(self, progress: Callable[[str], None] = lambda text: None) -> Master:
        """A fresh master programme with its pricer."""
        pricer = Pricer(
            workload=self.workload,
            slos=slos_of(self.spec),
            router=self.spec.choices.router,
            choices={name: self.spec.choices.of(name) for name in self.spec.models},
            classes_of=self.classes_of,
            measured=load_measured(self.spec, self.base_dir, self.facts) if self.spec.measured else None,
            throughputs=throughputs_of(self.spec, self.base_dir),
        )
        promises = bool(pricer.slos or pricer.throughputs)
        judge = Judge(self.fresh, pricer.slos, self.seed, pricer.throughputs) if promises else None
        if _is_large(self.template, self.families, self.classes_of) and not self.role_families:
            from planner.optimize.column_generation import fleet_master

            return fleet_master(
                self.template, self.families, pricer, self.spec.hardware, progress, judge, self.fresh_of
            )
        return Master(
            self.template,
            self.families,
            self.classes_of,
            pricer,
            self.spec.hardware,
            judge,
            progress=progress,
            apart=self.role_families,
            meter=Meter(self.declared) if self.template.meters else None,
        )

    def fresh(self, seed: int) -> Workload | None:
        """What is planned for, as `seed` draws it; None where that has no request of some class."""
        drawn = fresh_workload(self.spec, self.base_dir, self.declared, seed, coupled=True)
        if drawn is None:
            return None
        return compressed(in_blocks(drawn, self.facts), self.workload.horizon_s / self.declared.horizon_s)

    def fresh_of(self, seed: int, classes: tuple[str, ...]) -> Workload | None:
        """The part of `fresh` that some classes send; drawn without the others where nothing of it was recorded."""
        if any(traffic.trace is not None for traffic in self.spec.traffic):
            whole = self.fresh(seed)
            return None if whole is None else only(whole, classes)
        traffic = tuple(item for item in self.spec.traffic if item.name in classes)
        return replace(self, spec=self.spec.model_copy(update={"traffic": traffic})).fresh(seed)


def _is_large(template: Programme, families: tuple[Family, ...], classes_of: dict[str, tuple[str, ...]]) -> bool:
    """Whether the problem is decided by column generation, which is loaded for several models only."""
    if len(classes_of) < 2:
        return False
    from planner.optimize.column_generation import is_large

    return is_large(template, families, classes_of)


def pose(
    spec: DeploymentSpec,
    base_dir: str | Path,
    *,
    seed: int = 0,
    machine: Machine | None = None,
    seconds: float = BUSIEST_S,
    facts: Facts | None = None,
    drawn: tuple[Workload, tuple[SimulatedWindow, ...]] | None = None,
) -> Problem:
    """Load facts and the busiest `seconds` of traffic, enumerate the configurations, write the programme's frame.

    At low rates the window is longer: a percentile of a handful of requests says nothing; at the rates of a large fleet
    it is shorter (`window_s`). `facts` and `drawn` traffic are taken as they are where they are known already.
    """
    spec = with_arrivals(spec, base_dir)
    facts = facts or load_facts(spec, base_dir, machine)
    classes_of = {
        name: tuple(traffic.name for traffic in spec.traffic if traffic.model == name) for name in spec.models
    }
    idle = [name for name, classes in classes_of.items() if not classes]
    if idle:
        raise InputError(
            "no request class uses this model", field=f"models.{idle[0]}", expected="a class with traffic, or no model"
        )
    declared, windows = drawn or drawn_traffic(spec, base_dir, facts, seed, window_s(spec, seconds))
    declared = in_blocks(declared, facts)
    workload = compressed(declared, spec.limits.utilisation or 1.0)
    known: Known = {}
    kept: list[Family] = []
    dropped: list[Discarded] = []
    stated: list[StatedReplicas] = []
    for name, model in spec.models.items():
        longest = longest_request(windows, classes_of[name])
        if groups := spec.choices.of(name).groups:
            from planner.stated.replicas import stated_replicas

            by_class = {one: longest_request(windows, (one,)) for one in classes_of[name]}
            stated += stated_replicas(name, model, groups, spec.hardware.pools, facts, by_class)
            continue
        length = model_length(name, model, facts.architectures[name], longest)
        bootable, obstacles = families(
            name,
            model,
            _choices(spec, name),
            spec.choices.engine,
            spec.hardware.pools,
            facts,
            length,
            asked_by(declared, classes_of[name]),
        )
        bootable = with_shared_times(bootable, model, spec.choices.of(name), known)
        best, dominated = drop_dominated(bootable)
        if len(known) > MOST_TABLES:
            for family in bootable:
                family.forget_times()
        kept += best
        dropped += [*obstacles, *dominated]
    together, apart = by_role(kept, spec)
    template = frame(spec, facts, declared)
    if _is_large(template, together, classes_of) and not apart:  # column generation knows one pool a family
        dropped += [
            Discarded(configuration=family.configuration(), reason="spanning", detail=NOT_IN_FLEETS)
            for family in together
            if family.stage_pools
        ]
        together = tuple(family for family in together if not family.stage_pools)
    return Problem(
        spec=spec,
        base_dir=Path(base_dir),
        seed=seed,
        machine=machine,
        facts=facts,
        declared=declared,
        workload=workload,
        windows=windows,
        families=together,
        dropped=tuple(dropped),
        template=template,
        classes_of=classes_of,
        role_families=apart,
        stated=tuple(stated),
    )


def _choices(spec: DeploymentSpec, name: str) -> ModelChoices:
    """The choices of a model; without replicas over several pools where a question changes the spec to one that they
    are not planned for (users are told so when their spec is read)."""
    choices = spec.choices.of(name)
    metered = spec.objective.quantity in ("energy", "carbon")
    planned = not (metered or spec.limits.survive_node_failures)
    return choices if planned else choices.model_copy(update={"stages_over": None})


def drawn_traffic(
    spec: DeploymentSpec, base_dir: str | Path, facts: Facts, seed: int, seconds: float = BUSIEST_S
) -> tuple[Workload, tuple[SimulatedWindow, ...]]:
    """The busiest `seconds` of every class (more at low rates), prefixes in whole KV blocks, and what was drawn."""
    declared, windows = declared_workload(spec, base_dir, seconds=seconds, seed=seed, least_requests=LEAST_REQUESTS)
    return in_blocks(declared, facts), windows


def in_blocks(workload: Workload, facts: Facts) -> Workload:
    """The workload with prefixes in units that are whole KV blocks of every engine that may cache them."""
    sizes = [engine.block_size_tokens for name, engine in facts.engines.items() if capable(name, "prefix_caching")]
    if workload.prefixes is None or not sizes:
        return workload
    return replace(workload, prefixes=workload.prefixes.units(math.lcm(workload.prefixes.unit_tokens, *sizes)))


def asked_by(workload: Workload, classes: tuple[str, ...]) -> Asked:
    """Which options the requests of these classes give a meaning."""
    if workload.prefixes is None and workload.priority is None:
        return Asked(prefixes=False, priorities=False)
    own = workload.select(np.isin(workload.class_index, [workload.classes.index(name) for name in classes]))
    priorities = own.priority is not None and len(own) > 0 and bool((own.priority != own.priority[0]).any())
    return Asked(prefixes=bool(most_cached(own).any()), priorities=priorities)


def compressed(workload: Workload, utilisation: float) -> Workload:
    """The same requests arriving 1 / `utilisation` times as fast: headroom, stated as a share of what a plan carries.

    How busy a replica is says little (one request keeps it busy); that the SLOs hold at so much more traffic does.
    """
    if utilisation == 1.0:
        return workload
    return workload.faster(1.0 / utilisation)


def longest_request(windows: tuple[SimulatedWindow, ...], classes: tuple[str, ...]) -> int:
    """Tokens, prompt and output, of the longest request of these classes, in the simulated window or outside it."""
    return max(window.longest_request_tokens for window in windows if window.request_class in classes)
