"""`Step`: what one forward pass computes."""

from __future__ import annotations

from dataclasses import dataclass

from specs.service.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """`tokens` tokens of a sequence, from position `start` on, computed in one step."""

    sequence: Sequence
    start: int
    tokens: int

    @property
    def completes(self) -> bool:
        """Whether it reaches the end of what is known, so that a token is sampled after it."""
        return self.start + self.tokens == self.sequence.prefill_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: decodes (one token each, and drafts) and prefill chunks, and who was preempted to make room."""

    decodes: tuple[Sequence, ...]
    chunks: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...]
    moved_tokens: int = 0  # between host and device: swapped out, swapped in, prefix units loaded
    draft_tokens: int = 0  # of each decoding sequence, to be verified

    @property
    def decode_tokens(self) -> int:
        """Computed for all decodes; as many rows are sampled."""
        return len(self.decodes) * (1 + self.draft_tokens)

    @property
    def tokens(self) -> int:
        return self.decode_tokens + sum(chunk.tokens for chunk in self.chunks)
