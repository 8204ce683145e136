"""Parts of the planned traffic that prices rest on: the busiest stretch of one model, thinned or hurried to a share.

Prices come from the busiest part of the window, long enough for percentiles to mean something; whole plans are then
judged on all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.simulate import Requirement, Workload, requirements
from planner.simulate.apart import only
from specs.deployment import SLO

LEAST_SCREENED, MOST_SCREENED = 1000, 2000  # requests; a percentile rests on a hundred beyond it, a p99 on 20
MOST_SAMPLED = 30_000  # requests of all classes of a model that a part of its fleet is simulated on
BEYOND = 100
STAYS, MOST_STEADY = 4.0, 6000  # a screen lasts as long as so many requests stay, one after the other
WARMING = 5  # times as many where prompts share something: caches start empty
_THINNING_SEED = 20_504_19720


@dataclass
class Screens:
    """The planned traffic of each model and what is taken from it; every part is made once."""

    workload: Workload
    slos: dict[str, SLO]
    classes_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)  # by model; empty: all of one
    sampled: int | None = field(default=None, kw_only=True)  # replicas that stand for a model that needs many more
    _own: dict[tuple[str, ...], Workload] = field(default_factory=dict, kw_only=True)  # by the classes that it holds
    _screens: dict[tuple[str, ...], Workload] = field(default_factory=dict, kw_only=True)
    _parts: dict[tuple[tuple[str, ...], float], Workload] = field(default_factory=dict, kw_only=True)
    _rests: tuple[dict[str, SLO], int] | None = field(default=None, kw_only=True)  # objectives and `screened` of them

    def part(self, classes: tuple[str, ...], share: float) -> Workload:
        """The screened requests of `classes`, thinned to `share`; one kept at some share is kept at every larger.

        Above 1, all of them, arriving `share` times as fast.
        """
        key = (classes, share)
        if key in self._parts:
            return self._parts[key]
        model = self._classes_with(classes[0])
        if self.sampled is not None and share < 1.0:
            thinned = self.thinned(self.own(model), classes, share)
            return busiest_part(thinned, self.sample(thinned))
        if model not in self._screens:
            own = self.own(model)
            few = max(self.screened() * len(model), self.steady(own))
            self._screens[model] = busiest_part(own, few if self.sampled is None else self.sample(own))
        part = self.thinned(self._screens[model], classes, share)
        if share > 1.0:
            part = part.faster(share)
        self._parts[key] = part
        return part

    def own(self, classes: tuple[str, ...]) -> Workload:
        """The requests of `classes`, of one model, and no other class."""
        if classes not in self._own:
            model = self._classes_with(classes[0])
            whole = self.workload if classes == model else self.own(model)
            self._own[classes] = only(whole, classes)
        return self._own[classes]

    def _classes_with(self, name: str) -> tuple[str, ...]:
        """All classes of the model that class `name` belongs to."""
        return next((own for own in self.classes_of.values() if name in own), self.workload.classes)

    def thinned(self, whole: Workload, classes: tuple[str, ...], share: float) -> Workload:
        """The requests of `classes`, or below 1 a share of them; one kept at some share is kept at every larger."""
        if classes == whole.classes:
            return whole.select(_draws(whole) < share) if share < 1.0 else whole
        mask = np.isin(whole.class_index, [whole.classes.index(name) for name in classes])
        return whole.select(mask & (_draws(whole) < share) if share < 1.0 else mask)

    def sample(self, workload: Workload) -> int:
        """Requests that a part of a large fleet is simulated on: enough for percentiles, and to fill its replicas."""
        least = max(self.screened() * len(workload.classes), self.steady(workload, MOST_SAMPLED))
        return min(least, MOST_SAMPLED)

    def steady(self, workload: Workload, most: int = MOST_STEADY) -> int:
        """Requests in as long a time as it takes until as many are in service as ever will be, if TPOT is as promised.

        From empty replicas on that takes as long as a request stays; a shorter screen prices replicas that never fill.
        """
        limits = self.tpot_limits(workload.classes)
        if not limits or not len(workload):
            return 0
        stays_s = max(limits) * float(workload.output_tokens.mean())
        return min(most, int(STAYS * stays_s * len(workload) / workload.horizon_s))

    def screened(self) -> int:
        """Requests that prices rest on: the more, the closer to one the largest share that a class promises."""
        if self._rests is None or self._rests[0] is not self.slos:  # of a thousand classes it takes long
            rest = 1.0 - max((item.share for slo in self.slos.values() for item in requirements(slo)), default=0.0)
            least = BEYOND / rest if rest > 0 else MOST_SCREENED
            self._rests = self.slos, int(min(MOST_SCREENED, max(LEAST_SCREENED, least)))
        return self._rests[1]

    def tpot_limits(self, classes: Iterable[str]) -> list[float]:
        """Seconds, of every requirement of `classes` on TPOT."""
        return [
            limit_s
            for name in classes
            if name in self.slos
            for requirement in requirements(self.slos[name])
            for metric, limit_s in requirement.thresholds
            if metric == "tpot"
        ]


def _draws(workload: Workload) -> NDArray[np.float64]:
    """A number from 0 to 1 for each request, by which it is kept; turns of a conversation stay together."""
    draws = np.random.default_rng(_THINNING_SEED).random(len(workload))
    if workload.session is None:
        return draws
    _, first, conversation = np.unique(workload.session, return_index=True, return_inverse=True)
    together: NDArray[np.float64] = draws[first[conversation]]
    return together


def busiest_part(workload: Workload, requests: int) -> Workload:
    """The stretch that holds about `requests` requests and the most tokens; re-based to 0.

    The whole workload where it is not at least twice as long.
    """
    if workload.prefixes is not None:
        requests *= WARMING
    if len(workload) < 2 * requests:
        return workload
    seconds = workload.horizon_s * requests / len(workload)
    arrival_s = workload.arrival_s
    tokens = np.concatenate([[0], np.cumsum(workload.prompt_tokens + workload.output_tokens)])
    ends = np.searchsorted(arrival_s, arrival_s + seconds)
    starts = np.arange(len(arrival_s))
    starts = starts[arrival_s <= workload.horizon_s - seconds]
    first = int(starts[np.argmax(tokens[ends[starts]] - tokens[starts])])
    inside = (starts_at := np.arange(len(arrival_s))) >= first
    part = workload.select(inside & (starts_at < ends[first]))
    return part.moved(part.arrival_s - arrival_s[first], seconds)


def decisive(slo: SLO) -> Requirement:
    """The requirement that optimistic families are held to: the one on TPOT, which most often rules devices out."""
    found = requirements(slo)
    return next((r for r in found if any(metric == "tpot" for metric, _ in r.thresholds)), found[0])
