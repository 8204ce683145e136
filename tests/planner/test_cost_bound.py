"""`optimistic_request_s` against random schedules: no schedule may spend less than the sum of the bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.bound import optimistic_request_s, optimistic_work_s
from planner.cost.pieces import ChunkTable, DecodeTable
from planner.cost.step_times import StepTimes

BUDGET, ROWS = 24, 6
SECONDS = st.floats(0.0, 2.0)


def knots(draw: st.DrawFn, first: int, last: int) -> np.ndarray:
    between = draw(st.lists(st.integers(first + 1, last - 1), max_size=3, unique=True))
    return np.array(sorted([first, *between, last]), np.float64)


def table_of(draw: st.DrawFn, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    size = len(rows) * len(columns)
    values = draw(st.lists(SECONDS, min_size=size, max_size=size))
    return np.array(values).reshape(len(rows), len(columns))


@st.composite
def decode_tables(draw: st.DrawFn) -> DecodeTable | None:
    if draw(st.booleans()):
        return None
    sequences, keys = knots(draw, 1, ROWS), knots(draw, 1, 30)
    return DecodeTable(sequences, keys, table_of(draw, sequences, keys))


@st.composite
def chunk_tables(draw: st.DrawFn) -> ChunkTable | None:
    if draw(st.booleans()):
        return None
    new, cached = knots(draw, 1, BUDGET), knots(draw, 0, 30)
    return ChunkTable(new, cached, table_of(draw, new, cached))


@st.composite
def step_times(draw: st.DrawFn) -> StepTimes:
    """Any tables at all, not even monotone ones, and any slopes."""
    tokens = draw(st.lists(st.floats(0.01, 5.0), min_size=BUDGET, max_size=BUDGET))
    rows = draw(st.lists(st.floats(0.0, 5.0), min_size=ROWS, max_size=ROWS))
    return StepTimes(
        tokens_s=(0.0, *tokens),
        sampled_s=(0.0, *rows),
        sequence_s=draw(SECONDS),
        decode_launch_s=draw(SECONDS),
        decode_context_token_s=draw(SECONDS),
        decode_window_token_s=draw(SECONDS),
        window_tokens=draw(st.none() | st.integers(1, 30)),
        prefill_launch_s=draw(SECONDS),
        prefill_pair_s=draw(SECONDS),
        prefill_window_pair_s=draw(SECONDS),
        prefill_context_token_s=draw(SECONDS),
        request_s=0.0,
        lanes=draw(st.integers(1, 3)),
        decode_table=draw(decode_tables()),
        decode_window_table=draw(decode_tables()),
        chunk_table=draw(chunk_tables()),
        prefill_step_s=draw(SECONDS),
    )


def run_schedule(times: StepTimes, requests: list[tuple[int, int]], data: st.DataObject) -> float:
    """Step-seconds of one schedule: in each step hypothesis picks who computes, and how much of a prompt."""
    done = [0] * len(requests)  # tokens computed
    total = 0.0
    window = times.window_tokens
    while any(done[i] < prompt + output - 1 for i, (prompt, output) in enumerate(requests)):
        active = [i for i, (prompt, output) in enumerate(requests) if done[i] < prompt + output - 1]
        chosen = data.draw(st.lists(st.sampled_from(active), min_size=1, max_size=ROWS, unique=True))
        tokens = sampled = decodes = context = seen = 0
        chunks: list[tuple[int, int]] = []
        for i in chosen:
            prompt, _ = requests[i]
            room = BUDGET - tokens
            if not room:
                break
            if done[i] >= prompt:
                new = 1
                decodes, context = decodes + 1, context + done[i] + 1
                seen += min(done[i] + 1, window) if window is not None else 0
                sampled += 1
            else:
                new = data.draw(st.integers(1, min(room, prompt - done[i])))
                chunks.append((new, done[i]))
                sampled += done[i] + new == prompt
            tokens += new
            done[i] += new
        total += times.step_s(tokens, sampled, len(chunks) + decodes, decodes, context, seen, chunks)
    return total


@settings(max_examples=300, deadline=None)
@given(times=step_times(), data=st.data())
def test_no_schedule_needs_less(times: StepTimes, data: st.DataObject) -> None:
    requests = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 8)), min_size=1, max_size=5))
    spent = run_schedule(times, requests, data)
    bound = sum(optimistic_request_s(times, prompt, output) for prompt, output in requests)
    assert bound * times.lanes <= spent * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(times=step_times(), requests=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), max_size=5))
def test_many_requests_at_once_cost_the_sum(times: StepTimes, requests: list[tuple[int, int]]) -> None:
    prompts, outputs = (np.array([request[i] for request in requests], dtype=np.int64) for i in (0, 1))
    one_by_one = sum(optimistic_request_s(times, prompt, output) for prompt, output in requests)
    assert optimistic_work_s(times, prompts, outputs) == pytest.approx(one_by_one)


def test_one_request_by_hand() -> None:
    """Prompt of 3, 2 tokens out: tokens cost 1 s each, rows 2 s, context 0.1 s, pairs 0.01 s."""
    times = StepTimes(
        tokens_s=(0.0, 1.0, 2.0, 3.0),
        sampled_s=(0.0, 2.0),
        sequence_s=0.5,
        decode_launch_s=0.25,
        decode_context_token_s=0.1,
        decode_window_token_s=0.0,
        window_tokens=None,
        prefill_launch_s=0.125,
        prefill_pair_s=0.01,
        prefill_window_pair_s=0.0,
        prefill_context_token_s=9.0,
        request_s=7.0,
        lanes=1,
    )
    by_hand = 4 * 1.0 + 2 * 2.0 + 2 * 0.5 + 0.25 + 0.1 * 4 + 0.125 + 0.01 * 6
    assert optimistic_request_s(times, 3, 2) == pytest.approx(by_hand)
    prefill = times.step_s(3, 1, 1, 0, 0, 0, [(3, 0)])
    decode = times.step_s(1, 1, 1, 1, 4, 0, [])
    assert optimistic_request_s(times, 3, 2) == pytest.approx(prefill + decode)  # alone, the bound is tight
