"""What a simulation tells: latencies of each request, load of each group, and the verdict on objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.simulate.limits import nearest_rank, requirements, wilson_interval
from planner.simulate.model import FloatArray, IntArray, Workload
from specs.deployment import SLO, Metric

BoolArray = NDArray[np.bool_]
SATURATED = 0.05
_ALL = slice(None)
# Why a request was refused, by `FleetResult.refusal`; index 0: it was not.
REFUSALS = ("", "too long", "larger than the KV cache", "queue full", "session ended", "no replica up")


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
    looked_up_tokens: int = 0  # prompt tokens of first admissions
    hit_tokens: int = 0  # of these, found in the prefix cache
    moved_tokens: int = 0  # between device and host
    swaps: int = 0  # preemptions that kept what was computed, in host memory; `preemptions` counts all
    lost: int = 0  # requests that were on a replica when it failed


@dataclass(frozen=True)
class LinkLoad:
    """What one link between prefill and decode replicas carried."""

    name: str
    busy_s: float  # inside the arrival window
    transfers: int
    moved_bytes: float


@dataclass(frozen=True)
class FleetResult:
    """Arrays by request, in the order of the workload; NaN where a request was refused or did not finish.

    Optional arrays are None where a run does not gather them.
    """

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
    arrival_s: FloatArray | None = None  # actual arrivals, which latencies count from; None: those of the workload
    start_s: FloatArray | None = None  # start of the first step that holds the request; NaN: never
    cached_tokens: IntArray | None = None  # prompt tokens found in the prefix cache at the first admission
    refusal: IntArray | None = None  # index into `REFUSALS`
    links: tuple[LinkLoad, ...] = ()
    decode_group_index: IntArray | None = None  # where a handed-over request decodes; -1: not handed over
    decode_replica_index: IntArray | None = None

    @property
    def saturated(self) -> bool:
        """Whether requests arrive faster than they are served: what waits keeps growing through the window.

        At the end `SATURATED` of all requests wait, at least ten, and three times as many as after a tenth of the
        window (under a steady overload ten times as many do; a queue in balance does not grow).
        """
        early, end = self.waiting
        return end >= max(10, SATURATED * len(self.ttft_s)) and end >= 3 * early

    def arrivals_s(self, workload: Workload) -> FloatArray:
        """When each request arrived: a turn of a session after its predecessor, others as the workload says."""
        return workload.arrival_s if self.arrival_s is None else self.arrival_s

    def starts_s(self, workload: Workload) -> FloatArray:
        """When the first step that holds each request started; its first token where that is not known."""
        first_s = self.arrivals_s(workload) + self.ttft_s
        return first_s if self.start_s is None else np.where(np.isnan(self.start_s), first_s, self.start_s)

    def had(self, group: int) -> BoolArray:
        """Mask of the requests that a group served, all of them or the part that its role leaves it."""
        here: BoolArray = self.group_index == group
        return here if self.decode_group_index is None else here | (self.decode_group_index == group)

    def at(self, places: IntArray) -> FleetResult:
        """The same run, of the requests at `places` alone; what is said of groups stays what it is of all."""
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {
            name: array[places] for name, array in arrays.items() if isinstance(array, np.ndarray)
        }
        return replace(self, **changed)

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
        return nearest_rank(ordered, percentile)

    def judged(self, metric: Metric, mask: BoolArray) -> BoolArray:
        """The requests under `mask` that a percentile is over."""
        if metric == "tpot":
            return mask & ~(np.isnan(self.tpot_s) & ~np.isnan(self.e2e_s))
        return mask

    def within(self, metric: Metric, limit_s: float, places: IntArray | slice = _ALL) -> BoolArray:
        """Mask of requests that meet one limit; of those at `places` alone."""
        done = ~np.isnan(self.e2e_s[places])
        if metric == "tpot":
            return done & ~(self.tpot_s[places] > limit_s)
        return done & (self.metric_s(metric)[places] <= limit_s)


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
    unfinished: int = 0  # requests of a whole run that neither finished nor were refused: none, or a rule is wrong

    @property
    def holds(self) -> bool:
        whole = self.refuted_early is None and not self.event_bound_hit and not self.unfinished
        return whole and not self.misses

    def __str__(self) -> str:
        if self.holds:
            return "every objective holds"
        if self.refuted_early is not None:
            return f"refuted: {self.refuted_early}"
        if self.event_bound_hit:
            return f"undecided: the run stopped at its bound of {self.events:,} simulated events"
        if self.unfinished:
            return f"undecided: {self.unfinished} requests neither finished nor were refused"
        return "; ".join(
            f"{miss.request_class}: {miss.text}, attained by {100 * miss.attained:.2f} %" for miss in self.misses
        )


def attainment(result: FleetResult, workload: Workload, name: str, slo: SLO) -> Attainment:
    """Share of the requests of class `name` that meet all stated limits (each of them, percentiles set aside)."""
    good, promised = good_requests(result, workload, {name: slo})
    successes, requests = int(good.sum()), int(promised.sum())
    low, high = wilson_interval(successes, requests)
    return Attainment(successes / requests if requests else 1.0, low, high, requests)


def good_requests(result: FleetResult, workload: Workload, slos: Mapping[str, SLO]) -> tuple[BoolArray, BoolArray]:
    """Masks of the requests that meet every limit of their class, and of those whose class states any."""
    good, promised = (np.zeros(len(workload), dtype=np.bool_) for _ in range(2))
    for name, slo in slos.items():
        own = workload.of_class(name)
        promised |= own
        for requirement in requirements(slo):
            for metric, limit_s in requirement.thresholds:
                own = own & result.within(metric, limit_s)
        good |= own
    return good, promised


def meets(result: FleetResult, workload: Workload, slos: Mapping[str, SLO]) -> Verdict:
    """Judge every objective by nearest rank; a run that ended early or at its event bound never holds."""
    misses = []
    for name, slo in slos.items():
        own = workload.places[workload.classes.index(name)]
        requests = len(own)
        for requirement in requirements(slo):
            good = np.ones(requests, dtype=np.bool_)
            for metric, limit_s in requirement.thresholds:
                good &= result.within(metric, limit_s, own)
            attained = int(good.sum())
            if requests - attained > requirement.allowed_misses(requests):
                misses.append(Miss(name, requirement.text, attained / requests, requirement.share))
    whole = result.refuted_early is None and not result.event_bound_hit
    unfinished = int((np.isnan(result.e2e_s) & ~result.rejected).sum()) if whole else 0
    return Verdict(tuple(misses), result.refuted_early, result.event_bound_hit, result.events, unfinished)
