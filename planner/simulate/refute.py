"""The early end of a run: as soon as more requests missed a limit than its share allows, nothing can mend it."""

from __future__ import annotations

from collections.abc import Mapping

from planner.simulate.limits import Requirement, requirements
from planner.simulate.model import Workload
from planner.simulate.record import Record
from specs.deployment import SLO, Metric


class _Watch:
    """One requirement on one class: the requests that missed it so far, each counted once."""

    def __init__(self, name: str, requirement: Requirement, requests: list[int]) -> None:
        self.text = f"{name}: {requirement.text}"
        self.allowed = requirement.allowed_misses(len(requests))
        self.thresholds = dict(requirement.thresholds)
        self.requests = requests  # of the class, in order of arrival
        self.missed: set[int] = set()
        self.next: dict[Metric, int] = {"ttft": 0, "e2e": 0}  # first request that is not overdue yet


class Refuter:
    """Watches a `Record`. It only ever ends runs whose full length would be refuted too."""

    def __init__(
        self, workload: Workload, slos: Mapping[str, SLO], record: Record, arrival_s: list[float] | None = None
    ) -> None:
        """`arrival_s`: actual arrivals, infinity until they are known; those of the workload where there is none."""
        self._record = record
        self._arrival: list[float] = workload.arrival_s.tolist() if arrival_s is None else arrival_s
        self._class_index = workload.class_index.tolist()
        self._by_class: list[list[_Watch]] = [[] for _ in workload.classes]
        for name, slo in slos.items():
            if name not in workload.classes:
                raise ValueError(f"no request class {name!r} in the workload")
            requests = workload.of_class(name).nonzero()[0].tolist()
            watches = [_Watch(name, requirement, requests) for requirement in requirements(slo)]
            self._by_class[workload.classes.index(name)] = watches
        self._watches = [watch for watches in self._by_class for watch in watches]
        self._drained = 0

    def reject(self, request: int) -> None:
        """A request that was refused misses everything."""
        for watch in self._by_class[self._class_index[request]]:
            watch.missed.add(request)

    def check(self, now_s: float) -> str | None:
        """The limit that is broken beyond mending, judged on what is known at `now_s`; None when there is none."""
        record, arrival = self._record, self._arrival
        for request in record.finished[self._drained :]:
            finish_s = record.finish_s[request]
            for watch in self._by_class[self._class_index[request]]:
                limit_s = watch.thresholds.get("tpot")
                tokens = record.output[request] - 1
                if limit_s is not None and tokens and (finish_s - record.first_s[request]) / tokens > limit_s:
                    watch.missed.add(request)
        self._drained = len(record.finished)
        for watch in self._watches:
            for metric in watch.next:
                reached_s = record.first_s if metric == "ttft" else record.finish_s
                limit_s = watch.thresholds.get(metric)
                if limit_s is None:
                    continue
                position, requests = watch.next[metric], watch.requests
                while position < len(requests) and now_s - arrival[requests[position]] > limit_s:
                    request = requests[position]
                    if not reached_s[request] - arrival[request] <= limit_s:  # NaN: not yet, so too late
                        watch.missed.add(request)
                    position += 1
                watch.next[metric] = position
            if len(watch.missed) > watch.allowed:
                return watch.text
        return None
