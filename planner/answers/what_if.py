"""What one thing more or less would change: each question poses the changed spec and solves it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.answers.changes import Change, Kind, changes
from planner.answers.resolve import Progress, Solved, changed, solved
from planner.answers.structure import difference, in_words, replicas_of
from planner.optimize.decision import Decision
from planner.optimize.programme import Programme
from planner.optimize.whole_plan import WholePlan
from specs.deployment import DeploymentSpec
from specs.errors import InputError

EQUAL = 1e-6  # values closer than this share of themselves are equal


@dataclass(frozen=True)
class Answer:
    """What a change does to the plan. `value` is None where no plan satisfies the changed spec."""

    kind: Kind
    change: str
    value: float | None
    step: float | None  # value - the plan's own
    gpus: int | None  # of the replicas
    status: str  # of the solver; the reason where there is no plan
    gap: float | None  # to what no mix of the configurations could be better than
    decision: str  # what differs in the replicas, in words
    replicas: str  # all replicas, in words


def what_if(
    own: Solved, progress: Progress = lambda text: None, at: Callable[[int, int], None] = lambda done, of: None
) -> tuple[Answer, ...]:
    """One answer for each question that applies to a decided problem; `at` is told how many of them are answered."""
    if own.decision is None:
        return ()
    used = frozenset(item.column.family.pool.name for item in own.decision.bought)
    questions = changes(own.asked, used)
    answers = []
    for index, question in enumerate(questions):
        at(index, len(questions))
        progress(f"what if {question.text[0]}")
        answers.append(answer(own, own.decision, question, progress))
    at(len(questions), len(questions))
    return tuple(answers)


def answer(own: Solved, decision: Decision, question: Change, progress: Progress) -> Answer:
    """The first step of a question that moves the value or leaves no plan; the last one where none does."""
    found = None
    for text, step in zip(question.text, question.steps, strict=True):
        found = _answer(own, decision, question, text, step, progress)
        if found.value is None or abs(found.value - decision.value) > EQUAL * abs(decision.value):
            break
    if found is None:
        raise ValueError("a question without a step")
    return found


def _answer(
    own: Solved,
    decision: Decision,
    question: Change,
    text: str,
    step: Callable[[], DeploymentSpec],
    progress: Progress,
) -> Answer:
    try:
        problem = changed(own.asked, step())
        again = solved(problem, lambda what: progress(f"what if {text}: {what}"), like=own)
    except InputError as error:
        return Answer(question.kind, text, None, None, None, f"no plan: {error}", None, "", "")
    new = _better(again, decision) if question.keeps else _kept(again, decision)
    if new is None:
        reason = f": {again.gave_up.message}" if again.gave_up else ""
        return Answer(question.kind, text, None, None, None, f"no plan{reason}", None, "", "")
    return Answer(
        kind=question.kind,
        change=text,
        value=new.value,
        step=new.value - decision.value,
        gpus=sum(item.column.family.gpus * item.replicas for item in new.bought),
        status=new.status,
        gap=gap(new),
        decision=difference(replicas_of(decision), replicas_of(new)),
        replicas=in_words(replicas_of(new)),
    )


def gap(decision: Decision) -> float:
    """How far the value is from what no mix of the configurations can be better than, as a share of the larger."""
    larger = max(abs(decision.value), abs(decision.priced_bound))
    return abs(decision.value - decision.priced_bound) / larger if larger else 0.0


def _better(again: Solved, own: Decision) -> Decision | None:
    """The plan that was found, or the own one where that is as good and satisfies the changed spec, too."""
    found, template = again.decision, again.problem.template
    value = _worth(own, template)
    if template.budget is not None and _worth(own, replace(template, quantity="cost")) > template.budget * (1 + EQUAL):
        return found
    if found is None:
        return replace(own, value=value, status="not proven again")
    maximises = again.problem.spec.objective.sense == "maximise"
    better = found.value < value * (1 - EQUAL) if not maximises else found.value > value * (1 + EQUAL)
    if better:
        return found
    bound = max(found.priced_bound, value) if maximises else min(found.priced_bound, value)
    return replace(own, value=value, priced_bound=bound, status=found.status)


def _kept(again: Solved, own: Decision) -> Decision | None:
    """The plan that was found, or the own one where that is no worse and keeps the changed promises, too."""
    found, master = again.decision, again.master
    maximises = again.problem.spec.objective.sense == "maximise"
    if found is not None:
        gain = (found.value - own.value) * (1.0 if maximises else -1.0)
        if gain > EQUAL * abs(own.value):
            return found
    if own.served:
        return found
    whole = WholePlan(own.bought, own.routes, own.placement, again.problem.spec.hardware, master.pricer.router)
    judged = master.judgement(whole, {})
    if judged.broken:
        return found
    own = replace(own, result=judged.result, fresh=judged.fresh, notes=judged.notes)
    if found is None:
        return replace(own, status="not proven again")
    bound = max(found.priced_bound, own.value) if maximises else min(found.priced_bound, own.value)
    return replace(own, priced_bound=bound, status=found.status)


def _worth(decision: Decision, template: Programme) -> float:
    """The value of a decision at the prices of `template`; as it was where prices are not what is optimised."""
    if template.quantity != "cost":
        return decision.value
    usd = 0.0
    for pool in template.pools:
        own = [item for item in decision.bought if item.column.family.pool.name == pool.name]
        devices = sum(item.column.family.gpus * item.replicas for item in own)
        if pool.rent == "node":
            devices = decision.nodes.get(pool.name, 0) * pool.node_devices
        usd += (pool.price or 0.0) * devices
    return usd
