"""The least that a request can cost: the utilisation law's side of the certificate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.cost.step_times import StepTimes, chunk_pairs, chunk_window_pairs
from specs.plan import Speculation


def optimistic_request_s(times: StepTimes, prompt_tokens: int, output_tokens: int) -> float:
    """Replica-seconds that a request takes under every schedule, prefix caching aside: no schedule needs less.

    Proof. Sum the time of all steps that a replica runs and hand each term of the step formula to the requests in it.

    - A request computes at least `prompt + output - 1` tokens, in whatever chunks (the last output token is never fed
      back). A step of n tokens costs tokens_s[n] >= n * min_m tokens_s[m] / m, so each of its tokens may be charged
      that minimum. Sampled rows alike: `output` rows at min_m sampled_s[m] / m.
    - It is in at least `output` steps (each samples one row of it): `sequence_s` each.
    - In `output - 1` of them it decodes, the j-th reading `prompt + j` tokens: context and window terms are sums of
      those. At most as many sequences decode in a step as rows are sampled, R = len(sampled_s) - 1, so
      decode_launch_s is charged at 1 / R.
    - Its prompt is at least one chunk. Chunks split the (query, key) pairs and lose none: the pairs of all chunks add
      up to those of the whole, inside a window too. What chunks read again is charged nothing.

    Preempted work is only repeated. With `lanes` batches in flight a replica runs at most `lanes` step-seconds per
    second, so the sum is divided by `lanes`. A mean over requests of this bound, times the arrival rate, is at most
    the number of replicas that any plan needs.
    """
    per_token, per_row, _ = _least_per_unit(times)
    decodes = output_tokens - 1
    seconds = per_token * (prompt_tokens + decodes) + per_row * output_tokens + times.sequence_s * output_tokens
    seconds += _least_decode_s(times) * decodes + _least_chunk_s(times)
    if decodes:
        rows = max(1, len(times.sampled_s) - 1)
        context = decodes * prompt_tokens + decodes * (decodes + 1) // 2
        seconds += times.decode_launch_s * decodes / rows + times.decode_context_token_s * context
        if times.window_tokens is not None:
            seconds += times.decode_window_token_s * _windowed(prompt_tokens, decodes, times.window_tokens)
    seconds += times.prefill_launch_s + times.prefill_pair_s * chunk_pairs(prompt_tokens, 0)
    if times.window_tokens is not None:
        seconds += times.prefill_window_pair_s * chunk_window_pairs(prompt_tokens, 0, times.window_tokens)
    return seconds / times.lanes


def optimistic_work_s(
    times: StepTimes,
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    *,
    cached_tokens: NDArray[np.int64] | None = None,
    speculation: Speculation | None = None,
) -> float:
    """The sum of `optimistic_request_s` over many requests (arrays of one length), without a loop over them.

    `cached_tokens`: how many of each prompt are not computed at the most. With `speculation` a decode takes at least
    `least_steps` steps, each of which computes, samples and reads the drafts too.
    """
    sums = WorkSums.of(
        prompt_tokens, output_tokens, cached_tokens=cached_tokens, speculation=speculation, window=times.window_tokens
    )
    return sums.seconds(times)


@dataclass(frozen=True, slots=True)
class WorkSums:
    """What `optimistic_work_s` adds up over requests, whatever the times of a step: worked out once for many."""

    requests: int
    prompt_tokens: float  # that are not cached
    steps: float  # that decode
    context: float  # (token, key) pairs that decodes read
    pairs: float  # (query, key) pairs of the prompts, of what is not cached
    window_context: float = 0.0  # the same two inside the window, where the model has one
    window_pairs: float = 0.0
    draft_tokens: int = 0  # of each step that decodes
    draft_s: float = 0.0

    @classmethod
    def of(
        cls,
        prompt_tokens: NDArray[np.int64],
        output_tokens: NDArray[np.int64],
        *,
        cached_tokens: NDArray[np.int64] | None = None,
        speculation: Speculation | None = None,
        window: int | None = None,
    ) -> WorkSums:
        prompts, outputs = prompt_tokens.astype(np.float64), output_tokens.astype(np.float64)
        cached = np.zeros_like(prompts) if cached_tokens is None else cached_tokens.astype(np.float64)
        drafts = 0 if speculation is None else speculation.draft_tokens
        steps = outputs - 1 if speculation is None else least_steps(output_tokens, speculation)
        window_context = window_pairs = 0.0
        if window is not None:
            growing = np.clip(window - prompts, 0, steps)
            seen = growing * prompts + growing * (growing + 1) / 2 + (steps - growing) * window
            window_context = float(seen.sum())
            window_pairs = float((_window_pairs(prompts, window) - _window_pairs(cached, window)).sum())
        return cls(
            requests=len(prompts),
            prompt_tokens=float((prompts - cached).sum()),
            steps=float(steps.sum()),
            context=float((steps * (prompts + drafts) + steps * (steps + 1) / 2).sum()),
            pairs=float((_pairs(prompts) - _pairs(cached)).sum()),
            window_context=window_context,
            window_pairs=window_pairs,
            draft_tokens=drafts,
            draft_s=0.0 if speculation is None else speculation.draft_s,
        )

    def seconds(self, times: StepTimes) -> float:
        """`optimistic_work_s` of the requests; times with a window need the sums of that window."""
        per_token, per_row, _ = _least_per_unit(times)
        rows = max(1, len(times.sampled_s) - 1)
        computed = self.steps * (1 + self.draft_tokens)
        seconds = per_token * (self.prompt_tokens + computed) + per_row * (self.requests + computed)
        seconds += times.sequence_s * (self.requests + self.steps)
        seconds += _least_decode_s(times) * self.steps + _least_chunk_s(times) * self.requests
        seconds += times.decode_launch_s * self.steps / rows
        seconds += times.decode_context_token_s * self.context
        seconds += times.prefill_launch_s * self.requests + times.prefill_pair_s * self.pairs
        if times.window_tokens is not None:
            seconds += times.decode_window_token_s * self.window_context
            seconds += times.prefill_window_pair_s * self.window_pairs
        seconds += self.draft_s * computed / rows  # in a step, at most rows / (1 + drafts) sequences decode
        return seconds / times.lanes


def _pairs(tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """(query, key) pairs of whole prompts."""
    pairs: NDArray[np.float64] = tokens * (tokens + 1) / 2
    return pairs


def _window_pairs(tokens: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    inside = np.minimum(tokens, window)
    pairs: NDArray[np.float64] = _pairs(inside) + (tokens - inside) * window
    return pairs


def least_steps(output_tokens: NDArray[np.int64], speculation: Speculation) -> NDArray[np.float64]:
    """Decode steps of each request under speculation, at least: their sum is certain but for one chance in a million.

    A step yields 1 to 1 + k tokens, mu = 1 + a + ... + a^k in the mean, with variance s^2. By Wald's identity n tokens
    take n / mu steps or more in the mean; the number for N tokens in all spreads by sqrt(N s^2 / mu^3), of which five
    are taken off. No draw takes fewer than n / (1 + k).
    """
    decodes = np.maximum(output_tokens.astype(np.float64) - 1, 0.0)
    total = float(decodes.sum())
    drafts, accepted = speculation.draft_tokens, speculation.acceptance
    mean = sum(accepted**length for length in range(drafts + 1))
    # P(tokens > j) = a^j, so the mean of the square is the sum of (2 j + 1) a^j
    square = sum((2 * length + 1) * accepted**length for length in range(drafts + 1))
    spread = math.sqrt(max(0.0, square - mean**2) / (mean * total)) if total else 0.0
    steps: NDArray[np.float64] = decodes * max(1.0 / (1 + drafts), (1.0 - 5.0 * spread) / mean)
    return steps


def role_work_s(
    role: Literal["unified", "prefill", "decode"],
    times: StepTimes,
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    *,
    cached_tokens: NDArray[np.int64] | None = None,
    speculation: Speculation | None = None,
) -> float:
    """`optimistic_work_s` of a replica of this role: prompts and first tokens, all later tokens, or both.

    A prefill replica does with a request what it would do with one of a single output token. A decode replica takes it
    up with its prompt in the cache: what remains of the proof are its `output - 1` later tokens, each in a step that
    samples one row and reads the context. The two parts add up to the whole.
    """
    if role == "unified":
        return optimistic_work_s(
            times, prompt_tokens, output_tokens, cached_tokens=cached_tokens, speculation=speculation
        )
    first_s = optimistic_work_s(times, prompt_tokens, np.ones_like(output_tokens), cached_tokens=cached_tokens)
    if role == "prefill":
        return first_s
    whole_s = optimistic_work_s(
        times, prompt_tokens, output_tokens, cached_tokens=cached_tokens, speculation=speculation
    )
    return whole_s - first_s


@dataclass(frozen=True, slots=True)
class LatencyFloors:
    """Seconds that no schedule can go below, for each of many requests (arrays of one length)."""

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]  # 0 for one output token
    e2e_s: NDArray[np.float64]


def latency_floors(
    times: StepTimes,
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    *,
    cached_tokens: NDArray[np.int64] | None = None,
    speculation: Speculation | None = None,
) -> LatencyFloors:
    """What a request waits for when it is alone on the replica.

    The first token comes after all prompt tokens that are computed, none cheaper than in the best step, and after at
    least one step; each further one after a step of at least one token that reads the context, in the best case of
    `speculation` all drafts of which are accepted. Other requests only add to these.
    """
    per_token, _, least_s = _least_per_unit(times)
    prompts, decodes = prompt_tokens.astype(np.float64), output_tokens.astype(np.float64) - 1
    cached = np.zeros_like(prompts) if cached_tokens is None else cached_tokens.astype(np.float64)
    step_s = least_s + times.sampled_s[1] + times.sequence_s + _least_decode_s(times)
    prefill_s = np.maximum(per_token * (prompts - cached), least_s) + _least_chunk_s(times)
    ttft_s = times.request_s + prefill_s + times.prefill_pair_s * (_pairs(prompts) - _pairs(cached))
    yielded = 1.0
    if speculation is not None:
        yielded, step_s = 1.0 + speculation.draft_tokens, step_s + speculation.draft_s
    mean_context = prompts + (decodes / yielded + 1) / 2
    each_s = step_s + times.decode_launch_s + times.decode_context_token_s * mean_context
    tpot_s = np.where(decodes > 0, each_s / yielded, 0.0)
    return LatencyFloors(ttft_s, tpot_s, ttft_s + decodes * tpot_s)


def role_floors(
    role: Literal["unified", "prefill", "decode"],
    times: StepTimes,
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    *,
    cached_tokens: NDArray[np.int64] | None = None,
    speculation: Speculation | None = None,
) -> LatencyFloors:
    """`latency_floors` of what a replica of this role answers for; the other side and the link cost nothing."""
    floors = latency_floors(times, prompt_tokens, output_tokens, cached_tokens=cached_tokens, speculation=speculation)
    if role == "prefill":
        return LatencyFloors(floors.ttft_s, np.zeros_like(floors.tpot_s), floors.ttft_s)
    if role == "decode":
        later_s = (output_tokens.astype(np.float64) - 1) * floors.tpot_s
        return LatencyFloors(np.zeros_like(floors.ttft_s), floors.tpot_s, later_s)
    return floors


def _least_decode_s(times: StepTimes) -> float:
    """Seconds beyond the slopes of one decoding sequence in one step."""
    tables = (times.decode_table, times.decode_window_table)
    return sum(table.least_per_sequence_s for table in tables if table is not None)


def _least_chunk_s(times: StepTimes) -> float:
    """Seconds beyond the pairs of one prompt chunk."""
    return 0.0 if times.chunk_table is None else times.chunk_table.least_s


def _windowed(prompt_tokens: int, decodes: int, window: int) -> int:
    """Sum over j = 1..decodes of min(prompt + j, window)."""
    growing = max(0, min(decodes, window - prompt_tokens))
    return growing * prompt_tokens + growing * (growing + 1) // 2 + (decodes - growing) * window


@lru_cache(maxsize=32)  # a table of 16k floats weighs half a megabyte: keep few alive
def _least_by_id(times: _ById) -> tuple[float, float, float]:
    tokens_s = times.times.tokens_s
    return _least(tokens_s), _least(times.times.sampled_s), min(tokens_s[1:], default=0.0)


class _ById:
    """Cache key: a `StepTimes` by identity; hashing its tables would cost more than the answer."""

    __slots__ = ("times",)

    def __init__(self, times: StepTimes) -> None:
        self.times = times

    def __hash__(self) -> int:
        return id(self.times)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.times is self.times


def _least_per_unit(times: StepTimes) -> tuple[float, float, float]:
    """Seconds per token and per sampled row in the best step, and of the shortest step."""
    return _least_by_id(_ById(times))


def _least(table: tuple[float, ...]) -> float:
    if len(table) < 2:
        return 0.0
    seconds = np.asarray(table[1:])
    return float(np.min(seconds / np.arange(1, len(table))))
