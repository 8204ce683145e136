"""Laws that hold for every run, whatever the rules: all of them at once, on random sequences, limits and caches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from specs.service import (
    BatchFormer,
    BlockManager,
    Queue,
    Sequence,
    Status,
    Step,
    accepted_tokens,
    blocks_for,
    make_queue,
    may_ever_run,
)
from specs.service.mlfq import MlfqQueue
from specs.service.vtc import VtcQueue

ORDERS = ["fcfs", "priority", "edf", "sjf", "srpt", "mlfq", "vtc"]
POLICIES = ["mixed_chunked", "prefill_first", "decode_first"]


@st.composite
def formers(draw: st.DrawFn) -> BatchFormer:
    """Every rule, at limits and in caches that are often tight."""
    size = draw(st.sampled_from([1, 4, 16]))
    drafts = draw(st.sampled_from([0, 0, 1, 3]))
    seats = draw(st.integers(1, 6))
    order = draw(st.sampled_from(ORDERS))
    blocks = BlockManager(
        draw(st.integers(1, 14)),
        size,
        prefix_unit_tokens=size * draw(st.sampled_from([0, 1, 2])),
        host_blocks=draw(st.sampled_from([0, 3, 30])),
    )
    return BatchFormer(
        blocks,
        max_num_seqs=seats,
        max_num_batched_tokens=seats * (1 + drafts) + draw(st.integers(0, 40)),
        policy=draw(st.sampled_from(POLICIES)),  # type: ignore[arg-type]
        order=make_queue(order, mlfq_quantum_tokens=draw(st.sampled_from([1, 8, 50]))),  # type: ignore[arg-type]
        preemption=draw(st.sampled_from(["recompute", "swap"])),  # type: ignore[arg-type]
        batch_wait_steps=draw(st.sampled_from([0, 0, 5])),
        output_reserve=draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])),
        max_waiting_tokens=draw(st.sampled_from([None, None, 60])),
        draft_tokens=drafts,
    )


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[int, Sequence]]:
    """(step at which it comes, sequence); prefixes are paths of a small tree, so that many are shared."""
    found: list[tuple[int, Sequence]] = []
    paths: dict[tuple[int, ...], int] = {}
    for index in range(draw(st.integers(1, 16))):
        prompt, output = draw(st.integers(1, 60)), draw(st.integers(1, 25))
        path = draw(st.lists(st.sampled_from([0, 0, 0, 1]), max_size=12))
        ids = tuple(paths.setdefault(tuple(path[: end + 1]), len(paths)) for end in range(len(path)))
        sequence = Sequence(
            index,
            prompt,
            output_tokens=output,
            tenant=draw(st.integers(0, 2)),
            priority=draw(st.integers(0, 2)),
            deadline_s=draw(st.floats(0, 9)),
            predicted_tokens=draw(st.integers(0, 25)),
            prefix=ids,
        )
        found.append((draw(st.integers(0, 20)), sequence))
    return sorted(found, key=lambda arrival: (arrival[0], arrival[1].id))


@dataclass
class Run:
    """Serves sequences to the end and keeps the books beside the rules."""

    rule: BatchFormer
    arrivals: list[tuple[int, Sequence]]
    steps: list[Step] = field(default_factory=list)
    done: list[Sequence] = field(default_factory=list)
    refused: list[Sequence] = field(default_factory=list)
    computed: int = 0
    lost: int = 0
    hit: int = 0
    moved: int = 0

    def serve(self, check: Any = None) -> Run:
        rule = self.rule
        number = 0
        while self.arrivals or rule.running or rule.waiting:
            assert number < 20_000, "no progress"
            while self.arrivals and self.arrivals[0][0] <= number:
                self._add(self.arrivals.pop(0)[1])
            number += 1
            self.check_blocks()
            before = {s.id: (s.computed_tokens, s.host_blocks) for s in [*rule.running, *self.waiting]}
            step = rule.form()
            self.check_blocks()
            if step is None:
                assert not rule.running
                assert not rule.waiting
                continue
            self._book(step, before)
            if check is not None:
                check(self, step)
        return self

    @property
    def waiting(self) -> list[Sequence]:
        return [s for s in self._known if s.status is Status.WAITING]

    def __post_init__(self) -> None:
        self._known: list[Sequence] = []

    def _add(self, sequence: Sequence) -> None:
        blocks = self.rule.blocks
        limits = {"max_model_len": 10**6, "num_blocks": blocks.num_blocks}
        alone = may_ever_run(
            sequence.prompt_tokens, sequence.output_tokens, block_size_tokens=blocks.block_size_tokens, **limits
        )
        if alone is not None:
            return
        if self.rule.add(sequence) is None:
            self._known.append(sequence)
        else:
            assert self.waiting, "nothing waits, and still it is refused"
            self.refused.append(sequence)

    def _book(self, step: Step, before: dict[int, tuple[int, int]]) -> None:
        rule = self.rule
        self.steps.append(step)
        assert 1 <= step.tokens <= rule.max_num_batched_tokens
        assert len(rule.running) <= rule.max_num_seqs
        assert rule.policy == "mixed_chunked" or not (step.decodes and step.chunks)
        ran = [s.id for s in step.decodes] + [c.sequence.id for c in step.chunks]
        assert len(set(ran)) == len(ran)
        assert not {s.id for s in step.preempted} & set(ran), "preempted and run in one step"
        assert rule.waiting.waiting_tokens == sum(s.left_tokens for s in self.waiting)
        moved = 0
        for sequence in step.preempted:
            tokens, _ = before[sequence.id]
            moved += tokens if sequence.host_blocks else 0
            self.lost += 0 if sequence.host_blocks else tokens
        for sequence in step.decodes:
            tokens, host_blocks = before[sequence.id]
            assert sequence.computed_tokens == tokens == sequence.total_tokens - 1
            moved += tokens if host_blocks else 0
        for chunk in step.chunks:
            tokens, host_blocks = before[chunk.sequence.id]
            assert chunk.start == chunk.sequence.computed_tokens < chunk.sequence.total_tokens
            if tokens == 0:
                self.hit += chunk.start
            else:
                assert chunk.start == tokens
            moved += tokens if host_blocks else 0
        assert moved <= step.moved_tokens <= moved + sum(c.start for c in step.chunks)  # and units loaded
        self.moved += step.moved_tokens
        self._complete(step)

    def _complete(self, step: Step) -> None:
        rule = self.rule
        accepted = [
            min(
                accepted_tokens(1, s.id, s.generated_tokens, draft_tokens=step.draft_tokens, acceptance=0.7),
                s.output_tokens - s.generated_tokens - 1,
            )
            for s in step.decodes
        ]
        self.computed += sum(1 + more for more in accepted) + sum(chunk.tokens for chunk in step.chunks)
        for sequence in rule.complete(step, accepted):
            assert sequence.computed_tokens == sequence.total_tokens - 1
            if sequence.generated_tokens == sequence.output_tokens:
                rule.finish(sequence)
                self.done.append(sequence)

    def check_blocks(self) -> None:
        """Every block is free, owned by one sequence, or of one unit; shared ones by those that hold the unit."""
        blocks, size = self.rule.blocks, self.rule.blocks._unit_blocks
        private: list[int] = []
        holders: dict[int, int] = {}
        for sequence in self.rule.running:
            assert len(sequence.blocks) >= blocks_for(sequence.computed_tokens, blocks.block_size_tokens)
            for index, held in enumerate(sequence.units):
                part = sequence.blocks[index * size : (index + 1) * size]
                if held:
                    assert blocks.cache._blocks[sequence.prefix[index]] == tuple(part)
                    holders[sequence.prefix[index]] = holders.get(sequence.prefix[index], 0) + 1
                else:
                    private += part
            private += sequence.blocks[len(sequence.units) * size :]
        assert holders == blocks.cache._holders
        cached = [block for unit in blocks.cache._blocks.values() for block in unit]
        assert sorted(blocks._free + private + cached) == list(range(blocks.num_blocks))
        assert len(blocks.cache._blocks) == blocks.cache.held_units + blocks.cache.idle_units
        assert blocks.used_blocks == len(private) + blocks.cache.held_units * size
        host = blocks.host
        assert all(not s.blocks for s in self.waiting)
        assert host.pinned_blocks == sum(s.host_blocks for s in self.waiting)
        assert host.pinned_blocks + host.unit_count * size <= host.num_blocks
        assert not set(host._units) & set(blocks.cache._blocks), "a unit is on the device and in the host tier"


@settings(max_examples=200, deadline=None)
@given(formers(), sequences())
def test_every_sequence_finishes_and_no_token_or_block_is_lost(rule: BatchFormer, arrivals: Any) -> None:
    run = Run(rule, arrivals).serve()
    run.check_blocks()
    assert {s.id for s in run._known} == {s.id for s in run.done}
    assert run.computed == sum(s.prompt_tokens + s.output_tokens - 1 for s in run.done) - run.hit + run.lost
    assert rule.blocks.used_blocks == rule.blocks.host.pinned_blocks == rule._reserved_blocks == 0
    if not rule.blocks.host.num_blocks:
        assert run.moved == 0
    if not rule.blocks.prefix_unit_tokens:
        assert run.hit == 0


@settings(max_examples=60, deadline=None)
@given(formers(), sequences(), st.integers(1, 3))
def test_vtc_counters_of_tenants_that_wait_stay_together(like: BatchFormer, arrivals: Any, tenants: int) -> None:
    """Within one longest prompt and the outputs that may be under way at once, however long all of them wait."""
    queue = VtcQueue()
    for _, sequence in arrivals:
        sequence.tenant %= tenants
    bound = 60 + 2 * like.max_num_seqs * 25

    def check(run: Run, _: Step) -> None:
        counters = [queue.counter(s.tenant) for s in run.waiting]
        assert max(counters, default=0) - min(counters, default=0) <= bound

    Run(ordered_as(like, queue), arrivals).serve(check)


@settings(max_examples=60, deadline=None)
@given(formers(), sequences(), st.sampled_from([1, 4, 30]))
def test_mlfq_levels_only_rise(like: BatchFormer, arrivals: Any, quantum: int) -> None:
    levels: dict[int, int] = {}

    def check(run: Run, _: Step) -> None:
        for sequence in run._known:
            assert sequence.level >= levels.get(sequence.id, 0)
            assert quantum << sequence.level >= sequence.prompt_tokens
            levels[sequence.id] = sequence.level
            assert sequence.level_tokens < quantum << sequence.level

    Run(ordered_as(like, MlfqQueue(quantum)), arrivals).serve(check)


@settings(max_examples=60, deadline=None)
@given(formers(), sequences())
def test_nobody_is_overtaken_under_fcfs(like: BatchFormer, arrivals: Any) -> None:
    begun: list[int] = []

    def check(run: Run, step: Step) -> None:
        begun.extend(c.sequence.id for c in step.chunks if c.sequence.id not in begun)
        assert [s.number for s in run.rule.running] == sorted(s.number for s in run.rule.running)

    run = Run(ordered_as(like, make_queue("fcfs")), arrivals).serve(check)
    assert begun == [s.id for s in run._known]


def ordered_as(like: BatchFormer, queue: Queue) -> BatchFormer:
    """The same rules under another order of service."""
    return BatchFormer(
        like.blocks,
        max_num_seqs=like.max_num_seqs,
        max_num_batched_tokens=like.max_num_batched_tokens,
        policy=like.policy,
        order=queue,
        preemption=like.preemption,
        batch_wait_steps=like.batch_wait_steps,
        output_reserve=like.output_reserve,
        max_waiting_tokens=like.max_waiting_tokens,
        draft_tokens=like.draft_tokens,
    )
