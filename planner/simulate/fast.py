"""The fast path: a lane that jumps from event to event, equal to the oracle in `step.py` request by request.

Between two events (an arrival that can be admitted, a completion, a shortage of blocks, a context that reaches the
attention window, a total of keys that reaches the end of a piece of the decode table) every step decodes the same b
sequences, and only their contexts grow, one token a step each. So step j of a run takes A + B j seconds, with A the
first step's time and B = b x decode_context_token_s + g x decode_window_token_s (g sequences still below the window),
and k steps take k A + B k (k - 1) / 2: a quadratic that tells at which step boundary an arrival is seen. Steps with
prefill chunks are single steps, but for those in which one prompt takes the whole budget: while it goes on and nothing
finishes, nobody can join, so they are one run whose seconds are added up step by step.

Bookkeeping is constant per event, whatever the batch: every decoding sequence advances one token per decode step, so
with D the lane's count of decode steps
- a sequence finishes at a fixed D (a heap), and its cached tokens are prompt + output - 1 - (finish - D);
- it needs a new block when (finish - prompt - output + 1) = D modulo the block size: a histogram over residues counts
  the blocks that k steps take, exactly;
- it reaches the attention window at a fixed D (a second heap with counts).
Only a step that runs out of blocks walks over the sequences, to preempt as the rule says.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from heapq import heapify, heappop, heappush

from planner.simulate.model import ReplicaModel
from planner.simulate.record import EventBoundError, LaneLoad, Outstanding, Record
from planner.simulate.stages import Stages

_NONE: list[int] = []  # never written to


class JumpLane:
    """One batch in flight of one replica. Same interface and same results as `step.StepLane`."""

    __slots__ = (  # 7 % faster than a dict, which instances of so many attributes do not share
        "_below", "_block_size", "_budget", "_chunk_s", "_clock", "_completing", "_context", "_count",
        "_crossing_counts", "_crossings", "_cuttable", "_decode_row", "_decode_s", "_decoded", "_decodes",
        "_ends", "_finish", "_first_s", "_growth_s", "_horizon_s", "_index", "_lane", "_num_blocks", "_open",
        "_partial", "_prefill_first", "_queue", "_record", "_replica", "_residues", "_resumed", "_sampled_s",
        "_seats", "_sent_to_lane", "_sent_to_replica", "_sequence_s", "_stages", "_start_s", "_step_tokens_s",
        "_steps", "_times", "_used", "_whole", "_window", "_window_context", "cut_s", "load",
    )  # fmt: skip

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
        times = model.times
        self._stages = stages  # with stages, the replica takes a run step by step: other lanes' steps come between
        self.cut_s = math.inf  # with stages: no step of the run in flight is formed from then on
        self.load = LaneLoad()
        self._times = times
        self._decode_s, self._chunk_s = model.lookups
        self._decode_row = None if times.decode_table is None else times.decode_table.row
        self._step_tokens_s, self._sampled_s, self._sequence_s = times.tokens_s, times.sampled_s, times.sequence_s
        self._seats = model.lane_seqs(lane)
        self._num_blocks = model.lane_blocks(lane)
        self._block_size = model.block_size_tokens
        self._budget = model.limits.max_num_batched_tokens
        self._prefill_first = model.scheduling.prefill_policy == "prefill_first"
        self._record = record
        self._horizon_s = record.horizon_s
        self._sent_to_replica = outstanding.replicas
        self._sent_to_lane = outstanding.lanes[replica]
        self._replica = replica
        self._lane = lane
        self._clock = clock  # end of the run in flight, or when a step may be formed; by lane
        self._index = len(clock)
        clock.append(math.inf)
        self._whole = record.whole  # tokens cached when a request finishes
        self._count = max(1, len(record.prompt))  # heap entries are finish * count + request
        self._queue: deque[tuple[float, int]] = deque()  # (ready, request); preempted ones come back to the front
        self._resumed: dict[int, int] = {}  # tokens generated before a preemption, by waiting or prefilling request
        # decoding sequences
        self._finish: dict[int, int] = {}  # request -> D at which it finishes; in order of admission
        self._ends: list[int] = []  # heap over the same
        self._decoded = 0  # D
        self._context = 0  # sum of cached tokens
        self._residues = [0] * self._block_size
        self._used = 0  # blocks, growth of the run in flight not included
        self._partial: tuple[int, int, int] | None = None  # (request, computed, target) of the prompt under way
        # attention window, where the model has one
        self._window = times.window_tokens or 0
        self._window_context = 0  # sum of min(cached + 1, window)
        self._below = 0  # sequences whose window still fills
        self._crossings: list[int] = []  # heap of D at which some fill it
        self._crossing_counts: dict[int, int] = {}
        # the run in flight
        self._start_s = 0.0
        self._steps = 0  # 0: none in flight
        self._decodes = 0  # sequences decoding in it
        self._first_s = 0.0  # A
        self._growth_s = 0.0  # B
        self._completing = _NONE  # requests whose prompts it completes
        self._cuttable = False  # an arrival ends it at the next step boundary
        self._open = False  # the same with stages, where the replica ends it

    def arrive(self, request: int, now_s: float) -> None:
        """A request is sent to this lane at `now_s`."""
        ready_s = now_s + self._times.request_s
        self._queue.append((ready_s, request))
        if self._steps == 0:
            if ready_s < self._clock[self._index]:
                self._clock[self._index] = ready_s
        elif self._cuttable and ready_s < self._clock[self._index]:
            self._clock[self._index] = self._cut(ready_s)
        elif self._open and ready_s < self.cut_s:
            self.cut_s = ready_s

    def _cut(self, ready_s: float) -> float:
        """End the run in flight at its first step boundary that is not before `ready_s`; returns that."""
        start_s, first_s, growth_s, steps = self._start_s, self._first_s, self._growth_s, self._steps
        half = first_s - growth_s / 2
        gap = ready_s - start_s
        k = int(2 * gap / (half + math.sqrt(half * half + 2 * growth_s * gap)))  # root of the quadratic, rounded down
        k = max(1, min(k, steps))
        end_s = start_s + (k * first_s + growth_s * (k * (k - 1) // 2))
        while end_s < ready_s and k < steps:  # up to the boundary after the root
            k += 1
            end_s = start_s + (k * first_s + growth_s * (k * (k - 1) // 2))
        self._steps = k
        self._cuttable = False  # later arrivals are ready after the last step has begun
        return end_s

    def advance(self, until_s: float) -> None:
        """Process all that ends at `until_s` or before, and form all steps that start before `until_s`."""
        clock, index = self._clock, self._index
        time_s = clock[index]
        while True:
            if self._steps:
                if time_s > until_s:
                    return
                self.complete(time_s)
            if time_s >= until_s:
                return
            time_s = clock[index] = self.form(time_s)

    # ------------------------------------------------------------------------------------------------ end of a run

    @property
    def in_flight(self) -> bool:
        """Whether a run is under way; the lane's clock is then its end."""
        return self._steps > 0

    @property
    def further_steps(self) -> int:
        """Steps of the run in flight after its first."""
        return self._steps - 1

    def step_s(self, index: int) -> float:
        """Seconds of step `index` of the run in flight, from 0."""
        return self._first_s + self._growth_s * index

    def end_run(self, steps: int) -> None:
        """The run in flight was ended after so many steps; `complete` applies them."""
        self._steps = steps

    def complete(self, time_s: float) -> None:
        """Apply the run that ends now: contexts and blocks grow, prompts complete, sequences finish."""
        steps, load, decodes, decoded = self._steps, self.load, self._decodes, self._decoded
        self._steps = 0
        load.steps += steps
        start_s = self._start_s
        if start_s < self._horizon_s and self._stages is None:
            load.busy_s += (time_s if time_s < self._horizon_s else self._horizon_s) - start_s
        if decodes:
            self._used += self._residues[decoded % self._block_size] if steps == 1 else self._blocks_of_run(steps)
            self._decoded = decoded = decoded + steps
            self._context += steps * decodes
            if self._window:
                self._window_context += steps * self._below
                self._cross()
        if self._used > load.blocks_peak:
            load.blocks_peak = self._used
        if self._completing:
            self._complete_prompts(time_s)
        ends, bound = self._ends, (decoded + 1) * self._count
        while ends and ends[0] < bound:
            request = heappop(ends) % self._count
            cached = self._whole[request]
            del self._finish[request]
            self._residues[(decoded - cached) % self._block_size] -= 1
            self._context -= cached
            if self._window:
                self._leave_window(cached)
            self._leave(request, cached, time_s)

    def _complete_prompts(self, time_s: float) -> None:
        """The chunks that reached the end of their prompts sample a token; the sequences decode from now on."""
        record, resumed = self._record, self._resumed
        for request in self._completing:
            left = record.output[request] - 1
            if resumed and request in resumed:
                left -= resumed.pop(request)
            else:
                record.first_s[request] = time_s
            if left:
                self._join(request, self._decoded + left, self._whole[request] - left)
            else:
                self._leave(request, self._whole[request], time_s)
        self._completing = _NONE

    def _leave(self, request: int, cached: int, time_s: float) -> None:
        """A sequence with `cached` tokens is complete: its blocks and its place in the router are free."""
        self._used -= -(-cached // self._block_size)
        record = self._record
        record.finish_s[request] = time_s
        record.finished.append(request)
        self._sent_to_replica[self._replica] -= 1
        self._sent_to_lane[self._lane] -= 1

    def _join(self, request: int, finish: int, cached: int) -> None:
        """A sequence with `cached` tokens starts to decode; it finishes when D reaches `finish`."""
        self._finish[request] = finish
        heappush(self._ends, finish * self._count + request)
        self._context += cached
        self._residues[(self._decoded - cached) % self._block_size] += 1
        window = self._window
        if window:
            if cached + 1 < window:
                self._window_context += cached + 1
                self._below += 1
                crossing = self._decoded + window - 1 - cached
                if crossing in self._crossing_counts:
                    self._crossing_counts[crossing] += 1
                else:
                    self._crossing_counts[crossing] = 1
                    heappush(self._crossings, crossing)
            else:
                self._window_context += window

    def _leave_window(self, cached: int) -> None:
        """A sequence with `cached` tokens stops to decode."""
        window = self._window
        if cached + 1 < window:
            self._window_context -= cached + 1
            self._below -= 1
            self._crossing_counts[self._decoded + window - 1 - cached] -= 1
        else:
            self._window_context -= window

    def _cross(self) -> None:
        while self._crossings and self._crossings[0] <= self._decoded:
            self._below -= self._crossing_counts.pop(heappop(self._crossings))

    def _blocks_of_run(self, steps: int) -> int:
        """Blocks that the next `steps` decode steps take."""
        block_size, residues = self._block_size, self._residues
        at = self._decoded % block_size
        cycles, rest = divmod(steps, block_size)
        blocks = cycles * len(self._finish) if cycles else 0
        end = at + rest
        if end <= block_size:
            return blocks + sum(residues[at:end])
        return blocks + sum(residues[at:]) + sum(residues[: end - block_size])

    def _steps_within(self, free: int) -> int:
        """The most decode steps that take no more than `free` blocks."""
        cycles, free = divmod(free, len(self._finish))
        steps = cycles * self._block_size
        at = self._decoded % self._block_size
        for offset in range(self._block_size):
            free -= self._residues[(at + offset) % self._block_size]
            if free < 0:
                return steps + offset
        return steps + self._block_size

    # ---------------------------------------------------------------------------------------------- start of a run

    def form(self, time_s: float) -> float:
        """Start what comes next at `time_s`; returns when it ends, or when there may be something to form."""
        decodes, queue, partial = len(self._finish), self._queue, self._partial
        head_ready = bool(queue) and queue[0][0] <= time_s
        prompts = head_ready or partial is not None
        if not decodes and not prompts:
            return queue[0][0] if queue else math.inf
        record = self._record
        if record.events_left <= 0:
            raise EventBoundError
        record.events_left -= 1
        self._start_s = time_s
        self._cuttable = self._open = False
        free = self._num_blocks - self._used
        if prompts and self._prefill_first and (end_s := self._form_chunks(time_s, 0, free)):
            return end_s
        growth = self._residues[self._decoded % self._block_size]
        if growth > free:
            self._preempt(free)
            seconds = self._form_run(1)
            return time_s + seconds if self._stages is None else self._stages.run(time_s, seconds)
        if prompts and not self._prefill_first and (end_s := self._form_chunks(time_s, decodes, free - growth)):
            return end_s
        # Only decodes. What waits now goes on waiting until something finishes; what comes later may cut the run.
        steps = self._steps_to_change()
        if decodes * (steps // self._block_size + 1) > free:
            steps = min(steps, self._steps_within(free))
        if self._stages is not None:
            self._form_run(steps)
            self._open = not head_ready and decodes + (partial is not None) < self._seats
            self.cut_s = queue[0][0] if self._open and queue else math.inf
            return self._stages.run(time_s, self._first_s)
        end_s = time_s + self._form_run(steps)
        if not head_ready and decodes + (partial is not None) < self._seats:
            self._cuttable = True
            if queue and queue[0][0] < end_s:
                return self._cut(queue[0][0])
        return end_s

    def _steps_to_change(self) -> int:
        """Decode steps until a sequence finishes or fills its window."""
        steps = self._ends[0] // self._count - self._decoded
        if self._below and self._crossings[0] - self._decoded < steps:
            return self._crossings[0] - self._decoded
        return steps

    def _form_run(self, steps: int) -> float:
        """A run of decode-only steps over all decoding sequences; returns its seconds."""
        times, decodes = self._times, len(self._finish)
        context, window_context = self._context + decodes, self._window_context
        first_s = self._step_tokens_s[decodes] + self._sampled_s[decodes] + self._sequence_s * decodes
        first_s += self._decode_s(decodes, context, window_context)
        growth_s = times.decode_context_token_s * decodes + times.decode_window_token_s * self._below
        if steps > 1:  # no further than the times stay linear in the keys
            if self._decode_row is not None:
                pieces, ends = self._decode_row(decodes)
                end, _, slope_s = pieces[bisect_left(ends, context)]
                growth_s += slope_s * decodes
                if context + (steps - 1) * decodes > end:
                    steps = int((end - context) // decodes) + 1
            if times.decode_window_table is not None and self._below:
                end, _, slope_s = times.decode_window_table.piece(decodes, window_context)
                growth_s += slope_s * self._below
                if window_context + (steps - 1) * self._below > end:
                    steps = int((end - window_context) // self._below) + 1
        self._steps = steps
        self._decodes = decodes
        self._first_s = first_s
        self._growth_s = growth_s
        running = decodes + (self._partial is not None)
        if running > self.load.running_peak:
            self.load.running_peak = running
        return steps * first_s + growth_s * (steps * (steps - 1) // 2)

    def _form_chunks(self, time_s: float, decodes: int, free: int) -> float:
        """A step of `decodes` decodes and all chunks that fit the budget and `free` blocks; what follows alike, too.

        Returns when it ends; 0.0, and nothing changed, when no chunk fits.
        """
        block_size, chunk_s = self._block_size, self._chunk_s
        completing: list[int] = []
        chunks_s: list[float] = []
        unused = free
        tokens = self._budget - decodes
        partial = self._partial
        if partial is not None:
            request, start, target = partial
            cached = start + tokens
            if cached < target and self._stages is None:
                return self._form_alone(time_s, decodes, free, 0)
            if cached > target:
                cached = target
            unused -= -(-cached // block_size) - -(-start // block_size)
            if cached == start or unused < 0:
                return 0.0
            tokens -= cached - start
            chunks_s.append(chunk_s(cached - start, start))
            if cached == target:
                completing.append(request)
                self._partial = None
            else:
                self._partial = (request, cached, target)
        seats = self._seats - len(self._finish) - len(chunks_s)
        if tokens and self._queue:
            unused, tokens = self._admit(time_s, unused, tokens, seats, chunks_s, completing)
        if not chunks_s:
            return 0.0
        self._used += free - unused
        self._completing = completing
        self._steps = 1
        self._decodes = decodes
        sequences = decodes + len(chunks_s)
        running = sequences if decodes else sequences + len(self._finish)
        if running > self.load.running_peak:
            self.load.running_peak = running
        # term by term in the order of `StepTimes.step_s`: pipelines break ties by equal times
        seconds = self._step_tokens_s[self._budget - tokens] + self._sampled_s[decodes + len(completing)]
        seconds += self._sequence_s * sequences
        if decodes:
            seconds += self._decode_s(decodes, self._context + decodes, self._window_context)
        seconds += self._times.prefill_step_s
        for one_s in chunks_s:
            seconds += one_s
        if self._stages is not None:
            return self._stages.run(time_s, seconds)
        if completing or tokens:
            return time_s + seconds
        end_s = time_s + seconds
        return self._form_alone(end_s, decodes, unused, 1) or end_s

    def _admit(
        self, time_s: float, free: int, tokens: int, seats: int, chunks_s: list[float], completing: list[int]
    ) -> tuple[int, int]:
        """First chunks of the requests that wait at `time_s`, in order; returns the blocks and tokens that are left."""
        queue, resumed, block_size, prompt = self._queue, self._resumed, self._block_size, self._record.prompt
        while tokens and seats and queue and queue[0][0] <= time_s:
            request = queue[0][1]
            target = prompt[request]
            if resumed and request in resumed:
                target += resumed[request]
            size = target if target <= tokens else tokens
            blocks = -(-size // block_size)
            if blocks > free:
                break
            queue.popleft()
            free -= blocks
            tokens -= size
            seats -= 1
            chunks_s.append(self._chunk_s(size, 0))
            if size == target:
                completing.append(request)
            else:
                self._partial = (request, size, target)
        return free, tokens

    def _form_alone(self, time_s: float, decodes: int, free: int, formed: int) -> float:
        """Steps in which the prompt under way takes the whole budget, the first from `time_s`.

        `formed`: steps of the run in flight so far. No step completes the prompt; no sequence finishes before the last
        one ends. Returns the end of the last one; 0.0, and nothing changed, where there is none.
        """
        partial = self._partial
        assert partial is not None
        request, cached, target = partial
        size = self._budget - decodes
        steps = formed + ((target - cached - 1) // size if size else 0)
        if decodes and steps > 1:
            steps = min(steps, self._steps_to_change())
        block_size, residues, decoded = self._block_size, self._residues, self._decoded
        decode_s, chunk_s, context, window_context = self._decode_s, self._chunk_s, self._context, self._window_context
        fixed_s = self._step_tokens_s[self._budget] + self._sampled_s[decodes] + self._sequence_s * (decodes + 1)
        prefill_step_s = self._times.prefill_step_s
        used = before = -(-cached // block_size)
        done = formed
        while done < steps:
            grown = -(-(cached + size) // block_size)
            free -= grown - used
            if decodes and done:
                free -= residues[(decoded + done) % block_size]
            if free < 0:
                break
            used = grown
            done += 1
            if decodes:
                decoding_s = decode_s(decodes, context + done * decodes, window_context + (done - 1) * self._below)
                time_s += fixed_s + decoding_s + prefill_step_s + chunk_s(size, cached)
            else:
                time_s += fixed_s + prefill_step_s + chunk_s(size, cached)
            cached += size
        if done == formed:
            return 0.0
        self._used += used - before
        self._partial = (request, cached, target)
        self._steps, self._decodes = done, decodes
        if decodes >= self.load.running_peak:
            self.load.running_peak = decodes + 1
        return time_s

    def _preempt(self, free: int) -> None:
        """Blocks run out in this step: preempt the youngest until the older sequences have theirs."""
        decoded, block_size = self._decoded, self._block_size
        order = list(self._finish)
        kept = 0  # sequences of `order` that have their blocks for this step
        while kept < len(order):
            request = order[kept]
            cached = self._whole[request] - (self._finish[request] - decoded)
            if cached % block_size == 0:
                while free < 1:
                    if (partial := self._partial) is not None:
                        self._partial = None
                        free += self._requeue(partial[0], partial[1])
                        continue
                    victim = order.pop()
                    free += self._preempt_decoding(victim)
                    if victim == request:
                        break
                if kept == len(order):
                    break
                free -= 1
            kept += 1
        count = self._count
        self._ends = [finish * count + request for request, finish in self._finish.items()]
        heapify(self._ends)

    def _preempt_decoding(self, request: int) -> int:
        decoded = self._decoded
        left = self._finish.pop(request) - decoded
        cached = self._whole[request] - left
        self._resumed[request] = self._record.output[request] - left
        self._context -= cached
        self._residues[(decoded - cached) % self._block_size] -= 1
        if self._window:
            self._leave_window(cached)
        return self._requeue(request, cached)

    def _requeue(self, request: int, cached: int) -> int:
        """Back to the front of the queue; returns the blocks that this frees."""
        blocks = -(-cached // self._block_size)
        self._used -= blocks
        self._queue.appendleft((-math.inf, request))
        self._record.preemptions[request] += 1
        self.load.preemptions += 1
        return blocks
