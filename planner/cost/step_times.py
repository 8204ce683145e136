"""The step time of one replica, in the form that simulation needs: tables over tokens, slopes over context.

A step computes `n` tokens (prefill chunks and one token per decoding sequence). Its time is

    tokens_s[n] + sampled_s[r] + sequence_s * b
      + [decodes > 0]  (decode_launch_s + decode_context_token_s * C + decode_window_token_s * W)
      + [chunks > 0]   (prefill_launch_s * chunks + prefill_pair_s * P + prefill_window_pair_s * Q
                        + prefill_context_token_s * K)

with `r` sampled rows, `b` sequences in the step, C the KV tokens that decodes read in full-attention layers (sum of
contexts, the new token included), W the same in windowed layers (sum of min(context, window)), P the (query, key)
pairs of the prefill chunks, Q the pairs inside the window, K the cached context that chunks read again.
At a fixed set of decoding sequences the time is linear in C and W: that is what lets a simulator jump.
"""

from __future__ import annotations

from dataclasses import dataclass


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

    def step_s(
        self,
        tokens: int,
        sampled: int,
        sequences: int,
        decodes: int,
        decode_context: int,
        decode_window: int,
        chunks: int,
        pairs: int,
        window_pairs: int,
        chunk_context: int,
    ) -> float:
        """Seconds of one step; arguments as in the module's formula."""
        seconds = self.tokens_s[tokens] + self.sampled_s[sampled] + self.sequence_s * sequences
        if decodes:
            seconds += self.decode_launch_s
            seconds += self.decode_context_token_s * decode_context + self.decode_window_token_s * decode_window
        if chunks:
            seconds += self.prefill_launch_s * chunks + self.prefill_pair_s * pairs
            seconds += self.prefill_window_pair_s * window_pairs + self.prefill_context_token_s * chunk_context
        return seconds


def chunk_pairs(new_tokens: int, context_tokens: int) -> int:
    """(query, key) pairs of a causal chunk of `new_tokens` over `context_tokens` already cached."""
    return new_tokens * context_tokens + new_tokens * (new_tokens + 1) // 2


def chunk_window_pairs(new_tokens: int, context_tokens: int, window: int) -> int:
    """The same where a query sees only the last `window` keys, itself included."""
    growing = max(0, min(new_tokens, window - context_tokens))  # queries that still see everything
    return chunk_pairs(growing, context_tokens) + (new_tokens - growing) * window
