"""From a plan's workload to the requests of a replay, and from what was measured back to what is predicted for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specs.errors import InputError, nearest_names
from specs.replay import ReplayLoad, ReplayRequest

if TYPE_CHECKING:
    from planner.simulate import DeclaredLoop, Workload
    from specs.deployment import DeploymentSpec
    from specs.measurements import Environment, Measurements
    from specs.plan import Plan


def one_replica(plan: Plan, workload: Workload, group_id: str, seed: int) -> tuple[Plan, Workload]:
    """The plan cut down to one replica of a group, and the share of the traffic that it gets, drawn request by request
    (a session as a whole). `InputError` where the plan has no such group, or nothing goes there."""
    import numpy as np

    single = alone(plan, group_id)
    group = plan.group(group_id)
    shares = {route.request_class: route.share / group.replicas for route in plan.routes if route.group == group_id}
    share = np.array([shares.get(name, 0.0) for name in workload.classes])[workload.class_index]
    drawn = np.random.Generator(np.random.PCG64([seed, 1])).random(len(workload))
    if workload.session is not None:
        _, first = np.unique(workload.session, return_index=True)
        drawn = drawn[first][np.searchsorted(np.sort(workload.session[first]), workload.session)]
    chosen = workload.select(drawn < share)
    if len(chosen) == 0:
        raise InputError(f"no request goes to one replica of {group_id}", field="--seconds", expected="a longer window")
    return single, chosen


def alone(plan: Plan, group_id: str) -> Plan:
    """The plan cut down to one replica of a group. `InputError` where it has no such group."""
    from specs.plan import Route

    names = [group.id for group in plan.groups]
    if group_id not in names:
        raise InputError(
            f"the plan has no group {group_id!r}",
            field="--group",
            expected=" or ".join(names),
            nearest=nearest_names(group_id, names),
        )
    group = plan.group(group_id)
    single = group.model_copy(update={"replicas": 1, "placement": group.placement[:1]})
    routed = dict.fromkeys(route.request_class for route in plan.routes if route.group == group_id)
    routes = tuple(Route(request_class=name, group=group_id, share=1.0) for name in routed)
    return plan.model_copy(update={"groups": (single,), "routes": routes})


def of_model(plan: Plan, spec: DeploymentSpec, workload: Workload, name: str | None) -> tuple[str, Workload]:
    """The model that the server has, and its part of the traffic. `InputError` where the plan cannot tell."""
    import numpy as np

    names = list(dict.fromkeys(group.model for group in plan.groups))
    if len(names) > 1 and name not in names:
        raise InputError(
            f"the plan has {len(names)} models, and a server is asked for one",
            field="--model",
            expected=" or ".join(names),
        )
    model = names[0] if len(names) == 1 else str(name)
    own = np.array([traffic.model == model for traffic in spec.traffic])
    chosen = workload.select(own[workload.class_index])
    if len(chosen) == 0:
        raise InputError(f"no request is for {model}", field="--seconds", expected="a longer window")
    return model, chosen


def open_load(workload: Workload) -> ReplayLoad:
    """Every request at its time; turns of sessions after the answer before them."""
    after, gap_s = workload.after, workload.gap_s
    requests = []
    for number in range(len(workload)):
        before = int(after[number]) if after is not None else -1
        requests.append(
            replace(
                _request(workload, number),
                due_s=float(workload.arrival_s[number]),
                after=before if before >= 0 else None,
                gap_s=float(gap_s[number]) if gap_s is not None else 0.0,
            )
        )
    unit_tokens = workload.prefixes.unit_tokens if workload.prefixes is not None else 0
    return ReplayLoad(
        tuple(requests), unit_tokens=unit_tokens, window_s=workload.horizon_s, source="the plan's declared traffic"
    )


def workload_of_clients(spec: DeploymentSpec, loop: DeclaredLoop) -> Workload:
    """The requests of a declared closed loop, in the order of sending; their times say nothing."""
    import numpy as np

    from planner.simulate import Workload

    count = len(loop.prompt_tokens)
    names = tuple(traffic.name for traffic in spec.traffic)
    return Workload(names, np.zeros(count, np.int64), np.zeros(count), loop.prompt_tokens, loop.output_tokens, 1.0)


def closed_load(workload: Workload, concurrency: int, seconds: float | None, warmup: int | None = None) -> ReplayLoad:
    """The same requests sent by so many clients (for so long); the first `warmup` are not judged: one of each client
    unless it is stated."""
    requests = tuple(_request(workload, number) for number in range(len(workload)))
    unit_tokens = workload.prefixes.unit_tokens if workload.prefixes is not None else 0
    if warmup is None:
        single = len(set(workload.class_index.tolist())) == 1
        warmup = concurrency if single and concurrency < len(requests) else 0
    return ReplayLoad(
        requests,
        concurrency,
        limit_s=seconds,
        warmup_requests=warmup,
        unit_tokens=unit_tokens,
        source="lengths of the plan's declared traffic",
    )


def _request(workload: Workload, number: int) -> ReplayRequest:
    return ReplayRequest(
        workload.classes[workload.class_index[number]],
        int(workload.prompt_tokens[number]),
        int(workload.output_tokens[number]),
        units=workload.prefixes.of(number) if workload.prefixes is not None else (),
    )


def environment_of(plan: Plan, model: str) -> Environment:
    """What the plan says is behind the URL; the server itself does not."""
    from specs.measurements import Environment

    groups = [group for group in plan.groups if group.model == model]
    return Environment(
        device=groups[0].device,
        devices=sum(group.replicas * group.layout.gpus for group in groups),
        engine=groups[0].engine,
    )


def compared(
    plan: Plan, base_dir: Path, spec: DeploymentSpec, workload: Workload, seen: Measurements
) -> dict[str, Any]:
    """By class: measured, predicted (simulated) for the very requests that were sent, and the difference."""
    from planner.estimate.observed import counted, difference, measured_summary
    from planner.plan_simulation.simulate import margin_notes
    from planner.simulate import slos_of

    served = counted(workload, seen)
    if len(served) == 0:
        predicted = {}
    elif seen.loads and seen.loads[0].kind == "closed":
        predicted = _closed(plan, served, seen, slos_of(spec))
    else:
        predicted = predicted_open(plan, base_dir, served)
    slos = slos_of(spec)
    classes = []
    for name in dict.fromkeys(row.request_class for row in seen.requests):
        measured = measured_summary(seen, name, slos.get(name))
        entry = {"class": name, "measured": measured, "predicted": predicted[name]}
        classes.append(
            {**entry, "difference": difference(predicted[name], measured), "limits": limits_in_words(spec, name)}
        )
    return {
        "url": seen.source,
        "endpoint": seen.endpoint.model_dump(mode="json") if seen.endpoint is not None else None,
        "partial": seen.partial,
        "classes": classes,
        "notes": [*margin_notes(plan), *seen.notes],
    }


def predicted_open(plan: Plan, base_dir: Path, workload: Workload) -> dict[str, dict[str, Any]]:
    from planner.plan_simulation.simulate import simulate_plan

    summary = simulate_plan(plan, base_dir, workload=workload)
    return {entry["class"]: entry for entry in summary["classes"]}


def _closed(plan: Plan, workload: Workload, seen: Measurements, slos: Any) -> dict[str, dict[str, Any]]:
    from planner.estimate.observed import predicted_closed_loop
    from planner.plan_simulation.simulate import replica_model

    names = list(dict.fromkeys(row.request_class for row in seen.requests))
    if len(plan.groups) != 1 or len(names) != 1:
        raise InputError(
            f"a closed loop of {len(names)} classes over {len(plan.groups)} groups is not predicted",
            field="--concurrency",
            expected="one class and one group (--group)",
        )
    group = plan.groups[0]
    found = predicted_closed_loop(
        replica_model(plan, group),
        group.replicas,
        seen.loads[0],
        workload.prompt_tokens,
        workload.output_tokens,
        slos.get(names[0]),
    )
    return {names[0]: found}


def limits_in_words(spec: DeploymentSpec, name: str) -> dict[str, str]:
    """The limits of a class in words, by metric."""
    from capstan.commands.simulate_screen import limits_of

    slo = next((traffic.slo for traffic in spec.traffic if traffic.name == name), None)
    return {metric: limits_of(slo, metric).replace("\n", ", ") for metric in ("ttft", "tpot", "e2e")}
