"""The chosen plan on traffic it has not seen, until a sequential test accepts each limit or refutes it.

For each limit, with q the share of requests that may miss it, Wald's sequential probability ratio test (A. Wald, 1945)
weighs a miss rate of (1 + ZONE) q against one of (1 - ZONE) q, with errors of `ERROR` on either side: a limit that is
missed a tenth more often than it may is accepted in at most one of twenty cases; a plan of which every limit is missed
a tenth more seldom is refuted as seldom (the error is shared among its limits). In between either answer is right.

Requests that share a queue are late together, so the likelihood is divided by their overdispersion (quasi-likelihood,
R. Wedderburn, 1974): the variance of misses in stretches of time over that of independent requests, at least 1.

Runs are bounded. A limit that is undecided then is kept on average where its misses over all fresh requests are at most
q, and broken on average where they are more: no plan goes out that misses a promise on what it was tested with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from planner.simulate import FleetResult, Requirement, Workload, requirements
from planner.simulate.model import FloatArray, IntArray
from planner.simulate.together import together
from planner.throughput import KEEPS_UP, Throughput, kept_up
from specs.deployment import SLO
from specs.plan import FreshLimit, FreshSeeds

ERROR = 0.05
ZONE = 0.1
STRETCHES = 20  # of a run, for the overdispersion
MOST_RUNS, MOST_REQUESTS = 8, 30_000  # a tenth of a second; the first run is made whatever it holds
_ROUNDS = ((1, 1), *((seed, min(seed + 1, MOST_RUNS)) for seed in range(2, MOST_RUNS + 1, 2)))  # at the same time
Verdict = Literal["kept", "broken", "kept on average", "broken on average", "undecided"]


@dataclass
class _Walk:
    """One limit of one class: misses so far, by stretch of time."""

    name: str
    requirement: Requirement
    limits: int  # of the plan, which share the error of refuting it
    requests: list[IntArray] = field(default_factory=list)
    misses: list[FloatArray] = field(default_factory=list)

    @property
    def allowed(self) -> float:
        return 1.0 - self.requirement.share

    @property
    def total(self) -> tuple[int, int]:
        """Requests and misses."""
        return int(sum(part.sum() for part in self.requests)), int(sum(part.sum() for part in self.misses))

    def add(self, result: FleetResult, own: IntArray, stretch: IntArray) -> None:
        """One run; `own`: indices of the class's requests, `stretch`: where each of them stands in time."""
        good = np.ones(len(own), dtype=np.bool_)
        for metric, limit_s in self.requirement.thresholds:
            good &= result.within(metric, limit_s, own)
        self.requests.append(np.bincount(stretch, minlength=STRETCHES).astype(np.int64))
        self.misses.append(np.bincount(stretch, weights=~good, minlength=STRETCHES).astype(np.float64))

    def verdict(self) -> Literal["kept", "broken"] | None:
        """None while neither is certain enough."""
        requests, misses = self.total
        if self.allowed <= 0.0:
            return "broken" if misses else "kept"
        evidence = self._evidence(requests, misses)
        if evidence >= math.log((1.0 - ERROR) * self.limits / ERROR):
            return "broken"
        return "kept" if evidence <= -math.log((1.0 - ERROR) / ERROR) else None

    def _evidence(self, requests: int, misses: int) -> float:
        """Logarithm of the likelihood of too many misses over that of few enough."""
        few, many = (1.0 - ZONE) * self.allowed, min(1.0, (1.0 + ZONE) * self.allowed)
        if many >= 1.0:
            return -math.inf
        kept = requests - misses
        ratio = misses * math.log(many / few) + kept * math.log((1.0 - many) / (1.0 - few))
        return ratio / self.overdispersion()

    def overdispersion(self) -> float:
        """Variance of the misses in a stretch over what it were if each missed by itself; at least 1."""
        if not self.requests:
            return 1.0
        requests, misses = np.concatenate(self.requests), np.concatenate(self.misses)
        share = misses.sum() / max(1.0, requests.sum())
        seen = requests > 0
        if not 0.0 < share < 1.0 or seen.sum() < 2:
            return 1.0
        expected = requests[seen] * share
        pearson = (misses[seen] - expected) ** 2 / (expected * (1.0 - share))
        return max(1.0, float(pearson.sum()) / (int(seen.sum()) - 1))

    def evidence(self) -> FreshLimit:
        requests, misses = self.total
        return FreshLimit(
            request_class=self.name,
            limit=self.requirement.text,
            required=self.requirement.share,
            met=1.0 - misses / requests if requests else 1.0,
            requests=requests,
            overdispersion=self.overdispersion(),
            verdict=self.verdict() or self._on_average(requests, misses),
        )

    def _on_average(self, requests: int, misses: int) -> Verdict:
        if not requests:
            return "undecided"
        return "kept on average" if misses <= self.allowed * requests + 1e-9 else "broken on average"


@dataclass
class _Work:
    """One throughput: which part of what arrived each run kept up with, and how many requests that were."""

    name: str
    kept: list[float] = field(default_factory=list)
    requests: int = 0

    @property
    def mean(self) -> float:
        return sum(self.kept) / len(self.kept) if self.kept else 1.0

    @property
    def close(self) -> bool:
        """Whether another run may bring the mean to the other side."""
        return abs(self.mean - KEEPS_UP) < (1.0 - KEEPS_UP) / 2.0

    def add(self, workload: Workload, result: FleetResult) -> None:
        self.kept.append(min(1.0, kept_up(result, workload, self.name)))
        self.requests += int(workload.of_class(self.name).sum())

    def evidence(self) -> FreshLimit:
        kept: Verdict = "kept on average" if self.mean >= KEEPS_UP else "broken on average"
        return FreshLimit(
            request_class=self.name,
            limit="throughput: tokens finished as fast as they come",
            required=KEEPS_UP,
            met=self.mean,
            requests=self.requests,
            overdispersion=1.0,
            verdict=kept if self.kept else "undecided",
        )


@dataclass(frozen=True)
class FreshTest:
    """The evidence, and the limits that it refutes, in words (none: the plan stands)."""

    evidence: FreshSeeds
    broken: tuple[str, ...]
    simulations: int = 0  # that were made; the last one may not have been needed


@dataclass(frozen=True)
class Judge:
    """Tests plans on the workloads of `draw` (by seed), the same ones for every plan."""

    draw: Callable[[int], Workload | None]  # None: a class has no request in that seed's window
    slos: Mapping[str, SLO]
    seed: int  # of planning; fresh seeds are those after it
    throughputs: Mapping[str, Throughput] = field(default_factory=dict)
    drawn: dict[int, Workload | None] = field(default_factory=dict)
    among: int = 0  # limits of the whole plan, where only those of one model are judged: they share the error

    def __call__(self, simulate: Callable[[Workload], FleetResult]) -> FreshTest:
        """`simulate` serves a workload with the plan, to the end; after the first one, two at the same time."""
        stated = [(name, requirement) for name, slo in self.slos.items() for requirement in requirements(slo)]
        walks = [_Walk(name, requirement, max(self.among, len(stated))) for name, requirement in stated]
        work = [_Work(name) for name in self.throughputs]
        seeds: list[int] = []
        requests = runs = 0
        for first, last in _ROUNDS:
            drawn = {seed: self.workload(seed) for seed in range(self.seed + first, self.seed + last + 1)}
            served = {seed: workload for seed, workload in drawn.items() if workload is not None}
            results = together(partial(simulate, workload) for workload in served.values())
            runs += len(results)
            decided = False
            for (seed, workload), result in zip(served.items(), results, strict=True):
                if decided:
                    break  # as if it had not been served
                seeds.append(seed)
                requests += len(workload)
                _add_run(walks, workload, result)
                for item in work:
                    item.add(workload, result)
                decided = requests >= MOST_REQUESTS or not _may_change(walks, work)
            if decided:
                break
        limits = (*(walk.evidence() for walk in walks), *(item.evidence() for item in work))
        evidence = FreshSeeds(seeds=tuple(seeds), requests=requests, error=ERROR, zone=ZONE, limits=limits)
        broken = tuple(_in_words(limit) for limit in limits if limit.verdict.startswith("broken"))
        return FreshTest(evidence, broken, runs)

    def workload(self, seed: int) -> Workload | None:
        if seed not in self.drawn:
            self.drawn[seed] = self.draw(seed)
        return self.drawn[seed]


def _may_change(walks: list[_Walk], work: list[_Work]) -> bool:
    """Whether another run may change the verdict: nothing is refuted yet, and not everything is accepted."""
    verdicts = [walk.verdict() for walk in walks]
    return "broken" not in verdicts and (None in verdicts or any(item.close for item in work))


def _add_run(walks: list[_Walk], workload: Workload, result: FleetResult) -> None:
    place = workload.arrival_s / (workload.horizon_s or 1.0) * STRETCHES
    stretch = np.minimum(place.astype(np.int64), STRETCHES - 1)
    for walk in walks:
        own = workload.places[workload.classes.index(walk.name)]
        walk.add(result, own, stretch[own])


def _in_words(limit: FreshLimit) -> str:
    return f"{limit.request_class}: {limit.limit} (met by {limit.met:.1%} of {limit.requests:,} fresh requests)"
