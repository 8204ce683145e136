"""What clients saw, in the terms of a simulation: the same percentiles, the same verdicts, the same traffic.

A request that failed or was rejected meets nothing and counts as endless; one that was cut, as its run ended, is not
judged, nor is a warm-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planner.simulate import Workload, nearest_rank, requirements, simulate_closed_loop, wilson_interval
from planner.simulate.model import FloatArray, IntArray, ReplicaModel
from specs.deployment import SLO, Metric
from specs.errors import InputError
from specs.measurements import Load, Measurements, RequestRow

METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e")
PERCENTILES = (50.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True)
class Latencies:
    """Arrays by request, seconds; infinity where a request did not get so far, NaN where it has no such time."""

    ttft_s: FloatArray
    tpot_s: FloatArray
    e2e_s: FloatArray

    def of(self, metric: Metric) -> FloatArray:
        return {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}[metric]


def judged_rows(measurements: Measurements, name: str) -> list[RequestRow]:
    """Rows of a class that count: not cut, beyond the warm-up."""
    rows = [row for row in measurements.requests if row.request_class == name]
    warmup = sum(load.warmup_requests for load in measurements.loads if load.request_class == name)
    return [row for row in rows[warmup:] if row.status != "cut"]


def latencies_of(rows: Sequence[RequestRow]) -> Latencies:
    """Of requests that ended well; the others are endless, a TPOT that is not defined is NaN."""

    def array(values: list[float | None], undefined: float) -> FloatArray:
        ended = [row.status == "ok" for row in rows]
        known = [undefined if value is None else value for value in values]
        return np.where(ended, np.array(known, np.float64), np.inf)

    return Latencies(
        array([row.ttft_s for row in rows], np.inf),
        array([row.tpot_s for row in rows], np.nan),
        array([row.e2e_s for row in rows], np.inf),
    )


def class_summary(latencies: Latencies, window_s: float, slo: SLO | None = None) -> dict[str, Any]:
    """Percentiles by metric (None where they fall on a request without an end), attainment, goodput; plain JSON types.

    The same keys as a class of `planner.simulate.result_summary`.
    """
    entry: dict[str, Any] = {"requests": len(latencies.ttft_s)}
    for metric in METRICS:
        values = latencies.of(metric)
        ordered = np.sort(values[~np.isnan(values)])
        found = {f"p{rank:g}": nearest_rank(ordered, rank) for rank in PERCENTILES}
        entry[f"{metric}_s"] = {rank: value if np.isfinite(value) else None for rank, value in found.items()}
    if slo is not None:
        good = np.isfinite(latencies.e2e_s)
        for requirement in requirements(slo):
            for metric, limit_s in requirement.thresholds:
                good &= ~(latencies.of(metric) > limit_s)
        low, high = wilson_interval(int(good.sum()), len(good))
        entry["attainment"] = {"share": float(good.mean()) if len(good) else 1.0, "low": low, "high": high}
        entry["goodput_per_s"] = float(good.sum()) / window_s if window_s > 0 else 0.0
    return entry


def measured_summary(measurements: Measurements, name: str, slo: SLO | None = None) -> dict[str, Any]:
    """`class_summary` of a class as it was measured, with how its requests ended."""
    rows = judged_rows(measurements, name)
    statuses = [row.status for row in measurements.requests if row.request_class == name]
    window_s = sum(load.seconds for load in measurements.loads if load.request_class == name)
    entry = class_summary(latencies_of(rows), window_s or _span_s(rows), slo)
    entry["status"] = {status: statuses.count(status) for status in ("ok", "rejected", "failed", "cut")}
    return entry


def _span_s(rows: Sequence[RequestRow]) -> float:
    return max((row.arrival_s + (row.e2e_s or 0.0) for row in rows), default=0.0)


def counted(workload: Workload, measurements: Measurements) -> Workload:
    """The requests of `workload` that were sent, with the tokens that the server counted.

    Row i of the measurements is request `number` of the workload. A run that was ended early is cut there.
    """
    rows = {row.number: row for row in measurements.requests if row.number is not None}
    sent = np.array([number in rows for number in range(len(workload))])
    prompts, outputs = workload.prompt_tokens.copy(), workload.output_tokens.copy()
    for number, row in rows.items():
        if row.status == "ok":
            prompts[number], outputs[number] = max(1, row.prompt_tokens), max(1, row.output_tokens)
    served = replace(workload, prompt_tokens=prompts, output_tokens=outputs)
    if sent.all():
        return served
    window_s = max((load.seconds for load in measurements.loads), default=None)
    return replace(served.select(sent), window_s=window_s)


def workload_of_rows(measurements: Measurements, classes: tuple[str, ...], name: str) -> Workload:
    """Requests as they were sent, all of class `name` of `classes`; `InputError` where there is none to predict."""
    rows = sorted(
        (row for row in measurements.requests if row.prompt_tokens >= 1 and (row.output_tokens or row.asked_tokens)),
        key=lambda row: row.arrival_s,
    )
    if not rows:
        raise InputError("no request has its tokens", field="requests", expected="at least one request that was served")
    start_s = rows[0].arrival_s
    window_s = sum(load.seconds for load in measurements.loads) or None
    return Workload(
        classes,
        np.full(len(rows), classes.index(name)),
        np.array([row.arrival_s - start_s for row in rows]),
        np.array([row.prompt_tokens for row in rows]),
        np.array([row.output_tokens or row.asked_tokens or 1 for row in rows]),
        window_s,
    )


def predicted_closed_loop(
    model: ReplicaModel, replicas: int, load: Load, prompts: IntArray, outputs: IntArray, slo: SLO | None = None
) -> dict[str, Any]:
    """`class_summary` of `load.concurrency` clients, simulated; the warm-up is served and left out."""
    assert load.concurrency is not None
    warmup = min(load.warmup_requests, len(prompts) - 1)
    result = simulate_closed_loop(model, load.concurrency, prompts, outputs, warmup=warmup, replicas=replicas)
    ended = np.isfinite(result.e2e_s)
    latencies = Latencies(
        np.where(ended, result.ttft_s, np.inf),
        np.where(ended, result.tpot_s, np.inf),
        np.where(ended, result.e2e_s, np.inf),
    )
    return class_summary(latencies, result.seconds, slo)


def difference(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """predicted / measured - 1, by metric and percentile; None where either is not there."""
    found: dict[str, dict[str, float | None]] = {}
    for metric in METRICS:
        key = f"{metric}_s"
        found[key] = {}
        for rank, seen in measured[key].items():
            value = predicted[key].get(rank)
            found[key][rank] = None if value is None or not seen else value / seen - 1.0
    return found
