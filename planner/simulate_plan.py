"""Simulate a plan as its document stands: step times from the facts it embeds, traffic from its spec or another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.cost.step import step_times
from planner.simulate import FleetGroup, ReplicaModel, declared_workload, result_summary, simulate_fleet, slos_of
from specs.architecture import load_architecture
from specs.deployment import DeploymentSpec
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup


def simulate_plan(
    plan: Plan,
    base_dir: str | Path,
    *,
    trace: Path | None = None,
    rate_per_s: float | None = None,
    seconds: float = 600.0,
    seed: int | None = None,
    exact: bool = False,
) -> dict[str, Any]:
    """Serve traffic on the plan's replicas; the summary of `planner.simulate` with what was simulated.

    Traces named in the spec are looked for in the folder that the plan names, then beside the plan. `trace` replaces
    the traffic of a plan with one class; `seed` None draws what the plan was made with; `rate_per_s` rescales all
    classes in proportion to that total. Raises
    `InputError` where a trace is missing or is not the one the plan was made with.
    """
    if rate_per_s is not None and not 0 < rate_per_s < 1e9:
        raise InputError(f"{rate_per_s} is not a rate", field="--rate", expected="requests/s above 0")
    if not 0 < seconds <= 86_400 * 7:
        raise InputError(f"{seconds} is not a length of time", field="--seconds", expected="seconds above 0")
    if seed is None:
        seed = plan.certificate.windows[0].seed if plan.certificate.windows else 0
    spec = DeploymentSpec.model_validate(plan.spec)
    folder = _folder(plan, spec, Path(base_dir)) if trace is None else Path()
    if trace is not None:
        spec = _with_trace(spec, trace)
    if rate_per_s is not None:
        workload, _ = declared_workload(spec, folder, seconds=seconds, seed=seed)
        spec = _scaled(spec, rate_per_s / (len(workload) / workload.horizon_s), workload.horizon_s)
    workload, windows = declared_workload(spec, folder, seconds=seconds, seed=seed)
    groups = tuple(FleetGroup(group.id, group.replicas, replica_model(plan, group)) for group in plan.groups)
    slos = slos_of(spec)
    result = simulate_fleet(groups, plan.routes, workload, router=plan.router, exact=exact)
    return {
        **result_summary(result, workload, slos),
        "windows": [window.model_dump(mode="json") for window in windows],
        "simulated_requests": len(workload),
        "simulated_s": result.end_s,
    }


def replica_model(plan: Plan, group: ReplicaGroup) -> ReplicaModel:
    """One replica of a group, from the architecture, device facts and profile that the plan embeds."""
    device = next(pool["device"] for pool in plan.spec["hardware"]["pools"] if pool["name"] == group.pool)
    times = step_times(
        load_architecture(plan.architectures[group.model]),
        group.layout,
        group.weights_dtype,
        group.cache.kv_dtype,
        plan.devices[device],
        plan.profiles[device],
        plan.engines[group.engine],
        group.limits.max_num_seqs,
        group.limits.max_num_batched_tokens,
    )
    return ReplicaModel(
        times=times,
        limits=group.limits,
        num_blocks=group.cache.num_blocks,
        block_size_tokens=group.cache.block_size_tokens,
        scheduling=group.scheduling,
    )


def _folder(plan: Plan, spec: DeploymentSpec, beside: Path) -> Path:
    """The folder that the plan's traces are found from, checked against the sha256 that the plan names."""
    from specs.traffic import read_trace

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


def _with_trace(spec: DeploymentSpec, trace: Path) -> DeploymentSpec:
    if len(spec.traffic) != 1:
        raise InputError(
            f"the plan has {len(spec.traffic)} request classes", field="--trace", expected="a plan with one class"
        )
    from specs.deployment import TraceSpec

    old = spec.traffic[0].trace
    kind = "mooncake" if ".jsonl" in trace.name else (old.format if old is not None else "csv")
    changed = TraceSpec(file=str(trace.resolve()), format=kind)
    traffic = spec.traffic[0].model_copy(
        update={"trace": changed, "arrivals": None, "prompt_tokens": None, "output_tokens": None}
    )
    return spec.model_copy(update={"traffic": (traffic,)})


def _scaled(spec: DeploymentSpec, factor: float, seconds: float) -> DeploymentSpec:
    """Every class at `factor` times its rate."""
    classes = []
    for traffic in spec.traffic:
        changed: dict[str, Any] = {}
        if traffic.trace is not None:
            if traffic.trace.rate_per_s is None:
                raise InputError(
                    f"class {traffic.name} keeps the recorded times",
                    field="--rate",
                    expected="a spec that states rates",
                )
            trace = traffic.trace.model_copy(update={"rate_per_s": traffic.trace.rate_per_s * factor})
            changed = {"trace": trace}
        elif traffic.arrivals is not None:
            rate = traffic.arrivals.rate_per_s * factor
            changed = {"arrivals": traffic.arrivals.model_copy(update={"rate_per_s": rate})}
        classes.append(traffic.model_copy(update=changed))
    return spec.model_copy(update={"traffic": tuple(classes)})
