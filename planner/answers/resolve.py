"""Solve a problem again after a small change; what the change does not touch is taken over, not worked out again.

A changed price leaves every simulated price of a configuration as it was; a changed stock moves only the rungs of its
own pool; a changed SLO leaves the traffic, the step times and the work of every configuration. What is taken over is
what the first search knew of a configuration, so an answer costs a few solves and simulations, not a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from planner.candidates.family import Family
from planner.candidates.rungs import Bracket
from planner.cost.margin import Margin, margin_of
from planner.decide import decided
from planner.optimize.master import Decision, Master
from planner.problem import Problem, frame, pose
from planner.simulate import Workload
from specs.deployment import DeploymentSpec, PoolSpec, TrafficClass
from specs.errors import NoPlanError
from specs.plan import SimulatedWindow

Progress = Callable[[str], None]
Drawn = tuple[Workload, tuple[SimulatedWindow, ...]]


@dataclass(frozen=True)
class Solved:
    """A problem with the search that decided it; without a `decision` there is no plan, or the search gave up.

    `problem` is the one that was decided in the end: of `maximise traffic`, at the multiple that was found.
    """

    asked: Problem
    problem: Problem
    master: Master
    decision: Decision | None
    gave_up: NoPlanError | None = None


def solved(
    problem: Problem,
    progress: Progress = lambda text: None,
    *,
    like: Solved | None = None,
    deadline: float | None = None,
    any_plan: bool = False,
) -> Solved:
    """Decide `problem`, with what is known from a problem that was decided before.

    After the `deadline` (of `time.monotonic`) the first plan that is certified is taken. A problem `like` one
    before, or of which `any_plan` will do, is decided without the bound that no plan can beat.
    """

    def master_of(posed: Problem, progress: Progress) -> Master:
        master = posed.master(progress)
        master.deadline, master.bounded = deadline, like is None and not any_plan
        if like is not None and _alike(posed, like.problem):
            _take_over(master, posed, like)
        return master

    try:
        found = decided(problem, progress, any_plan=any_plan, master_of=master_of)
    except NoPlanError as error:
        return Solved(problem, problem, master_of(problem, progress), None, error)
    return Solved(problem, found.problem, found.master, found.decision)


def changed(problem: Problem, spec: DeploymentSpec, *, drawn: Drawn | None = None) -> Problem:
    """The problem of a changed spec, under other traffic that was `drawn` for it.

    `InputError` where the change contradicts something else that the user wrote.
    """
    old = problem.spec
    same_load = drawn is None and sources(spec) == sources(old) and spec.limits.utilisation == old.limits.utilisation
    if drawn is None and sources(spec) == sources(old):
        drawn = problem.declared, problem.windows
    if same_load and _same_candidates(problem, spec):
        return _moved(problem, spec)
    facts = replace(problem.facts, hardware=spec.hardware, margins=_margins(problem, spec))
    posed = pose(spec, problem.base_dir, seed=problem.seed, machine=problem.machine, facts=facts, drawn=drawn)
    if same_load:
        posed = replace(posed, workload=problem.workload)  # the same object: what is known of it may be taken over
    same_steps = (spec.models, spec.choices, facts.margins) == (old.models, old.choices, problem.facts.margins)
    return _with_known_times(posed, problem) if same_steps else posed


def sources(spec: DeploymentSpec) -> tuple[TrafficClass, ...]:
    """Where the requests come from, whatever is promised to them."""
    return tuple(traffic.model_copy(update={"slo": None}) for traffic in spec.traffic)


def _margins(problem: Problem, spec: DeploymentSpec) -> dict[str, Margin]:
    return {name: margin_of(engine, spec.limits.confidence) for name, engine in problem.facts.engines.items()}


def _same_candidates(problem: Problem, spec: DeploymentSpec) -> bool:
    """Whether the changed pools hold the same configurations: other prices, or a stock that no layout waited for."""
    old = problem.spec
    if (spec.models, spec.choices, spec.limits.confidence) != (old.models, old.choices, old.limits.confidence):
        return False
    if old.hardware.model_copy(update={"pools": spec.hardware.pools}) != spec.hardware:
        return False
    short = [item.configuration for item in problem.dropped if item.reason == "inventory"]
    waiting = {pool for where in short for pool in (where.pool, *where.stage_pools)}
    for before, after in zip(old.hardware.pools, spec.hardware.pools, strict=True):
        if _as_rented(before) != _as_rented(after) or after.count < before.count:
            return False
        if after.count > before.count and before.name in waiting:
            return False
    return True


def _as_rented(pool: PoolSpec) -> PoolSpec:
    return pool.model_copy(update={"count": 1, "usd_per_gpu_hour": None})


def _moved(problem: Problem, spec: DeploymentSpec) -> Problem:
    """The same configurations in pools of other prices and sizes, under other SLOs."""
    pools = {pool.name: pool for pool in spec.hardware.pools}
    return replace(
        problem,
        spec=spec,
        facts=replace(problem.facts, hardware=spec.hardware),
        template=frame(spec, problem.facts, problem.declared),
        families=tuple(_in_pools(family, pools) for family in problem.families),
        role_families=tuple(_in_pools(family, pools) for family in problem.role_families),
    )


def without(problem: Problem, unwanted: Callable[[Family], bool]) -> Problem:
    """The problem with fewer configurations."""
    return replace(
        problem,
        families=tuple(family for family in problem.families if not unwanted(family)),
        role_families=tuple(family for family in problem.role_families if not unwanted(family)),
    )


def _in_pools(family: Family, pools: Mapping[str, PoolSpec]) -> Family:
    """The family in its pools as they are now; its step times are worked out at most once."""
    pool, stages = pools[family.pool.name], tuple(pools[stage.name] for stage in family.stage_pools)
    if (family.pool, family.stage_pools) == (pool, stages):
        return family
    return replace(family, pool=pool, stage_pools=stages, table=lambda: family.times)


def _with_known_times(posed: Problem, known: Problem) -> Problem:
    """Families that are the same configurations as known ones take their step times."""
    of_key = {family.key: family for family in (*known.families, *known.role_families)}

    def shared(family: Family) -> Family:
        same = of_key.get(family.key)
        return family if same is None else replace(family, table=lambda: same.times)

    return replace(
        posed,
        families=tuple(map(shared, posed.families)),
        role_families=tuple(map(shared, posed.role_families)),
    )


def _alike(problem: Problem, other: Problem) -> bool:
    """Whether requests and step times are those of the other problem, so that its simulations are good here."""
    return problem.workload is other.workload and problem.facts.margins == other.facts.margins


def _take_over(master: Master, problem: Problem, like: Solved) -> None:
    """The work and latencies that were worked out; brackets, too, where all promises and their ladder are as they were.

    Brackets of a search that other promises led somewhere else would lead this one there, too.
    """
    master.pricer = like.master.pricer.again(master.pricer.slos, master.pricer.choices)
    if like.master.pricer.slos != master.pricer.slos:
        return
    families = {family.key: family for family in (*problem.families, *problem.role_families)}
    for key, bracket in like.master.brackets.items():
        family = families.get(bracket.family.key)
        if family is not None and family.most_replicas == bracket.family.most_replicas:
            master.brackets[key] = _copy(bracket, family)


def _copy(bracket: Bracket, family: Family) -> Bracket:
    return replace(bracket, family=family, rungs=list(bracket.rungs))
