"""Percentiles of latencies with their intervals, as plain JSON types."""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.simulate.answers.steady import percentile_intervals
from planner.simulate.limits import nearest_rank
from planner.simulate.model import Workload
from planner.simulate.result import BoolArray, FleetResult
from specs.deployment import Metric

METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e")
PERCENTILES = (50.0, 90.0, 95.0, 99.0)


def percentile_table(
    result: FleetResult, workload: Workload, mask: BoolArray, percentiles: tuple[float, ...] = PERCENTILES
) -> dict[str, Any]:
    """`ttft_s`, `tpot_s`, `e2e_s` of the requests under `mask`, and a 95 % interval of each.

    None where a percentile falls on a request that did not finish, or where the requests are too few for an interval.
    """
    by_arrival = np.argsort(result.arrivals_s(workload), kind="stable")
    table: dict[str, Any] = {}
    for metric in METRICS:
        judged = by_arrival[result.judged(metric, mask)[by_arrival]]
        values = np.nan_to_num(result.metric_s(metric)[judged], nan=np.inf)
        names = [f"p{rank:g}" for rank in percentiles]
        ordered = np.sort(values)
        found = [nearest_rank(ordered, rank) for rank in percentiles]
        table[f"{metric}_s"] = {
            name: value if np.isfinite(value) else None for name, value in zip(names, found, strict=True)
        }
        intervals = percentile_intervals(values, percentiles)
        table[f"{metric}_interval_s"] = dict(zip(names, intervals, strict=True))
    return table
