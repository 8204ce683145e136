"""Drop configurations that another one beats in every respect, before any of them costs a simulation."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.candidates.family import Family
from planner.cost.step_times import StepTimes
from specs.plan import Discarded, Limits

# Blocks are compared at these limits; other limits take the same bytes from both.
_COMPARED = Limits(max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=1)


def drop_dominated(families: list[Family]) -> tuple[list[Family], list[Discarded]]:
    """Keep what no other configuration on the same devices dominates.

    A dominates B when both take the same devices of the same pool with the same layout and engine, no part of any
    step of A takes longer than that of B, and A holds at least as many tokens in its KV cache: then no load that B
    carries is too much for A. Of equals the first stays (the order in which the user listed the types).
    """
    rivals: dict[tuple[str, ...], list[Family]] = defaultdict(list)
    for family in families:
        rivals[_kind(family)].append(family)
    kept: list[Family] = []
    dropped: list[Discarded] = []
    for group in rivals.values():
        for index, family in enumerate(group):
            victor = next(
                (
                    other
                    for position, other in enumerate(group)
                    if position != index
                    and _dominates(other, family)
                    and (position < index or not _dominates(family, other))
                ),
                None,
            )
            if victor is None:
                kept.append(family)
            else:
                dropped.append(
                    Discarded(
                        configuration=family.configuration(),
                        reason="dominated",
                        detail=(
                            f"{victor.weights_dtype} weights with a {victor.kv_dtype} KV cache are at least as fast in "
                            "every step on the same devices, and hold at least as many tokens"
                        ),
                    )
                )
    return kept, dropped


def _kind(family: Family) -> tuple[str, ...]:
    """What configurations that are compared have in common: devices, layout, engine, and what they do beside."""
    does = replace(family.options, speculation=None, host_blocks=min(1, family.options.host_blocks))
    return (
        family.model,
        "+".join(pool.name for pool in family.stage_pools) or family.pool.name,
        family.engine.name,
        family.layout.model_dump_json(),
        *does.key_parts,
        f"drafts-{family.options.draft_tokens}",
    )


def _dominates(one: Family, other: Family) -> bool:
    """Whether `one` is no worse than `other` in every respect."""
    mine, theirs = one.times, other.times
    slopes = (
        "sequence_s",
        "decode_launch_s",
        "prefill_launch_s",
        "prefill_pair_s",
        "prefill_window_pair_s",
        "prefill_context_token_s",
        "request_s",
        "host_token_s",
        "first_token",
    )
    if one.draft.token_s > other.draft.token_s or one.options.host_blocks < other.options.host_blocks:
        return False
    if any(getattr(mine, name) > getattr(theirs, name) for name in slopes):
        return False
    if not (_decodes_no_slower(mine, theirs) and _chunks_no_slower(mine, theirs)):
        return False
    if bool(np.any(_at_knots(mine.tokens_s) > _at_knots(theirs.tokens_s))):
        return False
    if bool(np.any(np.asarray(mine.sampled_s) > np.asarray(theirs.sampled_s))):
        return False
    return _capacity(one) >= _capacity(other)


def _at_knots(seconds: tuple[float, ...]) -> NDArray[np.float64]:
    """A step table at the numbers of tokens between which it is linear (`planner.cost.step`), and at its end."""
    return np.array([*seconds[:513], *seconds[512::64], seconds[-1]])


def _decodes_no_slower(mine: StepTimes, theirs: StepTimes) -> bool:
    for slope, table in (
        ("decode_context_token_s", "decode_table"),
        ("decode_window_token_s", "decode_window_table"),
    ):
        one, other = getattr(mine, slope), getattr(theirs, slope)
        first, second = getattr(mine, table), getattr(theirs, table)
        if first is None or second is None:
            if first is not second or one > other:
                return False
        elif not first.no_slower_than(one, second, other):
            return False
    return True


def _chunks_no_slower(mine: StepTimes, theirs: StepTimes) -> bool:
    first, second = mine.chunk_table, theirs.chunk_table
    if first is None or second is None:
        return first is second
    same_knots = np.array_equal(first.new, second.new) and np.array_equal(first.cached, second.cached)
    return same_knots and bool((first.seconds <= second.seconds).all())


def _capacity(family: Family) -> int:
    cache = family.cache(_COMPARED)
    return cache.capacity_tokens if cache is not None else 0
