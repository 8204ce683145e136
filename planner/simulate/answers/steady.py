"""How far a run can be trusted: intervals of its percentiles, its warm-up, and whether it shows a steady state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from planner.simulate.limits import nearest_rank
from planner.simulate.model import FloatArray, Workload
from planner.simulate.result import FleetResult

Stability = Literal["stable", "saturated", "too short to tell"]

BATCHES = ((20, 2.093), (10, 2.262))  # and Student's t at 97.5 % with one degree of freedom less
_BEYOND = 2  # requests above the percentile that a batch holds at least, or its percentile is its largest value
_MSER_BATCH = 5
LEAST_REQUESTS_STEADY = 100
LEAST_STAYS = 10  # arrival windows shorter than so many median end-to-end times are mostly filling up


def percentile_interval(values: FloatArray, percentile: float) -> tuple[float, float] | None:
    """95 % interval of a percentile by batch means (Schmeiser, 1982); `values` in order of arrival.

    Requests that follow each other wait for the same things, so they are no independent sample: the values are cut into
    20 (or 10) batches of consecutive ones, whose own percentiles nearly are. None where the values are too few, or
    where a batch's percentile falls on a request that did not finish (infinity).
    """
    return percentile_intervals(values, (percentile,))[0]


def percentile_intervals(values: FloatArray, percentiles: Sequence[float]) -> list[tuple[float, float] | None]:
    """`percentile_interval` of several percentiles of the same values."""
    whole = np.sort(values)
    cut: dict[int, list[FloatArray]] = {}
    found: list[tuple[float, float] | None] = []
    for percentile in percentiles:
        fits = (item for item in BATCHES if len(values) // item[0] * (1.0 - percentile / 100.0) >= _BEYOND)
        batches, quantile = next(fits, (0, 0.0))
        if not batches:
            found.append(None)
            continue
        if batches not in cut:
            cut[batches] = [np.sort(part) for part in np.array_split(values, batches)]
        means = [nearest_rank(part, percentile) for part in cut[batches]]
        centre = nearest_rank(whole, percentile)
        if not np.isfinite([*means, centre]).all():
            found.append(None)
            continue
        half = quantile * float(np.std(means, ddof=1)) / math.sqrt(batches)
        found.append((max(0.0, centre - half), centre + half))
    return found


def warm_up(values: FloatArray) -> int | None:
    """Leading values that belong to the start from empty replicas: MSER-5 (White, 1997).

    The cut after which the mean of the rest has the least standard error, by means of five values. None where it lies
    in the second half (then nothing steady has been seen) or where there are too few values.
    """
    count = len(values) // _MSER_BATCH
    if count < 4:
        return None
    means = values[: count * _MSER_BATCH].reshape(count, _MSER_BATCH).mean(axis=1)
    means = means - means.mean()  # for the differences of sums below
    left = np.arange(count, 0, -1)  # means kept, by cut
    sums, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    error = (np.maximum(squares - sums**2 / left, 0.0) / left**2)[: count - 2]
    cut = int(np.argmin(error))
    return None if cut > count // 2 else cut * _MSER_BATCH


def stability(result: FleetResult, workload: Workload) -> Stability:
    """Whether the queue stayed in balance, grew without end, or the window says neither.

    It says neither with fewer than `LEAST_REQUESTS_STEADY` requests, when it is shorter than `LEAST_STAYS` median
    end-to-end times, when the run ended early, and when the queue has grown threefold without being long yet.
    """
    whole = result.refuted_early is None and not result.event_bound_hit
    if result.saturated and whole:
        return "saturated"
    early, end = result.waiting
    served_s = result.e2e_s[~np.isnan(result.e2e_s)]
    if (
        not whole
        or len(served_s) < LEAST_REQUESTS_STEADY
        or result.horizon_s < LEAST_STAYS * float(np.quantile(served_s, 0.5))
        or (end >= 10 and end >= 3 * early)
    ):
        return "too short to tell"
    return "stable"
