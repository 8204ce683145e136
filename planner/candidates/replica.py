"""What the simulator is given for one replica: one law for plans in the making and for plans as documents.

Limits and cache of a plan are those that its engine is told. Under attention data parallelism engines take them for
each rank, and each rank serves requests of its own while all compute every step together. Such a replica is simulated
as one batch with the seats, blocks and tokens of all ranks, and is charged for what ranks cannot share:

- a step that holds chunks lasts as if every rank had computed a full one: the one that has it makes the others wait;
- of a chunk longer than one rank's budget, the rest is computed by one rank as well;
- ranks hold contexts of unlike lengths: a tenth of the blocks is not counted, and the fullest rank reads a ninth more.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.cost.pieces import ChunkTable
from planner.cost.step_times import StepTimes
from planner.simulate import ReplicaModel
from specs.plan import Cache, Layout, Limits, Scheduling, Speculation

BALANCE = 0.9  # mean over fullest rank, of the contexts that attention data-parallel ranks hold


def tokens_per_sequence(speculation: Speculation | None) -> int:
    """Tokens that a decoding sequence computes and samples in a step: one, and the drafts."""
    return 1 + (0 if speculation is None else speculation.draft_tokens)


def replica_model(
    times: StepTimes, layout: Layout, limits: Limits, cache: Cache, scheduling: Scheduling
) -> ReplicaModel:
    """One replica under `limits`; `times` are those of limits at least as wide. Raises `ValueError` where they, the
    cache and the rules do not fit together."""
    ranks = layout.attention_data_parallel
    whole = limits.model_copy(
        update={
            "max_num_seqs": ranks * limits.max_num_seqs,
            "max_num_batched_tokens": ranks * limits.max_num_batched_tokens,
        }
    )
    within = under_limits(times, whole, scheduling.speculation)
    return ReplicaModel(
        times=within if ranks == 1 else _unbalanced(within, ranks, limits.max_num_batched_tokens),
        limits=whole,
        num_blocks=cache.num_blocks if ranks == 1 else int(BALANCE * ranks * cache.num_blocks),
        block_size_tokens=cache.block_size_tokens,
        scheduling=scheduling,
        prefix_caching=cache.prefix_caching,
        host_blocks=cache.host_blocks * ranks,
    )


def under_limits(times: StepTimes, limits: Limits, speculation: Speculation | None = None) -> StepTimes:
    """The step times of wider limits, cut to what fits a step under `limits`."""
    rows = limits.max_num_seqs * tokens_per_sequence(speculation)
    return replace(
        times, tokens_s=times.tokens_s[: limits.max_num_batched_tokens + 1], sampled_s=times.sampled_s[: rows + 1]
    )


def _unbalanced(times: StepTimes, ranks: int, budget: int) -> StepTimes:
    """With what attention data-parallel ranks lose by unlike work (see the head of this file)."""
    rest_s = max(0.0, times.tokens_s[ranks * budget] - times.tokens_s[budget])  # of a full chunk of one rank
    decode, window, chunks = times.decode_table, times.decode_window_table, times.chunk_table
    return replace(
        times,
        decode_context_token_s=times.decode_context_token_s / BALANCE,
        decode_window_token_s=times.decode_window_token_s / BALANCE,
        decode_table=None if decode is None else replace(decode, seconds=decode.seconds / BALANCE),
        decode_window_table=None if window is None else replace(window, seconds=window.seconds / BALANCE),
        prefill_step_s=times.prefill_step_s + rest_s,
        chunk_table=None if chunks is None else _serialised(chunks, budget, rest_s / budget),
    )


def _serialised(chunks: ChunkTable, budget: int, token_s: float) -> ChunkTable:
    """`token_s` more for every token of a chunk beyond `budget`."""
    new = np.array(sorted({*chunks.new.tolist(), float(budget)}))
    columns = [np.interp(new, chunks.new, column) for column in chunks.seconds.T]
    beyond = token_s * np.maximum(new - budget, 0.0)
    return ChunkTable(new, chunks.cached, np.stack(columns, axis=1) + beyond[:, None])
