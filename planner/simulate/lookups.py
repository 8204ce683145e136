"""`StepTimes` as closures over plain lists: the same sums, term by term and so bit by bit, in half of the time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise

from planner.cost.pieces import ChunkTable, Piece
from planner.cost.step_times import StepTimes

DecodeSeconds = Callable[[int, int, int], float]
ChunkSeconds = Callable[[int, int], float]


def decode_seconds(times: StepTimes) -> DecodeSeconds:
    """`StepTimes.decode_s`; by the rows of the table for each number of sequences."""
    table = times.decode_table
    if table is None or times.decode_window_table is not None:
        return times.decode_s
    launch_s, context_token_s = times.decode_launch_s, times.decode_context_token_s
    window_token_s, row_of = times.decode_window_token_s, table.row
    rows: list[tuple[tuple[Piece, ...], list[float]] | None] = [None] * len(times.sampled_s)

    def seconds(decodes: int, context: int, window: int) -> float:
        row = rows[decodes]
        if row is None:
            row = rows[decodes] = row_of(decodes)
        _, constant_s, slope_s = row[0][bisect_left(row[1], context)]
        sloped_s = launch_s + (context_token_s * context + window_token_s * window)
        return sloped_s + (constant_s + slope_s * context)

    return seconds


def chunk_seconds(times: StepTimes) -> ChunkSeconds:
    """`StepTimes.chunk_s`; chunks that begin a prompt are remembered by their size."""
    later = _later_chunk_seconds(times)
    begin: dict[int, float] = {}

    def seconds(new: int, cached: int) -> float:
        if cached:
            return later(new, cached)
        known_s = begin.get(new)
        if known_s is None:
            known_s = begin[new] = times.chunk_s(new, 0)
        return known_s

    return seconds


def _later_chunk_seconds(times: StepTimes) -> ChunkSeconds:
    """Of chunks that go on with a prompt."""
    table = times.chunk_table
    if table is None or times.window_tokens is not None:
        return times.chunk_s
    launch_s, context_token_s, pair_s = times.prefill_launch_s, times.prefill_context_token_s, times.prefill_pair_s
    knots: list[float] = table.cached.tolist()
    gaps = [after - before for before, after in pairwise(knots)]
    last, last_piece = knots[-1], len(gaps) - 1
    sizes = _Sizes(table)

    def seconds(new: int, cached: int) -> float:
        low, low_step, high, high_step, x = sizes[new]
        if cached >= last:
            piece, y = last_piece, 1.0
        else:
            piece = bisect_right(knots, cached) - 1
            y = (cached - knots[piece]) / gaps[piece]
        below_s = low[piece] + low_step[piece] * y
        above_s = high[piece] + high_step[piece] * y
        linear_s = launch_s + context_token_s * cached + pair_s * (new * cached + new * (new + 1) // 2)
        return linear_s + (below_s + (above_s - below_s) * x)

    return seconds


_Row = tuple[list[float], list[float], list[float], list[float], float]


class _Sizes(dict[int, _Row]):
    """By the size of a chunk: the table's rows below and above it, their steps between knots, and the share between."""

    def __init__(self, table: ChunkTable) -> None:
        super().__init__()
        self._knots: list[float] = table.new.tolist()
        self._rows: list[list[float]] = table.seconds.tolist()
        self._steps = [[after - before for before, after in pairwise(row)] for row in self._rows]

    def __missing__(self, new: int) -> _Row:
        knots = self._knots
        below = min(max(bisect_right(knots, new) - 1, 0), len(knots) - 2)
        x = min(max((new - knots[below]) / (knots[below + 1] - knots[below]), 0.0), 1.0)
        row = self._rows[below], self._steps[below], self._rows[below + 1], self._steps[below + 1], x
        self[new] = row
        return row
