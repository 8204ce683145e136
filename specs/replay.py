"""Requests to be sent to a live server: what `planner` draws and `runtime.replay` sends. Plain records, no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """One request. In an open loop it is due `due_s` after the start; a turn of a session `gap_s` after the request
    `after` (its number in the list) has ended, and not before `due_s`.

    `units`: ids of the prompt's units from its start; equal ids in equal places mean equal tokens.
    """

    request_class: str
    prompt_tokens: int
    output_tokens: int
    due_s: float = 0.0
    after: int | None = None
    gap_s: float = 0.0
    units: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReplayLoad:
    """Requests in order, and how they are sent: open loop at their times, or `concurrency` clients that each send
    the next one when their last one has ended."""

    requests: tuple[ReplayRequest, ...]
    concurrency: int | None = None  # None: open loop
    limit_s: float | None = None  # a closed loop sends nothing after so long ...
    least_requests: int = 0  # ... unless it has not sent so many yet
    think_s: float = 0.0  # a client of a closed loop waits so long before its next request
    warmup_requests: int = 0  # the first so many are sent like the others and not judged
    source: str = ""  # where the requests come from, in words
    unit_tokens: int = 0  # of every prefix unit
    window_s: float | None = None  # arrival window of an open loop; None: until the last request is due

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("a load has at least one request")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"{self.concurrency} clients send nothing")
        for number, request in enumerate(self.requests):
            if request.prompt_tokens < 1 or request.output_tokens < 1:
                raise ValueError(f"request {number} has no prompt or no output tokens")
            if request.after is not None and not 0 <= request.after < number:
                raise ValueError(f"request {number} comes after request {request.after}, which is not before it")
            if request.units and self.unit_tokens < 1:
                raise ValueError("prefix units need their size")
