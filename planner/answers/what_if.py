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
    used = frozenset(pool.name for item in own.decision.bought for pool in item.column.family.pools)
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
    template = again.problem.template
    if template.budget is not None and _worth(own, replace(template, quantity="cost")) > template.budget * (1 + EQUAL):
        return again.decision
    return _preferred(again, replace(own, value=_worth(own, template)))


def _kept(again: Solved, own: Decision) -> Decision | None:
    """The plan that was found, or the own one where that is no worse and keeps the changed promises, too."""
    if own.served or _gains(again, own):
        return again.decision
    master = again.master
    whole = WholePlan(own.bought, own.routes, own.placement, again.problem.spec.hardware, master.pricer.router)
    judged = master.judgement(whole, {})
    if judged.broken:
        return again.decision
    return _preferred(again, replace(own, result=judged.result, fresh=judged.fresh, notes=judged.notes))


def _preferred(again: Solved, own: Decision) -> Decision | None:
    """The plan that was found where it is better than the own one, which satisfies the changed spec, too."""
    found = again.decision
    if found is None:
        return replace(own, status="not proven again")
    if _gains(again, own):
        return found
    maximises = again.problem.spec.objective.sense == "maximise"
    bound = max(found.priced_bound, own.value) if maximises else min(found.priced_bound, own.value)
    return replace(own, priced_bound=bound, status=found.status)


def _gains(again: Solved, own: Decision) -> bool:
    """Whether the plan that was found is better than the own one."""
    if again.decision is None:
        return False
    gain = again.decision.value - own.value
    return (gain if again.problem.spec.objective.sense == "maximise" else -gain) > EQUAL * abs(own.value)


def _worth(decision: Decision, template: Programme) -> float:
    """The value of a decision at the prices of `template`; as it was where prices are not what is optimised."""
    if template.quantity != "cost":
        return decision.value
    usd = 0.0
    for pool in template.pools:
        devices = sum(item.column.family.gpus_in(pool.name) * item.replicas for item in decision.bought)
        if pool.rent == "node":
            devices = decision.nodes.get(pool.name, 0) * pool.node_devices
        usd += (pool.price or 0.0) * devices
    return usd
