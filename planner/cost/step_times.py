"""The step time of one replica, in the form that simulation needs: tables over tokens, slopes over context.

A step computes `n` tokens (prefill chunks and one token per decoding sequence). Its time is

    tokens_s[n] + sampled_s[r] + sequence_s * b
      + [d > 0]  (decode_launch_s + decode_context_token_s * C + decode_window_token_s * W
                  + decode_table(d, C) + decode_window_table(d, W))
      + [any chunk] prefill_step_s
      + sum over chunks of (prefill_launch_s + prefill_pair_s * P + prefill_window_pair_s * Q
                            + prefill_context_token_s * K + chunk_table(new, K))
      + host_token_s * m

with `r` sampled rows, `b` sequences in the step, `d` of them decoding, C the KV tokens that decodes read in
full-attention layers (sum of contexts, the new token included), W the same in windowed layers (sum of min(context,
window)), P the (query, key) pairs of a prompt chunk, Q the pairs inside the window, K the cached tokens before it, m
the tokens whose keys and values move between device and host. All before m is at least eager_s in a step with chunks.
Under speculation a decode computes, reads and samples its drafts too: n, r and C count them.
At a fixed set of decoding sequences the time is linear in C and W between the knots of the tables: that is what lets
a simulator jump.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.cost.pieces import ChunkTable, DecodeTable


@dataclass(frozen=True, slots=True)
class StepTimes:
    """All times in seconds, all stages of the pipeline summed (the latency of one batch through the replica)."""

    tokens_s: tuple[float, ...]  # index: tokens in the step, 0..token budget
    sampled_s: tuple[float, ...]  # index: rows sampled, 0..max sequences
    sequence_s: float
    decode_launch_s: float
    decode_context_token_s: float
    decode_window_token_s: float
    window_tokens: int | None  # of windowed layers; None where the model has none
    prefill_launch_s: float
    prefill_pair_s: float
    prefill_window_pair_s: float
    prefill_context_token_s: float
    request_s: float  # once per request, before it may be scheduled (tokenising, HTTP)
    lanes: int  # pipeline stages: that many batches are in flight, each with its share of the sequences
    stage_shares: tuple[float, ...] = ()  # of a step's time, by stage; they add up to 1; empty: equal shares
    decode_table: DecodeTable | None = None  # beyond decode_context_token_s, by (decodes, C)
    decode_window_table: DecodeTable | None = None  # beyond decode_window_token_s, by (decodes, W)
    chunk_table: ChunkTable | None = None  # beyond the pairs, of every chunk
    prefill_step_s: float = 0.0  # more of a step that holds chunks, however many
    host_token_s: float = 0.0  # per token moved between device and host
    eager_s: float = 0.0  # least of a step that holds chunks: its kernels are launched one by one
    first_token: float = 1.0  # TTFT in multiples of what steps and queues make it: a margin, which delays nobody else
    stages: tuple[StepTimes, ...] = ()  # of each stage, where they are unlike machines: all above are then sums

    def step_s(
        self,
        tokens: int,
        sampled: int,
        sequences: int,
        decodes: int,
        decode_context: int,
        decode_window: int,
        chunks: Sequence[tuple[int, int]],
        moved_tokens: int = 0,
    ) -> float:
        """Seconds of one step; arguments as in the module's formula, `chunks` as (new tokens, cached tokens) pairs."""
        seconds = self.tokens_s[tokens] + self.sampled_s[sampled] + self.sequence_s * sequences
        if decodes:
            seconds += self.decode_s(decodes, decode_context, decode_window)
        if chunks:
            seconds += self.prefill_step_s
        for new, cached in chunks:
            seconds += self.chunk_s(new, cached)
        if chunks and seconds < self.eager_s:
            seconds = self.eager_s
        if moved_tokens:
            seconds += self.host_token_s * moved_tokens
        return seconds

    def decode_s(self, decodes: int, context: int, window: int) -> float:
        """Attention of `decodes` decoding sequences that read `context` keys in all, `window` in windowed layers."""
        seconds = self.decode_launch_s
        seconds += self.decode_context_token_s * context + self.decode_window_token_s * window
        if self.decode_table is not None:
            _, constant_s, slope_s = self.decode_table.piece(decodes, context)
            seconds += constant_s + slope_s * context
        if self.decode_window_table is not None:
            _, constant_s, slope_s = self.decode_window_table.piece(decodes, window)
            seconds += constant_s + slope_s * window
        return seconds

    def chunk_s(self, new: int, cached: int) -> float:
        """Attention of a prompt chunk of `new` tokens over `cached` earlier ones."""
        seconds = self.prefill_launch_s + self.prefill_context_token_s * cached
        seconds += self.prefill_pair_s * chunk_pairs(new, cached)
        if self.window_tokens is not None:
            seconds += self.prefill_window_pair_s * chunk_window_pairs(new, cached, self.window_tokens)
        if self.chunk_table is not None:
            seconds += self.chunk_table.chunk_s(new, cached)
        return seconds

    def scaled(self, factor: float, first_token: float = 1.0) -> StepTimes:
        """Every second of a step `factor` times as long, `request_s`, which is in no step, as it is.

        `first_token`: what TTFT is to be beside that, in multiples.
        """
        if factor == first_token == 1.0:
            return self
        decode, window, chunk = self.decode_table, self.decode_window_table, self.chunk_table
        return replace(
            self,
            tokens_s=tuple(factor * seconds for seconds in self.tokens_s),
            sampled_s=tuple(factor * seconds for seconds in self.sampled_s),
            decode_table=None if decode is None else replace(decode, seconds=factor * decode.seconds),
            decode_window_table=None if window is None else replace(window, seconds=factor * window.seconds),
            chunk_table=None if chunk is None else replace(chunk, seconds=factor * chunk.seconds),
            stages=tuple(stage.scaled(factor) for stage in self.stages),
            first_token=first_token * self.first_token,
            **{name: factor * getattr(self, name) for name in STEP_SECONDS},
        )


STEP_SECONDS = (
    "sequence_s",
    "decode_launch_s",
    "decode_context_token_s",
    "decode_window_token_s",
    "prefill_launch_s",
    "prefill_pair_s",
    "prefill_window_pair_s",
    "prefill_context_token_s",
    "prefill_step_s",
    "host_token_s",
    "eager_s",
)


def chunk_pairs(new_tokens: int, context_tokens: int) -> int:
    """(query, key) pairs of a causal chunk of `new_tokens` over `context_tokens` already cached."""
    return new_tokens * context_tokens + new_tokens * (new_tokens + 1) // 2


def chunk_window_pairs(new_tokens: int, context_tokens: int, window: int) -> int:
    """The same where a query sees only the last `window` keys, itself included."""
    growing = max(0, min(new_tokens, window - context_tokens))  # queries that still see everything
    return chunk_pairs(growing, context_tokens) + (new_tokens - growing) * window


FREE = StepTimes(
    tokens_s=(0.0,),
    sampled_s=(0.0,),
    sequence_s=0.0,
    decode_launch_s=0.0,
    decode_context_token_s=0.0,
    decode_window_token_s=0.0,
    window_tokens=None,
    prefill_launch_s=0.0,
    prefill_pair_s=0.0,
    prefill_window_pair_s=0.0,
    prefill_context_token_s=0.0,
    request_s=0.0,
    lanes=1,
)
"""Step times of which everything is free; what costs something is put in by `replace`."""
