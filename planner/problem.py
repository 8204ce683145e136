"""The planning problem: facts loaded, traffic drawn, configurations enumerated, the programme's frame written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from planner.candidates.disaggregated import by_role
from planner.candidates.dominance import drop_dominated
from planner.candidates.enumerate import families, model_length
from planner.candidates.family import Family
from planner.candidates.options import Asked
from planner.candidates.prefix_hits import most_cached
from planner.candidates.pricing import Pricer
from planner.facts import Facts, Machine, load_facts
from planner.frame import frame as frame
from planner.measured_rates import load_measured
from planner.optimize.column_generation import FLEET_FACTOR, SAMPLED, FleetMaster, is_large
from planner.optimize.fresh_seeds import Judge
from planner.optimize.fresh_traffic import fresh_workload
from planner.optimize.master import Master
from planner.optimize.programme import Programme
from planner.optimize.watts import Meter
from planner.simulate import BUSIEST_S as BUSIEST_S
from planner.simulate import LEAST_REQUESTS, Workload, declared_workload, slos_of
from planner.throughput import throughputs_of, with_arrivals
from specs.deployment import DeploymentSpec, TrafficClass
from specs.engine_rules import capable
from specs.errors import InputError
from specs.plan import Discarded, SimulatedWindow

# Windows of large fleets are as short as so many requests of all classes (of one class) allow, and no shorter than a
# few of the longest answers: a p90 of a thousand requests rests on a hundred of them, and one takes 3 us to simulate.
FLEET_REQUESTS, CLASS_REQUESTS, SHORTEST_S = 600_000, 3_000, 120.0
MOST_MODELS = 20  # whose step tables are all kept in memory


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
        large = is_large(self.template, self.families, self.classes_of) and not self.role_families
        if large:
            pricer.sampled, pricer.first_factor = SAMPLED, dict.fromkeys(self.classes_of, FLEET_FACTOR)
        return (FleetMaster if large else Master)(
            self.template,
            self.families,
            self.classes_of,
            pricer,
            self.spec.hardware,
            progress,
            judge,
            apart=self.role_families,
            meter=Meter(self.declared) if self.template.meters else None,
        )

    def fresh(self, seed: int) -> Workload | None:
        """What is planned for, as `seed` draws it; None where that has no request of some class."""
        drawn = fresh_workload(self.spec, self.base_dir, self.declared, seed, coupled=True)
        if drawn is None:
            return None
        return compressed(in_blocks(drawn, self.facts), self.workload.horizon_s / self.declared.horizon_s)


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

    At low rates the window is longer: a percentile of a handful of requests says nothing. `facts` and `drawn` traffic
    are taken as they are where they are known already.
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
    declared, windows = drawn or drawn_traffic(spec, base_dir, facts, seed, seconds)
    declared = in_blocks(declared, facts)
    workload = compressed(declared, spec.limits.utilisation or 1.0)
    kept: list[Family] = []
    dropped: list[Discarded] = []
    for name, model in spec.models.items():
        longest = longest_request(windows, classes_of[name])
        length = model_length(name, model, facts.architectures[name], longest)
        bootable, obstacles = families(
            name,
            model,
            spec.choices.of(name),
            spec.choices.engine,
            spec.hardware.pools,
            facts,
            length,
            asked_by(declared, classes_of[name]),
        )
        best, dominated = drop_dominated(bootable)
        if len(spec.models) > MOST_MODELS:
            for family in bootable:
                family.forget_times()
        kept += best
        dropped += [*obstacles, *dominated]
    together, apart = by_role(kept, spec)
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
        template=frame(spec, facts, declared),
        classes_of=classes_of,
        role_families=apart,
    )


def drawn_traffic(
    spec: DeploymentSpec, base_dir: str | Path, facts: Facts, seed: int, seconds: float = BUSIEST_S
) -> tuple[Workload, tuple[SimulatedWindow, ...]]:
    """The busiest `seconds` of every class (more at low rates), prefixes in whole KV blocks, and what was drawn."""
    declared, windows = declared_workload(spec, base_dir, seconds=seconds, seed=seed, least_requests=LEAST_REQUESTS)
    return in_blocks(declared, facts), windows


def window_s(spec: DeploymentSpec, seconds: float) -> float:
    """`seconds`, or less where so many requests come in them that simulating them would take minutes."""
    rates = [_rate_per_s(traffic) for traffic in spec.traffic]
    if None in rates:
        return seconds
    most = max(FLEET_REQUESTS, CLASS_REQUESTS * len(rates))
    return min(seconds, max(SHORTEST_S, most / sum(rate for rate in rates if rate is not None)))


def _rate_per_s(traffic: TrafficClass) -> float | None:
    """The declared mean rate of a class; None where only its trace says it."""
    if traffic.arrivals is not None:
        return traffic.arrivals.rate_per_s
    if traffic.sessions is not None:
        return traffic.sessions.rate_per_s * traffic.sessions.turns_mean
    return traffic.trace.rate_per_s if traffic.trace is not None else None


def in_blocks(workload: Workload, facts: Facts) -> Workload:
    """The workload with prefixes in units that are whole KV blocks of every engine that may cache them."""
    sizes = [engine.block_size_tokens for name, engine in facts.engines.items() if capable(name, "prefix_caching")]
    if workload.prefixes is None or not sizes:
        return workload
    return replace(workload, prefixes=workload.prefixes.units(math.lcm(workload.prefixes.unit_tokens, *sizes)))


def asked_by(workload: Workload, classes: tuple[str, ...]) -> Asked:
    """Which options the requests of these classes give a meaning."""
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
