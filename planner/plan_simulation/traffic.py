"""The traffic that a plan is simulated with: its own, another recording, or another spec's; at any rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.simulate import BUSIEST_S, LEAST_REQUESTS, Workload, declared_workload
from planner.simulate.traffic.window import window_s
from planner.throughput import stated_at
from specs.deployment import DeploymentSpec, TraceFormat, TraceSpec, TrafficClass, resolved
from specs.errors import InputError, nearest_names
from specs.plan import Plan, SimulatedWindow
from specs.traffic import read_trace


@dataclass(frozen=True)
class Drawn:
    """Traffic of a plan: the spec that it follows, and where each class came from."""

    spec: DeploymentSpec
    workload: Workload
    windows: tuple[SimulatedWindow, ...]

    @property
    def notes(self) -> list[str]:
        """What to know about the sources."""
        return [f"{window.request_class}: {note}" for window in self.windows for note in window.notes]


def planned_workload(
    plan: Plan,
    base_dir: str | Path,
    *,
    trace: Path | None = None,
    trace_format: TraceFormat | None = None,
    rate_per_s: float | None = None,
    seconds: float | None = None,
    seed: int | None = None,
) -> Drawn:
    """The traffic that a plan is simulated with.

    Traces named in the spec are looked for in the folder that the plan names, then beside the plan. `trace` replaces
    the traffic of a plan with one class; `trace_format` None takes that of the plan's own trace, or the one that the
    file's name tells. `seconds` None draws as long a window as planning does, `seed` None draws what the plan was
    made with; `rate_per_s` rescales all classes in proportion to that total. Raises `InputError` where a trace is
    missing or is not the one the plan was made with.
    """
    if rate_per_s is not None and not 0 < rate_per_s < 1e9:
        raise InputError(f"{rate_per_s} is not a rate", field="--rate", expected="requests/s above 0, below 1e9")
    if seconds is not None and not 0 < seconds <= 86_400 * 7:
        raise InputError(
            f"{seconds} is not a length of time", field="--seconds", expected="seconds above 0, at most a week (604800)"
        )
    if trace_format is not None and trace is None:
        raise InputError("no trace is given", field="--format", expected="--trace FILE with it")
    seed = planned_seed(plan) if seed is None else seed
    spec = DeploymentSpec.model_validate(plan.spec)
    folder = trace_folder(plan, spec, Path(base_dir)) if trace is None else Path()
    if trace is not None:
        spec = _with_trace(spec, trace, trace_format)
    window: dict[str, Any] = {
        "seed": seed,
        "seconds": window_s(spec, BUSIEST_S),
        "least_requests": LEAST_REQUESTS,
        "predictor_error": _predictor_error(plan),
    }
    if seconds is not None:
        window |= {"seconds": seconds, "least_requests": 0}
    workload, windows = declared_workload(spec, folder, **window)
    if rate_per_s is not None:
        offered = sum(map(_offered_per_s, spec.traffic, windows))
        spec = at_rate(spec, folder, rate_per_s / offered)
        workload, windows = declared_workload(spec, folder, **window)
    return Drawn(spec, workload, windows)


def with_traffic(plan: Plan, spec: DeploymentSpec, folder: Path) -> tuple[Plan, list[str]]:
    """The plan under the request classes of another spec, whose traces are in `folder`; and where each class goes.

    A class goes where the plan's class of that name goes, else where the first one of its model goes. Models are found
    by name, or are the plan's only one. Raises `InputError` for a class of a model that the plan does not serve.
    """
    own = DeploymentSpec.model_validate(plan.spec)
    classes, routes, notes = [], [], []
    for index, traffic in enumerate(spec.traffic):
        model = next(iter(own.models)) if len(own.models) == 1 else traffic.model
        alike = [item.name for item in own.traffic if item.model == model]
        if not alike:
            raise InputError(
                f"the plan serves no model {model!r}",
                field=f"traffic[{index}].model",
                expected=" | ".join(own.models),
                nearest=nearest_names(model, own.models),
            )
        like = traffic.name if traffic.name in alike else alike[0]
        if like != traffic.name:
            notes.append(f"class {traffic.name} goes where the plan sends {like}")
        classes.append(traffic.model_copy(update={"model": model}))
        routes += [
            route.model_copy(update={"request_class": traffic.name})
            for route in plan.routes
            if route.request_class == like
        ]
    windows = tuple(window.model_copy(update={"sha256": None}) for window in plan.certificate.windows)
    changed = plan.model_copy(
        update={
            "spec": resolved(own.model_copy(update={"traffic": tuple(classes)})),
            "routes": tuple(routes),
            "traffic_folder": str(folder.resolve()),
            "certificate": plan.certificate.model_copy(update={"windows": windows}),
        }
    )
    return changed, notes


def planned_seed(plan: Plan) -> int:
    """What the plan was made with."""
    return plan.certificate.windows[0].seed if plan.certificate.windows else 0


def _predictor_error(plan: Plan) -> float | None:
    """The largest of the groups whose order looks at predicted lengths; None where none does or all are told truly."""
    schedulings = [group.scheduling for group in plan.groups]
    return max((item.predictor_error for item in schedulings if item.order in ("sjf", "srpt")), default=0.0) or None


def trace_folder(plan: Plan, spec: DeploymentSpec, beside: Path) -> Path:
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
    replaced = ("arrivals", "sessions", "closed_loop", "prompt_tokens", "output_tokens", "shared_prefix")
    traffic = spec.traffic[0].model_copy(update={"trace": changed, **dict.fromkeys(replaced)})
    return spec.model_copy(update={"traffic": (traffic,)})


def _offered_per_s(traffic: TrafficClass, window: SimulatedWindow) -> float:
    """Requests/s of one class: in the window, where they were recorded; as declared, where they are drawn."""
    if traffic.arrivals is not None:
        return traffic.arrivals.rate_per_s
    if traffic.sessions is not None:
        return traffic.sessions.rate_per_s * traffic.sessions.turns_mean
    return window.requests / (window.end_s - window.start_s)


def at_rate(spec: DeploymentSpec, folder: Path, factor: float) -> DeploymentSpec:
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
        elif traffic.sessions is not None:
            rate = traffic.sessions.rate_per_s * factor
            changed = {"sessions": traffic.sessions.model_copy(update={"rate_per_s": rate})}
        classes.append(traffic.model_copy(update={**changed, **stated_at(traffic, factor)}))
    return spec.model_copy(update={"traffic": tuple(classes)})
