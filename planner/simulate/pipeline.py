"""A replica with pipeline stages: its lanes take turns, as a stage works on one batch at a time.

Each lane is a batch of its own (`step.StepLane` or `fast.JumpLane`) whose steps pass through all stages in order. A
step is formed when its lane has something to do and the first stage is free; it holds what has arrived until then.
The lane that has waited longest goes first.

A `JumpLane` forms runs of decode steps that only the stages hold up. Their steps are taken here, one by one but without
asking the lane, until the run is over or something arrives that the lane could take in.
"""

from __future__ import annotations

import math

from planner.simulate.fast import JumpLane
from planner.simulate.model import ReplicaModel
from planner.simulate.record import LaneLoad, Outstanding, Record
from planner.simulate.stages import Stages
from planner.simulate.step import StepLane


class PipelinedReplica:
    """The lanes of one replica behind shared stages. Same interface as a lane, but for the lane that `arrive` names."""

    def __init__(
        self,
        kind: type[StepLane] | type[JumpLane],
        model: ReplicaModel,
        replica: int,
        record: Record,
        outstanding: Outstanding,
        clock: list[float],
    ) -> None:
        count = model.times.lanes
        self._stages = Stages(model.times.stage_shares or (1.0 / count,) * count)
        self._horizon_s = record.horizon_s
        # by lane
        self._ends: list[float] = []  # of the step in flight, or when one may be formed
        self._lanes = [
            kind(model, lane, replica, record, outstanding, self._ends, self._stages) for lane in range(count)
        ]
        self._flying = [False] * count  # a step is in flight
        self._since = [0.0] * count  # end of the step in flight, or since when the lane has something to do
        self._taken = [0] * count  # steps of the run in flight that were formed
        self._left = [0] * count  # further steps of it
        self._clock = clock
        self._index = len(clock)
        clock.append(math.inf)

    @property
    def loads(self) -> list[LaneLoad]:
        return [lane.load for lane in self._lanes]

    def arrive(self, request: int, now_s: float, lane: int) -> None:
        """A request is sent to a lane at `now_s`."""
        idle = self._ends[lane] == math.inf
        self._lanes[lane].arrive(request, now_s)
        if idle:
            self._since[lane] = self._ends[lane]
        self._clock[self._index] = min(self._ends)

    def advance(self, until_s: float) -> None:
        """Process all that ends at `until_s` or before, and form all steps that start before `until_s`."""
        ends, flying, left, stages = self._ends, self._flying, self._left, self._stages
        while True:
            index = self._first()
            time_s = ends[index]
            if flying[index]:
                if time_s > until_s:
                    break
                start_s = max(time_s, stages.entry_s)
                if left[index] and start_s < until_s and not self._overtaken(time_s, start_s):
                    self._form(index, start_s)
                    continue
                flying[index] = False
                if not left[index]:
                    self._lanes[index].complete(time_s)
            elif time_s >= until_s:
                break
            elif stages.entry_s > time_s:
                ends[index] = stages.entry_s
            else:
                self._form(index, time_s)
        self._clock[self._index] = ends[index]

    def _first(self) -> int:
        """The lane whose time comes first; of equal ones, who has waited longest."""
        ends, since = self._ends, self._since
        first, first_s = 0, ends[0]
        for lane in range(1, len(ends)):
            if ends[lane] < first_s or (ends[lane] == first_s and since[lane] < since[first]):
                first, first_s = lane, ends[lane]
        return first

    def _overtaken(self, time_s: float, start_s: float) -> bool:
        """Whether a lane that has waited since before `time_s` enters the first stage at `start_s` or before."""
        if start_s == time_s:
            return False
        return any(
            not self._flying[lane] and self._since[lane] < time_s and end_s <= start_s
            for lane, end_s in enumerate(self._ends)
        )

    def _form(self, index: int, time_s: float) -> None:
        """The next step of a lane enters the first stage at `time_s`: of its run, or what the lane forms anew."""
        lane = self._lanes[index]
        if self._left[index] and isinstance(lane, JumpLane):
            if time_s < lane.cut_s:
                end_s = self._stages.run(time_s, lane.step_s(self._taken[index]))
                self._taken[index] += 1
                self._left[index] -= 1
                self._fly(index, time_s, end_s)
                return
            lane.end_run(self._taken[index])
            lane.complete(time_s)
        end_s = lane.form(time_s)
        if lane.in_flight:
            self._taken[index], self._left[index] = 1, lane.further_steps
            self._fly(index, time_s, end_s)
        else:
            self._flying[index], self._left[index] = False, 0
            self._ends[index] = self._since[index] = end_s

    def _fly(self, index: int, start_s: float, end_s: float) -> None:
        self._flying[index] = True
        self._ends[index] = self._since[index] = end_s
        if start_s < self._horizon_s:
            self._lanes[index].load.busy_s += min(end_s, self._horizon_s) - start_s
