"""`capstan explain`: why this plan, from the plan document alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from capstan.console import facts, out, print_json, table
from capstan.input_files import read_plan

if TYPE_CHECKING:
    from rich.table import Table

    from planner.explain import Explanation


def run_explain(plan: Path, json_output: bool) -> None:
    """Print what binds, why each other GPU lost, and the nearest misses. `InputError` where the plan is none."""
    from planner.explain import REASONS, explain

    document = read_plan(plan)
    found = explain(document)
    if json_output:
        print_json(
            {
                "summary": found.summary,
                "binding": [item.model_dump(mode="json") for item in found.binding],
                "pools": [asdict(pool) for pool in found.pools],
                "nearest_misses": [item.model_dump(mode="json") for item in found.nearest_misses],
                "discarded": found.counts,
            }
        )
        return
    console = out()
    console.print(f"\n{document.name}", markup=False, style="bold")
    console.print(facts([("-", line) for line in found.summary]))
    console.print("\n[bold]what binds[/bold] (statements of the spec with less than 5 % of room)")
    binding = [("-", f"{item.statement}: {item.used} of {item.limit}") for item in found.binding]
    console.print(facts(binding or [("-", "nothing: whole replicas and nodes leave room everywhere")]))
    console.print("\n[bold]each pool[/bold]")
    console.print(facts([(pool.pool, f"{pool.device}, {pool.used_gpus} used; {pool.text}") for pool in found.pools]))
    if found.nearest_misses:
        console.print()
        console.print(_misses(found))
    if found.counts:
        console.print()
        discarded = table("all that was discarded", ("", "reason", "meaning"), right=("",))
        for reason, count in found.counts.items():
            discarded.add_row(str(count), reason, REASONS.get(reason, ""))
        console.print(discarded)


def _misses(found: Explanation) -> Table:
    made = table("nearest misses", ("pool", "layout", "weights, KV", "why not", "figures"))
    for miss in found.nearest_misses:
        where = miss.configuration
        made.add_row(
            where.pool,
            f"TP {where.tensor_parallel} PP {where.pipeline_parallel}",
            f"{where.weights_dtype.value}, {where.kv_dtype.value}",
            miss.reason if miss.margin is None else f"{miss.reason} {miss.margin:+.0%}",
            miss.detail,
        )
    return made
