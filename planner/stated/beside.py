"""Models whose replicas are stated, and others that are planned beside them.

Models share nothing but devices. So the stated groups are placed first; the others are planned on the nodes that are
left, with what is left of budget and power; then everything is judged together. Devices that are left over on nodes of
stated groups are not offered, which a note says: the bound is that of the nodes that are.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from planner.answers.resolve import Solved, solved
from planner.assemble import certified, draft
from planner.discards import discarded_configurations
from planner.facts import Machine
from planner.network.arrange import arranged
from planner.optimize.decision import Decision, group_id
from planner.optimize.judging import Judgement
from planner.optimize.master import Master
from planner.optimize.whole_plan import Placement
from planner.problem import Problem, pose
from planner.stated.deployment import Progress, Standing, StatedWhole, slots_in, standing
from planner.stated.document import broken_laws, left_out
from planner.stated.naming import names_of, renamed, versions_of
from planner.stated.replicas import StatedReplicas
from specs.deployment import DeploymentSpec, PoolSpec
from specs.deployment.cables import devices_of_node
from specs.errors import InputError, NoPlanError
from specs.plan import DeviceSlot, Plan, ReplicaPlacement, Route


@dataclass(frozen=True)
class _Source:
    """Where problems come from."""

    base_dir: Path
    seed: int
    machine: Machine | None

    def pose(self, spec: DeploymentSpec) -> Problem:
        return pose(spec, self.base_dir, seed=self.seed, machine=self.machine)


def planned_beside(
    spec: DeploymentSpec,
    base_dir: str | Path,
    *,
    seed: int = 0,
    progress: Progress = lambda text: None,
    version: str = "",
    machine: Machine | None = None,
    deadline: float | None = None,
) -> tuple[Plan, Solved]:
    """The plan of a `spec` some of whose models are stated, and the search for the others.

    Raises `InputError` for what cannot be planned in parts, `NoPlanError` where the stated groups break a promise or
    nothing that is left serves the others.
    """
    _check(spec)
    source = _Source(Path(base_dir), seed, machine)
    progress("reading models, devices and traffic")
    whole = source.pose(spec)
    names = list(spec.choices.stated)
    stated = standing(source.pose(_without_shared_limits(_part(spec, names))), progress)
    if stated.broken:
        raise NoPlanError(
            f"the stated groups of {', '.join(names)} do not keep every promise, whatever stands beside them",
            conflict=stated.broken,
        )
    free = _free_nodes(stated)
    found = solved(source.pose(_rest(spec, stated, free)), progress, deadline=deadline)
    if found.gave_up is not None:
        raise found.gave_up
    if found.decision is None:
        raise _nothing_left(found, progress)
    return _together(whole, stated, found, found.decision, free, progress, version), found


def _check(spec: DeploymentSpec) -> None:
    """What is not planned in parts is refused by name."""
    if spec.objective.quantity not in ("cost", "gpus"):
        raise InputError(
            f"cannot {spec.objective} where only some models are stated",
            field="objective",
            expected="minimise cost or minimise gpus, or groups of every model",
        )
    if spec.hardware.network.graph:
        raise InputError(
            "models are not planned beside stated ones over a network of cables",
            field="hardware.network.graph",
            expected="links between pools, or groups of every model",
        )


def _part(spec: DeploymentSpec, names: Iterable[str]) -> DeploymentSpec:
    """The declaration of some of its models."""
    kept = set(names)
    choices = {name: item for name, item in spec.choices.models.items() if name in kept}
    gpus = {name: most for name, most in spec.limits.gpus.items() if name in kept}
    return spec.model_copy(
        update={
            "models": {name: model for name, model in spec.models.items() if name in kept},
            "traffic": tuple(item for item in spec.traffic if item.model in kept),
            "choices": spec.choices.model_copy(update={"models": choices}),
            "limits": spec.limits.model_copy(update={"gpus": gpus}),
        }
    )


def _without_shared_limits(spec: DeploymentSpec) -> DeploymentSpec:
    """Budget and power are of the whole plan: its re-check has them."""
    limits = spec.limits.model_copy(update={"budget_usd_per_hour": None, "power_w": None})
    return spec.model_copy(update={"limits": limits})


def _free_nodes(stated: Standing) -> dict[str, list[int]]:
    """Nodes without stated replicas, by pool, in order."""
    found = {}
    for pool in stated.problem.spec.hardware.pools:
        used = {slot.node for slot in slots_in(stated.whole, pool.name)}
        found[pool.name] = [node for node in range(pool.nodes) if node not in used]
    return found


def _rest(spec: DeploymentSpec, stated: Standing, free: dict[str, list[int]]) -> DeploymentSpec:
    """What is declared of the other models, on the nodes that are left and with what is left of the limits."""
    rest = _part(spec, [name for name in spec.models if name not in spec.choices.stated])
    pools = tuple(
        pool.model_copy(update={"count": sum(devices_of_node(pool, node) for node in free[pool.name])})
        for pool in spec.hardware.pools
        if free[pool.name]
    )
    if not pools:
        words = "the stated groups stand on every node of every pool"
        raise NoPlanError(words, conflict=("hardware.pools", "choices"), mends=("a pool with a node more",))
    limits = rest.limits.model_copy(
        update={
            "budget_usd_per_hour": _left("limits.budget", rest.limits.budget_usd_per_hour, _usd(stated)),
            "power_w": _left("limits.power", rest.limits.power_w, _watts(stated)),
        }
    )
    hardware = spec.hardware.model_copy(update={"pools": pools})
    return rest.model_copy(update={"hardware": hardware, "limits": limits})


def _left(name: str, limit: float | None, taken: float) -> float | None:
    """What the stated groups leave of a limit on the whole plan."""
    if limit is not None and limit <= taken:
        raise NoPlanError(f"the stated groups take {taken:,.6g} of {name}: {limit:,.6g}", conflict=(name,))
    return None if limit is None else limit - taken


def _usd(stated: Standing) -> float:
    """Dollars for an hour of what the stated groups take; pools without a price have no budget to share."""
    return sum(_rented(stated, pool) * (pool.usd_per_hour or 0.0) for pool in stated.problem.spec.hardware.pools)


def _watts(stated: Standing) -> float:
    """Watts that the devices of the stated groups may draw."""
    return sum(len(slots_in(stated.whole, pool.name)) * pool.most_watts for pool in stated.master.template.pools)


def _rented(stated: Standing, pool: PoolSpec) -> int:
    if pool.rent == "node":
        return stated.decision.nodes[pool.name] * pool.gpus_per_node
    return len(slots_in(stated.whole, pool.name))


def _nothing_left(found: Solved, progress: Progress) -> NoPlanError:
    from planner.answers.conflict import explain_conflict

    error = explain_conflict(found.problem, progress)
    error.message = f"beside the stated groups, {error.message}"
    return error


def _together(
    problem: Problem,
    stated: Standing,
    found: Solved,
    chosen: Decision,
    free: dict[str, list[int]],
    progress: Progress,
    version: str,
) -> Plan:
    """One plan of what is stated and what was chosen, judged as a whole."""
    offset = len(stated.whole.bought)
    routes = (*stated.whole.routes, *(_moved(route, offset) for route in chosen.routes))
    placement: Placement = {**stated.whole.placement, **_placed(chosen, offset, free)}
    bought = (*stated.whole.bought, *chosen.bought)
    master = replace(problem, families=(), role_families=()).master(progress)
    whole = StatedWhole(bought, routes, placement, problem.spec.hardware, problem.spec.choices.router)
    master.pricer.simulations += stated.master.pricer.simulations + found.master.pricer.simulations
    progress("simulating the whole plan")
    judged = master.judgement(whole, {})
    if judged.broken:
        raise NoPlanError(
            "what was planned beside the stated groups does not keep every promise together with them",
            conflict=judged.broken,
        )
    decision = _decision(problem, stated, chosen, judged)
    return _document(problem, master, decision, found, stated, version)


def _moved(route: Route, offset: int) -> Route:
    index = int(route.group.rpartition("-")[2])
    return route.model_copy(update={"group": group_id(index + offset)})


def _placed(chosen: Decision, offset: int, free: dict[str, list[int]]) -> dict[str, tuple[ReplicaPlacement, ...]]:
    """Placement of what was chosen, on the nodes that were left."""
    placed = {}
    for index, item in enumerate(chosen.bought):
        placed[group_id(index + offset)] = tuple(
            ReplicaPlacement(
                slots=tuple(
                    DeviceSlot(node=free[pool][slot.node], device=slot.device)
                    for pool, slot in item.column.family.places(replica)
                )
            )
            for replica in chosen.placement[group_id(index)]
        )
    return placed


def _decision(problem: Problem, stated: Standing, chosen: Decision, judged: Judgement) -> Decision:
    own = stated.decision.value
    result = judged.result
    if problem.declared is not problem.workload:  # judged with headroom, and predicted without
        result = judged.whole.simulate(problem.declared, None)
    nodes = {name: count + chosen.nodes.get(name, 0) for name, count in stated.decision.nodes.items()}
    return replace(
        chosen,
        bought=judged.whole.bought,
        routes=judged.whole.routes,
        placement=judged.whole.placement,
        nodes=nodes,
        value=own + chosen.value,
        bound=own + chosen.bound,
        priced_bound=own + chosen.priced_bound,
        result=result,
        fresh=judged.fresh,
        notes=judged.notes,
        measured=judged.whole.measured,
    )


def _document(
    problem: Problem, master: Master, decision: Decision, found: Solved, stated: Standing, version: str
) -> Plan:
    """The plan; raises `NoPlanError` where a law on the whole of it does not hold."""
    replicas = stated.problem.stated
    posed = replace(problem, families=(), role_families=(), dropped=(), workload=problem.declared)
    plan = draft(posed, master, decision, version)
    stated_names = set(names_of(replicas).values())
    plan = renamed(plan, _names(replicas, len(plan.groups)), versions_of(replicas))
    groups = tuple(
        group.model_copy(update={"carries": {}}) if group.id in stated_names else group for group in plan.groups
    )
    discarded = () if found.decision is None else discarded_configurations(found.problem, found.master, found.decision)
    models = ", ".join(stated.problem.spec.models)
    notes = (
        f"the groups of {models} are stated: only the others were chosen, on nodes without stated replicas",
        *left_out(stated.problem),
        *plan.predictions.notes,
    )
    plan = plan.model_copy(
        update={
            "groups": groups,
            "predictions": plan.predictions.model_copy(update={"notes": notes}),
            "discarded": discarded,
            "discarded_counts": dict(sorted(Counter(item.reason for item in discarded).items())),
        }
    )
    fixed = any(item.group.nodes is not None for item in replicas)
    plan = certified(arranged(plan, problem.spec.hardware, fixed=fixed))
    if broken := broken_laws(plan, told=False):
        raise NoPlanError("the stated groups and what was planned beside them break a law together", conflict=broken)
    return plan


def _names(replicas: tuple[StatedReplicas, ...], count: int) -> dict[str, str]:
    """Names of all groups: those that are stated, and for the others the first ones that are free."""
    names = names_of(replicas)
    free = (name for index in itertools.count() if (name := group_id(index)) not in names.values())
    return names | {group_id(index): next(free) for index in range(len(replicas), count)}
