"""Simulate a plan as its document stands: step times from the facts it embeds, traffic from its spec or another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.candidates.enumerate import widest_limits
from planner.candidates.family import under_limits
from planner.cost.step import step_times
from planner.facts import in_pool
from planner.simulate import (
    BUSIEST_S,
    LEAST_REQUESTS,
    FleetGroup,
    ReplicaModel,
    chrome_trace,
    declared_workload,
    result_summary,
    simulate_fleet,
    slos_of,
)
from specs.architecture import load_architecture
from specs.deployment import DeploymentSpec, TraceFormat, TraceSpec
from specs.document import write_atomically
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup
from specs.traffic import read_trace


def simulate_plan(
    plan: Plan,
    base_dir: str | Path,
    *,
    trace: Path | None = None,
    trace_format: TraceFormat | None = None,
    rate_per_s: float | None = None,
    seconds: float | None = None,
    seed: int | None = None,
    exact: bool = False,
    timeline: Path | None = None,
) -> dict[str, Any]:
    """Serve traffic on the plan's replicas; the summary of `planner.simulate` with what was simulated.

    Traces named in the spec are looked for in the folder that the plan names, then beside the plan. `trace` replaces
    the traffic of a plan with one class; `trace_format` None takes that of the plan's own trace, or the one that the
    file's name tells. `seconds` None simulates as long a window as planning does, `seed` None draws what the plan was
    made with; `rate_per_s` rescales all classes in proportion to that total. `timeline`: a file that takes a Chrome
    trace of all requests. Raises `InputError` where a trace is
    missing or is not the one the plan was made with, and where the plan's groups contradict themselves.
    """
    if rate_per_s is not None and not 0 < rate_per_s < 1e9:
        raise InputError(f"{rate_per_s} is not a rate", field="--rate", expected="requests/s above 0")
    if seconds is not None and not 0 < seconds <= 86_400 * 7:
        raise InputError(f"{seconds} is not a length of time", field="--seconds", expected="seconds above 0")
    if trace_format is not None and trace is None:
        raise InputError("no trace is given", field="--format", expected="--trace FILE with it")
    if seed is None:
        seed = plan.certificate.windows[0].seed if plan.certificate.windows else 0
    spec = DeploymentSpec.model_validate(plan.spec)
    folder = _folder(plan, spec, Path(base_dir)) if trace is None else Path()
    if trace is not None:
        spec = _with_trace(spec, trace, trace_format)
    groups = tuple(_fleet_group(plan, index, group) for index, group in enumerate(plan.groups))
    window: dict[str, Any] = {"seed": seed, "seconds": BUSIEST_S, "least_requests": LEAST_REQUESTS}
    if seconds is not None:
        window |= {"seconds": seconds, "least_requests": 0}
    workload, windows = declared_workload(spec, folder, **window)
    if rate_per_s is not None:
        spec = _scaled(spec, folder, rate_per_s / (len(workload) / workload.horizon_s))
        workload, windows = declared_workload(spec, folder, **window)
    slos = slos_of(spec)
    try:
        result = simulate_fleet(groups, plan.routes, workload, router=plan.router, exact=exact)
    except ValueError as error:
        raise InputError(str(error), field="routes", expected="routes of every class to groups of the plan") from None
    if timeline is not None:
        write_atomically(timeline, chrome_trace(result, workload))
    return {
        **result_summary(result, workload, slos),
        "windows": [item.model_dump(mode="json") for item in windows],
        "simulated_requests": len(workload),
        "simulated_s": result.end_s,
    }


def _fleet_group(plan: Plan, index: int, group: ReplicaGroup) -> FleetGroup:
    try:
        return FleetGroup(group.id, group.replicas, replica_model(plan, group))
    except ValueError as error:
        raise InputError(
            str(error), field=f"groups[{index}]", expected="limits and a cache that fit together"
        ) from None


def replica_model(plan: Plan, group: ReplicaGroup) -> ReplicaModel:
    """One replica of a group, from the architecture, device facts and profile that the plan embeds.

    Step times are those that planning works with: of the widest limits that it tries.
    """
    spec = DeploymentSpec.model_validate(plan.spec)
    pool, limits = spec.hardware.pool(group.pool), group.limits
    sequences, tokens = widest_limits(spec.choices.of(group.model))
    times = step_times(
        load_architecture(plan.architectures[group.model]),
        group.layout,
        group.weights_dtype,
        group.cache.kv_dtype,
        in_pool(plan.devices[pool.device], pool, spec.hardware.network),
        plan.profiles[pool.device],
        plan.engines[group.engine],
        max(sequences, limits.max_num_seqs),
        max(tokens, limits.max_num_batched_tokens),
    )
    return ReplicaModel(
        times=under_limits(times, limits),
        limits=limits,
        num_blocks=group.cache.num_blocks,
        block_size_tokens=group.cache.block_size_tokens,
        scheduling=group.scheduling,
    )


def _folder(plan: Plan, spec: DeploymentSpec, beside: Path) -> Path:
    """The folder that the plan's traces are found from, checked against the sha256 that the plan names."""
    files = [(traffic.name, traffic.trace) for traffic in spec.traffic if traffic.trace is not None]
    for folder in (beside / plan.traffic_folder, Path(plan.traffic_folder), beside):
        if all((folder / trace.file).is_file() for _, trace in files):
            break
    else:
        missing = next(trace.file for _, trace in files)
        raise InputError(
            f"trace {missing} is neither in {plan.traffic_folder} nor beside the plan",
            field="traffic",
            expected="the trace there, or --trace FILE",
        )
    wanted = {window.request_class: window.sha256 for window in plan.certificate.windows}
    for name, trace in files:
        if wanted.get(name) and read_trace(folder / trace.file, trace.format).sha256 != wanted[name]:
            raise InputError(
                "is not the trace that the plan was made with (another sha256)",
                file=str(folder / trace.file),
                expected="the same file, or --trace FILE to simulate another",
            )
    return folder


def _with_trace(spec: DeploymentSpec, trace: Path, trace_format: TraceFormat | None) -> DeploymentSpec:
    if len(spec.traffic) != 1:
        raise InputError(
            f"the plan has {len(spec.traffic)} request classes", field="--trace", expected="a plan with one class"
        )
    old, arrivals = spec.traffic[0].trace, spec.traffic[0].arrivals
    kind = trace_format or ("mooncake" if ".jsonl" in trace.name else (old.format if old is not None else "csv"))
    rate_per_s = None
    if kind == "sharegpt":  # lengths without times
        rate_per_s = old.rate_per_s if old is not None else arrivals.rate_per_s if arrivals is not None else None
    changed = TraceSpec(file=str(trace.resolve()), format=kind, rate_per_s=rate_per_s)
    traffic = spec.traffic[0].model_copy(
        update={"trace": changed, "arrivals": None, "prompt_tokens": None, "output_tokens": None}
    )
    return spec.model_copy(update={"traffic": (traffic,)})


def _scaled(spec: DeploymentSpec, folder: Path, factor: float) -> DeploymentSpec:
    """Every class at `factor` times its rate; recorded times are stretched."""
    classes = []
    for traffic in spec.traffic:
        changed: dict[str, Any] = {}
        if traffic.trace is not None:
            rate = traffic.trace.rate_per_s or read_trace(folder / traffic.trace.file, traffic.trace.format).rate_per_s
            changed = {"trace": traffic.trace.model_copy(update={"rate_per_s": rate * factor})}
        elif traffic.arrivals is not None:
            rate = traffic.arrivals.rate_per_s * factor
            changed = {"arrivals": traffic.arrivals.model_copy(update={"rate_per_s": rate})}
        classes.append(traffic.model_copy(update=changed))
    return spec.model_copy(update={"traffic": tuple(classes)})
