"""What a prefix cache saves at the most: every unit of a prompt that came before is found, however long ago."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.simulate import Workload


def most_cached(workload: Workload) -> NDArray[np.int64]:
    """Tokens of each prompt that an earlier request of the workload holds; at least one token is computed anew.

    Whoever computes a unit first computes it in full, so of all requests together no cache saves more: ids stand for
    all tokens before them, and a unit that is computed twice costs as much again.
    """
    prompts, prefixes = workload.prompt_tokens, workload.prefixes
    if prefixes is None or len(prefixes.ids) == 0:
        return np.zeros(len(prompts), np.int64)
    first = _first_of_each(prefixes.ids)
    request = np.repeat(np.arange(len(prompts)), np.diff(prefixes.offsets))
    place = np.arange(len(prefixes.ids)) - prefixes.offsets[:-1][request]
    of_prompt = place < (prompts // prefixes.unit_tokens)[request]
    found = np.bincount(request, weights=of_prompt & ~first, minlength=len(prompts)).astype(np.int64)
    cached: NDArray[np.int64] = np.minimum(found * prefixes.unit_tokens, prompts - 1)
    return cached


def _first_of_each(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether an id (numbers from 0) stands here for the first time."""
    places = np.arange(len(ids))
    earliest = np.zeros(int(ids.max()) + 1, np.int64)
    earliest[ids[::-1]] = places[::-1]  # of equal ids the last assignment stays
    first: NDArray[np.bool_] = earliest[ids] == places
    return first
