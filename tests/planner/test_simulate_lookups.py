"""Step times as the fast path reads them: not near what `StepTimes` says, but the same bits (pipelines break ties)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost_bound import BUDGET, ROWS, step_times

from planner.cost.step_times import StepTimes
from planner.simulate.lookups import chunk_seconds, decode_seconds


@settings(max_examples=200, deadline=None)
@given(step_times(), st.integers(1, ROWS), st.integers(0, 300), st.integers(0, 300))
def test_decodes(times: StepTimes, decodes: int, context: int, window: int) -> None:
    seconds = decode_seconds(times)
    for _ in range(2):  # found out, and remembered
        assert seconds(decodes, context, window) == times.decode_s(decodes, context, window)


@settings(max_examples=200, deadline=None)
@given(step_times(), st.lists(st.tuples(st.integers(1, 2 * BUDGET), st.integers(0, 60)), min_size=1))
def test_chunks(times: StepTimes, chunks: list[tuple[int, int]]) -> None:
    seconds = chunk_seconds(times)
    for new, cached in [*chunks, *chunks]:
        assert seconds(new, cached) == times.chunk_s(new, cached)
