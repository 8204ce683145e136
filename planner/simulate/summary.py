"""What a run came to, as plain JSON types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planner.simulate.model import Workload
from planner.simulate.result import FleetResult, GroupLoad, attainment, meets
from planner.simulate.steady import percentile_interval, stability, warm_up
from specs.deployment import SLO, Metric

METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e")
PERCENTILES = (50.0, 90.0, 95.0, 99.0)
_QUEUE_POINTS = 60


def result_summary(
    result: FleetResult,
    workload: Workload,
    slos: Mapping[str, SLO] | None = None,
    percentiles: tuple[float, ...] = PERCENTILES,
) -> dict[str, Any]:
    """Percentiles in seconds by class with their intervals, attainment, load by group, the queue, and how it ended."""
    slos = slos or {}
    verdict, steadiness = meets(result, workload, slos), stability(result, workload)
    text = str(verdict)
    if steadiness == "saturated":
        share = result.waiting[1] / len(workload)
        text = f"saturated: at the end of the window {share:.0%} of its requests still wait for a first token; {text}"
    elif steadiness == "too short to tell" and verdict.holds:
        text = f"{text}; the window is too short to tell whether it stays so"
    return {
        "classes": [_class(result, workload, name, slos.get(name), percentiles) for name in workload.classes],
        "groups": [_group(load, result.horizon_s or 1.0) for load in result.groups],
        "queue": queue_over_time(result, workload),
        "warm_up_s": _warm_up_s(result, workload),
        "window_s": result.horizon_s,
        "end_s": result.end_s,
        "verdict": {
            "holds": verdict.holds and not result.saturated,
            "saturated": result.saturated,
            "stability": steadiness,
            "text": text,
        },
        "events": result.events,
        "event_bound_hit": result.event_bound_hit,
        "refuted_early": result.refuted_early,
    }


def queue_over_time(result: FleetResult, workload: Workload, points: int = _QUEUE_POINTS) -> dict[str, list[float]]:
    """Requests without a first token (`waiting`) and between first and last one (`decoding`), at moments of the run."""
    times_s = np.linspace(0.0, max(result.horizon_s, result.end_s), points + 1)
    served = ~np.isnan(result.e2e_s)
    arrived = np.sort(workload.arrival_s[served])
    begun = np.sort((workload.arrival_s + result.ttft_s)[served])
    done = np.sort((workload.arrival_s + result.e2e_s)[served])
    arrivals, begins, ends = (np.searchsorted(moments, times_s, side="right") for moments in (arrived, begun, done))
    return {
        "time_s": times_s.tolist(),
        "waiting": (arrivals - begins).tolist(),
        "decoding": (begins - ends).tolist(),
    }


def _class(
    result: FleetResult, workload: Workload, name: str, slo: SLO | None, percentiles: tuple[float, ...]
) -> dict[str, Any]:
    mask = workload.of_class(name)
    entry: dict[str, Any] = {
        "class": name,
        "requests": int(mask.sum()),
        "rejected": int(result.rejected[mask].sum()),
    }
    for metric in METRICS:
        values = {f"p{rank:g}": result.percentile_s(metric, rank, mask) for rank in percentiles}
        entry[f"{metric}_s"] = {key: value if np.isfinite(value) else None for key, value in values.items()}
        ordered = np.nan_to_num(result.metric_s(metric)[result.judged(metric, mask)], nan=np.inf)
        entry[f"{metric}_interval_s"] = {f"p{rank:g}": percentile_interval(ordered, rank) for rank in percentiles}
    if slo is not None:
        met = attainment(result, workload, name, slo)
        entry["attainment"] = {"share": met.share, "low": met.low, "high": met.high}
        entry["goodput_per_s"] = met.share * met.requests / (result.horizon_s or 1.0)
    return entry


def _group(load: GroupLoad, horizon_s: float) -> dict[str, Any]:
    return {
        "group": load.group,
        "utilisation": [busy / horizon_s for busy in load.busy_s],
        "running_peak": load.running_peak,
        "kv_occupancy_peak": load.blocks_peak / load.num_blocks,
        "preemptions": load.preemptions,
        "prompt_tokens_per_s": load.prompt_tokens_per_s,
        "output_tokens_per_s": load.output_tokens_per_s,
    }


def _warm_up_s(result: FleetResult, workload: Workload) -> float | None:
    """Arrival of the first request after the start from empty replicas, told by TTFT; None: no steady part seen."""
    served = ~np.isnan(result.ttft_s)
    cut = warm_up(result.ttft_s[served])
    return None if cut is None else float(workload.arrival_s[served][cut])
