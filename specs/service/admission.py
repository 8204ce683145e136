"""What can never be served is refused at the door, so that everything admitted makes progress."""

from __future__ import annotations

from enum import StrEnum

from specs.service.block_manager import blocks_for


class Rejection(StrEnum):
    TOO_LONG = "prompt and output exceed max_model_len"
    TOO_LARGE_FOR_CACHE = "prompt and output exceed the KV cache"
    QUEUE_FULL = "too many tokens wait already"


def may_ever_run(
    prompt_tokens: int, output_tokens: int, *, max_model_len: int, num_blocks: int, block_size_tokens: int
) -> Rejection | None:
    """None when a request of this size fits the replica alone; otherwise why it is refused.

    `output_tokens` is the most it may generate. The last token generated never enters the cache, so one token less
    than the sum has to fit. A sequence that fits alone always finishes: the oldest running one is never preempted.
    """
    if prompt_tokens + output_tokens > max_model_len:
        return Rejection.TOO_LONG
    if blocks_for(prompt_tokens + output_tokens - 1, block_size_tokens) > num_blocks:
        return Rejection.TOO_LARGE_FOR_CACHE
    return None
