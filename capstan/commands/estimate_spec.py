"""`capstan estimate SPEC.yaml`: what a stated deployment does under its traffic, as it stands; nothing is chosen."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import capstan
from capstan.commands.estimate_points import phases_json, show_phases
from capstan.commands.plan import classes_table, groups_table, summary, uncollected
from capstan.console import count_text, facts, out, print_json, progress_line, seconds_text, table
from capstan.input_files import at_its_line, read_spec, refuse_unwritable, warn_of_quantised_names
from specs.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from planner.stated.document import StatedPlan
    from specs.plan import Plan

WAITING = {
    "first token": "waiting: steps under way, requests before it, a hand-over",
    "further token": "prompts of others in its steps, larger batches at times",
}
NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end"}
TABLES = (".csv", ".tsv", ".parquet", ".gz")
_STATEMENT = re.compile(r"^(apiVersion|kind|models|hardware|traffic|choices)\s*:", re.MULTILINE)
_READ = 65_536  # characters in which a statement of a spec stands


def is_spec(path: Path) -> bool:
    """Whether a file is a deployment spec and no table: by what it is called, else by what it says."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    if path.suffix.lower() in TABLES or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return _STATEMENT.search(file.read(_READ)) is not None


def run_estimate_spec(
    spec: Path, output: Path | None, json_output: bool, profile: Path | None, explain: int | None = None
) -> None:
    """Print what the deployment does, and write it as a plan to `output`; broken promises do not change the exit code.

    `explain`: a group (from 1) whose time is shown by operator and phase. With `json_output` one object of the plan, of
    every promise, of the slack and of what is explained. `InputError` for wrong input, and where something is left to
    choose; nothing is written then.
    """
    from capstan.commands.machine import machine_of_profile
    from planner.stated.anatomy import group_phases
    from planner.stated.estimate import estimate
    from specs.compilable import refuse_uncompilable

    if output is not None:
        refuse_unwritable(output)
    started = time.perf_counter()
    loaded = read_spec(spec)
    machine = None if profile is None else machine_of_profile(profile, loaded.spec)
    with progress_line("estimating") as progress, at_its_line(loaded), uncollected():
        refuse_uncompilable(loaded.spec, loaded.base_dir)
        found = estimate(loaded.spec, loaded.base_dir, progress=progress, version=capstan.__version__, machine=machine)
    warn_of_quantised_names(loaded.spec, found.plan.architectures)
    plan = found.plan
    if explain is not None and not 1 <= explain <= len(plan.groups):
        raise InputError(f"there is no group {explain}", field="--explain", expected=f"1 to {len(plan.groups)}")
    phases = () if explain is None else group_phases(found.standing, explain - 1)
    if output is not None:
        # relative to the plan, so that both may be moved together and the bytes do not depend on the current folder
        folder = os.path.relpath(spec.resolve().parent, output.resolve().parent)
        plan = plan.model_copy(update={"traffic_folder": Path(folder).as_posix()})
        plan.write(output)
    if json_output:
        explained = {} if explain is None else {"explained": phases_json(phases)}
        print_json({"plan": plan.model_dump(mode="json"), **_verdict(plan, found), **explained})
        return
    _print(plan, found)
    if explain is not None:
        out().print(f"{plan.groups[explain - 1].id}: where the time goes (predicted)\n", markup=False, style="bold")
        show_phases(phases_json(phases), WAITING)
    if output is not None:
        seconds = time.perf_counter() - started
        out().print(f"wrote {output}  ({plan.certificate.simulations} simulations, {seconds:.1f} s)", markup=False)


def _verdict(plan: Plan, found: StatedPlan) -> dict[str, Any]:
    promises = list(promises_of(plan))
    return {"kept": not found.broken, "broken": list(found.broken), "promises": promises, "slack": found.slack.multiple}


def promises_of(plan: Plan) -> Iterator[dict[str, Any]]:
    """Each limit of each class: what was promised, what was reached (simulated), and how many times as much that is."""
    from planner.optimize.certify import KEEPS_UP

    predictions = {item.request_class: item for item in plan.predictions.classes}
    for traffic in plan.spec["traffic"]:
        prediction, slo = predictions[traffic["name"]], traffic["slo"] or {"percentiles": (), "joint": {}}
        tables = {"ttft": prediction.ttft_s, "tpot": prediction.tpot_s, "e2e": prediction.e2e_s}
        for limit in slo["percentiles"]:
            rank, promised = f"p{limit['percentile']:g}", limit["limit_s"]
            # of requests of one token each there is no TPOT, and any limit on it is kept; others did not finish
            reached = tables[limit["metric"]].get(rank, 0.0 if limit["metric"] == "tpot" else None)
            kept = reached is not None and reached <= promised * (1 + 1e-9)
            times = None if reached is None else reached / promised
            yield {
                "request_class": traffic["name"], "promise": f"{rank} {NAMES[limit['metric']]}", "promised_s": promised,
                "reached_s": reached, "reached_over_promised": times, "kept": kept, "basis": prediction.basis,
            }  # fmt: skip
        if traffic["throughput"] is not None and prediction.tokens_per_s is not None:
            asked = traffic["throughput"]["at_least_tokens_per_s"]
            yield {
                "request_class": traffic["name"], "promise": "throughput", "promised_tokens_per_s": asked,
                "reached_tokens_per_s": prediction.tokens_per_s,
                "kept": prediction.tokens_per_s >= KEEPS_UP * asked, "basis": prediction.basis,
            }  # fmt: skip
        if slo["joint"]:
            asked = 1.0 if slo["attainment"] is None else slo["attainment"]
            limits = " and ".join(f"{NAMES[name]} {seconds_text(limit)}" for name, limit in slo["joint"].items())
            yield {
                "request_class": traffic["name"], "promise": f"{limits} for {100 * asked:g} % of requests",
                "promised_share": asked, "reached_share": prediction.attainment,
                "kept": prediction.attainment >= asked - 1e-9, "basis": prediction.basis,
            }  # fmt: skip


def _print(plan: Plan, found: StatedPlan) -> None:
    console = out()
    console.print(f"\n{plan.name}: as it stands\n", markup=False, style="bold")
    told = [(label, text) for label, text in summary(plan) if text != found.slack.text]
    parts = [groups_table(plan), loads_table(plan), classes_table(plan), facts(told)]
    for part in parts:
        console.print(part)
        console.print()
    console.print(facts(list(_kept_and_broken(plan, found))))
    console.print()


def loads_table(plan: Plan) -> Table:
    """One row a group: how busy it is, its batch, its cache, its power."""
    figures = ("utilisation", "batch, mean", "peak", "KV peak", "power", "prompt tok/s", "output tok/s")
    made = table("what each group does (simulated; power predicted)", ("group", *figures), right=figures)
    for load in plan.predictions.groups:
        replicas = plan.group(load.group).replicas
        made.add_row(
            f"{load.group} x {replicas}",
            f"{load.utilisation:.0%}",
            "-" if load.running_mean is None else f"{load.running_mean:.1f}",
            f"{load.running_peak}",
            f"{load.kv_occupancy_peak:.0%}",
            "-" if load.power_w is None else f"{load.power_w / 1000:.2f} kW",
            f"{load.prompt_tokens_per_s:,.0f}",
            f"{load.output_tokens_per_s:,.0f}",
        )
    return made


def _kept_and_broken(plan: Plan, found: StatedPlan) -> Iterator[tuple[str, str]]:
    promises = list(promises_of(plan))
    kept = sum(item["kept"] for item in promises)
    if found.broken:
        yield "verdict", f"{len(found.broken)} broken; {count_text(kept, 'promise')} kept (simulated)"
    else:
        yield "verdict", f"every promise is kept (simulated): {kept} of {kept}" if promises else "nothing is promised"
    for text in found.broken:
        yield "broken", text
    for item in promises:
        if not item["kept"] and item.get("reached_over_promised"):
            times = item["reached_over_promised"]
            yield "", f"{item['request_class']}: {item['promise']} is {times:,.3g} times what is promised"
    yield "slack", found.slack.text.removeprefix("slack: ")
