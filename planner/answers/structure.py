"""What a plan is made of, and how two plans differ, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from planner.candidates.family import Family
from planner.layout_words import configuration_options, layout_words, pools_words, stages_words
from planner.optimize.decision import Decision


@dataclass(frozen=True, order=True)
class Element:
    """Replicas of one model in one pool, or over several, with one engine, layout and role: what plans differ in."""

    model: str
    pool: str
    role: str
    engine: str
    layout: str

    def text(self, *, models: bool) -> str:
        """`TP 4 on h100`; with the model where there are several, and the role where replicas have one."""
        role = "" if self.role == "unified" else f"{self.role} "
        model = f" for {self.model}" if models else ""
        return f"{role}{self.layout} on {self.pool}{model}"


def element_of(family: Family) -> Element:
    """What replicas of `family` count as."""
    where = family.configuration()
    layout = ", ".join(filter(None, (layout_words(family.layout), stages_words(where))))
    return Element(family.model, pools_words(where), family.options.role, family.engine.name, layout)


Replicas = Mapping[tuple[Element, str], int]  # by element and details


def replicas_of(decision: Decision) -> Replicas:
    """Replicas by what they are and by details of theirs; limits and shares are left out."""
    found: Counter[tuple[Element, str]] = Counter()
    for item in decision.bought:
        found[element_of(item.column.family), details(item.column.family)] += item.replicas
    return found


def details(family: Family) -> str:
    """Types of weights and KV cache, and the options that are not neutral."""
    options = [text for text in configuration_options(family.configuration()) if text != family.options.role]
    return ", ".join([str(family.weights_dtype), f"KV {family.kv_dtype}", *options])


def elements(decision: Decision) -> frozenset[Element]:
    """The structure of a plan: the elements that it uses, whatever their number."""
    return frozenset(element for element, _ in replicas_of(decision))


def in_words(replicas: Replicas) -> str:
    """`8 x TP 1 on h200 (fp8, KV bf16) + 1 x TP 8 on a100 (bf16, KV bf16)`."""
    several = len({element.model for element, _ in replicas}) > 1
    return " + ".join(
        f"{count} x {element.text(models=several)} ({dtype})" for (element, dtype), count in sorted(replicas.items())
    )


def difference(old: Replicas, new: Replicas) -> str:
    """What is added and what is taken away: `+1 x TP 8 on a100 (bf16, KV bf16), -2 x TP 4 on h100 (...)`."""
    several = len({element.model for element, _ in (*old, *new)}) > 1
    moved = {key: new.get(key, 0) - old.get(key, 0) for key in sorted({*old, *new})}
    parts = [
        f"{count:+d} x {element.text(models=several)} ({dtype})"
        for first in (True, False)
        for (element, dtype), count in moved.items()
        if count and (count > 0) == first
    ]
    return ", ".join(parts) or "the same replicas"
