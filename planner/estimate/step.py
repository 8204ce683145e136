"""Seconds of an engine's steps: the kernels' work of a layout, scaled and joined by what the engine adds."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from planner.cost.engine_kernels import engine_s
from planner.estimate.work import CACHED, KEYS, NEW, ROWS, SIZES, TOKENS, LayoutWork
from specs.profile import EngineProfile

_NEW, _CACHED = NEW.tolist(), CACHED.tolist()
_LINEAR = tuple[list[float], list[float], list[float]]  # knots, constants and slopes of a piecewise linear function


@dataclass(eq=False)
class EngineStep:
    """Step times of one replica. `tokens_s[n]` for 0..budget tokens, `rows_s[r]` for 0..seats sampled rows.

    `longer`: every step takes so many times what is predicted.
    """

    work: LayoutWork
    engine: EngineProfile
    budget: int
    seats: int
    longer: float = 1.0
    tokens_s: list[float] = field(init=False)
    rows_s: list[float] = field(init=False)
    _decode_rows: dict[int, _LINEAR] = field(default_factory=dict, init=False)
    _first_chunks: list[float] = field(init=False)
    _chunks: list[list[float]] = field(init=False)
    _eager_s: float = field(init=False)  # host time of a step that is launched kernel by kernel

    def __post_init__(self) -> None:
        factors = self.engine.kernels
        tokens = sum(
            (engine_s(factors, kind, TOKENS, seconds) for kind, seconds in self.work.tokens.items()),
            np.zeros(len(TOKENS)),
        )
        rows = sum((factors.of(kind) * seconds for kind, seconds in self.work.rows.items()), np.zeros(len(ROWS)))
        most = self.budget + self.seats
        self.tokens_s = [0.0, *np.interp(np.arange(1, most + 1), TOKENS, tokens).tolist()]
        self.rows_s = [0.0, *np.interp(np.arange(1, most + 1), ROWS, rows).tolist()]
        chunks = factors.prefill_attention * self.work.chunk
        self._first_chunks = np.interp(np.arange(self.budget + 1), NEW, chunks[:, 0]).tolist()
        self._chunks = chunks.tolist()
        self._eager_s = self.work.kernels * self.engine.eager_launch_s

    def decode_s(self, sequences: int, keys: float) -> float:
        """A step of `sequences` decodes that see `keys` keys each, and nothing else."""
        return self.decode_base_s(sequences) + self.attention_s(sequences, keys)

    def decode_base_s(self, sequences: int) -> float:
        engine = self.engine
        return self.longer * (
            self.tokens_s[sequences]
            + self.rows_s[sequences]
            + engine.step_overhead_s
            + engine.sequence_overhead_s * sequences
        )

    def attention_s(self, sequences: int, keys: float) -> float:
        """Attention of the decodes, beyond its launches."""
        return self.longer * self._attention_s(sequences, keys)

    def _attention_s(self, sequences: int, keys: float) -> float:
        row = self._decode_rows.get(sequences)
        if row is None:
            row = self._decode_rows[sequences] = self._row(sequences)
        knots, constants, slopes = row
        piece = bisect_right(knots, keys)
        return constants[piece] + slopes[piece] * keys

    def prefill_s(self, decodes: int, keys: float, chunks: list[tuple[int, int]], completing: int) -> float:
        """A step with prompt chunks of (new, cached) tokens beside `decodes` sequences."""
        engine = self.engine
        tokens = decodes + sum(new for new, _ in chunks)
        seconds = self.tokens_s[tokens] + self.rows_s[decodes + completing]
        if decodes:
            seconds += self._attention_s(decodes, keys)
        for new, cached in chunks:
            seconds += self._chunk_s(new, cached)
        seconds += engine.step_overhead_s + engine.sequence_overhead_s * (decodes + len(chunks))
        return self.longer * max(seconds + engine.prefill_step_s, self._eager_s)

    def _row(self, sequences: int) -> _LINEAR:
        place = min(int(np.searchsorted(SIZES, sequences, side="right")), len(SIZES) - 1) - 1
        share = (sequences - SIZES[place]) / (SIZES[place + 1] - SIZES[place])
        table = self.engine.kernels.attention * self.work.decode
        seconds = table[place] + share * (table[place + 1] - table[place])
        slopes = np.diff(seconds) / np.diff(KEYS)
        constants = seconds[:-1] - slopes * KEYS[:-1]
        return KEYS[1:-1].tolist(), constants.tolist(), slopes.tolist()

    def _chunk_s(self, new: int, cached: int) -> float:
        if cached == 0:
            return self._first_chunks[new]
        i, x = _place(_NEW, new)
        j, y = _place(_CACHED, cached)
        row, above = self._chunks[i], self._chunks[i + 1]
        low = row[j] + y * (row[j + 1] - row[j])
        high = above[j] + y * (above[j + 1] - above[j])
        return low + x * (high - low)


def _place(knots: list[float], value: float) -> tuple[int, float]:
    """Index of the knot below, and the share of the way to the next; clamped at both ends."""
    index = min(max(bisect_right(knots, value) - 1, 0), len(knots) - 2)
    return index, min(max((value - knots[index]) / (knots[index + 1] - knots[index]), 0.0), 1.0)
