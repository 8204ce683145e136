"""Physics lint of a kernel table: what no device can do, constant, shuffled or copied columns, wrong units.

The limits of the 4x and 1.6x tests: they need a profile of the same device, or of its relative (then looser), and the
shipped profiles were fitted to the very tables that these thresholds accept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.operators.bound import least_seconds
from planner.operators.cores import OperatorFacts
from planner.operators.grid import Floats, Rows
from planner.operators.lane import Lane

TOO_FAST_SHARE = 0.01  # of a lane's rows may beat the peaks (timer noise) before the table is refused
IMPOSSIBLE = 1.5  # faster than the physical bound by this factor is no timer noise, be it one row
TOO_FAST = 1.10  # faster than the physical bound by this factor counts
UNIT_FACTOR = 4.0  # median distance to the model: beyond it, the unit or the device is wrong
COLLECTIVE_FACTOR = 1.6  # large messages of a known device: bytes where elements are due are a factor of 2
LARGE_MESSAGE_BYTES = 2**24
COPY_SHARE = 0.2  # of the latencies equal to another device's
SCALED_COPY_SPREAD = 0.004  # median absolute deviation of the log ratio to another device's rows
COMMON_ROWS = 20  # with another device, before a copy can be told; fewer with the few rows kept of published tables
FEW_COMMON_ROWS, FEW_COPY_SPREAD = 8, 0.001
COLUMN_COPY_SPREAD = 1e-4  # median absolute deviation of the log ratio to a column of shapes
FALLING = 0.05  # a GEMM this much faster with more tokens is worth a warning at ...
FALLING_SHARE = 0.4  # ... this share of neighbours (the published tables reach 22 % at 2 %)


@dataclass(frozen=True)
class Finding:
    """`rows`: up to ten row numbers from 0."""

    severity: Literal["refuse", "warn"]
    text: str
    rows: tuple[int, ...] = ()


def lint(
    family: str,
    lane: str,
    rows: Rows,
    seconds: Floats,
    facts: OperatorFacts,
    reference: Lane | None = None,
    others: Mapping[str, tuple[Rows, Floats]] | None = None,
    own_reference: bool = True,
) -> tuple[Finding, ...]:
    """Findings about the measured `seconds` of one lane.

    `reference`: the device's own lane, or (`own_reference` False) its relative's, of which only the core is used;
    `others`: the same lane of other devices, to find copies.
    """
    y = np.asarray(seconds, np.float64)
    bad = ~np.isfinite(y) | (y <= 0)
    if bad.any():
        return (Finding("refuse", "latency must be a positive number", _ten(np.flatnonzero(bad))),)
    findings = [*_constant(y), *_column(y, rows), *_too_fast(y, least_seconds(family, lane, rows, facts), facts.name)]
    if reference is not None:
        expected = reference.seconds(rows, facts) if own_reference else reference.physical(rows, facts)
        large = rows["bytes"] >= LARGE_MESSAGE_BYTES if "bytes" in rows and own_reference else np.zeros(len(y), bool)
        findings += _unlike(y, expected, large, facts.name)
    if family == "gemm":
        findings += _falling(y, rows)
    for name, (their_rows, theirs) in (others or {}).items():
        findings += _copied(y, rows, theirs, their_rows, name)
    return tuple(findings)


def _ten(numbers: Floats | np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers[:10])


def _constant(y: Floats) -> list[Finding]:
    repeated = float(np.unique(y, return_counts=True)[1].max()) / len(y)
    if len(y) >= 8 and (np.std(np.log(y)) < 0.02 or repeated > 0.3):
        text = f"latency is constant: {100 * repeated:.0f} % of the rows hold one value"
        return [Finding("refuse", text, _ten(np.argsort(np.abs(y - np.median(y)), kind="stable")))]
    return []


def _column(y: Floats, rows: Rows) -> list[Finding]:
    """Latency that is a column of shapes, scaled."""
    for name, values in rows.items():
        if len(y) < FEW_COMMON_ROWS or (values <= 0).any() or np.std(np.log(values)) < 0.1:
            continue
        log = np.log(y / values)
        if np.median(np.abs(log - np.median(log))) < COLUMN_COPY_SPREAD:
            text = f"latency is the column {name} times {np.exp(np.median(log)):.3g}"
            return [Finding("refuse", text, _ten(np.argsort(np.abs(log - np.median(log)), kind="stable")))]
    return []


def _too_fast(y: Floats, bound: Floats, name: str) -> list[Finding]:
    impossible = np.flatnonzero(bound > IMPOSSIBLE * y)
    if len(impossible):
        text = f"{len(impossible)} of {len(y)} rows are over {IMPOSSIBLE:.1f} times faster than {name}'s peaks allow"
        return [Finding("refuse", text, _ten(impossible))]
    fast = bound > TOO_FAST * y
    if float(fast.mean()) > TOO_FAST_SHARE:
        text = (
            f"{int(fast.sum())} of {len(y)} rows are faster than {name}'s peaks allow, by up to "
            f"{float((bound / y).max()):.1f}x: wrong unit or device"
        )
        return [Finding("refuse", text, _ten(np.argsort(y / bound)))]
    if fast.any():
        text = f"{int(fast.sum())} rows beat the peaks by over {100 * (TOO_FAST - 1):.0f} %"
        return [Finding("warn", text, _ten(np.flatnonzero(fast)))]
    return []


def _unlike(
    y: Floats, expected: Floats, large: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], name: str
) -> list[Finding]:
    findings = []
    ratio = np.log(y / expected)
    middle = float(np.exp(np.median(ratio)))
    if not 1 / UNIT_FACTOR < middle < UNIT_FACTOR:
        text = f"latencies are {middle:.3g} times what {name} takes: milliseconds expected"
        findings.append(Finding("refuse", text, _ten(np.argsort(-np.abs(ratio)))))
    if large.sum() >= 3:
        middle = float(np.exp(np.median(ratio[large])))
        if not 1 / COLLECTIVE_FACTOR < middle < COLLECTIVE_FACTOR:
            text = f"large messages take {middle:.2f} times the usual: is message_size in elements?"
            findings.append(Finding("refuse", text, _ten(np.flatnonzero(large))))
    if np.std(np.log(expected)) > 0.3 and len(y) >= 20 and np.std(y) > 0:
        rank = float(np.corrcoef(np.argsort(np.argsort(y)), np.argsort(np.argsort(expected)))[0, 1])
        if rank < 0.5:
            text = f"latency does not follow the shapes (rank correlation {rank:.2f}): shuffled or wrong columns"
            findings.append(Finding("refuse", text, _ten(np.argsort(-np.abs(ratio)))))
    return findings


def _falling(y: Floats, rows: Rows) -> list[Finding]:
    order = np.lexsort((rows["m"], rows["k"], rows["n"]))
    same = (np.diff(rows["n"][order]) == 0) & (np.diff(rows["k"][order]) == 0)
    falls = same & (np.diff(np.log(y[order])) < -FALLING)
    if same.sum() >= COMMON_ROWS and falls.sum() > FALLING_SHARE * same.sum():
        share = 100 * float(falls.sum() / same.sum())
        text = f"{share:.0f} % of the rows are over {100 * FALLING:.0f} % faster than with fewer tokens"
        return [Finding("warn", text, _ten(order[1:][falls]))]
    return []


def _copied(y: Floats, rows: Rows, theirs: Floats, their_rows: Rows, name: str) -> list[Finding]:
    table = dict(zip(_keys(their_rows), theirs.tolist(), strict=True))
    pairs = [
        (mine, table[key], row) for row, (key, mine) in enumerate(zip(_keys(rows), y, strict=True)) if key in table
    ]
    if len(pairs) < min(COMMON_ROWS, max(FEW_COMMON_ROWS, len(theirs) // 3)):
        return []
    mine, other, places = np.array(pairs).T
    log = np.log(mine / other)
    equal = float(np.mean(np.abs(log) < 1e-6))
    if equal > COPY_SHARE:
        same = _ten(places[np.abs(log) < 1e-6].astype(np.intp))
        return [Finding("refuse", f"{100 * equal:.0f} % of the latencies equal those of {name}", same)]
    middle = float(np.median(log))
    limit = SCALED_COPY_SPREAD if len(pairs) >= COMMON_ROWS else FEW_COPY_SPREAD
    if np.median(np.abs(log - middle)) < limit and np.std(np.log(mine)) > 0.1:
        same = _ten(places[np.abs(log - middle) < limit].astype(np.intp))
        return [Finding("refuse", f"latencies are those of {name} times {np.exp(middle):.3f}", same)]
    return []


def _keys(rows: Rows) -> list[tuple[float, ...]]:
    return list(zip(*(rows[name].astype(np.float32).tolist() for name in sorted(rows)), strict=True))
