"""`capstan schedule`: a plan for every part of the day, changes between them included; writes schedule.json."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import capstan
from capstan.commands.plan import uncollected
from capstan.console import count_text, facts, out, print_json, progress_line, table
from capstan.input_files import at_its_line, read_spec, refuse_unwritable, warn_of_quantised_names

if TYPE_CHECKING:
    from rich.table import Table

    from specs.plan import Plan
    from specs.schedule import Schedule, Switch


def run_schedule(
    spec: Path,
    output: Path,
    plans: Path | None,
    seed: int,
    json_output: bool,
    profile: Path | None = None,
    engine_profile: Path | None = None,
) -> None:
    """Schedule `spec` and write the document to `output`, and each of its plans into the folder `plans`.

    `InputError` (exit 2) for wrong input, `NoPlanError` (exit 3) where nothing satisfies the spec; then nothing is
    written.
    """
    refuse_unwritable(output)
    started = time.perf_counter()
    schedule = _in_folder(scheduled(spec, seed, profile, engine_profile), spec, output.parent)
    schedule.write(output)
    if plans is not None:
        for name, plan in _in_folder(schedule, spec, plans).plans.items():
            plan.write(plans / f"{name}.json")
    if json_output:
        print_json(schedule.model_dump(mode="json"))
        return
    print_schedule(schedule)
    console = out()
    console.print(f"wrote {output}  ({time.perf_counter() - started:.1f} s)", markup=False)
    if plans is None:
        console.print(f"next: capstan schedule {spec} -o {output} --plans plans/  (each plan as a file)", markup=False)
    else:
        console.print(f"next: capstan explain {plans / next(iter(schedule.plans), 'plan-0')}.json", markup=False)


def scheduled(spec: Path, seed: int = 0, profile: Path | None = None, engine_profile: Path | None = None) -> Schedule:
    """The schedule of a spec file; errors carry the line of the statement they are about."""
    from capstan.commands.machine import machine_of_profile, with_engine
    from planner.schedule.make import make_schedule
    from specs.compilable import refuse_uncompilable

    loaded = read_spec(spec)
    machine = None if profile is None else machine_of_profile(profile, loaded.spec)
    if engine_profile is not None:
        machine = with_engine(machine, engine_profile, loaded.spec)
    with progress_line("planning") as progress, at_its_line(loaded), uncollected():
        refuse_uncompilable(loaded.spec, loaded.base_dir)
        made = make_schedule(
            loaded.spec, loaded.base_dir, seed=seed, progress=progress, version=capstan.__version__, machine=machine
        )
    configs = {name: config for plan in made.plans.values() for name, config in plan.architectures.items()}
    warn_of_quantised_names(loaded.spec, configs)
    return made


def _in_folder(schedule: Schedule, spec: Path, folder: Path) -> Schedule:
    """The schedule with the folder of its traces as seen from `folder`."""
    seen = Path(os.path.relpath(spec.resolve().parent, folder.resolve())).as_posix()
    plans = {name: plan.model_copy(update={"traffic_folder": seen}) for name, plan in schedule.plans.items()}
    return schedule.model_copy(update={"plans": plans})


def print_schedule(schedule: Schedule) -> None:
    """The day by slots, what changing takes, what it costs beside one plan for all day, and the proof."""
    console = out()
    console.print(f"\n{schedule.name}: {schedule.objective}\n", markup=False, style="bold")
    for part in (slots_table(schedule), facts(list(summary(schedule)))):
        console.print(part)
        console.print()


def slots_table(schedule: Schedule) -> Table:
    """One row a slot: when, what is asked for, what runs, what it costs an hour."""
    classes = [item["name"] for item in schedule.spec["traffic"]]
    rates = [f"{name}/s" for name in classes]
    made = table("the day", ("from", "to", *rates, "plan", "what runs", "an hour"), right=(*rates, "an hour"))
    for slot in schedule.slots:
        asked = (f"{slot.requests_per_s[name]:.3g}" if name in slot.requests_per_s else "-" for name in classes)
        runs = _what_runs(schedule.plans[slot.plan]) if slot.plan is not None else "nothing"
        made.add_row(
            clock(slot.start_s),
            clock(slot.end_s),
            *asked,
            slot.plan or "-",
            runs,
            _amount(schedule, slot.value_per_hour),
        )
    return made


def _what_runs(plan: Plan) -> str:
    """`2 x 4 h100 + 1 x l40s`: replicas by devices and pool."""
    parts = []
    for group in plan.groups:
        each = [f"{gpus} {pool}" if gpus > 1 else pool for pool, gpus in group.gpus_by_pool.items()]
        parts.append(f"{group.replicas} x " + (each[0] if len(each) == 1 else f"({' + '.join(each)})"))
    return " + ".join(parts)


def clock(moment_s: float) -> str:
    """`07:30`, and `07:30:15` where it is not a whole minute."""
    minutes, seconds = divmod(round(moment_s), 60)
    text = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{text}:{seconds:02d}" if seconds else text


def _amount(schedule: Schedule, value: float) -> str:
    return f"${value:,.2f}" if schedule.objective.endswith("cost") else f"{value:,.4g} GPUs"


def _total(schedule: Schedule, value: float) -> str:
    if schedule.objective.endswith("cost"):
        return f"${value:,.2f}"
    return f"{value:,.4g} GPU-hours"


def summary(schedule: Schedule) -> Iterator[tuple[str, str]]:
    """Label and sentence: what a cycle costs, what one plan would, the changes, the proof."""
    day = "a day" if schedule.cycle_s == 86_400 else f"every {schedule.cycle_s / 3600:g} h"
    changes = sum(change.value for change in schedule.switches)
    yield "in all", f"{_total(schedule, schedule.value)} {day}, {_total(schedule, changes)} of it for changes"
    if schedule.flat_value is None:
        yield "one plan", "no single plan serves the whole day"
    else:
        saved = 1 - schedule.value / schedule.flat_value if schedule.flat_value else 0.0
        yield (
            "one plan",
            f"{schedule.flat_plan} all the time: {_total(schedule, schedule.flat_value)} {day}; "
            f"the schedule saves {saved:.0%}",
        )
    for change in schedule.switches:
        yield "change" if change is schedule.switches[0] else "", _change_text(schedule, change)
    yield (
        "proof",
        f"gap {schedule.gap:.1%}: no schedule over these slots is below {_total(schedule, schedule.bound)} {day} under "
        "this cost model, even if nothing ever queued and changing took nothing",
    )
    holding = sum(item.holds for item in schedule.checks)
    yield "", f"{holding} of {len(schedule.checks)} laws hold in the re-check from the document alone"
    for note in schedule.notes:
        yield "", note


def _change_text(schedule: Schedule, change: Switch) -> str:
    parts = []
    if change.started:
        parts.append(f"{count_text(change.started, 'replica')} started {change.start_s:,.0f} s before")
    if change.stopped:
        parts.append(f"{change.stopped} drained for {change.drain_s:,.0f} s")
    if change.kept:
        parts.append(f"{change.kept} kept")
    return f"{clock(change.at_s)}: {', '.join(parts)} ({_total(schedule, change.value)})"
