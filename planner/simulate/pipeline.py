"""A replica with pipeline stages: its lanes take turns, as a stage works on one batch at a time.

Each lane is a batch of its own (`step.StepLane`) whose steps pass through all stages in order. A step is formed when
its lane has something to do and the first stage is free; it holds what has arrived until then. The lane that has
waited longest goes first.
"""

from __future__ import annotations

import math

from planner.simulate.model import ReplicaModel
from planner.simulate.record import LaneLoad, Outstanding, Record
from planner.simulate.stages import Stages
from planner.simulate.step import StepLane
from specs.service import Sequence


class PipelinedReplica:
    """The lanes of one replica behind shared stages. Same interface as a lane, but for the lane that `arrive` names."""

    def __init__(
        self,
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
            StepLane(model, lane, replica, record, outstanding, self._ends, self._stages) for lane in range(count)
        ]
        self._flying = [False] * count  # a step is in flight
        self._since = [0.0] * count  # end of the step in flight, or since when the lane has something to do
        self._clock = clock
        self._index = len(clock)
        clock.append(math.inf)

    @property
    def lanes(self) -> list[StepLane]:
        return list(self._lanes)

    @property
    def loads(self) -> list[LaneLoad]:
        return [lane.load for lane in self._lanes]

    @property
    def blocks_in_use(self) -> int:
        return sum(lane.blocks_in_use for lane in self._lanes)

    def arrive(
        self, request: int, now_s: float, lane: int, generated_tokens: int = 0, computed_tokens: int = 0
    ) -> None:
        """A request is sent to a lane at `now_s`, after so many output tokens and with so many in its KV cache."""
        idle = self._ends[lane] == math.inf
        self._lanes[lane].arrive(request, now_s, generated_tokens, computed_tokens)
        self._woken(lane, idle)

    def release(self, sequence: Sequence, now_s: float, lane: int) -> None:
        """A request that was handed over is on the other side: its blocks are free."""
        idle = self._ends[lane] == math.inf
        self._lanes[lane].release(sequence, now_s)
        self._woken(lane, idle)

    def fail(self, now_s: float) -> list[Sequence]:
        """All is lost, steps in flight too; returns the requests that were here, but for those handed over."""
        lost: list[Sequence] = []
        for index, lane in enumerate(self._lanes):
            if self._flying[index]:
                lane.load.busy_s -= max(0.0, min(self._ends[index], self._horizon_s) - now_s)
            lost += lane.fail(now_s)
            self._flying[index] = False
        self._stages.clear()
        self._clock[self._index] = math.inf
        return lost

    def _woken(self, lane: int, idle: bool) -> None:
        """A lane has something more to do."""
        if idle:
            self._since[lane] = self._ends[lane]
        self._clock[self._index] = min(self._ends)

    def advance(self, until_s: float) -> None:
        """Process all that ends at `until_s` or before, and form all steps that start before `until_s`."""
        ends, flying, stages = self._ends, self._flying, self._stages
        while True:
            index = self._first()
            time_s = ends[index]
            if flying[index]:
                if time_s > until_s:
                    break
                flying[index] = False
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

    def _form(self, index: int, time_s: float) -> None:
        """The next step of a lane enters the first stage at `time_s`."""
        lane = self._lanes[index]
        end_s = lane.form(time_s)
        self._flying[index] = lane.in_flight
        self._ends[index] = self._since[index] = end_s
        if lane.in_flight and time_s < self._horizon_s:
            lane.load.busy_s += min(end_s, self._horizon_s) - time_s
