"""Turns of declared conversations in a window, as they come while conversations start and end all the time.

The window finds conversations under way. Turns are geometric and think times exponential, so what is left of such a
conversation is drawn like a new one, and so is what lies behind it: nothing before the window has to be simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.simulate.model import FloatArray, IntArray
from specs.deployment import SessionSpec
from specs.errors import InputError
from specs.traffic import poisson_arrivals
from specs.traffic.arrivals import MAX_REQUESTS


@dataclass(frozen=True)
class Turns:
    """One entry per turn in each array, conversation by conversation, each in order."""

    arrival_s: FloatArray  # as if answers took no time: never after the real arrival
    prompt_tokens: IntArray
    output_tokens: IntArray
    session: IntArray  # number of the conversation
    after: IntArray  # the turn before; -1: none in the window
    gap_s: FloatArray  # think time between that turn's answer and this one
    covered_tokens: IntArray  # prompt, and output where a later turn in the window repeats it


@dataclass(frozen=True)
class _Schedule:
    """When turns come: all turns of the drawn conversations, also those outside the window."""

    session: IntArray
    place: IntArray  # within the conversation
    time_s: FloatArray
    gap_s: FloatArray
    past: IntArray  # by conversation: turns before the window begins


def draw_turns(
    spec: SessionSpec,
    lengths: Callable[[int], tuple[IntArray, IntArray]],
    context: int | None,
    seconds: float,
    random: np.random.Generator,
) -> Turns:
    """The turns of [0, seconds). `lengths(n)` draws prompt and output tokens of n turns.

    With a growing context a prompt is the previous prompt, its output and the drawn tokens; a conversation ends before
    the turn that would not fit `context` tokens. Raises `InputError` where there would be too many turns.
    """
    turns = _schedule(spec, seconds, random)
    prompts, outputs = lengths(len(turns.time_s))
    begins = np.flatnonzero(turns.place == 0)
    if spec.growing_context:
        grown = np.cumsum(prompts) + np.cumsum(outputs) - outputs
        before = grown[begins] - prompts[begins]
        prompts = grown - before[turns.session]
    inside = (turns.place >= turns.past[turns.session]) & (turns.time_s < seconds)
    if context is not None:
        too_long = np.cumsum((prompts + outputs > context) & (turns.place > 0))
        inside &= too_long - too_long[begins][turns.session] == 0
    kept = np.flatnonzero(inside)
    follows = np.zeros(len(kept), np.bool_)
    follows[1:] = np.diff(turns.session[kept]) == 0
    continued = np.zeros(len(kept), np.bool_)
    continued[:-1] = follows[1:] & spec.growing_context
    return Turns(
        turns.time_s[kept],
        prompts[kept],
        outputs[kept],
        turns.session[kept],
        np.where(follows, np.arange(len(kept)) - 1, -1),
        np.where(follows, turns.gap_s[kept], 0.0),
        prompts[kept] + np.where(continued, outputs[kept], 0),
    )


def _schedule(spec: SessionSpec, seconds: float, random: np.random.Generator) -> _Schedule:
    under_way = spec.rate_per_s * (spec.turns_mean - 1.0) * spec.think_time_mean_s  # conversations between two turns
    if (spec.rate_per_s * seconds + 2.0 * under_way) * spec.turns_mean > MAX_REQUESTS:
        raise InputError(
            f"{spec.rate_per_s:g} conversations/s of {spec.turns_mean:g} turns over {seconds:g} s are too many turns",
            field="rate",
            expected=f"at most {MAX_REQUESTS:,} turns (state a share of the traffic)",
        )
    starts_s = poisson_arrivals(spec.rate_per_s, seconds, random)
    old = int(random.poisson(under_way))
    share = 1.0 / spec.turns_mean
    past = np.concatenate((random.geometric(share, old), np.zeros(len(starts_s), np.int64)))
    turns = past + random.geometric(share, len(past))
    session = np.repeat(np.arange(len(turns)), turns)
    begins = np.cumsum(turns) - turns
    place = np.arange(len(session)) - begins[session]
    gap_s = random.exponential(spec.think_time_mean_s, len(session))
    gap_s[(place == 0) | (place < past[session])] = 0.0
    since = np.cumsum(gap_s)
    start_s = np.concatenate((np.zeros(old), starts_s))
    time_s = start_s[session] + since - since[begins][session]
    return _Schedule(session, place, time_s, gap_s, past)
