"""Corrections on grids: functions of a few coordinates of a shape, multilinear between knots, constant outside them.

A grid holds log(measured / core). Constant outside the knots: beyond the measured range a prediction keeps the slope of
the physical core. Packed as int8 counts of `STEP`, compressed, base64.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specs.errors import InputError

Floats = NDArray[np.float64]
Rows = Mapping[str, Floats]  # named columns of equal length, one element per operator

STEP = 0.02  # of one count, in log(seconds): rounding adds at most 1 % of error
LARGEST = 127  # counts: corrections are clipped at a factor of 12.7


@dataclass(frozen=True)
class Axis:
    """One coordinate of a grid; `smooth` weighs the squared second difference between knots in a fit, `flat` the first.

    `breaks` are the lower knots of gaps across which nothing is smooth: another kernel, a full tile.
    """

    name: str
    knots: tuple[float, ...]
    log: bool = True
    smooth: float = 1.0
    flat: float = 0.02
    breaks: tuple[float, ...] = ()

    def continuity(self) -> Floats:
        """1 for each gap between knots, 0.02 where it is a break."""
        return np.array([0.02 if knot in self.breaks else 1.0 for knot in self.knots[:-1]])

    def position(self, values: Floats) -> tuple[NDArray[np.intp], Floats]:
        """Index of the knot below and the fraction towards the next one, clamped at both ends."""
        x, knots = np.asarray(values, dtype=np.float64), np.asarray(self.knots, dtype=np.float64)
        if self.log:
            x, knots = np.log(np.maximum(x, 1e-30)), np.log(knots)
        if len(knots) == 1:
            return np.zeros(x.shape, np.intp), np.zeros(x.shape)
        below = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
        share = np.clip((x - knots[below]) / (knots[below + 1] - knots[below]), 0.0, 1.0)
        return below, share


Axes = tuple[Axis, ...]


def grid_shape(axes: Axes) -> tuple[int, ...]:
    return tuple(len(axis.knots) for axis in axes)


def corners(axes: Axes, coordinates: Rows) -> tuple[NDArray[np.intp], Floats]:
    """Flat knot index and weight of the 2^d knots around every row: two arrays [rows, corners]."""
    placed = [axis.position(coordinates[axis.name]) for axis in axes]
    count = len(placed[0][0])
    index, weight = np.zeros((count, 1), np.intp), np.ones((count, 1))
    for axis, (below, share) in zip(axes, placed, strict=True):
        size = len(axis.knots)
        if size == 1:
            continue
        index = np.concatenate([index * size + below[:, None], index * size + below[:, None] + 1], axis=1)
        weight = np.concatenate([weight * (1 - share)[:, None], weight * share[:, None]], axis=1)
    return index, weight


@dataclass(frozen=True)
class Grid:
    """`values` (log of a factor) at the knots of `axes`, an array of the axes' lengths."""

    axes: Axes
    values: Floats

    def __call__(self, coordinates: Rows) -> Floats:
        """The log factor at each row of `coordinates` (one column per axis, by name)."""
        index, weight = corners(self.axes, coordinates)
        result: Floats = (self.values.ravel()[index] * weight).sum(axis=1)
        return result

    def rounded(self) -> Grid:
        """What `unpack(pack())` gives."""
        return Grid(self.axes, _counts(self.values).astype(np.float64) * STEP)

    def pack(self) -> str:
        return base64.b64encode(zlib.compress(_counts(self.values).tobytes(), 9)).decode("ascii")

    @classmethod
    def unpack(cls, axes: Axes, text: str) -> Grid:
        """Read `pack`'s text; `InputError` where it is damaged or was made for other axes."""
        shape = grid_shape(axes)
        size = int(np.prod(shape))
        try:
            reader = zlib.decompressobj()
            raw = reader.decompress(base64.b64decode(text, validate=True), size + 1)
        except (binascii.Error, zlib.error, ValueError) as error:
            raise InputError(f"a correction grid is damaged ({error})", field="correction") from None
        if len(raw) != size:
            raise InputError("a correction grid has another size", field="correction", expected=f"{size} knots")
        return cls(axes, np.frombuffer(raw, np.int8).astype(np.float64).reshape(shape) * STEP)


def _counts(values: Floats) -> NDArray[np.int8]:
    return np.clip(np.round(values / STEP), -LARGEST, LARGEST).astype(np.int8)
