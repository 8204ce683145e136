"""What `capstan plan` and `capstan explain` print beside the plan: what if, other plans, the price of latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstan.console import limit_text, out, progress_bar, seconds_text, table
from capstan.input_files import refuse_unwritable
from specs.document import write_atomically
from specs.errors import InputError, nearest_names

if TYPE_CHECKING:
    from planner.answers.alternatives import Alternatives
    from planner.answers.frontier import Frontier
    from planner.answers.resolve import Solved
    from planner.answers.what_if import Answer
    from specs.deployment import Metric

METRICS = ("ttft", "tpot", "e2e")
KINDS = {"stock": "more hardware", "traffic": "more traffic", "slo": "other promises", "price": "dearer hardware"}
MOST_ALTERNATIVES = 20


@dataclass
class Answers:
    """The further questions of one command, and what was found."""

    what_if: bool = False
    alternatives: int = 0  # how many different plans
    frontier: bool = False
    vary: str | None = None  # the metric whose limits the frontier moves; None: all
    plot: Path | None = None  # file for a picture of the frontier
    _own: Solved | None = None
    _what_if: tuple[Answer, ...] = ()
    _alternatives: Alternatives | None = None
    _frontier: Frontier | None = None

    @property
    def asked(self) -> bool:
        return self.what_if or self.alternatives > 0 or self.frontier

    def check(self) -> None:
        """`InputError` where options do not fit together."""
        if not 0 <= self.alternatives <= MOST_ALTERNATIVES:
            raise InputError(
                f"{self.alternatives} plans are asked for", field="--alternatives", expected=f"0 to {MOST_ALTERNATIVES}"
            )
        for name, value in (("--vary", self.vary), ("--plot", self.plot)):
            if value is not None and not self.frontier:
                raise InputError("is about the frontier", field=name, expected="--frontier with it")
        if self.vary is not None and self.vary not in METRICS:
            raise InputError(
                f"no metric is called {self.vary!r}",
                field="--vary",
                expected=" | ".join(METRICS),
                nearest=nearest_names(self.vary, METRICS),
            )
        if self.plot is not None:
            refuse_unwritable(self.plot)

    def find(self, own: Solved) -> None:
        """Ask every question of a problem that was decided."""
        self._own = own
        if self.what_if:
            from planner.answers.what_if import what_if

            with progress_bar("what if") as (say, at):
                self._what_if = what_if(own, say, at)
        if self.alternatives:
            from planner.answers.alternatives import alternatives

            with progress_bar("other plans") as (say, at):
                self._alternatives = alternatives(own, self.alternatives, say, at)
        if self.frontier:
            from planner.answers.frontier import frontier

            with progress_bar("the price of latency") as (say, at):
                self._frontier = frontier(own, _metrics(own, self.vary), say, at)
            if self.plot is not None:
                from planner.answers.plot import frontier_svg

                title = f"{own.problem.spec.name}: {own.problem.spec.objective} against latency"
                text = frontier_svg(self._frontier, own.problem.spec.objective.quantity, title)
                write_atomically(self.plot, text)

    def print(self) -> None:
        """Every answer as a table."""
        if self._own is None:
            return
        quantity = self._own.problem.spec.objective.quantity
        shown: list[Callable[[], None]] = []
        if self.what_if:
            shown.append(lambda: print_what_if(self._what_if, quantity))
        if self._alternatives is not None:
            found, own = self._alternatives, self._own
            shown.append(lambda: print_alternatives(found, own))
        if self._frontier is not None:
            frontier = self._frontier
            shown.append(lambda: print_frontier(frontier, quantity))
        for show in shown:
            show()
            out().print()
        if self.plot is not None:
            out().print(f"wrote {self.plot}", markup=False)

    def json(self) -> dict[str, Any]:
        """Every answer in plain JSON types, under the name of its question."""
        found: dict[str, Any] = {}
        if self.what_if:
            found["what_if"] = [asdict(item) for item in self._what_if]
        if self._alternatives is not None and self._own is not None:
            found["alternatives"] = alternatives_json(self._alternatives, self._own)
        if self._frontier is not None:
            found["frontier"] = asdict(self._frontier)
        return found


def _metrics(own: Solved, vary: str | None) -> tuple[Metric, ...]:
    """The metrics whose limits move. `InputError` where the spec has no limit on the one that is asked for."""
    from planner.answers.changes import stated_metrics

    stated = stated_metrics(own.problem.spec)
    if vary is None:
        return stated
    chosen = tuple(metric for metric in stated if metric == vary)
    if not chosen:
        raise InputError(f"the spec limits no {vary}", field="--vary", expected=" | ".join(stated))
    return chosen


def print_what_if(answers: tuple[Answer, ...], quantity: str) -> None:
    """One row a question: the change, the new value, what differs in the replicas."""
    from planner.amounts import amount

    made = table("what if (solved again, simulated)", ("", "change", "value", "difference", "what changes"))
    kind = ""
    for item in answers:
        if kind and item.kind != kind:
            made.add_section()
        value = "no plan" if item.value is None else amount(quantity, item.value)
        made.add_row(
            "" if item.kind == kind else KINDS[item.kind],
            item.change,
            value,
            _signed(item.step, item.value),
            item.decision if item.value is not None else item.status,
        )
        kind = item.kind
    out().print(made)


def _signed(step: float | None, value: float | None) -> str:
    if step is None or value is None:
        return "-"
    before = value - step
    if abs(step) <= 1e-6 * abs(before):
        return "none"
    return f"{step / before:+.1%}" if before else "-"


def print_alternatives(found: Alternatives, own: Solved) -> None:
    """The next-best different plans with what each costs more than the plan."""
    from planner.amounts import amount
    from planner.answers.structure import in_words, replicas_of

    if own.decision is None:
        return
    quantity = own.problem.spec.objective.quantity
    made = table("next-best different plans (simulated)", ("", "value", "difference", "gap", "replicas"))
    for index, row in enumerate(alternatives_json(found, own)):
        decision = found.plans[index]
        made.add_row(
            str(index + 1),
            amount(quantity, decision.value),
            _signed(decision.value - own.decision.value, decision.value),
            f"{row['gap']:.1%}",
            in_words(replicas_of(decision)),
        )
    console = out()
    console.print(made)
    if not found.plans:
        console.print("no other plan: without any one of its parts nothing satisfies the spec")
    if not found.complete:
        console.print("the search for them was cut short: a better different plan may exist")


def alternatives_json(found: Alternatives, own: Solved) -> list[dict[str, Any]]:
    """Plain JSON: value, gap, replicas, hardware of each."""
    from planner.answers.structure import difference, in_words, replicas_of
    from planner.answers.what_if import gap

    if own.decision is None:
        return []
    before = replicas_of(own.decision)
    return [
        {
            "value": decision.value,
            "gap": gap(decision),
            "status": decision.status,
            "gpus": sum(item.column.family.gpus * item.replicas for item in decision.bought),
            "replicas": in_words(replicas_of(decision)),
            "decision": difference(before, replicas_of(decision)),
        }
        for decision in found.plans
    ]


def print_frontier(found: Frontier, quantity: str) -> None:
    """One row a point, the tightest limits first; what each plan reaches of its limits."""
    from planner.amounts import amount

    made = table("the price of latency (simulated)", ("limits", "value", "gap", "replicas", "reached of promised"))
    for point in found.points:
        reached = "\n".join(
            f"{item.request_class}: p{item.percentile:g} {item.metric.upper()} {seconds_text(item.reached_s)} of "
            f"{limit_text(float(f'{item.limit_s:.3g}'))}"
            for item in point.limits
        )
        stated = " (as stated)" if point.scale == 1 else ""
        proven = "proven" if point.proven else f"{point.gap:.1%}"
        made.add_row(f"x {point.scale:g}{stated}", amount(quantity, point.value), proven, point.replicas, reached)
    console = out()
    console.print(made)
    if found.dominated:
        scales = ", ".join(f"{scale:g}" for scale in found.dominated)
        console.print(f"no better than tighter limits: x {scales}")
    if found.impossible is not None:
        console.print(f"no plan: x {found.impossible:g} and tighter")
