"""What a simulation tells: latencies of each request, load of each group, and the verdict on objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.simulate.limits import nearest_rank, requirements, wilson_interval
from planner.simulate.model import FloatArray, IntArray, Workload
from specs.deployment import SLO, Metric

BoolArray = NDArray[np.bool_]
SATURATED = 0.05


@dataclass(frozen=True)
class GroupLoad:
    """Load of one replica group. Peaks are of its fullest replica (lanes added up)."""

    group: str
    busy_s: tuple[float, ...]  # by replica, inside the arrival window; mean over the lanes
    running_peak: int
    blocks_peak: int
    num_blocks: int  # of one replica
    preemptions: int
    steps: int
    requests: int  # finished
    prompt_tokens: int  # of these
    output_tokens: int
    prompt_tokens_per_s: float  # served inside the arrival window
    output_tokens_per_s: float


@dataclass(frozen=True)
class FleetResult:
    """Arrays by request, in the order of the workload; NaN where a request was refused or did not finish."""

    ttft_s: FloatArray
    tpot_s: FloatArray  # NaN for one output token too
    e2e_s: FloatArray
    group_index: IntArray  # -1: not routed before the run ended
    replica_index: IntArray  # -1: refused
    preemptions: IntArray
    rejected: BoolArray
    groups: tuple[GroupLoad, ...]
    horizon_s: float  # arrival window
    end_s: float  # last completion
    events: int  # steps for the oracle, jumps for the fast path
    event_bound_hit: bool
    refuted_early: str | None  # the limit that ended the run; arrays are then partial
    waiting: tuple[int, int]  # requests without a first token after a tenth and at the end of the arrival window

    @property
    def saturated(self) -> bool:
        """Whether requests arrive faster than they are served: what waits keeps growing through the window.

        At the end `SATURATED` of all requests wait, at least ten, and three times as many as after a tenth of the
        window (under a steady overload ten times as many do; a queue in balance does not grow).
        """
        early, end = self.waiting
        return end >= max(10, SATURATED * len(self.ttft_s)) and end >= 3 * early

    def metric_s(self, metric: Metric) -> FloatArray:
        return {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}[metric]

    def utilisation(self, group: int) -> float:
        """Busy share of the busiest replica's time inside the arrival window."""
        return max(self.groups[group].busy_s) / self.horizon_s if self.horizon_s > 0 else 0.0

    def percentile_s(self, metric: Metric, percentile: float, mask: BoolArray | None = None) -> float:
        """Nearest-rank percentile over the requests under `mask`; infinity where it falls on one that did not finish.

        TPOT is over the requests that have one (two output tokens or more). NaN when there is no request at all.
        """
        values = self.metric_s(metric)
        chosen = self.judged(metric, np.ones(len(values), dtype=np.bool_) if mask is None else mask)
        ordered = np.sort(np.nan_to_num(values[chosen], nan=np.inf))
        return nearest_rank(ordered, percentile)  # type: ignore[arg-type]

    def judged(self, metric: Metric, mask: BoolArray) -> BoolArray:
        """The requests under `mask` that a percentile is over."""
        if metric == "tpot":
            return mask & ~(np.isnan(self.tpot_s) & ~np.isnan(self.e2e_s))
        return mask

    def within(self, metric: Metric, limit_s: float) -> BoolArray:
        """Mask of requests that meet one limit."""
        done = ~np.isnan(self.e2e_s)
        if metric == "tpot":
            return done & ~(self.tpot_s > limit_s)
        return done & (self.metric_s(metric) <= limit_s)


@dataclass(frozen=True)
class Attainment:
    """Share of requests of a class that meet every limit, with Wilson's 95 % interval."""

    share: float
    low: float
    high: float
    requests: int


@dataclass(frozen=True)
class Miss:
    """One requirement that does not hold."""

    request_class: str
    text: str
    attained: float  # share of requests that meet it
    required: float


@dataclass(frozen=True)
class Verdict:
    """Whether every objective holds; if not, which do not."""

    misses: tuple[Miss, ...]
    refuted_early: str | None = None
    event_bound_hit: bool = False
    events: int = 0

    @property
    def holds(self) -> bool:
        return not self.misses and self.refuted_early is None and not self.event_bound_hit

    def __str__(self) -> str:
        if self.holds:
            return "every objective holds"
        if self.refuted_early is not None:
            return f"refuted: {self.refuted_early}"
        if not self.misses:
            return f"undecided: the run stopped at its bound of {self.events:,} simulated events"
        return "; ".join(
            f"{miss.request_class}: {miss.text}, attained by {100 * miss.attained:.2f} %" for miss in self.misses
        )


def attainment(result: FleetResult, workload: Workload, name: str, slo: SLO) -> Attainment:
    """Share of the requests of class `name` that meet all stated limits (each of them, percentiles set aside)."""
    mask = workload.of_class(name)
    good = mask.copy()
    for requirement in requirements(slo):
        for metric, limit_s in requirement.thresholds:
            good &= result.within(metric, limit_s)
    successes, requests = int(good.sum()), int(mask.sum())
    low, high = wilson_interval(successes, requests)
    return Attainment(successes / requests if requests else 1.0, low, high, requests)


def meets(result: FleetResult, workload: Workload, slos: Mapping[str, SLO]) -> Verdict:
    """Judge every objective by nearest rank; a run that ended early or at its event bound never holds."""
    misses = []
    for name, slo in slos.items():
        mask = workload.of_class(name)
        requests = int(mask.sum())
        for requirement in requirements(slo):
            good = mask.copy()
            for metric, limit_s in requirement.thresholds:
                good &= result.within(metric, limit_s)
            attained = int(good.sum())
            if requests - attained > requirement.allowed_misses(requests):
                misses.append(Miss(name, requirement.text, attained / requests, requirement.share))
    return Verdict(tuple(misses), result.refuted_early, result.event_bound_hit, result.events)
