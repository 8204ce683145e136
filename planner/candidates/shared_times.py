"""Step times of models of one architecture: worked out once, whatever the models are called."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import replace

from planner.candidates.family import Family
from specs.deployment import ModelChoices, ModelSpec

MOST_TABLES = 1_000  # that are all kept, half a megabyte each

Known = MutableMapping[tuple[str, str, str], Family]  # by model spec, its choices and the rest of the family's key


def with_shared_times(
    families: Iterable[Family], model: ModelSpec, choices: ModelChoices, known: Known
) -> list[Family]:
    """The families of one model; those that are configurations of a model declared alike take its step times.

    Only the longest request of a model does not matter to them. `known` is what was seen before, and grows.
    """
    like = model.model_copy(update={"max_context_tokens": None}).model_dump_json(), choices.model_dump_json()
    found = []
    for family in families:
        first = known.setdefault((*like, family.key.removeprefix(family.model)), family)
        found.append(family if first is family else _with_times_of(family, first))
    return found


def _with_times_of(family: Family, other: Family) -> Family:
    return replace(family, table=lambda: other.times)


def tables_of(families: Iterable[Family]) -> int:
    """How many step tables the families have, those that are shared counted once."""
    return len({(family.architecture.name, family.key.removeprefix(family.model)) for family in families})
