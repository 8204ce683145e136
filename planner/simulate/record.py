"""What lanes write while they run: times of each request and how much waits where. Shared by oracle and fast path."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.simulate.model import Prefixes, Workload
from specs.service import Sequence


class EventBoundError(Exception):
    """The bound on simulated events was reached; what was recorded until then stands."""


@dataclass(slots=True)
class Record:
    """Plain lists, because single elements are read and written: that is faster than arrays."""

    prompt: list[int]
    output: list[int]
    whole: list[int]  # tokens cached when the last one is sampled: prompt + output - 1
    first_s: list[float]  # end of the step that sampled the first token; NaN until known
    finish_s: list[float]  # end of the step that sampled the last token; NaN until then
    preemptions: list[int]
    finished: list[int]  # requests in the order in which they were found finished; the refuter drains it
    horizon_s: float
    events_left: int
    start_s: list[float]  # start of the first step that holds the request; NaN until then
    cached: list[int]  # prompt tokens found in the prefix cache at the first admission
    refused: list[int]  # requests that found too much waiting, in order
    # what orders of service and caches look at; None where the workload says nothing
    tenant: list[int] | None = None
    priority: list[int] | None = None
    deadline_s: list[float] | None = None
    predicted: list[int] | None = None
    prefixes: Prefixes | None = None
    seed: int = 0  # of what is drawn

    @classmethod
    def of(cls, workload: Workload, max_events: int, seed: int = 0) -> Record:
        count = len(workload)
        return cls(
            prompt=workload.prompt_tokens.tolist(),
            output=workload.output_tokens.tolist(),
            whole=(workload.prompt_tokens + workload.output_tokens - 1).tolist(),
            first_s=[math.nan] * count,
            finish_s=[math.nan] * count,
            preemptions=[0] * count,
            finished=[],
            horizon_s=workload.horizon_s,
            events_left=max_events,
            start_s=[math.nan] * count,
            cached=[0] * count,
            refused=[],
            tenant=None if workload.tenant_index is None else workload.tenant_index.tolist(),
            priority=None if workload.priority is None else workload.priority.tolist(),
            deadline_s=None if workload.deadline_s is None else workload.deadline_s.tolist(),
            predicted=None if workload.predicted_tokens is None else workload.predicted_tokens.tolist(),
            prefixes=workload.prefixes,
            seed=seed,
        )

    def sequence(self, request: int, *, prefix: bool = False) -> Sequence:
        """What the rules of service know of a request; with its prefix units where something caches them."""
        output = self.output[request]
        return Sequence(
            request,
            self.prompt[request],
            output_tokens=output,
            tenant=0 if self.tenant is None else self.tenant[request],
            priority=0 if self.priority is None else self.priority[request],
            deadline_s=math.inf if self.deadline_s is None else self.deadline_s[request],
            predicted_tokens=output if self.predicted is None else self.predicted[request],
            prefix=self.prefixes.of(request) if prefix and self.prefixes is not None else (),
        )


@dataclass(slots=True)
class Outstanding:
    """Requests sent and not finished: by replica of one group, and by lane of each replica."""

    replicas: list[int]
    lanes: list[list[int]]

    @classmethod
    def of(cls, replicas: int, lanes: int) -> Outstanding:
        return cls([0] * replicas, [[0] * lanes for _ in range(replicas)])


@dataclass(slots=True)
class LaneLoad:
    """What one lane did."""

    busy_s: float = 0.0  # inside the arrival window
    running_peak: int = 0
    blocks_peak: int = 0
    preemptions: int = 0
    steps: int = 0
    swaps: int = 0  # of the preemptions: those that kept what was computed, in the host tier
    moved_tokens: int = 0  # between device and host
    looked_up_tokens: int = 0  # prompt tokens of first admissions
    hit_tokens: int = 0  # of these, found in the prefix cache
