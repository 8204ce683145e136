"""Other limits for the replicas of a refuted plan, before anything is taken from their load.

Prices come from one group's part of the traffic, and the first limits that pass there are kept; the same replicas in a
whole plan may need smaller chunks (for TPOT) or larger ones (for TTFT), or other numbers of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.candidates.disaggregated import ANSWERS_FOR
from planner.candidates.enumerate import sequence_limits
from planner.candidates.family import Variant
from planner.candidates.pricing import Pricer, metrics_of
from planner.optimize.decision import Bought

FASTER_TOKENS = (0.5, 0.25)  # of the token budget: shorter steps
FASTER_PROMPTS = (2.0, 4.0)  # fewer steps for a prompt


def retuned(bought: tuple[Bought, ...], broken: tuple[str, ...], pricer: Pricer) -> Iterator[tuple[Bought, ...]]:
    """The same replicas under other limits, the likeliest to mend `broken` first; only those that boot."""
    metrics = metrics_of(broken)
    factors = [*(FASTER_TOKENS if "tpot" in metrics else ()), *(FASTER_PROMPTS if metrics - {"tpot"} else ())]
    for factor in factors:
        changed = tuple(_with_budget(item, factor, pricer) if _guilty(item, broken) else item for item in bought)
        if changed != bought:
            yield changed
    for fewer in ([True] if "tpot" in metrics else []) + ([False] if metrics - {"tpot"} else []):
        changed = tuple(_with_seats(item, fewer, pricer) if _guilty(item, broken) else item for item in bought)
        if changed != bought:
            yield changed


def _guilty(item: Bought, broken: tuple[str, ...]) -> bool:
    """Whether the column serves a class that broke a limit, in a role that answers for it."""
    own = [text for text in broken if any(text.startswith(f"{name}:") for name in item.column.classes)]
    return bool(metrics_of(own) & set(ANSWERS_FOR[item.role]))


def _with_budget(item: Bought, factor: float, pricer: Pricer) -> Bought:
    variant = item.column.variant
    if variant is None or pricer.choices[item.column.family.model].max_num_batched_tokens is not None:
        return item
    limits = variant.limits
    budget = max(limits.max_num_seqs, int(limits.max_num_batched_tokens * factor))
    return _under(item, pricer.variant(item.column.family, limits.max_num_seqs, budget))


def _with_seats(item: Bought, fewer: bool, pricer: Pricer) -> Bought:
    variant = item.column.variant
    if variant is None:
        return item
    now = variant.limits.max_num_seqs
    known = sorted(sequence_limits(pricer.choices[item.column.family.model]))
    others = [n for n in known if n < now][-1:] if fewer else [n for n in known if n > now][:1]
    for seats in others:
        return _under(item, pricer.variant(item.column.family, seats, variant.limits.max_num_batched_tokens))
    return item


def _under(item: Bought, variant: Variant | None) -> Bought:
    if variant is None or variant is item.column.variant:
        return item
    return replace(item, column=replace(item.column, variant=variant))
