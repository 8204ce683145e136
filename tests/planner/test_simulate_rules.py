"""The oracle's lane under the rules of service: times, counts and records of steps worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.step_times import StepTimes
from planner.estimate.closed_loop import Rules, run_closed_loop
from planner.simulate.closed_loop import simulate_closed_loop
from planner.simulate.model import Prefixes, ReplicaModel, Workload
from planner.simulate.record import LaneLoad, Outstanding, Record
from planner.simulate.step import StepLane
from specs.plan import Limits, Scheduling, Speculation
from specs.service import accepted_tokens

TIMES = StepTimes(
    tokens_s=tuple(1.0 + 0.1 * n for n in range(101)),
    sampled_s=tuple(0.01 * n for n in range(65)),
    sequence_s=0.0,
    decode_launch_s=0.0,
    decode_context_token_s=0.001,
    decode_window_token_s=0.0,
    window_tokens=None,
    prefill_launch_s=0.0,
    prefill_pair_s=0.0,
    prefill_window_pair_s=0.0,
    prefill_context_token_s=0.002,
    request_s=0.0,
    lanes=1,
    host_token_s=0.5,
)


def replica(seats: int = 8, budget: int = 100, blocks: int = 1000, size: int = 4, **changes: Any) -> ReplicaModel:
    model = {name: changes.pop(name) for name in ("prefix_caching", "host_blocks", "times") if name in changes}
    return ReplicaModel(
        **{"times": TIMES, **model},
        limits=Limits(max_num_seqs=seats, max_num_batched_tokens=budget, max_model_len=10_000),
        num_blocks=blocks,
        block_size_tokens=size,
        scheduling=Scheduling(**changes),
    )


def workload(requests: list[tuple[float, int, int]], **more: Any) -> Workload:
    arrivals, prompts, outputs = zip(*requests, strict=True)
    return Workload(
        ("a",),
        np.zeros(len(requests), np.int64),
        np.array(arrivals, float),
        np.array(prompts),
        np.array(outputs),
        **more,
    )


def prefixes(unit_tokens: int, units: list[list[int]]) -> Prefixes:
    offsets = np.cumsum([0, *(len(own) for own in units)])
    return Prefixes(unit_tokens, offsets, np.array([unit for own in units for unit in own], np.int64))


def run(model: ReplicaModel, load: Workload, seed: int = 0) -> tuple[Record, LaneLoad, Outstanding]:
    """One lane serves the whole workload."""
    record = Record.of(load, 100_000, seed)
    outstanding = Outstanding([len(load)], [[len(load)]])
    lane = StepLane(model, 0, 0, record, outstanding, [])
    for request, now_s in enumerate(load.arrival_s.tolist()):
        lane.advance(now_s)
        lane.arrive(request, now_s)
    lane.advance(math.inf)
    return record, lane.load, outstanding


def test_a_hit_shortens_the_prompt_and_is_counted() -> None:
    """Second request: 12 of its 14 tokens are known, two are computed over them; both sample one token."""
    load = workload([(0.0, 13, 1), (9.0, 14, 1)], prefixes=prefixes(4, [[1, 2, 3], [1, 2, 3]]))
    record, counts, _ = run(replica(prefix_caching=True), load)
    assert record.finish_s == pytest.approx([2.3 + 0.01, 9.0 + 1.2 + 0.01 + 0.002 * 12])
    assert record.cached == [0, 12]
    assert record.start_s == [0.0, 9.0]
    assert (counts.hit_tokens, counts.looked_up_tokens) == (12, 27)


def test_without_prefix_caching_ids_say_nothing() -> None:
    load = workload([(0.0, 13, 1), (9.0, 14, 1)], prefixes=prefixes(4, [[1, 2, 3], [1, 2, 3]]))
    record, counts, _ = run(replica(), load)
    assert record.finish_s[1] == pytest.approx(9.0 + 2.4 + 0.01)
    assert (record.cached, counts.hit_tokens, counts.looked_up_tokens) == ([0, 0], 0, 27)


def test_moves_take_time_in_their_step() -> None:
    """Two prompts of 7 fill 4 blocks. The second is swapped out with 8 tokens, and back when the first has ended."""
    record, counts, _ = run(replica(blocks=4, preemption="swap", host_blocks=2), workload([(0.0, 7, 4), (0.0, 7, 3)]))
    first = 1.0 + 0.1 * 14 + 0.02  # both prompts
    second = 1.0 + 0.2 + 0.02 + 0.001 * 16
    third = 1.0 + 0.1 + 0.01 + 0.001 * 9 + 0.5 * 8  # one is left, the other moves out
    fourth = 1.0 + 0.1 + 0.01 + 0.001 * 10  # the first ends
    fifth = 1.0 + 0.1 + 0.01 + 0.001 * 9 + 0.5 * 8  # the second comes back and ends
    assert record.finish_s == pytest.approx([first + second + third + fourth, first + second + third + fourth + fifth])
    assert (counts.moved_tokens, counts.swaps, counts.preemptions, counts.steps) == (16, 1, 1, 5)
    assert record.preemptions == [0, 1]


def test_drafts_are_computed_sampled_and_read_and_drafting_takes_time() -> None:
    """Every draft is accepted: after its first token 3 a step; the last step yields only what is missing."""
    model = replica(speculation=Speculation(draft_tokens=2, acceptance=1.0, draft_s=0.05))
    record, counts, _ = run(model, workload([(0.0, 10, 6)]))
    prompt = 1.0 + 1.0 + 0.01
    decodes = 2 * (1.0 + 0.3 + 0.03 + 0.05) + 0.001 * (10 + 3) + 0.001 * (13 + 3)
    assert record.first_s[0] == pytest.approx(prompt)
    assert record.finish_s[0] == pytest.approx(prompt + decodes)
    assert counts.steps == 3


def test_steps_of_a_speculating_request_follow_its_draws() -> None:
    model = replica(speculation=Speculation(draft_tokens=3, acceptance=0.7))
    _, counts, _ = run(model, workload([(0.0, 10, 50)]), seed=5)
    generated, steps = 1, 1
    while generated < 50:
        generated += 1 + accepted_tokens(5, 0, generated, draft_tokens=3, acceptance=0.7)
        steps += 1
    assert counts.steps == steps


def test_refused_requests_are_named_and_no_longer_outstanding() -> None:
    """One seat: the first runs when the others come; 8 waiting tokens let in one of two prompts of 5."""
    record, _, outstanding = run(
        replica(seats=1, max_waiting_tokens=8), workload([(0.0, 4, 5), (0.1, 5, 2), (0.2, 5, 2), (0.3, 3, 2)])
    )
    assert record.refused == [2]
    assert math.isnan(record.first_s[2])
    assert sorted(record.finished) == [0, 1, 3]
    assert (outstanding.replicas, outstanding.lanes) == ([0], [[0]])


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("fcfs", [0, 1, 2, 3]),
        ("priority", [0, 3, 1, 2]),
        ("edf", [0, 2, 1, 3]),
        ("sjf", [0, 2, 3, 1]),
        ("vtc", [0, 3, 1, 2]),
    ],
)
def test_the_lane_tells_the_order_of_service_what_the_workload_says(order: str, expected: list[int]) -> None:
    """One seat; three requests come while the first is served."""
    load = workload(
        [(0.0, 9, 2), (0.1, 9, 9), (0.2, 9, 2), (0.3, 9, 3)],
        priority=np.array([0, 2, 2, 1]),
        deadline_s=np.array([9.0, 5.0, 4.0, 6.0]),
        tenants=("x", "y"),
        tenant_index=np.array([0, 0, 0, 1]),
    )
    record, _, _ = run(replica(seats=1, order=order), load)
    assert record.finished == expected


def test_a_length_predictor_is_believed() -> None:
    load = workload([(0.0, 9, 2), (0.1, 9, 2), (0.2, 9, 9)], predicted_tokens=np.array([2, 50, 5]))
    record, _, _ = run(replica(seats=1, order="sjf"), load)
    assert record.finished == [0, 2, 1]


def test_sjf_is_faster_and_vtc_fairer_than_fcfs() -> None:
    """What the orders are for: a flood of long requests before short ones of another tenant."""
    requests = [(0.0, 40, 20)] * 10 + [(0.5, 4, 2)] * 10
    load = workload(requests, tenants=("x", "y"), tenant_index=np.repeat([0, 1], 10))
    mean_s = {}
    for order in ("fcfs", "sjf", "vtc", "srpt", "mlfq"):
        record, _, _ = run(replica(seats=2, order=order, mlfq_quantum_tokens=8), load)
        mean_s[order] = np.mean(record.finish_s[10:])
    assert mean_s["sjf"] < 0.4 * mean_s["fcfs"]
    assert mean_s["vtc"] < 0.4 * mean_s["fcfs"]
    assert mean_s["srpt"] < 0.4 * mean_s["fcfs"]
    assert mean_s["mlfq"] < 0.4 * mean_s["fcfs"]


class LinearStep:
    """The steps of `linear` below, as the estimator of measured engines asks for them."""

    def decode_base_s(self, sequences: int) -> float:
        return 0.010 + 0.001 * sequences

    def attention_s(self, sequences: int, keys: float) -> float:
        return 1e-6 * sequences * keys

    def decode_s(self, sequences: int, keys: float) -> float:
        return self.decode_base_s(sequences) + self.attention_s(sequences, keys)

    def prefill_s(self, decodes: int, keys: float, chunks: list[tuple[int, int]], completing: int) -> float:
        return 0.012 + 0.001 * (decodes + sum(new for new, _ in chunks)) + 1e-6 * decodes * keys


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 60)), min_size=6, max_size=25),
    clients=st.integers(1, 8),
    seats=st.integers(1, 8),
    policy=st.sampled_from(["mixed_chunked", "prefill_first"]),
    wait=st.sampled_from([0, 1, 3, 9]),
    reserve=st.sampled_from([0.0, 1.0]),
)
def test_batch_wait_and_reserve_are_those_of_the_measured_engines(
    lengths: list[tuple[int, int]], clients: int, seats: int, policy: str, wait: int, reserve: float
) -> None:
    """The rules that `planner.estimate` fits to measured engines, written apart from these: the same ends."""
    capacity = 2000 if reserve else 10**6
    prompts, outputs = (np.array(values) for values in zip(*lengths, strict=True))
    linear = replace(
        TIMES,
        tokens_s=tuple(0.010 + 0.001 * n for n in range(513)),
        sampled_s=(0.0,) * 65,
        decode_context_token_s=1e-6,
        prefill_context_token_s=0.0,
        prefill_step_s=0.002,
    )
    rules = Rules(policy, seats, 512, capacity, reserve, 0.0, 0.0, 0.0, wait)  # type: ignore[arg-type]
    expected = run_closed_loop(LinearStep(), rules, clients, prompts.tolist(), outputs.tolist())  # type: ignore[arg-type]
    model = replica(
        seats=seats,
        budget=512,
        blocks=capacity,
        size=1,
        times=linear,
        prefill_policy=policy,
        batch_wait_steps=wait,
        output_reserve=reserve,
    )
    found = simulate_closed_loop(model, clients, prompts, outputs, exact=True)
    assert np.sort(found.sent_s + found.e2e_s) == pytest.approx(np.sort(expected.ended_s), rel=1e-9)


def test_prefix_units_that_are_no_whole_blocks_are_refused() -> None:
    load = workload([(0.0, 13, 1)], prefixes=prefixes(6, [[1, 2]]))
    with pytest.raises(ValueError, match="6 tokens must be whole blocks of 4"):
        run(replica(prefix_caching=True), load)


def test_limits_must_hold_the_drafts() -> None:
    draft = Speculation(draft_tokens=3, acceptance=0.5)
    with pytest.raises(ValueError, match="max_num_seqs x 4 tokens, or decoding sequences starve"):
        replica(seats=8, budget=31, speculation=draft)
    with pytest.raises(ValueError, match="sampled_s ends at 31, below max_num_seqs x 4 tokens"):
        replica(times=replace(TIMES, sampled_s=TIMES.sampled_s[:32]), speculation=draft)


def test_host_blocks_are_shared_out_over_the_lanes() -> None:
    model = replica(seats=6, blocks=30, host_blocks=5, times=replace(TIMES, lanes=3))
    load = workload([(0.0, 1, 1)])
    record, outstanding, clock = Record.of(load, 9), Outstanding.of(1, 3), []
    lanes = [StepLane(model, lane, 0, record, outstanding, clock) for lane in range(3)]
    assert [lane._former.blocks.host.num_blocks for lane in lanes] == [2, 2, 1]


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=20),
    data=st.data(),
)
def test_every_request_ends_or_is_refused_once(requests: list[tuple[float, int, int]], data: st.DataObject) -> None:
    requests.sort()
    units = [data.draw(st.integers(0, 4)) for _ in requests]
    load = workload(requests, prefixes=prefixes(8, [[1, 2, 3, 4][:number] for number in units]))
    draw = data.draw
    drafts = draw(st.none() | st.builds(Speculation, draft_tokens=st.integers(1, 3), acceptance=st.floats(0, 1)))
    model = replica(
        seats=draw(st.integers(1, 8)),
        blocks=draw(st.integers(18, 40)),
        prefix_caching=draw(st.booleans()),
        host_blocks=draw(st.sampled_from([0, 6, 100])),
        order=draw(st.sampled_from(["fcfs", "priority", "edf", "sjf", "srpt", "mlfq", "vtc"])),
        prefill_policy=draw(st.sampled_from(["mixed_chunked", "prefill_first", "decode_first"])),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
        batch_wait_steps=draw(st.sampled_from([0, 4])),
        output_reserve=draw(st.sampled_from([0.0, 0.7])),
        max_waiting_tokens=draw(st.sampled_from([None, 50])),
        speculation=drafts,
    )
    record, counts, outstanding = run(model, load)
    assert sorted(record.finished + record.refused) == list(range(len(requests)))
    assert outstanding.lanes == [[0]]
    first, finish = np.array(record.first_s), np.array(record.finish_s)
    done = np.array(record.finished, np.int64)
    assert (load.arrival_s[done] <= np.array(record.start_s)[done]).all()
    assert (np.array(record.start_s)[done] < first[done]).all()
    assert (first[done] <= finish[done]).all()
    assert (first[done] == finish[done]).tolist() == (load.output_tokens[done] == 1).tolist()
    assert counts.hit_tokens == sum(record.cached)
    assert counts.preemptions == sum(record.preemptions) >= counts.swaps
