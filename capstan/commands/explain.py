"""`capstan explain`: why this plan, from the plan document alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from capstan.commands.answers import Answers
from capstan.console import facts, out, print_json, progress_line, table, warn
from capstan.input_files import read_plan
from specs.errors import InputError, NoPlanError

if TYPE_CHECKING:
    from rich.table import Table

    from planner.answers.resolve import Solved
    from planner.explain import Explanation
    from specs.plan import Plan


def run_explain(plan: Path, json_output: bool, answers: Answers | None = None) -> None:
    """Print what binds, why each other GPU lost, and the nearest misses, then `answers` to further questions.

    Those are solved from the spec and the facts that the plan embeds. `InputError` where the plan is none, or where its
    traces are gone.
    """
    from planner.explain import REASONS, explain

    answers = answers or Answers()
    answers.check()
    document = read_plan(plan)
    found = explain(document)
    if answers.asked:
        answers.find(_solved_again(document, plan))
    if json_output:
        print_json(
            {
                "summary": found.summary,
                "binding": [item.model_dump(mode="json") for item in found.binding],
                "pools": [asdict(pool) for pool in found.pools],
                "nearest_misses": [item.model_dump(mode="json") for item in found.nearest_misses],
                "discarded": found.counts,
                **answers.json(),
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
    if answers.asked:
        console.print()
        answers.print()


def _solved_again(plan: Plan, file: Path) -> Solved:
    """The problem that the plan was made for, decided again; a warning where this version finds another value."""
    from planner.amounts import amount
    from planner.answers.embedded import problem_of
    from planner.answers.resolve import solved

    with progress_line("solving the plan again") as say:
        try:
            found = solved(problem_of(plan, file.parent), say)
        except InputError as error:
            error.file = error.file or str(file)
            raise
    if found.decision is None:
        raise NoPlanError(f"no plan satisfies the spec that {file} embeds, as it stands now: plan it again")
    stated, value, quantity = plan.certificate.value, found.decision.value, found.problem.spec.objective.quantity
    if abs(value - stated) > 1e-6 * abs(stated):
        warn(
            f"solved again, the plan's spec gives {amount(quantity, value)}, not the {amount(quantity, stated)} that "
            "the plan states; answers are compared with the former"
        )
    return found


def _misses(found: Explanation) -> Table:
    from planner.layout_words import configuration_options, layout_words, pools_words, stages_words

    made = table("nearest misses", ("pool", "layout", "weights, KV", "why not", "figures"))
    for miss in found.nearest_misses:
        where = miss.configuration
        made.add_row(
            pools_words(where),
            "\n".join(
                [
                    layout_words(where, always=("TP", "PP")),
                    *configuration_options(where),
                    *filter(None, [stages_words(where)]),
                ]
            ),
            f"{where.weights_dtype.value}, {where.kv_dtype.value}",
            miss.reason if miss.margin is None else f"{miss.reason} {miss.margin:+.0%}",
            miss.detail,
        )
    return made
