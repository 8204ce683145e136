"""`capstan simulate`: what a plan does under its own traffic, or under others, and with other policies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from capstan.commands.plan import embedded_spec
from capstan.commands.simulate_screen import print_summary
from capstan.console import out, print_json, progress_line
from capstan.input_files import read_plan, with_engine_profile
from specs.errors import InputError, nearest_names

if TYPE_CHECKING:
    from planner.plan_simulation.policies import Policies
    from specs.deployment import TraceFormat
    from specs.plan import Plan


def run_simulate(
    plan: Path,
    *,
    traffic: Path | None,
    trace: Path | None,
    trace_format: str | None,
    rate: float | None,
    seconds: float | None,
    seed: int | None,
    policies: Policies,
    exact: bool,
    timeline: Path | None,
    json_output: bool,
    engine_profile: Path | None = None,
) -> None:
    """Simulate and print percentiles, attainment, load; the verdict does not change the exit code."""
    from planner.plan_simulation.simulate import simulate_plan

    chosen = None if trace_format is None else _known_format(trace_format)
    document = with_engine_profile(read_plan(plan), engine_profile)
    notes: list[str] = []
    if traffic is not None:
        document, notes = under_traffic(document, traffic)
    started = time.process_time()
    with progress_line("simulating") as say, _in_plan(plan):
        summary: dict[str, Any] = simulate_plan(
            document,
            plan.parent,
            trace=trace,
            trace_format=chosen,
            rate_per_s=rate,
            seconds=seconds,
            seed=seed,
            policies=policies,
            exact=exact,
            timeline=timeline,
            progress=lambda share: say(f"simulating: {share:.0%} of the requests have arrived"),
        )
    summary["notes"] = [*notes, *summary["notes"]]
    summary["command_cpu_s"] = time.process_time() - started
    if json_output:
        print_json(summary)
        return
    if timeline is not None:
        out().print(f"wrote {timeline}  (open it in chrome://tracing or ui.perfetto.dev)", markup=False)
    print_summary(summary, {traffic.name: traffic.slo for traffic in embedded_spec(document).traffic})


def under_traffic(plan: Plan, file: Path) -> tuple[Plan, list[str]]:
    """The plan under the traffic of another spec, and where its classes go; nothing else in that spec is looked at."""
    from planner.plan_simulation.traffic import with_traffic
    from specs.deployment import read_deployment, unhonoured_statements
    from specs.errors import NotHonouredError

    loaded = read_deployment(file)
    for field, reason in unhonoured_statements(loaded.spec, planning=False):
        if field.startswith("traffic"):
            raise NotHonouredError(reason, file=str(file), line=loaded.lines.get(field), field=field)
    try:
        return with_traffic(plan, loaded.spec, file.parent)
    except InputError as error:
        error.file, error.line = str(file), loaded.lines.get(error.field or "")
        raise


def _known_format(name: str) -> TraceFormat:
    from specs.deployment import TraceFormat

    formats: tuple[TraceFormat, ...] = get_args(TraceFormat)
    for known in formats:
        if name == known:
            return known
    raise InputError(
        f"unknown trace format {name!r}",
        field="--format",
        expected=" | ".join(formats),
        nearest=nearest_names(name, formats),
    )


@contextmanager
def _in_plan(plan: Path) -> Iterator[None]:
    """Errors about neither a file nor an option are about the plan."""
    try:
        yield
    except InputError as error:
        if error.file is None and not (error.field or "").startswith("--"):
            error.file = str(plan)
        raise
