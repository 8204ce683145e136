"""`capstan simulate`: what a plan does under its own traffic, another trace, another rate or another seed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from capstan.commands.plan import embedded_spec
from capstan.console import count_text, limit_text, out, print_json, progress_line, seconds_text, table
from capstan.input_files import read_plan
from specs.errors import InputError, nearest_names

if TYPE_CHECKING:
    from specs.deployment import SLO, TraceFormat

SHOWN = ("p50", "p90", "p95", "p99")
METRICS = (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "E2E"))


def run_simulate(
    plan: Path,
    trace: Path | None,
    trace_format: str | None,
    rate: float | None,
    seconds: float | None,
    seed: int | None,
    exact: bool,
    timeline: Path | None,
    json_output: bool,
) -> None:
    """Simulate and print percentiles, attainment, load; the verdict does not change the exit code."""
    from planner.simulate_plan import simulate_plan

    chosen = None if trace_format is None else _known_format(trace_format)
    document = read_plan(plan)
    started = time.process_time()
    with progress_line("simulating"), _in_plan(plan):
        summary = simulate_plan(
            document,
            plan.parent,
            trace=trace,
            trace_format=chosen,
            rate_per_s=rate,
            seconds=seconds,
            seed=seed,
            exact=exact,
            timeline=timeline,
        )
    summary["cpu_s"] = time.process_time() - started
    if json_output:
        print_json(summary)
        return
    if timeline is not None:
        out().print(f"wrote {timeline}  (open it in chrome://tracing or ui.perfetto.dev)", markup=False)
    _print(summary, {traffic.name: traffic.slo for traffic in embedded_spec(document).traffic})


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


def _print(summary: dict[str, Any], slos: Mapping[str, SLO | None]) -> None:
    console = out()
    classes = table("what happens (simulated)", ("class", "metric", *SHOWN, "limit"), right=SHOWN)
    for entry in summary["classes"]:
        slo = slos[entry["class"]]
        first = (entry["class"], count_text(entry["requests"], "request"), "")
        for label, (metric, name) in zip(first, METRICS, strict=True):
            times = (seconds_text(entry[f"{metric}_s"].get(rank)) for rank in SHOWN)
            classes.add_row(label, name, *times, limits_of(slo, metric))
            if any(widths := _half_widths(entry, metric)):
                classes.add_row("", "", *widths, "")
        met = entry.get("attainment")
        if met:
            classes.add_row("", "met by", *("" for _ in SHOWN), f"{met['share']:.2%}")
        if entry["rejected"]:
            classes.add_row("", "rejected", *("" for _ in SHOWN), f"{entry['rejected']:,}")
        classes.add_section()
    console.print(classes)
    console.print()
    headings = ("group", "busy", "most running", "KV peak", "preemptions", "prompt tokens/s", "output tokens/s")
    groups = table("replicas", headings, right=headings[1:])
    for entry in summary["groups"]:
        groups.add_row(
            entry["group"],
            f"{max(entry['utilisation']):.0%}",
            str(entry["running_peak"]),
            f"{entry['kv_occupancy_peak']:.0%}",
            str(entry["preemptions"]),
            f"{entry['prompt_tokens_per_s']:,.0f}",
            f"{entry['output_tokens_per_s']:,.0f}",
        )
    console.print(groups)
    console.print()
    verdict = summary["verdict"]
    console.print(verdict["text"], style="green" if verdict["holds"] else "red", markup=False)
    console.print(
        f"{count_text(summary['simulated_requests'], 'request')}, {summary['simulated_s']:.0f} s simulated "
        f"in {summary['cpu_s']:.2f} CPU s"
    )


def _half_widths(entry: Mapping[str, Any], metric: str) -> list[str]:
    """Half of each percentile's 95 % interval, where it has one."""
    intervals = (entry[f"{metric}_interval_s"].get(rank) for rank in SHOWN)
    return ["" if found is None else f"± {seconds_text((found[1] - found[0]) / 2)}" for found in intervals]


def limits_of(slo: SLO | None, metric: str) -> str:
    """The limits of one metric in words, a line each."""
    if slo is None:
        return ""
    found = [f"p{one.percentile:g} {limit_text(one.limit_s)}" for one in slo.percentiles if one.metric == metric]
    found += [limit_text(seconds) for name, seconds in slo.joint.items() if name == metric]
    return "\n".join(found)
