"""Tables that a step's time is read from beyond its slopes: decode attention and prompt chunks.

Both hold what a line through the origin leaves of the seconds, never negative, so that slopes alone are a lower bound.
A `DecodeTable` is linear in the total of the keys between its knots: a simulator may take many steps at once while the
total stays inside one `Piece`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Piece(NamedTuple):
    """Seconds = `constant_s + slope_s x keys` for totals of keys up to `end`, the end included."""

    end: float
    constant_s: float
    slope_s: float


@dataclass(frozen=True, eq=False)
class DecodeTable:
    """`seconds[i, j]` of `sequences[i]` decoding sequences of `keys[j]` keys each; bilinear between the knots.

    Both knots ascend, `sequences` from 1; beyond the last `keys` the last slope goes on.
    """

    sequences: Floats
    keys: Floats
    seconds: Floats
    _rows: dict[int, tuple[tuple[Piece, ...], list[float]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.seconds.shape != (len(self.sequences), len(self.keys)) or len(self.keys) < 2:
            raise ValueError(f"a table of {self.seconds.shape} over {len(self.sequences)} x {len(self.keys)} knots")
        if not (np.isfinite(self.seconds).all() and (self.seconds >= 0).all()):
            raise ValueError("seconds must be finite and not negative")

    def piece(self, sequences: int, total_keys: float) -> Piece:
        """The piece that `total_keys` keys of all `sequences` together lie in."""
        pieces, ends = self.row(sequences)
        return pieces[bisect_left(ends, total_keys)]

    def row(self, sequences: int) -> tuple[tuple[Piece, ...], list[float]]:
        """All pieces of `sequences` sequences, and where each but the last ends."""
        row = self._rows.get(sequences)
        if row is None:
            row = self._rows[sequences] = self._row(sequences)
        return row

    def no_slower_than(self, slope_s: float, other: DecodeTable, other_slope_s: float) -> bool:
        """Whether slope and table together never take longer than the other's; False for other knots.

        Between knots both are bilinear in (sequences, keys), so the knots decide, and the slopes beyond the last.
        """
        if not (np.array_equal(self.sequences, other.sequences) and np.array_equal(self.keys, other.keys)):
            return False
        total = np.outer(self.sequences, self.keys)
        mine, theirs = self.seconds + slope_s * total, other.seconds + other_slope_s * total
        beyond = np.diff(mine[:, -2:]) <= np.diff(theirs[:, -2:])
        return bool((mine <= theirs).all() and beyond.all())

    def _row(self, sequences: int) -> tuple[tuple[Piece, ...], list[float]]:
        values = np.array([np.interp(sequences, self.sequences, column) for column in self.seconds.T])
        starts = sequences * self.keys
        slopes = np.diff(values) / np.diff(starts)
        slopes[-1] = max(slopes[-1], 0.0)  # it goes on for ever and must not end below zero
        constants = values[:-1] - slopes * starts[:-1]
        ends = [*starts[1:-1].tolist(), float("inf")]
        pieces = tuple(Piece(*piece) for piece in zip(ends, constants.tolist(), slopes.tolist(), strict=True))
        return pieces, ends[:-1]

    @cached_property
    def least_per_sequence_s(self) -> float:
        """The most that can be charged to every sequence of every step: min over knots of seconds / sequences."""
        return float((self.seconds / self.sequences[:, None]).min())


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """`seconds[i, j]` of a prompt chunk of `new[i]` tokens over `cached[j]` earlier ones; bilinear between the knots,
    constant beyond them. `cached` begins at 0."""

    new: Floats
    cached: Floats
    seconds: Floats
    _lists: tuple[list[float], list[float], list[list[float]]] = field(init=False, repr=False)
    _first: list[float] = field(init=False, repr=False)  # by size, of chunks that begin a prompt

    def __post_init__(self) -> None:
        if self.seconds.shape != (len(self.new), len(self.cached)) or self.cached[0] != 0 or self.seconds.size < 4:
            raise ValueError(f"a table of {self.seconds.shape} over {len(self.new)} x {len(self.cached)} knots")
        if not (np.isfinite(self.seconds).all() and (self.seconds >= 0).all()):
            raise ValueError("seconds must be finite and not negative")
        object.__setattr__(self, "_lists", (self.new.tolist(), self.cached.tolist(), self.seconds.tolist()))
        sizes = np.arange(int(self.new[-1]) + 1)
        object.__setattr__(self, "_first", np.interp(sizes, self.new, self.seconds[:, 0]).tolist())

    def chunk_s(self, new: int, cached: int) -> float:
        """Seconds of one chunk."""
        if cached == 0:
            return self._first[new] if new < len(self._first) else self._first[-1]
        sizes, before, table = self._lists
        i, x = _place(sizes, new)
        j, y = _place(before, cached)
        row, above = table[i], table[i + 1]
        low = row[j] + (row[j + 1] - row[j]) * y
        high = above[j] + (above[j + 1] - above[j]) * y
        return low + (high - low) * x

    @cached_property
    def least_s(self) -> float:
        """No chunk takes less."""
        return float(self.seconds.min())


def _place(knots: list[float], value: float) -> tuple[int, float]:
    """Index of the knot below and the share of the way to the next, clamped at both ends."""
    if value >= knots[-1]:
        return len(knots) - 2, 1.0
    if value <= knots[0]:
        return 0, 0.0
    below = bisect_right(knots, value) - 1
    return below, (value - knots[below]) / (knots[below + 1] - knots[below])
