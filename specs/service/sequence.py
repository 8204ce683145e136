"""One request inside a replica: how many tokens it has, how many of them are in the KV cache, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """State that the rules read and write. That the output is complete is told from outside (`BatchFormer.finish`).

    One that enters with `computed_tokens` set and no blocks (swapped out, or handed over by a prefill replica) takes
    blocks for them at its admission and goes on from there.
    """

    id: int
    prompt_tokens: int
    generated_tokens: int = 0  # sampled so far; the newest one is not in the cache yet
    computed_tokens: int = 0  # tokens whose keys and values are in the cache, or in the host tier
    prefill_tokens: int = 0  # set at admission: all tokens known by then, computed in chunks before decoding goes on
    preemptions: int = 0
    status: Status = Status.WAITING
    blocks: list[int] = field(default_factory=list)  # owned by the block manager, in order of position
    # what is known of the request
    output_tokens: int = 0  # that it generates at most; 0: not known
    tenant: int = 0
    priority: int = 0  # lower is served first
    deadline_s: float = math.inf  # moment by which its first token is due
    predicted_tokens: int = 0  # of output, as a length predictor says
    prefix: tuple[int, ...] = ()  # ids of its prefix units, from the start
    # written by the rules
    units: list[bool] = field(default_factory=list)  # by prefix unit in its blocks: whether it is the cache's, shared
    cached_tokens: int = 0  # found in the prefix cache at the first admission
    host_blocks: int = 0  # that keep its computed tokens while it is swapped out
    number: int = 0  # breaks ties of the order of service: arrival in the queue (`mlfq`: in the level)
    level: int = 0  # of `mlfq`
    level_tokens: int = 0  # served at that level

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"sequence {self.id}: a prompt has at least one token, not {self.prompt_tokens}")

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens

    @property
    def left_tokens(self) -> int:
        """Known tokens that are not in the cache; 1 for a sequence that decodes."""
        return self.prompt_tokens + self.generated_tokens - self.computed_tokens

    @property
    def prefilling(self) -> bool:
        """Whether tokens known at admission are still missing from the cache. Otherwise it decodes."""
        return self.computed_tokens < self.prefill_tokens
