"""What lanes write while they run: times of each request and how much waits where. Shared by oracle and fast path."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.simulate.model import Workload


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

    @classmethod
    def of(cls, workload: Workload, max_events: int) -> Record:
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
