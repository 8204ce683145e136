"""One request inside a replica: how many tokens it has, how many of them are in the KV cache, and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """State that the rules read and write. That the output is complete is told from outside (`BatchFormer.finish`)."""

    id: int
    prompt_tokens: int
    generated_tokens: int = 0  # sampled so far; the newest one is not in the cache yet
    computed_tokens: int = 0  # tokens whose keys and values are in the cache
    prefill_tokens: int = 0  # set at admission: all tokens known by then, computed in chunks before decoding goes on
    preemptions: int = 0
    status: Status = Status.WAITING
    blocks: list[int] = field(default_factory=list)  # owned by the block manager

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"sequence {self.id}: a prompt has at least one token, not {self.prompt_tokens}")

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens

    @property
    def prefilling(self) -> bool:
        """Whether tokens known at admission are still missing from the cache. Otherwise it decodes one per step."""
        return self.computed_tokens < self.prefill_tokens
