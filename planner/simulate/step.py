"""The oracle: every step of a lane formed by the rules of `specs.service` on a virtual clock. Plain and exact.

Time order, which the fast path keeps too: a step's results count at its end; requests that become ready at that very
moment are seen before the next step is formed.
"""

from __future__ import annotations

import math
from collections import deque

from planner.cost.step_times import StepTimes
from planner.simulate.model import ReplicaModel
from planner.simulate.record import EventBoundError, LaneLoad, Outstanding, Record
from planner.simulate.stages import Stages
from specs.service import BatchFormer, BlockManager, Sequence, Step, accepted_tokens, make_queue


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
        self._caches = model.prefix_caching and record.prefixes is not None
        self._record = record
        self._outstanding = outstanding
        self._replica = replica
        self._lane = lane
        self._former = self._new_former()
        # of a prefill group, shared by its lanes: replica, lane and request after its first token
        self.handed: list[tuple[int, int, Sequence]] | None = None
        self._clock = clock  # next time at which this lane has something to do, by lane; routing reads it
        self._index = len(clock)
        clock.append(math.inf)
        self._pending: deque[tuple[float, Sequence]] = deque()  # arrived, not ready yet (`request_s`)
        self._step: Step | None = None  # in flight until the lane's clock

    def arrive(self, request: int, now_s: float, generated_tokens: int = 0, computed_tokens: int = 0) -> None:
        """A request is sent to this lane at `now_s`, after so many output tokens and with so many in its KV cache."""
        ready_s = now_s + self._model.times.request_s
        sequence = self._record.sequence(request, prefix=self._caches)
        sequence.generated_tokens, sequence.computed_tokens = generated_tokens, computed_tokens
        self._pending.append((ready_s, sequence))
        self._wake(ready_s)

    def release(self, sequence: Sequence, now_s: float) -> None:
        """A request that was handed over is on the other side: its blocks are free."""
        self._former.blocks.free(sequence)
        self._wake(now_s)

    def fail(self, now_s: float) -> list[Sequence]:
        """All is lost, the step in flight too; returns the requests that were here, but for those handed over."""
        waiting, lost = self._former.waiting, list(self._former.running)
        while waiting.head() is not None:
            lost.append(waiting.pop())
        lost += [sequence for _, sequence in self._pending]
        if self._step is not None and self._stages is None:
            self.load.busy_s -= max(0.0, min(self._clock[self._index], self._record.horizon_s) - now_s)
        self._step = None
        self._former = self._new_former()
        self._pending.clear()
        self._clock[self._index] = math.inf
        return lost

    @property
    def blocks_in_use(self) -> int:
        return self._former.blocks.used_blocks

    def _new_former(self) -> BatchFormer:
        prefixes = self._record.prefixes if self._caches else None
        return batch_former(self._model, self._lane, 0 if prefixes is None else prefixes.unit_tokens)

    def _wake(self, ready_s: float) -> None:
        """There may be something to do from `ready_s` on."""
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

    def complete(self, time_s: float) -> None:
        """Apply the step that ends now."""
        record, step, self._step = self._record, self._step, None
        assert step is not None
        for sequence in self._former.complete(step, self._accepted(step)):
            if sequence.generated_tokens == 1:
                record.first_s[sequence.id] = time_s
            if sequence.generated_tokens == record.output[sequence.id]:
                self._former.finish(sequence)
                record.finish_s[sequence.id] = time_s
                record.finished.append(sequence.id)
                self._gone()
            elif self.handed is not None:
                self._former.detach(sequence)
                self.handed.append((self._replica, self._lane, sequence))

    def form(self, time_s: float) -> float:
        """Start the next step at `time_s`; returns when it ends, or when there may be one to form."""
        record, former, load = self._record, self._former, self.load
        while self._pending and self._pending[0][0] <= time_s:
            sequence = self._pending.popleft()[1]
            if former.add(sequence) is not None:
                record.refused.append(sequence.id)
                self._gone()
        step = former.form()
        if step is None:
            return self._pending[0][0] if self._pending else math.inf
        if record.events_left <= 0:
            raise EventBoundError
        record.events_left -= 1
        self._step = step
        self._note(step, time_s)
        load.steps += 1
        load.running_peak = max(load.running_peak, len(former.running))
        load.blocks_peak = max(load.blocks_peak, former.blocks.used_blocks)
        if self._stages is not None and self._model.times.stages:
            by_stage = [self._step_s(step, times) for times in self._model.times.stages]
            by_stage[-1] += self._draft_s(step)
            return self._stages.run_unlike(time_s, by_stage)
        seconds = self._step_s(step, self._model.times) + self._draft_s(step)
        if self._stages is not None:
            return self._stages.run(time_s, seconds)
        end_s = time_s + seconds
        load.busy_s += max(0.0, min(end_s, record.horizon_s) - time_s)
        return end_s

    def _gone(self) -> None:
        """A request is off this lane: it counts no longer where routers look."""
        self._outstanding.replicas[self._replica] -= 1
        self._outstanding.lanes[self._replica][self._lane] -= 1

    def _note(self, step: Step, time_s: float) -> None:
        """What a step that starts at `time_s` admits for the first time, preempts and moves."""
        record, load = self._record, self.load
        for sequence in step.preempted:
            record.preemptions[sequence.id] += 1
            load.swaps += sequence.host_blocks > 0
        load.preemptions += len(step.preempted)
        load.moved_tokens += step.moved_tokens
        for chunk in step.chunks:
            sequence = chunk.sequence
            if math.isnan(record.start_s[sequence.id]):
                record.start_s[sequence.id] = time_s
                record.cached[sequence.id] = sequence.cached_tokens
                load.looked_up_tokens += sequence.prompt_tokens
                load.hit_tokens += sequence.cached_tokens

    def _accepted(self, step: Step) -> list[int]:
        """Draft tokens accepted by decoding sequence, none beyond the end of its output; empty without speculation."""
        speculation, record = self._model.scheduling.speculation, self._record
        if speculation is None:
            return []
        return [
            min(
                accepted_tokens(
                    record.seed,
                    sequence.id,
                    sequence.generated_tokens,
                    draft_tokens=speculation.draft_tokens,
                    acceptance=speculation.acceptance,
                ),
                record.output[sequence.id] - sequence.generated_tokens - 1,
            )
            for sequence in step.decodes
        ]

    def _step_s(self, step: Step, times: StepTimes) -> float:
        window = times.window_tokens
        new = 1 + step.draft_tokens
        contexts = [sequence.computed_tokens + new for sequence in step.decodes]
        return times.step_s(
            tokens=step.tokens,
            sampled=step.decode_tokens + sum(chunk.completes for chunk in step.chunks),
            sequences=len(step.decodes) + len(step.chunks),
            decodes=len(step.decodes),
            decode_context=sum(contexts),
            decode_window=0 if window is None else sum(min(context, window) for context in contexts),
            chunks=[(chunk.tokens, chunk.start) for chunk in step.chunks],
            moved_tokens=step.moved_tokens,
        )

    def _draft_s(self, step: Step) -> float:
        """What drafting adds to a step: where tokens are sampled."""
        speculation = self._model.scheduling.speculation
        return speculation.draft_s if speculation is not None and step.decodes else 0.0


def batch_former(model: ReplicaModel, lane: int, prefix_unit_tokens: int) -> BatchFormer:
    """The rules of one lane, which has its share of seats and blocks, on the device and in the host tier."""
    scheduling = model.scheduling
    host_blocks, rest = divmod(model.host_blocks, model.times.lanes)
    blocks = BlockManager(
        model.lane_blocks(lane),
        model.block_size_tokens,
        prefix_unit_tokens=prefix_unit_tokens,
        host_blocks=host_blocks + (lane < rest),
    )
    return BatchFormer(
        blocks,
        max_num_seqs=model.lane_seqs(lane),
        max_num_batched_tokens=model.limits.max_num_batched_tokens,
        policy=scheduling.prefill_policy,
        order=make_queue(scheduling.order, mlfq_quantum_tokens=scheduling.mlfq_quantum_tokens),
        preemption=scheduling.preemption,
        batch_wait_steps=scheduling.batch_wait_steps,
        output_reserve=scheduling.output_reserve,
        max_waiting_tokens=scheduling.max_waiting_tokens,
        draft_tokens=0 if scheduling.speculation is None else scheduling.speculation.draft_tokens,
    )
