"""Rules of service: hand-worked steps, and laws that must hold for every run."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specs.service import (
    BatchFormer,
    BlockManager,
    ClassSplit,
    FcfsQueue,
    LeastOutstanding,
    Rejection,
    RequestKey,
    RoundRobin,
    Sequence,
    Status,
    Step,
    View,
    blocks_for,
    may_ever_run,
)


def former(
    blocks: int = 100, size: int = 16, seats: int = 8, budget: int = 10, policy: str = "mixed_chunked"
) -> BatchFormer:
    return BatchFormer(
        BlockManager(blocks, size),
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        policy=policy,  # type: ignore[arg-type]
    )


def shape(step: Step | None) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Ids that decode, and (id, start, tokens) of chunks."""
    assert step is not None
    return [s.id for s in step.decodes], [(c.sequence.id, c.start, c.tokens) for c in step.chunks]


def test_prompt_longer_than_the_budget_is_chunked_and_decodes_come_first() -> None:
    rule = former(budget=10)
    rule.add(Sequence(0, 4))
    step = rule.form()
    assert shape(step) == ([], [(0, 0, 4)])
    assert step is not None
    assert [s.id for s in rule.complete(step)] == [0]
    rule.add(Sequence(1, 20))
    rule.add(Sequence(2, 3))
    seen = []
    for _ in range(3):
        step = rule.form()
        assert step is not None
        seen.append(shape(step))
        rule.complete(step)
    assert seen == [
        ([0], [(1, 0, 9)]),
        ([0], [(1, 9, 9)]),
        ([0], [(1, 18, 2), (2, 0, 3)]),
    ]
    assert shape(rule.form()) == ([0, 1, 2], [])


def test_chunk_that_ends_exactly_at_the_budget_samples_in_that_step() -> None:
    rule = former(budget=10)
    rule.add(Sequence(0, 20))
    first, second = rule.form(), None
    assert first is not None
    assert rule.complete(first) == []
    second = rule.form()
    assert second is not None
    assert [s.id for s in rule.complete(second)] == [0]
    assert rule.running[0].computed_tokens == 20
    assert rule.running[0].generated_tokens == 1


def test_prefill_first_never_mixes() -> None:
    rule = former(budget=10, policy="prefill_first")
    rule.add(Sequence(0, 4))
    step = rule.form()
    assert step is not None
    rule.complete(step)
    rule.add(Sequence(1, 12))
    seen = []
    for _ in range(3):
        step = rule.form()
        assert step is not None
        seen.append(shape(step))
        rule.complete(step)
    assert seen == [([], [(1, 0, 10)]), ([], [(1, 10, 2)]), ([0, 1], [])]


def test_preemption_takes_the_youngest_and_recomputes_prompt_and_generated_tokens() -> None:
    rule = former(blocks=4, size=4, budget=16)
    for index in range(2):
        rule.add(Sequence(index, 7))  # two blocks each: the cache is full after the prefill
    for _ in range(2):  # prefill, then one decode that fills both second blocks
        step = rule.form()
        assert step is not None
        rule.complete(step)
    assert rule.blocks.free_blocks == 0
    step = rule.form()  # both need a third block
    assert step is not None
    assert shape(step) == ([0], [])
    assert [s.id for s in step.preempted] == [1]
    rule.complete(step)
    head = rule.waiting.head()
    assert head is not None
    assert (head.id, head.computed_tokens, head.generated_tokens, head.blocks) == (1, 0, 2, [])
    assert head.status is Status.WAITING
    rule.finish(rule.running[0])
    assert shape(rule.form()) == ([], [(1, 0, 9)])  # 7 of the prompt and 2 generated


def test_nothing_is_admitted_in_a_step_that_preempted_and_nobody_overtakes() -> None:
    rule = former(blocks=4, size=4, budget=16)
    for index in range(2):
        rule.add(Sequence(index, 7))
    for _ in range(2):
        step = rule.form()
        assert step is not None
        rule.complete(step)
    rule.add(Sequence(2, 1))
    step = rule.form()  # the victim freed two blocks, of which the older one took one
    assert shape(step) == ([0], [])
    assert step is not None
    rule.complete(step)
    # now the victim stands in front; it needs nine tokens, three blocks: nothing may pass it
    assert shape(rule.form()) == ([0], [])


def test_seats_limit_running_sequences() -> None:
    rule = former(seats=2, budget=10)
    for index in range(3):
        rule.add(Sequence(index, 1))
    assert shape(rule.form()) == ([], [(0, 0, 1), (1, 0, 1)])


def test_budget_below_seats_is_refused() -> None:
    with pytest.raises(ValueError, match="starve"):
        former(seats=11, budget=10)


def test_finish_of_a_waiting_sequence_forgets_it() -> None:
    rule = former()
    sequence = Sequence(0, 5)
    rule.add(sequence)
    rule.finish(sequence)
    assert rule.form() is None


@pytest.mark.parametrize(
    ("prompt", "output", "expected"),
    [
        (60, 40, None),
        (60, 41, Rejection.TOO_LONG),
        (79, 2, None),  # the last token generated is never cached: 80 tokens, 5 blocks
        (80, 2, Rejection.TOO_LARGE_FOR_CACHE),
    ],
)
def test_admission_at_its_borders(prompt: int, output: int, expected: Rejection | None) -> None:
    length, blocks = (100, 100) if prompt == 60 else (1000, 5)
    assert may_ever_run(prompt, output, max_model_len=length, num_blocks=blocks, block_size_tokens=16) == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 90)), max_size=80), st.integers(1, 12))
def test_blocks_are_never_shared_nor_lost(moves: list[tuple[int, int]], num_blocks: int) -> None:
    manager = BlockManager(num_blocks, 16)
    sequences = [Sequence(index, 1) for index in range(6)]
    for index, tokens in moves:
        sequence = sequences[index]
        before = list(sequence.blocks)
        if tokens == 0:
            manager.free(sequence)
            assert sequence.blocks == []
        elif manager.grow(sequence, tokens):
            assert sequence.blocks[: len(before)] == before
            assert len(sequence.blocks) == max(len(before), blocks_for(tokens, 16))
        else:
            assert sequence.blocks == before
            assert blocks_for(tokens, 16) - len(before) > manager.free_blocks
        owned = [block for sequence in sequences for block in sequence.blocks]
        assert len(set(owned)) == len(owned) == manager.used_blocks
        assert set(owned) <= set(range(num_blocks))
    for sequence in sequences:
        manager.free(sequence)
    assert manager.free_blocks == num_blocks


@settings(max_examples=120, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 30), st.integers(0, 20)), min_size=1, max_size=20),
    blocks=st.integers(1, 14),
    size=st.sampled_from([1, 4, 16]),
    seats=st.integers(1, 6),
    spare=st.integers(0, 40),
    policy=st.sampled_from(["mixed_chunked", "prefill_first"]),
)
def test_every_admitted_sequence_finishes_within_all_limits(
    requests: list[tuple[int, int, int]], blocks: int, size: int, seats: int, spare: int, policy: str
) -> None:
    rule = former(blocks, size, seats, seats + spare, policy)
    targets: dict[int, int] = {}
    arrivals: list[tuple[int, Sequence]] = []
    for index, (prompt, output, at) in enumerate(sorted(requests, key=lambda request: request[2])):
        if may_ever_run(prompt, output, max_model_len=10**6, num_blocks=blocks, block_size_tokens=size) is None:
            targets[index] = output
            arrivals.append((at, Sequence(index, prompt)))
    alive = [sequence for _, sequence in arrivals]
    computed = wasted = 0
    first_admissions: list[int] = []
    step_number = 0
    while alive:
        while arrivals and arrivals[0][0] <= step_number:
            rule.add(arrivals.pop(0)[1])
        step_number += 1
        assert step_number < 20_000, "no progress"
        cached = {s.id: s.computed_tokens for s in rule.running}
        step = rule.form()
        if step is None:
            assert not rule.running
            assert len(rule.waiting) == 0
            continue
        # limits
        assert 1 <= step.tokens <= rule.max_num_batched_tokens
        assert len(rule.running) <= seats
        assert policy == "mixed_chunked" or not (step.decodes and step.chunks)
        owned = [block for sequence in rule.running for block in sequence.blocks]
        assert len(set(owned)) == len(owned) == rule.blocks.used_blocks
        # order: running is by age, admissions are first come first served, chunks continue where they stopped
        assert [s.id for s in rule.running] == sorted(s.id for s in rule.running)
        assert len(step.preempted) == 0 or not step.chunks
        for chunk in step.chunks:
            assert chunk.start == chunk.sequence.computed_tokens
            if chunk.start == 0 and chunk.sequence.preemptions == 0:
                first_admissions.append(chunk.sequence.id)
        computed += step.tokens
        wasted += sum(cached[s.id] for s in step.preempted)
        for sequence in rule.complete(step):
            assert sequence.computed_tokens == sequence.total_tokens - 1
            if sequence.generated_tokens == targets[sequence.id]:
                rule.finish(sequence)
                alive.remove(sequence)
        for sequence in rule.running:
            assert len(sequence.blocks) == blocks_for(sequence.computed_tokens, size)
    assert first_admissions == sorted(targets)
    ordered = sorted(requests, key=lambda request: request[2])
    assert computed == wasted + sum(ordered[index][0] + output - 1 for index, output in targets.items())
    assert rule.blocks.used_blocks == 0
    assert not rule.running


def test_fcfs_queue_returns_preempted_ones_first() -> None:
    queue = FcfsQueue()
    first, second, third = (Sequence(index, 1) for index in range(3))
    queue.push(second)
    queue.push(third)
    queue.requeue(first)
    assert [queue.pop().id for _ in range(3)] == [0, 1, 2]
    assert not queue.remove(first)


def test_routers() -> None:
    key = RequestKey(0)
    least = LeastOutstanding()
    assert [least.choose(View(load, [], range(len(load))), key) for load in ([2, 1, 1], [0, 0], [3])] == [1, 0, 0]
    turn = RoundRobin()
    assert [turn.choose(View([9, 0, 0], [], range(3)), key) for _ in range(4)] == [0, 1, 2, 0]
    split = ClassSplit([4, 7], [0.75, 0.25])
    assert [split.next() for _ in range(8)] == [4, 4, 7, 4, 4, 4, 7, 4]  # ties go to the first


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5), st.integers(1, 300))
def test_class_split_follows_its_shares(shares: list[float], count: int) -> None:
    split = ClassSplit(range(len(shares)), shares)
    sent = Counter(split.next() for _ in range(count))
    for group, share in enumerate(shares):
        assert abs(sent[group] - count * share / sum(shares)) < max(1, len(shares) - 1) + 1e-6


@pytest.mark.parametrize("shares", [[], [0.0], [-1.0, 2.0]])
def test_class_split_refuses_shares_that_are_none(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="do not split"):
        ClassSplit(range(len(shares)), shares)
