"""What the next step computes: iteration-level batching with chunked prefill over a paged cache.

A step is formed in this order: preemptive orders of service make room for the head of the queue; decoding sequences
grow by one token (and drafts, under speculation); prompts under way go on; new sequences are admitted in order. Three
policies, named as in `specs.plan.Scheduling`, say what one step may hold:

- `mixed_chunked` (vLLM v1, Orca/Sarathi): all of it.
- `prefill_first` (vLLM v0, SGLang): prompts alone while any can go on; otherwise all decodes.
- `decode_first` (FasterTransformer): prompts only while nothing decodes.

Running sequences stand in the order of service (`order.Queue.rank`; with fcfs that is by age). When a decoding sequence
needs a block and none is free, the last running sequence is preempted: it goes back to the queue, and later computes
prompt and generated tokens anew, or it is swapped to the host tier and goes on from there. Nothing is admitted in a
step that ran out of blocks. A prompt under way that finds no block waits and keeps what it has (vLLM preempts it). The
first running sequence is never preempted for want of blocks, and `admission` made sure that it fits alone: every step
that is not None computes at least one token, and every sequence finishes.
"""

from __future__ import annotations

from collections.abc import Sequence as Values
from dataclasses import dataclass, field
from typing import Literal

from specs.service.admission import Rejection
from specs.service.block_manager import BlockManager, blocks_for
from specs.service.order import FcfsQueue, Queue
from specs.service.sequence import Sequence, Status
from specs.service.step import Chunk, Step

PrefillPolicy = Literal["mixed_chunked", "prefill_first", "decode_first"]
Preemption = Literal["recompute", "swap"]


@dataclass(slots=True)
class _Draft:
    """A step that is being formed."""

    budget: int  # tokens that are left
    holds: bool  # no prompt is admitted: it waits for company, or until nothing decodes
    admits: bool = True  # blocks have not run out
    decodes: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)


class BatchFormer:
    """Forms steps over the sequences of one batch lane. Call `form`, compute, `complete`, and `finish` what ended.

    The keywords are those of `specs.plan.Limits` and `specs.plan.Scheduling`; `draft_tokens` of its `speculation`.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        policy: PrefillPolicy = "mixed_chunked",
        order: Queue | None = None,
        preemption: Preemption = "recompute",
        batch_wait_steps: int = 0,
        output_reserve: float = 0.0,
        max_waiting_tokens: int | None = None,
        draft_tokens: int = 0,
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < max_num_seqs * (1 + draft_tokens):
            drafts = f" x {1 + draft_tokens} tokens" if draft_tokens else ""
            raise ValueError(
                f"max_num_batched_tokens ({max_num_batched_tokens}) must reach max_num_seqs ({max_num_seqs}){drafts} "
                ">= 1, or decoding sequences starve"
            )
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.policy = policy
        self.preemption = preemption
        self.batch_wait_steps = batch_wait_steps
        self.output_reserve = output_reserve
        self.max_waiting_tokens = max_waiting_tokens
        self.draft_tokens = draft_tokens
        self.waiting: Queue = FcfsQueue() if order is None else order
        self.running: list[Sequence] = []  # in order of service; what was admitted last may stand behind its place
        self._by_age = isinstance(self.waiting, FcfsQueue)  # admitted in order of service, and that never changes
        self._followed = not self._by_age or blocks.prefix_unit_tokens > 0  # by order or prefix cache
        self._reserved_blocks = 0  # of the running, for `output_reserve`
        self._decode_steps = 0  # steps with decodes that were formed
        self._waiting_since = 0  # value of `_decode_steps` when something came to wait alone

    def add(self, sequence: Sequence) -> Rejection | None:
        """Queue a sequence that `admission.may_ever_run` let in, or say that too much waits already."""
        waiting, most = self.waiting, self.max_waiting_tokens
        if not waiting:
            self._waiting_since = self._decode_steps
        elif most is not None and waiting.waiting_tokens + sequence.left_tokens > most:
            return Rejection.QUEUE_FULL
        waiting.push(sequence)
        return None

    def form(self) -> Step | None:
        """The next step, its blocks already allocated; None when there is nothing to compute."""
        if not self._by_age:
            self.running.sort(key=self.waiting.rank)
        draft = _Draft(self.max_num_batched_tokens, self._holds_prompts())
        self._make_room(draft)
        if self.policy == "mixed_chunked":
            self._decode(draft)
            self._go_on(draft)
            self._admit(draft)
        elif self.policy == "prefill_first":
            self._go_on(draft)
            self._admit(draft, decodes=False)
            if not draft.chunks:
                self._decode(draft)
                self._admit(draft, prompts=False)
                if not draft.decodes:  # it may have given way to a prompt that found no blocks
                    self._go_on(draft)
        else:
            self._decode(draft)
            self._admit(draft, prompts=False)
            if not draft.decodes:
                self._go_on(draft)
                self._admit(draft, decodes=False)
        if not draft.decodes and not draft.chunks:
            self._give_way(draft)
        if not draft.decodes and not draft.chunks:
            return None
        self._decode_steps += bool(draft.decodes)
        return Step(
            tuple(draft.decodes),
            tuple(draft.chunks),
            tuple(draft.preempted),
            self.blocks.take_moved(),
            self.draft_tokens if draft.decodes else 0,
        )

    def complete(self, step: Step, accepted: Values[int] = ()) -> list[Sequence]:
        """Record that `step` was computed. Returns the sequences that sampled a token, decodes first.

        `accepted`: draft tokens that were accepted, by decoding sequence; each yields one token more than that.
        """
        sampled = list(step.decodes)
        for index, sequence in enumerate(step.decodes):
            tokens = 1 + accepted[index] if accepted else 1
            sequence.computed_tokens += tokens
            sequence.generated_tokens += tokens
            if self._followed:
                self._computed(sequence, 0, tokens)
        for chunk in step.chunks:
            sequence, completes = chunk.sequence, chunk.completes
            sequence.computed_tokens += chunk.tokens
            if completes:
                sequence.generated_tokens += 1
                sampled.append(sequence)
            if self._followed:
                self._computed(sequence, chunk.tokens, int(completes))
        return sampled

    def finish(self, sequence: Sequence) -> None:
        """The output of `sequence` is complete, or its client is gone: give back its seat and its blocks."""
        self.detach(sequence)
        self.blocks.free(sequence)

    def detach(self, sequence: Sequence) -> None:
        """`sequence` leaves the batch and keeps its blocks until they are freed: its cache is on its way elsewhere."""
        if sequence.status is Status.RUNNING:
            self._leave(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def _computed(self, sequence: Sequence, prompt_tokens: int, output_tokens: int) -> None:
        """What was computed of `sequence` is known to the order of service and to the prefix cache."""
        if not self._by_age:
            self.waiting.served(sequence, prompt_tokens, output_tokens)
        if self.blocks.prefix_unit_tokens:
            self.blocks.publish(sequence)

    # --------------------------------------------------------------------------------------------- before admission

    def _holds_prompts(self) -> bool:
        """Whether prompts stay in the queue in this step, whatever is free: while something decodes, by policy or
        because they wait for company (until the first has waited long enough, or they fill the budget)."""
        if self.policy != "decode_first":
            if self._decode_steps >= self._waiting_since + self.batch_wait_steps:
                return False
            if self.waiting.waiting_tokens >= self.max_num_batched_tokens:
                return False
        return any(not sequence.prefilling for sequence in self.running)

    def _make_room(self, draft: _Draft) -> None:
        """A preemptive order: the last running sequences give way to a head that goes before them and cannot enter."""
        waiting, running = self.waiting, self.running
        while waiting.preemptive and running:
            head = waiting.head()
            if head is None or not waiting.before(head, running[-1]):
                return
            if (draft.holds and not self._decodes_on(head)) or self._has_room(head):
                return
            self._preempt(draft)

    def _has_room(self, head: Sequence) -> bool:
        """A seat, its reserve, and the blocks of a first chunk of the whole budget."""
        if len(self.running) >= self.max_num_seqs or not self._fits_reserve(head):
            return False
        units, tokens = self._entry(head, self.max_num_batched_tokens)
        return self.blocks.fits(head, units, tokens)

    def _decode(self, draft: _Draft) -> None:
        """Room for the next tokens of each decoding sequence, preempting the last one where blocks run out."""
        running, blocks = self.running, self.blocks
        index = 0
        while index < len(running):
            sequence = running[index]
            index += 1
            if sequence.prefilling:
                continue
            tokens = self._decoded_tokens(sequence) if self.draft_tokens else sequence.computed_tokens + 1
            while not blocks.grow(sequence, tokens):
                victim = self._preempt(draft)
                draft.admits = False
                if victim is sequence:
                    return
            draft.decodes.append(sequence)
            draft.budget -= 1 + self.draft_tokens

    def _go_on(self, draft: _Draft) -> None:
        """Chunks of prompts under way; under a preemptive order, after the waiting sequences that go before them."""
        preemptive = self.waiting.preemptive
        for sequence in tuple(self.running) if preemptive else self.running:
            if not sequence.prefilling:
                continue
            if preemptive:
                self._admit(draft, decodes=self.policy == "mixed_chunked", before=sequence)
            if draft.budget == 0:
                return
            start = sequence.computed_tokens
            tokens = min(sequence.prefill_tokens - start, draft.budget)
            if not self.blocks.grow(sequence, start + tokens):
                draft.admits = False  # what comes after it must not overtake
                return
            draft.chunks.append(Chunk(sequence, start, tokens))
            draft.budget -= tokens

    def _give_way(self, draft: _Draft) -> None:
        """Prompts under way hold all blocks between them: the last ones give way until the first goes on."""
        while not draft.chunks and len(self.running) > 1:
            self._preempt(draft)
            self._go_on(draft)

    # --------------------------------------------------------------------------------------------------- admission

    def _admit(
        self, draft: _Draft, *, prompts: bool = True, decodes: bool = True, before: Sequence | None = None
    ) -> None:
        """Waiting sequences in order, while tokens, seats and blocks last: with prompts, or with decodes to go on.

        `before`: only those that go before this one.
        """
        while draft.admits and draft.budget > 0 and len(self.running) < self.max_num_seqs:
            head = self.waiting.head()
            if head is None or head in draft.preempted or not self._fits_reserve(head):
                return
            if before is not None and not self.waiting.before(head, before):
                return
            if self._decodes_on(head):
                if not decodes or draft.budget < 1 + self.draft_tokens:
                    return
            elif not prompts or draft.holds:
                return
            if not self._enter(head, draft):
                return

    def _enter(self, head: Sequence, draft: _Draft) -> bool:
        """Give the head its seat and its blocks, and what it computes first; False when blocks are missing."""
        units, tokens = self._entry(head, draft.budget)
        if not self.blocks.admit(head, units, tokens):
            return False
        self.waiting.pop()
        head.status = Status.RUNNING
        self.running.append(head)
        self._reserved_blocks += self._reserve_blocks(head)
        if self._decodes_on(head):
            draft.decodes.append(head)
            draft.budget -= 1 + self.draft_tokens
            return True
        if units:
            head.computed_tokens = units * self.blocks.prefix_unit_tokens
            if head.preemptions == 0:
                head.cached_tokens = head.computed_tokens
        chunk = Chunk(head, head.computed_tokens, tokens - head.computed_tokens)
        draft.chunks.append(chunk)
        draft.budget -= chunk.tokens
        return True

    def _entry(self, head: Sequence, budget: int) -> tuple[int, int]:
        """At admission: prefix units that it takes over, and how many of its tokens need blocks then."""
        if self._decodes_on(head):
            return 0, self._decoded_tokens(head)
        if head.computed_tokens:
            return 0, min(head.computed_tokens + budget, head.prefill_tokens)
        head.prefill_tokens = head.total_tokens
        units = self.blocks.match(head)
        return units, min(units * self.blocks.prefix_unit_tokens + budget, head.prefill_tokens)

    def _decodes_on(self, head: Sequence) -> bool:
        """Whether a waiting sequence has its prompt computed: it was swapped out, or handed over."""
        return head.computed_tokens > 0 and not head.prefilling

    def _decoded_tokens(self, sequence: Sequence) -> int:
        """Tokens that need blocks when it decodes: drafts beyond the end of its output do not."""
        tokens = sequence.computed_tokens + 1 + self.draft_tokens
        if self.draft_tokens and sequence.output_tokens:
            return min(tokens, sequence.prompt_tokens + sequence.output_tokens - 1)
        return tokens

    def _fits_reserve(self, head: Sequence) -> bool:
        if not self.output_reserve or not self.running:
            return True
        return self._reserved_blocks + self._reserve_blocks(head) <= self.blocks.num_blocks

    def _reserve_blocks(self, sequence: Sequence) -> int:
        """Of its prompt and of the share of its output that is kept free for it."""
        tokens = sequence.prompt_tokens + int(self.output_reserve * sequence.output_tokens)
        return blocks_for(tokens, self.blocks.block_size_tokens)

    def _preempt(self, draft: _Draft) -> Sequence:
        """The last running sequence gives way; its computed tokens go to the host tier, or are lost."""
        victim = self.running[-1]
        self._leave(victim)
        if self.preemption == "recompute" or not self.blocks.swap_out(victim):
            self.blocks.free(victim)
            victim.computed_tokens = 0
            victim.prefill_tokens = 0
        victim.preemptions += 1
        victim.status = Status.WAITING
        self.waiting.requeue(victim)
        draft.preempted.append(victim)
        return victim

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._reserved_blocks -= self._reserve_blocks(sequence)
