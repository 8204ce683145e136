"""`capstan calibrate --url`: a designed load on a live server, and its engine's host times fitted to what came back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from capstan.commands.verify import sending, target_of, with_client
from capstan.console import count_text, out, print_json, progress_line, seconds_text, table, warn
from capstan.input_files import read_plan, refuse_unwritable
from specs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.estimate.overheads import FittedOverheads
    from runtime.replay import Target
    from specs.measurements import Measurements
    from specs.plan import Plan, ReplicaGroup

TIMEOUT_S = 600.0
UNSTEADY = 0.1  # relative difference of equal loads beyond which the machine, not the engine, is what was measured
POOR = 0.15  # median error of the fit, likewise


def run_calibrate_url(
    url: str | None,
    plan: Path | None,
    result: Path | None = None,
    output: Path | None = None,
    measurements: Path | None = None,
    json_output: bool = False,
    minutes: float = 10.0,
    group_id: str | None = None,
    model: str | None = None,
    api: str = "auto",
    api_key_env: str | None = None,
    seed: int = 0,
) -> None:
    """Write the profile of the plan's engine as this deployment shows it.

    `result`: measurements of an earlier run are fitted, nothing is sent. `output` None: the user's configuration
    directory. Nothing is fitted to a server that failed; `InputError` then, as for wrong input.
    """
    if plan is None:
        raise InputError("is missing", field="--plan", expected="the plan that the server was set up by")
    if not 0 < minutes <= 24 * 60:
        raise InputError(f"{minutes:g} is out of range", field="--minutes", expected="minutes above 0, such as 10")
    for path in (output, measurements):
        if path is not None:
            refuse_unwritable(path)
    document = read_plan(plan)
    group, replicas = _group(document, group_id)
    if result is not None:
        from capstan.commands.verify_result import read_result

        seen = read_result(result, document)
    else:
        with_client("calibrate")
        target = target_of(str(url), model, group.model, api, api_key_env)
        seen = _measured(target, document, group, replicas, 60.0 * minutes, seed)
        if measurements is not None:
            seen.write(measurements)
    if seen.partial is not None:
        warn(f"the measurement is partial: {seen.partial}")
    fitted = _fit(document, group, replicas, seen)
    _finish(fitted, document, group, seen, output, json_output)


def _group(plan: Plan, group_id: str | None) -> tuple[ReplicaGroup, int]:
    """What stands behind the URL: all replicas of the plan's one group, or one of the group that is named."""
    names = [group.id for group in plan.groups]
    if group_id is None:
        if len(names) != 1:
            raise InputError(
                f"the plan has {len(names)} groups, and one is calibrated at a time",
                field="--group",
                expected=" or ".join(names),
            )
        return plan.groups[0], plan.groups[0].replicas
    if group_id not in names:
        raise InputError(f"the plan has no group {group_id!r}", field="--group", expected=" or ".join(names))
    return plan.group(group_id), 1


def _measured(
    target: Target, plan: Plan, group: ReplicaGroup, replicas: int, seconds: float, seed: int
) -> Measurements:
    from planner.estimate.design import design, designed_loads
    from runtime.replay import ReplayOptions, replay
    from specs.architecture import load_architecture
    from specs.measurements import Environment

    designs = design(group.limits, group.cache.capacity_tokens, replicas)
    loads = designed_loads(designs, seconds)
    environment = Environment(device=group.device, devices=replicas * group.layout.gpus, engine=group.engine)
    vocabulary = load_architecture(plan.architectures[group.model]).vocab_size
    with sending() as progress:
        return replay(target, loads, environment, ReplayOptions(vocabulary, seed, TIMEOUT_S, progress))


def _fit(plan: Plan, group: ReplicaGroup, replicas: int, seen: Measurements) -> FittedOverheads:
    from planner.estimate.overheads import fit_overheads, observed_loops
    from planner.plan_simulation.simulate import replica_model

    engine = plan.engines[group.engine]
    try:
        observed = observed_loops(seen)
    except InputError as error:
        error.file = seen.source
        raise
    with progress_line("fitting") as progress:
        return fit_overheads(
            observed,
            engine,
            lambda changed: replica_model(
                plan.model_copy(update={"engines": {**plan.engines, group.engine: changed}}), group, central=True
            ),
            replicas,
            progress,
        )


def _finish(
    fitted: FittedOverheads,
    plan: Plan,
    group: ReplicaGroup,
    seen: Measurements,
    output: Path | None,
    json_output: bool,
) -> None:
    from capstan.commands.machine import profile_path
    from planner.estimate.overheads import described

    pool = next(pool for pool in plan.spec["hardware"]["pools"] if pool["name"] == group.pool)
    profile = described(fitted, seen, f"the {plan.profiles[pool['device']].confidence} profile of {group.device}")
    target = output if output is not None else profile_path(f"engine-{profile.name}")
    profile.write(target)
    for text in _doubts(fitted):
        warn(text)
    if json_output:
        print_json(profile.model_dump(mode="json"))
        return
    _print(fitted)
    for note in seen.notes:
        print(f"note: {note}")
    print(f"\nwrote {target}: {profile.name} with the host times of {seen.source}")
    print(f"next: capstan verify --url {seen.source} --plan PLAN --engine-profile {target}")
    print(f"      capstan plan SPEC --engine-profile {target}")


def _doubts(fitted: FittedOverheads) -> Iterator[str]:
    """Why what is predicted with this profile will be off."""
    repeat = fitted.repeat_p50 or 0.0
    if repeat > UNSTEADY:
        yield (
            f"equal loads differ by {repeat:.0%} in the median: something else was at work on this machine, or it is "
            "not steady; predictions will be off by as much. Calibrate again when it is quiet, or with more --minutes"
        )
    if fitted.residual_p50 > max(POOR, repeat):
        yield (
            f"the fit is off by {fitted.residual_p50:.0%} in the median: the server does something that the engine's "
            "profile does not know, or it is not set up as the plan says"
        )


def _print(fitted: FittedOverheads) -> None:
    from planner.estimate.overheads import factors_text

    numbers = ("answers", "TTFT", "fitted", "off", "TPOT", "fitted ", "off ")
    made = table("closed loops: median measured, fitted", ("clients x prompt+output", *numbers), right=numbers)
    for one, predicted in zip(fitted.observed, fitted.predicted, strict=True):
        cells = []
        for measured, told in zip(one.times, predicted, strict=True):
            cells += [seconds_text(measured), seconds_text(told), f"{told / measured - 1:+.0%}"]
        made.add_row(one.name, str(one.requests), *cells)
    console = out()
    console.print(made)
    engine = fitted.engine
    print(
        f"\nper request {seconds_text(engine.request_overhead_s)}, per step {seconds_text(engine.step_overhead_s)}, "
        f"per sequence {seconds_text(engine.sequence_overhead_s)}, per step with a prompt "
        f"{seconds_text(engine.prefill_step_s)} more; kernels x "
        f"{factors_text(fitted)}"
    )
    repeat = "" if fitted.repeat_p50 is None else f"; equal loads differ by {fitted.repeat_p50:.1%} in the median"
    print(
        f"off by {fitted.residual_p50:.1%} in the median, {fitted.residual_p90:.1%} at p90 of "
        f"{count_text(len(fitted.observed), 'loop')}{repeat}"
    )
