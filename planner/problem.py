"""The planning problem: facts loaded, traffic drawn, configurations enumerated, the programme's frame written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planner.candidates.dominance import drop_dominated
from planner.candidates.enumerate import families, model_length
from planner.candidates.family import Family
from planner.candidates.pricing import Pricer, decisive
from planner.facts import Facts, Machine, load_facts
from planner.optimize.master import Master
from planner.optimize.programme import Pool, Programme
from planner.simulate import BUSIEST_S as BUSIEST_S
from planner.simulate import LEAST_REQUESTS, Workload, declared_workload, slos_of
from specs.deployment import DeploymentSpec, PoolSpec
from specs.errors import InputError
from specs.plan import Discarded, SimulatedWindow


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

    def master(self, progress: Callable[[str], None] = lambda text: None) -> Master:
        """A fresh master programme with its pricer."""
        pricer = Pricer(
            workload=self.workload,
            slos=slos_of(self.spec),
            choices={name: self.spec.choices.of(name) for name in self.spec.models},
        )
        return Master(self.template, self.families, self.classes_of, pricer, progress)


def pose(
    spec: DeploymentSpec,
    base_dir: str | Path,
    *,
    seed: int = 0,
    machine: Machine | None = None,
    seconds: float = BUSIEST_S,
) -> Problem:
    """Load facts and the busiest `seconds` of traffic, enumerate the configurations, write the programme's frame.

    At low rates the window is longer: a percentile of a handful of requests says nothing.
    """
    facts = load_facts(spec, base_dir, machine)
    classes_of = {
        name: tuple(traffic.name for traffic in spec.traffic if traffic.model == name) for name in spec.models
    }
    idle = [name for name, classes in classes_of.items() if not classes]
    if idle:
        raise InputError(
            "no request class uses this model", field=f"models.{idle[0]}", expected="a class with traffic, or no model"
        )
    declared, windows = declared_workload(
        spec, base_dir, seconds=seconds, seed=seed, least_requests=LEAST_REQUESTS, coupled=False
    )
    workload = compressed(declared, spec.limits.utilisation or 1.0)
    kept: list[Family] = []
    dropped: list[Discarded] = []
    for name, model in spec.models.items():
        longest = longest_request(windows, classes_of[name])
        length = model_length(name, model, facts.architectures[name], longest)
        bootable, obstacles = families(
            name, model, spec.choices.of(name), spec.choices.engine, spec.hardware.pools, facts, length
        )
        best, dominated = drop_dominated(bootable)
        kept += best
        dropped += [*obstacles, *dominated]
    return Problem(
        spec=spec,
        base_dir=Path(base_dir),
        seed=seed,
        machine=machine,
        facts=facts,
        declared=declared,
        workload=workload,
        windows=windows,
        families=tuple(kept),
        dropped=tuple(dropped),
        template=frame(spec),
        classes_of=classes_of,
    )


def compressed(workload: Workload, utilisation: float) -> Workload:
    """The same requests arriving 1 / `utilisation` times as fast: headroom, stated as a share of what a plan carries.

    How busy a replica is says little (one request keeps it busy); that the SLOs hold at so much more traffic does.
    """
    if utilisation == 1.0:
        return workload
    return workload.moved(workload.arrival_s * utilisation, workload.horizon_s * utilisation)


def longest_request(windows: tuple[SimulatedWindow, ...], classes: tuple[str, ...]) -> int:
    """Tokens, prompt and output, of the longest request of these classes, in the simulated window or outside it."""
    return max(window.longest_request_tokens for window in windows if window.request_class in classes)


def frame(spec: DeploymentSpec) -> Programme:
    """The master programme of the spec without columns and families."""
    if spec.objective.quantity not in ("cost", "gpus"):
        raise InputError(f"cannot {spec.objective}", field="objective", expected="minimise cost or minimise gpus")
    return Programme(
        pools=tuple(
            Pool(pool.name, _whole(pool), min(pool.gpus_per_node, pool.count), pool.usd_per_gpu_hour, pool.rent)
            for pool in spec.hardware.pools
        ),
        columns=(),
        families=(),
        classes=tuple(traffic.name for traffic in spec.traffic),
        quantity=spec.objective.quantity,
        allowed_misses={name: 1.0 - decisive(slo).share for name, slo in slos_of(spec).items()},
        budget=spec.limits.budget_usd_per_hour,
        model_gpus=dict(spec.limits.gpus),
        model_replicas={name: choices.replicas for name, choices in spec.choices.models.items() if choices.replicas},
    )


def _whole(pool: PoolSpec) -> int:
    """Devices in whole nodes: a last, partly filled node counts only where devices are rented one by one."""
    return pool.count if pool.rent == "gpu" else pool.count // pool.gpus_per_node * pool.gpus_per_node
