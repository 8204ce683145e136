"""Prefix cache, host tier and swapping: worked by hand."""

from __future__ import annotations

import pytest

from specs.service import BatchFormer, BlockManager, Sequence, Status, Step


def former(manager: BlockManager, seats: int = 8, budget: int = 100, **rules: object) -> BatchFormer:
    return BatchFormer(manager, max_num_seqs=seats, max_num_batched_tokens=budget, **rules)  # type: ignore[arg-type]


def step(rule: BatchFormer) -> Step:
    """Form and compute the next step."""
    formed = rule.form()
    assert formed is not None
    rule.complete(formed)
    return formed


def chunks(formed: Step) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.id, chunk.start, chunk.tokens) for chunk in formed.chunks]


def serve(rule: BatchFormer, sequence: Sequence) -> None:
    """Compute the prompt of one sequence and let it go."""
    assert rule.add(sequence) is None
    while sequence.generated_tokens == 0:
        step(rule)
    rule.finish(sequence)


def state(manager: BlockManager) -> tuple[object, ...]:
    """All that a refused admission must not change."""
    cache, host = manager.cache, manager.host
    return (
        list(manager._free),
        dict(cache._blocks),
        dict(cache._holders),
        list(cache._idle),
        list(host._units),
        host.pinned_blocks,
        manager.moved_tokens,
    )


# ------------------------------------------------------------------------------------------------------ prefix cache


def test_a_known_prefix_is_taken_over_and_only_the_rest_is_computed() -> None:
    rule = former(BlockManager(20, 2, prefix_unit_tokens=4))
    serve(rule, Sequence(0, 11, prefix=(70, 71)))
    rule.add(Sequence(1, 13, prefix=(70, 71, 72)))
    formed = rule.form()
    assert formed is not None
    assert chunks(formed) == [(1, 8, 5)]
    assert rule.running[0].cached_tokens == 8
    assert rule.blocks.used_blocks == 7


def test_the_last_token_is_always_computed() -> None:
    rule = former(BlockManager(20, 4, prefix_unit_tokens=4))
    serve(rule, Sequence(0, 8, prefix=(70, 71)))
    rule.add(Sequence(1, 8, prefix=(70, 71)))
    rule.add(Sequence(2, 9, prefix=(70, 71)))
    formed = rule.form()
    assert formed is not None
    assert chunks(formed) == [(1, 4, 4), (2, 8, 1)]


def test_a_run_of_known_units_ends_at_the_first_unknown_one() -> None:
    rule = former(BlockManager(20, 4, prefix_unit_tokens=4))
    serve(rule, Sequence(0, 13, prefix=(70, 71, 72)))
    rule.add(Sequence(1, 13, prefix=(70, 99, 72)))
    formed = rule.form()
    assert formed is not None
    assert chunks(formed) == [(1, 4, 9)]


def test_units_are_known_when_their_step_is_complete_not_before() -> None:
    rule = former(BlockManager(20, 4, prefix_unit_tokens=4), seats=2, budget=6)
    rule.add(Sequence(0, 10, prefix=(70, 71)))
    formed = rule.form()
    assert formed is not None
    assert 70 not in rule.blocks.cache
    rule.complete(formed)  # six tokens: one unit and a half
    assert 70 in rule.blocks.cache
    assert 71 not in rule.blocks.cache
    step(rule)
    assert 71 in rule.blocks.cache


def test_decoded_tokens_become_known_too() -> None:
    rule = former(BlockManager(20, 4, prefix_unit_tokens=4))
    rule.add(Sequence(0, 6, prefix=(70, 71)))
    step(rule)  # 6 in the cache
    step(rule)  # 7
    assert 71 not in rule.blocks.cache
    step(rule)  # 8
    assert 71 in rule.blocks.cache


def test_who_computes_the_same_at_the_same_time_keeps_its_own_copy() -> None:
    rule = former(BlockManager(20, 4, prefix_unit_tokens=4))
    first, second = Sequence(0, 5, prefix=(70,)), Sequence(1, 5, prefix=(70,))
    rule.add(first)
    rule.add(second)
    step(rule)
    assert (first.units, second.units) == ([True], [False])
    assert rule.blocks.used_blocks == 4
    rule.finish(second)
    assert rule.blocks.used_blocks == 2
    rule.finish(first)
    assert (rule.blocks.used_blocks, rule.blocks.idle_blocks, rule.blocks.free_blocks) == (0, 1, 19)


def test_the_least_recently_used_unit_makes_way_and_of_one_sequence_its_last() -> None:
    rule = former(BlockManager(6, 4, prefix_unit_tokens=4))
    serve(rule, Sequence(0, 13, prefix=(70, 71, 72)))
    serve(rule, Sequence(1, 5, prefix=(80,)))
    assert list(rule.blocks.cache._idle) == [72, 71, 70, 80]
    serve(rule, Sequence(2, 6, prefix=(70, 79)))  # uses 70; 79 is not whole
    assert list(rule.blocks.cache._idle) == [72, 71, 80, 70]
    rule.add(Sequence(3, 16))  # four blocks; two are free
    step(rule)
    assert list(rule.blocks.cache._idle) == [80, 70]


def test_a_held_unit_is_never_evicted_and_nothing_changes_when_a_prompt_does_not_fit() -> None:
    manager = BlockManager(6, 4, prefix_unit_tokens=4)
    rule = former(manager)
    serve(rule, Sequence(0, 9, prefix=(70, 71)))
    rule.add(Sequence(1, 9, prefix=(70, 71)))
    step(rule)  # holds both units and a block
    serve_later = Sequence(2, 21, prefix=(70, 71))  # six blocks, of which two are there and three are free
    before = state(manager)
    assert not manager.admit(serve_later, manager.match(serve_later), 21)
    assert state(manager) == before
    assert (serve_later.blocks, serve_later.units) == ([], [])
    assert manager.admit(serve_later, manager.match(serve_later), 20)


def test_idle_units_that_are_hit_are_not_room_for_the_rest() -> None:
    manager = BlockManager(4, 4, prefix_unit_tokens=4)
    rule = former(manager)
    serve(rule, Sequence(0, 9, prefix=(70, 71)))  # two idle, two free
    rule.add(Sequence(1, 4))
    step(rule)  # one free
    asks = Sequence(2, 16, prefix=(70, 71))  # two hits and two blocks more: one is missing
    assert not manager.fits(asks, 2, 16)
    assert manager.fits(asks, 2, 12)


def test_a_preempted_sequence_finds_its_own_units_again() -> None:
    rule = former(BlockManager(5, 4, prefix_unit_tokens=4))
    rule.add(Sequence(0, 8))
    rule.add(Sequence(1, 9, prefix=(70, 71)))
    step(rule)  # 2 + 3 blocks: full
    formed = step(rule)  # the first needs a third block
    assert [s.id for s in formed.preempted] == [1]
    assert list(rule.blocks.cache._idle) == [71, 70]
    rule.finish(rule.running[0])
    formed = step(rule)
    assert chunks(formed) == [(1, 8, 2)]  # nine of the prompt and one generated
    assert rule.running[0].cached_tokens == 0  # at its first admission there was nothing


def test_units_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="whole blocks of 16"):
        BlockManager(10, 16, prefix_unit_tokens=24)
    with pytest.raises(ValueError, match="-1 blocks"):
        BlockManager(10, 16, host_blocks=-1)


# --------------------------------------------------------------------------------------------------------- host tier


def test_evicted_units_go_to_the_host_and_come_back_for_a_move() -> None:
    rule = former(BlockManager(3, 4, prefix_unit_tokens=4, host_blocks=2))
    serve(rule, Sequence(0, 9, prefix=(70, 71)))
    serve(rule, Sequence(1, 12))  # takes all three blocks
    assert list(rule.blocks.host._units) == [71, 70]
    assert rule.blocks.cache.idle_units == 0
    rule.add(Sequence(2, 10, prefix=(70, 71)))
    formed = step(rule)
    assert chunks(formed) == [(2, 8, 2)]
    assert formed.moved_tokens == 8
    assert rule.blocks.host.unit_count == 0  # on the device now, and there only
    assert step(rule).moved_tokens == 0


def test_a_run_goes_on_from_the_device_into_the_host() -> None:
    rule = former(BlockManager(4, 4, prefix_unit_tokens=4, host_blocks=9))
    serve(rule, Sequence(0, 9, prefix=(70, 71)))
    serve(rule, Sequence(1, 12))  # one of its three blocks was the last unit's
    assert (list(rule.blocks.cache._idle), list(rule.blocks.host._units)) == ([70], [71])
    rule.add(Sequence(2, 10, prefix=(70, 71)))
    formed = step(rule)
    assert (chunks(formed), formed.moved_tokens) == ([(2, 8, 2)], 4)


def test_the_oldest_unit_of_a_full_host_is_dropped() -> None:
    rule = former(BlockManager(3, 4, prefix_unit_tokens=4, host_blocks=1))
    serve(rule, Sequence(0, 9, prefix=(70, 71)))
    serve(rule, Sequence(1, 12))
    assert list(rule.blocks.host._units) == [70]


def test_what_comes_back_is_not_pushed_out_by_what_it_displaces() -> None:
    rule = former(BlockManager(3, 4, prefix_unit_tokens=4, host_blocks=2))
    serve(rule, Sequence(0, 9, prefix=(70, 71)))
    serve(rule, Sequence(1, 12, prefix=(80, 81, 82)))  # the host is full of 71, 70
    rule.add(Sequence(2, 9, prefix=(70, 71)))
    formed = step(rule)
    assert (chunks(formed), formed.moved_tokens) == ([(2, 8, 1)], 8)
    assert list(rule.blocks.host._units) == [81, 80]  # 82 went first and was dropped


def test_a_unit_computed_anew_leaves_the_host() -> None:
    rule = former(BlockManager(3, 4, prefix_unit_tokens=4, host_blocks=1))
    serve(rule, Sequence(0, 9, prefix=(70, 71)))
    serve(rule, Sequence(1, 12))
    assert list(rule.blocks.host._units) == [70]  # 71 was dropped
    serve(rule, Sequence(2, 4, prefix=(70,)))  # its last token is in that unit: not a hit
    assert rule.blocks.host.unit_count == 0
    assert 70 in rule.blocks.cache


# ---------------------------------------------------------------------------------------------------------- swapping


def full_cache(**rules: object) -> BatchFormer:
    """Two sequences of 7 + 1 tokens fill 4 blocks of 4; the next step needs two more."""
    host_blocks = rules.pop("host_blocks")
    rule = former(BlockManager(4, 4, host_blocks=host_blocks), budget=16, preemption="swap", **rules)  # type: ignore[arg-type]
    for index in range(2):
        rule.add(Sequence(index, 7, output_tokens=9))
    step(rule)
    step(rule)
    return rule


@pytest.mark.parametrize("policy", ["mixed_chunked", "prefill_first", "decode_first"])
def test_a_swapped_sequence_goes_on_where_it_was_in_the_step_of_its_return(policy: str) -> None:
    rule = full_cache(host_blocks=2, policy=policy)
    formed = step(rule)
    assert ([s.id for s in formed.preempted], formed.moved_tokens) == ([1], 8)
    swapped = formed.preempted[0]
    assert (swapped.computed_tokens, swapped.host_blocks, swapped.blocks) == (8, 2, [])
    assert swapped.status is Status.WAITING
    assert step(rule).moved_tokens == 0  # no room yet: it needs three blocks
    rule.finish(rule.running[0])
    formed = step(rule)
    assert [s.id for s in formed.decodes] == [1]
    assert formed.moved_tokens == 8
    assert (swapped.computed_tokens, swapped.generated_tokens, swapped.host_blocks) == (9, 3, 0)
    assert rule.blocks.host.pinned_blocks == 0


def test_prefill_first_lets_a_swapped_sequence_wait_until_no_prompt_can_go_on() -> None:
    """It stands before the prompts that came later, and goes on in a step of decodes; then they are served."""
    rule = full_cache(host_blocks=2, policy="prefill_first")
    step(rule)
    rule.add(Sequence(2, 3))
    rule.finish(rule.running[0])
    assert [s.id for s in step(rule).decodes] == [1]
    assert chunks(step(rule)) == [(2, 0, 3)]


def test_without_room_in_the_host_tokens_are_computed_anew() -> None:
    rule = full_cache(host_blocks=1)
    formed = step(rule)
    assert formed.moved_tokens == 0
    assert (formed.preempted[0].computed_tokens, formed.preempted[0].host_blocks) == (0, 0)
    rule.finish(rule.running[0])
    assert chunks(step(rule)) == [(1, 0, 9)]


def test_a_swapped_prompt_goes_on_with_its_next_chunk() -> None:
    rule = former(BlockManager(6, 4, host_blocks=9), budget=10, preemption="swap")
    rule.add(Sequence(0, 8))
    rule.add(Sequence(1, 16))
    assert chunks(step(rule)) == [(0, 0, 8), (1, 0, 2)]
    formed = step(rule)  # the first has three blocks and the second three
    assert ([s.id for s in formed.decodes], chunks(formed)) == ([0], [(1, 2, 9)])
    for _ in range(3):
        formed = step(rule)
        assert chunks(formed) == []  # a fourth block is missing; it waits with what it has
    formed = step(rule)
    assert ([s.id for s in formed.preempted], formed.moved_tokens) == ([1], 11)
    rule.finish(rule.running[0])
    formed = step(rule)
    assert (chunks(formed), formed.moved_tokens) == ([(1, 11, 5)], 11)


def test_swapped_sequences_push_cached_units_out_of_the_host() -> None:
    rule = former(BlockManager(5, 4, prefix_unit_tokens=4, host_blocks=3), preemption="swap")
    serve(rule, Sequence(0, 9, prefix=(70, 71)))
    for index in (1, 2):
        rule.add(Sequence(index, 7))  # four blocks; one unit goes to the host
    step(rule)
    assert list(rule.blocks.host._units) == [71]
    step(rule)
    formed = step(rule)  # both need a third block; one idle unit is left, and goes to the host for the first of them
    assert [s.id for s in formed.preempted] == [2]
    assert rule.blocks.host.pinned_blocks == 2
    assert list(rule.blocks.host._units) == [70]


def test_a_client_that_goes_away_frees_its_host_blocks() -> None:
    rule = full_cache(host_blocks=2)
    swapped = step(rule).preempted[0]
    rule.finish(swapped)
    assert rule.blocks.host.pinned_blocks == 0
    assert not rule.waiting
