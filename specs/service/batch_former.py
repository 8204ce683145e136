"""What the next step computes: iteration-level batching with chunked prefill over a paged cache.

Two rules, named as in `specs.plan.Scheduling`:

- `mixed_chunked` (vLLM v1, Orca/Sarathi): one token for every decoding sequence, then the rest of a prompt that is
  under way, then new sequences in order while tokens, seats and blocks last; all in one step.
- `prefill_first` (vLLM v0, SGLang): prompts alone while any can go on; otherwise all decodes.

When a decoding sequence needs a block and none is free, the youngest running sequence is preempted: it loses its
blocks, goes back to the front of the queue, and later computes prompt and generated tokens anew. Nothing is admitted in
a step that preempted. A prompt under way that finds no block waits and keeps what it has (vLLM preempts it). The oldest
running sequence is never preempted for another one, and `admission` made sure that it fits alone: every step that is
not None computes at least one token, and every sequence finishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specs.service.block_manager import BlockManager
from specs.service.order import FcfsQueue
from specs.service.sequence import Sequence, Status

PrefillPolicy = Literal["mixed_chunked", "prefill_first"]


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
    """One forward pass: decodes (one token each) and prefill chunks, and who was preempted to make room."""

    decodes: tuple[Sequence, ...]
    chunks: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...]

    @property
    def tokens(self) -> int:
        return len(self.decodes) + sum(chunk.tokens for chunk in self.chunks)


class BatchFormer:
    """Forms steps over the sequences of one batch lane. Call `form`, compute, `complete`, and `finish` what ended."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        policy: PrefillPolicy = "mixed_chunked",
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({max_num_batched_tokens}) must reach max_num_seqs ({max_num_seqs}) >= 1, "
                "or decoding sequences starve"
            )
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.policy = policy
        self.waiting = FcfsQueue()
        self.running: list[Sequence] = []  # in order of admission, which is order of arrival

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that `admission.may_ever_run` let in."""
        self.waiting.push(sequence)

    def form(self) -> Step | None:
        """The next step, its blocks already allocated; None when there is nothing to compute."""
        if self.policy == "prefill_first":
            chunks = self._prefill(self.max_num_batched_tokens, admit=True)
            if chunks:
                return Step((), tuple(chunks), ())
            decodes, preempted = self._decode()
            return Step(tuple(decodes), (), tuple(preempted)) if decodes else None
        decodes, preempted = self._decode()
        chunks = self._prefill(self.max_num_batched_tokens - len(decodes), admit=not preempted)
        if not decodes and not chunks:
            return None
        return Step(tuple(decodes), tuple(chunks), tuple(preempted))

    def complete(self, step: Step) -> list[Sequence]:
        """Record that `step` was computed. Returns the sequences that sampled a token, decodes first."""
        for sequence in step.decodes:
            sequence.computed_tokens += 1
        sampled = list(step.decodes)
        for chunk in step.chunks:
            chunk.sequence.computed_tokens += chunk.tokens
            if chunk.completes:
                sampled.append(chunk.sequence)
        for sequence in sampled:
            sequence.generated_tokens += 1
        return sampled

    def finish(self, sequence: Sequence) -> None:
        """The output of `sequence` is complete, or its client is gone: give back its seat and its blocks."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        self.blocks.free(sequence)
        sequence.status = Status.FINISHED

    def _decode(self) -> tuple[list[Sequence], list[Sequence]]:
        """One token for each decoding sequence, oldest first, preempting the youngest where blocks run out."""
        decodes: list[Sequence] = []
        preempted: list[Sequence] = []
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            index += 1
            if sequence.prefilling:
                continue
            while not self.blocks.grow(sequence, sequence.computed_tokens + 1):
                victim = self.running[-1]
                self._preempt(victim)
                preempted.append(victim)
                if victim is sequence:
                    return decodes, preempted
            decodes.append(sequence)
        return decodes, preempted

    def _prefill(self, budget: int, *, admit: bool) -> list[Chunk]:
        """Chunks within `budget` tokens: prompts under way first, then, if `admit`, waiting sequences in order."""
        chunks: list[Chunk] = []
        for sequence in self.running:
            if budget == 0:
                return chunks
            if not sequence.prefilling:
                continue
            chunk = self._chunk(sequence, budget)
            if chunk is None:
                return chunks  # blocks ran out: younger sequences must not overtake
            chunks.append(chunk)
            budget -= chunk.tokens
        while admit and budget > 0 and len(self.running) < self.max_num_seqs:
            head = self.waiting.head()
            if head is None:
                break
            head.prefill_tokens = head.total_tokens
            chunk = self._chunk(head, budget)
            if chunk is None:
                break
            self.waiting.pop()
            head.status = Status.RUNNING
            self.running.append(head)
            chunks.append(chunk)
            budget -= chunk.tokens
        return chunks

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk | None:
        start = sequence.computed_tokens
        tokens = min(sequence.prefill_tokens - start, budget)
        if not self.blocks.grow(sequence, start + tokens):
            return None
        return Chunk(sequence, start, tokens)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.free(sequence)
        sequence.computed_tokens = 0
        sequence.prefill_tokens = 0
        sequence.preemptions += 1
        sequence.status = Status.WAITING
        self.waiting.push_front(sequence)
