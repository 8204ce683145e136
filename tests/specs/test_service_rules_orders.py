"""Orders of service, and the other rules of admission: worked by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from specs.service import BatchFormer, BlockManager, Queue, Rejection, Sequence, Step, accepted_tokens, make_queue
from specs.service.mlfq import MlfqQueue
from specs.service.vtc import VtcQueue


def former(blocks: int = 100, size: int = 4, seats: int = 2, budget: int = 20, **rules: object) -> BatchFormer:
    order = rules.pop("order", "fcfs")
    queue = make_queue(order, mlfq_quantum_tokens=8)  # type: ignore[arg-type]
    return BatchFormer(
        BlockManager(blocks, size),
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        order=queue,
        **rules,  # type: ignore[arg-type]
    )


def step(rule: BatchFormer) -> Step:
    formed = rule.form()
    assert formed is not None
    rule.complete(formed)
    return formed


def shape(formed: Step | None) -> tuple[list[int], list[tuple[int, int, int]]]:
    assert formed is not None
    return [s.id for s in formed.decodes], [(c.sequence.id, c.start, c.tokens) for c in formed.chunks]


def drained(queue: Queue) -> list[int]:
    return [queue.pop().id for _ in range(len(queue))]


# ---------------------------------------------------------------------------------------------------------- policies


def test_decode_first_takes_prompts_only_while_nothing_decodes() -> None:
    rule = former(policy="decode_first")
    first = Sequence(0, 4)
    rule.add(first)
    assert shape(step(rule)) == ([], [(0, 0, 4)])
    rule.add(Sequence(1, 30))
    assert shape(step(rule)) == ([0], [])
    assert shape(step(rule)) == ([0], [])
    rule.finish(first)
    assert shape(step(rule)) == ([], [(1, 0, 20)])
    rule.add(Sequence(2, 5))
    assert shape(step(rule)) == ([], [(1, 20, 10), (2, 0, 5)])
    assert shape(step(rule)) == ([1, 2], [])


def test_prefill_first_goes_on_with_a_prompt_for_which_the_last_decode_gave_way() -> None:
    """A prompt of higher rank finds no block, and the only decode needs one as well: it is the one that gives way."""
    rule = former(blocks=4, seats=3, budget=8, order="priority", policy="prefill_first")
    rule.add(Sequence(0, 7, priority=1))
    step(rule)  # two blocks
    rule.add(Sequence(1, 15, priority=0))
    assert shape(step(rule)) == ([], [(1, 0, 8)])  # two blocks
    assert shape(step(rule)) == ([0], [])  # the eighth token of its second block
    formed = step(rule)
    assert ([s.id for s in formed.preempted], shape(formed)) == ([0], ([], [(1, 8, 7)]))


# ------------------------------------------------------------------------------------------------- orders of service


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("fcfs", [0, 1, 2, 3]),
        ("priority", [3, 1, 2, 0]),
        ("edf", [2, 0, 1, 3]),
        ("sjf", [1, 2, 3, 0]),
        ("srpt", [1, 2, 3, 0]),
    ],
)
def test_who_goes_first(order: str, expected: list[int]) -> None:
    queue = make_queue(order)  # type: ignore[arg-type]
    queue.push(Sequence(0, 50, priority=2, deadline_s=3.0, predicted_tokens=9))
    queue.push(Sequence(1, 2, priority=1, deadline_s=3.0, predicted_tokens=3))
    queue.push(Sequence(2, 3, priority=1, deadline_s=1.0, predicted_tokens=4))
    queue.push(Sequence(3, 4, priority=0, predicted_tokens=3))  # no deadline
    assert queue.waiting_tokens == 59
    assert drained(queue) == expected
    assert (queue.waiting_tokens, queue.head()) == (0, None)


@pytest.mark.parametrize("order", ["fcfs", "priority", "edf", "sjf", "srpt", "mlfq", "vtc"])
def test_a_queue_forgets_who_is_removed_and_takes_back_who_was_preempted(order: str) -> None:
    queue = make_queue(order)  # type: ignore[arg-type]
    first, second, third = (Sequence(index, 5) for index in range(3))
    for sequence in (first, second, third):
        queue.push(sequence)
    assert queue.remove(second)
    assert not queue.remove(second)
    assert (len(queue), queue.waiting_tokens) == (2, 10)
    assert queue.pop() is first
    queue.requeue(first)
    assert queue.before(first, third)
    assert not queue.before(third, first)
    assert drained(queue) == [0, 2]


def test_the_victim_of_a_shortage_is_the_last_by_the_order_not_the_youngest() -> None:
    rule = former(blocks=4, order="priority")
    rule.add(Sequence(0, 7, priority=5))
    step(rule)
    rule.add(Sequence(1, 6, priority=1))  # four blocks are taken
    assert shape(step(rule)) == ([0], [(1, 0, 6)])
    formed = step(rule)  # the first needs a third block; it runs, but comes last
    assert ([s.id for s in formed.preempted], shape(formed)) == ([0], ([1], []))


def test_nothing_is_admitted_in_a_step_that_ran_out_of_blocks_whoever_comes_first() -> None:
    rule = former(blocks=5, order="priority", seats=4)
    rule.add(Sequence(0, 7, priority=1))
    rule.add(Sequence(1, 11, priority=5))
    step(rule)  # all five blocks
    rule.add(Sequence(2, 5, priority=0))
    assert shape(step(rule)) == ([0, 1], [])
    formed = step(rule)  # three blocks become free, of which the first takes one; two would do for the newcomer
    assert ([s.id for s in formed.preempted], shape(formed)) == ([1], ([0], []))
    assert shape(step(rule)) == ([0], [(2, 0, 5)])


def test_priority_does_not_preempt_for_a_seat_and_srpt_does() -> None:
    for order, expected in (("priority", []), ("srpt", [0])):
        rule = former(order=order, seats=1)
        rule.add(Sequence(0, 4, predicted_tokens=30, priority=1))
        step(rule)
        rule.add(Sequence(1, 4, predicted_tokens=2, priority=0))
        formed = step(rule)
        assert [s.id for s in formed.preempted] == expected


@pytest.mark.parametrize("policy", ["mixed_chunked", "prefill_first", "decode_first"])
def test_a_short_prompt_goes_before_the_rest_of_a_long_one_under_srpt_only(policy: str) -> None:
    for order, expected in (("srpt", [(1, 0, 5), (0, 20, 15)]), ("sjf", [(0, 20, 20)])):
        rule = former(order=order, seats=4, budget=20, policy=policy)
        rule.add(Sequence(0, 80, predicted_tokens=9))
        step(rule)
        rule.add(Sequence(1, 5, predicted_tokens=9))
        assert shape(step(rule)) == ([], expected), order
        assert not rule.running[0].preemptions


@pytest.mark.parametrize("policy", ["mixed_chunked", "prefill_first", "decode_first"])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_two_prompts_that_hold_all_blocks_between_them_both_finish(policy: str, preemption: str) -> None:
    rule = former(blocks=25, order="srpt", seats=4, budget=20, policy=policy, preemption=preemption)
    rule.add(Sequence(0, 96, predicted_tokens=60))
    for _ in range(3):
        step(rule)
    rule.add(Sequence(1, 90, predicted_tokens=1))
    finished: list[int] = []
    while len(finished) < 2:
        for sequence in rule.complete(rule.form()):  # type: ignore[arg-type]
            rule.finish(sequence)
            finished.append(sequence.id)
    assert finished == [1, 0]
    assert rule.blocks.free_blocks == 25


def test_srpt_counts_what_is_left_not_what_was_asked() -> None:
    """After six decodes one token is left and a known one: less than the four of the newcomer."""
    rule = former(order="srpt", seats=1)
    rule.add(Sequence(0, 10, predicted_tokens=8))
    for _ in range(7):
        step(rule)
    rule.add(Sequence(1, 2, predicted_tokens=2))
    assert shape(step(rule)) == ([0], [])


def test_the_head_pushes_out_as_many_as_its_first_chunk_needs() -> None:
    rule = former(blocks=6, order="srpt", seats=4)
    for index, size in enumerate((7, 3, 3)):
        rule.add(Sequence(index, size, predicted_tokens=50 - index))
    step(rule)  # 2 + 1 + 1 blocks: two are free
    rule.add(Sequence(3, 13, predicted_tokens=1))  # four blocks
    formed = step(rule)
    assert [s.id for s in formed.preempted] == [0]  # two blocks; the others have less left
    assert shape(formed) == ([2, 1], [(3, 0, 13)])
    assert rule.blocks.free_blocks == 0


def test_who_gave_way_is_not_admitted_again_in_that_step() -> None:
    """Its first chunk would fit into the budget that is left, but not what it computes later."""
    rule = former(blocks=5, order="srpt", seats=3, budget=8)
    rule.add(Sequence(0, 15, predicted_tokens=60))
    step(rule)
    step(rule)  # four blocks
    rule.add(Sequence(1, 7, predicted_tokens=1))  # needs two
    formed = step(rule)
    assert ([s.id for s in formed.preempted], shape(formed)) == ([0], ([], [(1, 0, 7)]))


def test_mlfq_joins_where_the_prompt_fits_and_falls_when_a_quantum_is_used() -> None:
    rule = former(order="mlfq", seats=1)  # quanta of 8, 16, 32, ...
    long, short = Sequence(0, 17), Sequence(1, 5)
    rule.add(long)
    step(rule)
    assert (long.level, long.level_tokens) == (2, 18)
    rule.add(short)
    assert short.level == 0
    formed = step(rule)  # level 0 preempts level 2
    assert ([s.id for s in formed.preempted], shape(formed)) == ([0], ([], [(1, 0, 5)]))
    assert (short.level, short.level_tokens) == (0, 6)
    for _ in range(2):
        assert shape(step(rule)) == ([1], [])
    assert (short.level, short.level_tokens) == (1, 0)  # 5 and 3 are 8
    for _ in range(16):
        assert shape(step(rule)) == ([1], [])
    assert short.level == 2  # behind the other, who came to this level before
    assert shape(step(rule)) == ([], [(0, 0, 18)])


def test_mlfq_places_those_of_one_level_as_they_came_to_it() -> None:
    queue = MlfqQueue(8)
    first, second = Sequence(0, 3), Sequence(1, 3)
    queue.push(first)
    queue.push(second)
    queue.served(second, 3, 5)
    queue.served(first, 3, 5)
    assert (first.level, second.level) == (1, 1)
    assert queue.before(second, first)


def test_vtc_serves_the_waiting_tenant_with_the_smallest_counter() -> None:
    queue = VtcQueue()
    for index, (tenant, prompt) in enumerate(((0, 10), (0, 10), (1, 4), (1, 4), (1, 4))):
        queue.push(Sequence(index, prompt, tenant=tenant))
    assert queue.pop().id == 0  # both at 0: who came first
    assert queue.pop().id == 2  # 10 against 0
    assert queue.pop().id == 3  # 10 against 4
    queue.served(Sequence(9, 1, tenant=1), 4, 2)
    assert (queue.counter(0), queue.counter(1)) == (10, 12)
    assert queue.pop().id == 1
    assert (queue.counter(0), queue.counter(1)) == (20, 12)


def test_vtc_lifts_who_was_idle_to_who_waits_or_to_the_last_who_did() -> None:
    queue = VtcQueue()
    queue.push(Sequence(0, 10, tenant=0))
    queue.push(Sequence(1, 30, tenant=0))
    queue.pop()
    queue.push(Sequence(2, 5, tenant=1))
    assert queue.counter(1) == 10  # not 0: tenant 1 saved nothing up
    queue.pop()
    assert (queue.counter(0), queue.counter(1)) == (40, 10)
    queue.pop()
    queue.push(Sequence(3, 1, tenant=2))  # nobody waits; tenant 1 was the last
    assert queue.counter(2) == 15
    queue.push(Sequence(4, 1, tenant=0))
    assert queue.counter(0) == 40  # never lowered


def test_vtc_does_not_charge_a_prompt_twice() -> None:
    queue = VtcQueue()
    sequence = Sequence(0, 10)
    queue.push(sequence)
    queue.pop()
    sequence.preemptions = 1
    queue.requeue(sequence)
    queue.pop()
    assert queue.counter(0) == 10


# ---------------------------------------------------------------------------------------------------------- the door


def test_a_prompt_is_refused_when_too_many_tokens_wait_already() -> None:
    rule = former(max_waiting_tokens=10)
    assert rule.add(Sequence(0, 50)) is None  # nothing waits: whatever its length
    assert rule.add(Sequence(1, 1)) is Rejection.QUEUE_FULL
    step(rule)  # admitted: nothing waits
    assert rule.add(Sequence(2, 6)) is None
    assert rule.add(Sequence(3, 5)) is Rejection.QUEUE_FULL
    assert rule.add(Sequence(4, 4)) is None
    assert len(rule.waiting) == 2


# --------------------------------------------------------------------------------------------- batch wait, reserve


def test_prompts_wait_for_company_while_others_decode() -> None:
    rule = former(seats=6, batch_wait_steps=3)
    rule.add(Sequence(0, 4))
    assert shape(step(rule)) == ([], [(0, 0, 4)])  # nothing decodes: it does not wait
    rule.add(Sequence(1, 5))
    assert shape(step(rule)) == ([0], [])
    rule.add(Sequence(2, 6))  # the wait is that of the first
    assert shape(step(rule)) == ([0], [])
    assert shape(step(rule)) == ([0], [])
    assert shape(step(rule)) == ([0], [(1, 0, 5), (2, 0, 6)])


def test_prompts_that_fill_the_budget_do_not_wait() -> None:
    rule = former(seats=6, batch_wait_steps=3)
    rule.add(Sequence(0, 4))
    step(rule)
    rule.add(Sequence(1, 5))
    assert shape(step(rule)) == ([0], [])
    rule.add(Sequence(2, 15))
    assert shape(step(rule)) == ([0], [(1, 0, 5), (2, 0, 14)])
    rule.add(Sequence(3, 2))  # that a prompt goes on does not help it
    assert shape(step(rule)) == ([0, 1], [(2, 14, 1)])


def test_nobody_gives_way_to_a_head_that_waits_for_company() -> None:
    rule = former(order="srpt", seats=1, batch_wait_steps=1)
    rule.add(Sequence(0, 4, predicted_tokens=30))
    step(rule)
    rule.add(Sequence(1, 4, predicted_tokens=2))
    assert shape(step(rule)) == ([0], [])
    formed = step(rule)
    assert ([s.id for s in formed.preempted], shape(formed)) == ([0], ([], [(1, 0, 4)]))


def test_nobody_overtakes_a_prompt_that_found_no_blocks() -> None:
    """Its next chunk needs two blocks and one is free, which would do for the prompt behind it."""
    rule = former(blocks=5, seats=3, budget=10)
    rule.add(Sequence(0, 5))
    rule.add(Sequence(1, 14))
    assert shape(step(rule)) == ([], [(0, 0, 5), (1, 0, 5)])
    rule.add(Sequence(2, 1))
    assert shape(step(rule)) == ([0], [])
    rule.finish(rule.running[0])
    assert shape(step(rule)) == ([], [(1, 5, 9), (2, 0, 1)])


def test_an_output_reserve_is_kept_free_for_the_running() -> None:
    """Blocks of 4 in a cache of 8: prompt 6 and half of 13 output tokens are 12 tokens, 3 blocks."""
    rule = former(blocks=8, seats=5, output_reserve=0.5)
    for index in range(2):
        rule.add(Sequence(index, 6, output_tokens=13))
    rule.add(Sequence(2, 5, output_tokens=8))  # 9 tokens, 3 blocks
    assert shape(step(rule)) == ([], [(0, 0, 6), (1, 0, 6)])
    rule.finish(rule.running[0])
    assert shape(step(rule)) == ([1], [(2, 0, 5)])


def test_a_reserve_beyond_the_cache_keeps_nobody_out_who_is_alone() -> None:
    rule = former(blocks=3, output_reserve=1.0)
    rule.add(Sequence(0, 6, output_tokens=7))  # 12 tokens enter the cache, the reserve is of 13: four blocks
    assert shape(step(rule)) == ([], [(0, 0, 6)])


# ------------------------------------------------------------------------------------------------------- speculation


def test_a_decode_takes_blocks_and_budget_for_its_drafts_and_keeps_them() -> None:
    rule = former(seats=2, budget=20, draft_tokens=3)
    sequence = Sequence(0, 4, output_tokens=20)
    rule.add(sequence)
    assert step(rule).draft_tokens == 0  # nothing decodes
    rule.add(Sequence(1, 30))
    formed = rule.form()
    assert formed is not None
    assert shape(formed) == ([0], [(1, 0, 16)])
    assert (formed.draft_tokens, formed.decode_tokens, formed.tokens) == (3, 4, 20)
    assert len(sequence.blocks) == 2  # 4 + 1 + 3
    assert [s.id for s in rule.complete(formed, [2])] == [0]
    assert (sequence.computed_tokens, sequence.generated_tokens, len(sequence.blocks)) == (7, 4, 2)


def test_who_goes_on_to_decode_needs_budget_for_its_drafts() -> None:
    """The second has its prompt computed, by a prefill replica; the prompt before it leaves one token of the budget."""
    rule = former(blocks=5, budget=10, draft_tokens=1)
    rule.add(Sequence(0, 9))
    rule.add(Sequence(1, 6, generated_tokens=1, computed_tokens=6))
    assert shape(step(rule)) == ([], [(0, 0, 9)])
    assert shape(step(rule)) == ([0, 1], [])


def test_drafts_beyond_the_end_of_the_output_need_no_blocks() -> None:
    """Prompt and output fill the cache of two blocks; without the limit it would preempt itself for ever."""
    rule = former(blocks=2, draft_tokens=3)
    sequence = Sequence(0, 6, output_tokens=3)
    rule.add(sequence)
    step(rule)
    formed = rule.form()
    assert formed is not None
    rule.complete(formed, [0])
    formed = rule.form()
    assert formed is not None
    rule.complete(formed, [0])
    assert (sequence.generated_tokens, sequence.preemptions) == (3, 0)


def test_seats_that_draft_must_fit_into_the_budget() -> None:
    with pytest.raises(ValueError, match=r"\(2\) x 12 tokens"):
        former(seats=2, budget=20, draft_tokens=11)


def test_acceptance_is_drawn_from_the_request_not_from_the_schedule() -> None:
    draws = {"draft_tokens": 4, "acceptance": 0.6}
    assert accepted_tokens(7, 3, 11, **draws) == accepted_tokens(7, 3, 11, **draws)  # type: ignore[arg-type]
    assert accepted_tokens(0, 0, 1, draft_tokens=4, acceptance=1.0) == 4
    assert accepted_tokens(0, 0, 1, draft_tokens=4, acceptance=0.0) == 0
    count = 20_000
    seen = Counter(accepted_tokens(1, request, 5, **draws) for request in range(count))  # type: ignore[arg-type]
    for accepted in range(5):
        share = sum(seen[more] for more in range(accepted, 5)) / count
        deviation = math.sqrt(0.6**accepted * (1 - 0.6**accepted) / count)
        assert abs(share - 0.6**accepted) <= 4 * deviation
