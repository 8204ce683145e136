"""The least that a request can cost: the utilisation law's side of the certificate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.cost.step_times import StepTimes, chunk_pairs, chunk_window_pairs


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
    per_token, per_row = _least_per_unit(times)
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


def optimistic_work_s(times: StepTimes, prompt_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64]) -> float:
    """The sum of `optimistic_request_s` over many requests (two arrays of one length), without a loop over them."""
    per_token, per_row = _least_per_unit(times)
    prompts, outputs = prompt_tokens.astype(np.float64), output_tokens.astype(np.float64)
    decodes = outputs - 1
    seconds = per_token * (prompts + decodes) + (per_row + times.sequence_s) * outputs
    seconds += _least_decode_s(times) * decodes + _least_chunk_s(times)
    seconds += times.decode_launch_s * decodes / max(1, len(times.sampled_s) - 1)
    seconds += times.decode_context_token_s * (decodes * prompts + decodes * (decodes + 1) / 2)
    seconds += times.prefill_launch_s + times.prefill_pair_s * prompts * (prompts + 1) / 2
    if times.window_tokens is not None:
        growing = np.clip(times.window_tokens - prompts, 0, decodes)
        seen = growing * prompts + growing * (growing + 1) / 2 + (decodes - growing) * times.window_tokens
        inside = np.minimum(prompts, times.window_tokens)
        pairs = inside * (inside + 1) / 2 + (prompts - inside) * times.window_tokens
        seconds += times.decode_window_token_s * seen + times.prefill_window_pair_s * pairs
    return float(seconds.sum()) / times.lanes


@dataclass(frozen=True, slots=True)
class LatencyFloors:
    """Seconds that no schedule can go below, for each of many requests (arrays of one length)."""

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]  # 0 for one output token
    e2e_s: NDArray[np.float64]


def latency_floors(
    times: StepTimes, prompt_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64]
) -> LatencyFloors:
    """What a request waits for when it is alone on the replica.

    The first token comes after all prompt tokens, none cheaper than in the best step, and after at least one step; each
    further one after a step of at least one token that reads the context. Other requests only add to these.
    """
    per_token, _ = _least_per_unit(times)
    prompts, decodes = prompt_tokens.astype(np.float64), output_tokens.astype(np.float64) - 1
    least_s = min(times.tokens_s[1:])
    step_s = least_s + times.sampled_s[1] + times.sequence_s + _least_decode_s(times)
    prefill_s = np.maximum(per_token * prompts, least_s) + _least_chunk_s(times)
    ttft_s = times.request_s + prefill_s + times.prefill_pair_s * prompts * (prompts + 1) / 2
    mean_context = prompts + (decodes + 1) / 2
    tpot_s = np.where(decodes > 0, step_s + times.decode_launch_s + times.decode_context_token_s * mean_context, 0.0)
    return LatencyFloors(ttft_s, tpot_s, ttft_s + decodes * tpot_s)


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


@lru_cache(maxsize=8)  # a table of 16k floats weighs half a megabyte: keep few alive
def _least_by_id(times: _ById) -> tuple[float, float]:
    return _least(times.times.tokens_s), _least(times.times.sampled_s)


class _ById:
    """Cache key: a `StepTimes` by identity; hashing its tables would cost more than the answer."""

    __slots__ = ("times",)

    def __init__(self, times: StepTimes) -> None:
        self.times = times

    def __hash__(self) -> int:
        return id(self.times)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.times is self.times


def _least_per_unit(times: StepTimes) -> tuple[float, float]:
    return _least_by_id(_ById(times))


def _least(table: tuple[float, ...]) -> float:
    if len(table) < 2:
        return 0.0
    seconds = np.asarray(table[1:])
    return float(np.min(seconds / np.arange(1, len(table))))
