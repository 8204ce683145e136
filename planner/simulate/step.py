"""The oracle: every step of a lane formed by the rules of `specs.service` on a virtual clock. Plain and exact.

Time order, which the fast path keeps too: a step's results count at its end; requests that become ready at that very
moment are seen before the next step is formed.
"""

from __future__ import annotations

import math
from collections import deque

from planner.simulate.model import ReplicaModel
from planner.simulate.record import EventBoundError, LaneLoad, Outstanding, Record
from planner.simulate.stages import Stages
from specs.service import BatchFormer, BlockManager, Sequence, Step


class StepLane:
    """One batch in flight of one replica, simulated step by step."""

    def __init__(
        self,
        model: ReplicaModel,
        lane: int,
        replica: int,
        record: Record,
        outstanding: Outstanding,
        clock: list[float],
        stages: Stages | None = None,
    ) -> None:
        self.load = LaneLoad()
        self._model = model
        self._stages = stages
        self._former = BatchFormer(
            BlockManager(model.lane_blocks(lane), model.block_size_tokens),
            max_num_seqs=model.lane_seqs(lane),
            max_num_batched_tokens=model.limits.max_num_batched_tokens,
            policy=model.scheduling.prefill_policy,
        )
        self._record = record
        self._outstanding = outstanding
        self._replica = replica
        self._lane = lane
        self._clock = clock  # next time at which this lane has something to do, by lane; routing reads it
        self._index = len(clock)
        clock.append(math.inf)
        self._pending: deque[tuple[float, Sequence]] = deque()  # arrived, not ready yet (`request_s`)
        self._step: Step | None = None  # in flight until the lane's clock

    def arrive(self, request: int, now_s: float) -> None:
        """A request is sent to this lane at `now_s`."""
        ready_s = now_s + self._model.times.request_s
        self._pending.append((ready_s, Sequence(request, self._record.prompt[request])))
        if self._step is None:
            self._clock[self._index] = min(self._clock[self._index], ready_s)

    def advance(self, until_s: float) -> None:
        """Process all that ends at `until_s` or before, and form all steps that start before `until_s`."""
        while True:
            time_s = self._clock[self._index]
            if self.in_flight:
                if time_s > until_s:
                    return
                self.complete(time_s)
            if time_s >= until_s:
                return
            self._clock[self._index] = self.form(time_s)

    @property
    def in_flight(self) -> bool:
        """Whether a step is under way; the lane's clock is then its end."""
        return self._step is not None

    @property
    def further_steps(self) -> int:
        """A step is formed alone."""
        return 0

    def complete(self, time_s: float) -> None:
        """Apply the step that ends now."""
        record, step, self._step = self._record, self._step, None
        assert step is not None
        for sequence in self._former.complete(step):
            if sequence.generated_tokens == 1:
                record.first_s[sequence.id] = time_s
            if sequence.generated_tokens == record.output[sequence.id]:
                self._former.finish(sequence)
                record.finish_s[sequence.id] = time_s
                record.finished.append(sequence.id)
                self._outstanding.replicas[self._replica] -= 1
                self._outstanding.lanes[self._replica][self._lane] -= 1

    def form(self, time_s: float) -> float:
        """Start the next step at `time_s`; returns when it ends, or when there may be one to form."""
        record, former, load = self._record, self._former, self.load
        while self._pending and self._pending[0][0] <= time_s:
            former.add(self._pending.popleft()[1])
        step = former.form()
        if step is None:
            return self._pending[0][0] if self._pending else math.inf
        if record.events_left <= 0:
            raise EventBoundError
        record.events_left -= 1
        self._step = step
        for sequence in step.preempted:
            record.preemptions[sequence.id] += 1
        load.preemptions += len(step.preempted)
        load.steps += 1
        load.running_peak = max(load.running_peak, len(former.running))
        load.blocks_peak = max(load.blocks_peak, former.blocks.used_blocks)
        seconds = self._step_s(step)
        if self._stages is not None:
            return self._stages.run(time_s, seconds)
        end_s = time_s + seconds
        load.busy_s += max(0.0, min(end_s, record.horizon_s) - time_s)
        return end_s

    def _step_s(self, step: Step) -> float:
        window = self._model.times.window_tokens
        contexts = [sequence.computed_tokens + 1 for sequence in step.decodes]
        return self._model.times.step_s(
            tokens=step.tokens,
            sampled=len(step.decodes) + sum(chunk.completes for chunk in step.chunks),
            sequences=len(step.decodes) + len(step.chunks),
            decodes=len(step.decodes),
            decode_context=sum(contexts),
            decode_window=0 if window is None else sum(min(context, window) for context in contexts),
            chunks=[(chunk.tokens, chunk.start) for chunk in step.chunks],
        )
