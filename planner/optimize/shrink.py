"""What a refuted plan leaves of the loads that its columns were priced at."""

from __future__ import annotations

from collections.abc import Mapping

from planner.candidates.disaggregated import ANSWERS_FOR
from planner.candidates.pricing import Pricer, metrics_of
from planner.candidates.rungs import FIRST_FACTOR, Bracket
from planner.optimize.decision import Bought, capacity_of

SHRINK = 0.95  # load that is left to a column when the whole plan is refuted
JUST_FAILS = 1.0 - 1e-4  # of the demand: further below it than the tolerances of all rows and of the solver together


def shrink(
    brackets: Mapping[str, Bracket],
    pricer: Pricer,
    classes_of: Mapping[str, tuple[str, ...]],
    bought: tuple[Bought, ...],
    broken: tuple[str, ...],
    *,
    everything: bool,
    spare: bool,
) -> None:
    """Less load for the models that broke a limit (for all, where that is not known).

    Above the screened load the whole model shrinks, as its window, not its columns, was judged too kindly; below it
    only the columns that were used, or `everything`. `spare`: plans carry more than the demand on purpose.
    """
    guilty = {
        model
        for model, classes in classes_of.items()
        if any(text.startswith(f"{name}:") for text in broken for name in classes)
    } or set(classes_of)
    enough = {item.column.key: 1.0 if spare else _enough(bought, item) for item in bought}
    for item in bought:
        item.column.take_in()
    metrics = metrics_of(broken)
    split = {item.column.family.model for item in bought if item.role != "unified"}
    for key, bracket in brackets.items():
        family = bracket.family
        if metrics and metrics.isdisjoint(ANSWERS_FOR[family.options.role]):
            continue  # a prefill side is not guilty of slow tokens, nor a decode side of late first ones
        # a plan with roles says little of replicas without, and the other way round
        alike = (family.options.role != "unified") == (family.model in split)
        if family.model in guilty and (everything or (bracket.factor > 1.0 and alike) or key in enough):
            bracket.factor *= min(SHRINK, enough.get(key, SHRINK))
    for model in guilty:
        for role in ("prefill", "decode") if model in split else ("unified",):
            if not (metrics and metrics.isdisjoint(ANSWERS_FOR[role])):
                first = pricer.first_factor.get((model, role), FIRST_FACTOR)
                pricer.first_factor[model, role] = max(1.0, first * SHRINK)


def _enough(bought: tuple[Bought, ...], item: Bought) -> float:
    """Load left to a column of a refuted plan, as a share, with which the plan just fails to carry the demand.

    With more of it the same plan would come out and be refuted again.
    """
    carried = min(capacity_of(bought, name, item.role) for name in item.column.classes)
    return JUST_FAILS / carried if carried > 1.0 else 1.0
