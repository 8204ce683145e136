"""A closed loop: a fixed number of clients, each of which sends its next request when its last one ends.

That is how serving benchmarks load a server: all clients start together at 0, so the first prompts queue, and the mean
over all requests contains that burst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.simulate.fleet import MAX_EVENTS, Group
from planner.simulate.model import FleetGroup, FloatArray, IntArray, ReplicaModel, Workload
from planner.simulate.record import EventBoundError, Record


@dataclass(frozen=True)
class ClosedLoop:
    """Arrays by request in the order of sending, those of the warm-up left out. NaN where a run ended before."""

    sent_s: FloatArray
    ttft_s: FloatArray
    tpot_s: FloatArray  # (end-to-end - TTFT) / (output tokens - 1); NaN for one output token
    e2e_s: FloatArray
    output_tokens: IntArray
    events: int
    event_bound_hit: bool

    @property
    def seconds(self) -> float:
        """From the first request sent to the last one done."""
        return float(np.nanmax(self.sent_s + self.e2e_s) - self.sent_s.min())

    @property
    def output_tokens_per_s(self) -> float:
        return float(self.output_tokens.sum()) / self.seconds


def simulate_closed_loop(
    model: ReplicaModel,
    concurrency: int,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    *,
    warmup: int = 0,
    replicas: int = 1,
    exact: bool = False,
    max_events: int = MAX_EVENTS,
) -> ClosedLoop:
    """Serve the requests in order, `concurrency` of them in flight until they run out.

    The first `warmup` requests are served like the others and left out of the result: the loop is then in its steady
    state when what counts begins. (A client that waits for its warm-up to end before it starts needs `warmup` 0: the
    replicas are empty again by then.) `exact` as in `simulate_fleet`. Raises `ValueError` where nothing can be
    measured: no client, no request beyond the warm-up, or a request that no replica can hold.
    """
    count = len(prompt_tokens)
    if concurrency < 1 or not 0 <= warmup < count:
        raise ValueError(f"{concurrency} clients send {count} requests, {warmup} of them to warm up: none is measured")
    workload = Workload(
        ("all",), np.zeros(count, np.int64), np.zeros(count), prompt_tokens, output_tokens, window_s=math.inf
    )
    fits = model.can_serve(prompt_tokens, output_tokens)
    if not fits.all():
        first = int(np.argmin(fits))
        raise ValueError(
            f"request {first} of {prompt_tokens[first]} prompt and {output_tokens[first]} output tokens fits no replica"
        )
    record = Record.of(workload, max_events)
    clock: list[float] = []
    group = Group(FleetGroup("all", replicas, model), workload, record, clock, "least_outstanding", exact)
    clients = _Clients(group, record, concurrency)
    try:
        while (now_s := min(clock)) < math.inf:
            for until_s in (now_s, math.nextafter(now_s, math.inf)):  # what ends now; then what starts now
                for index, replica in enumerate(group.replicas):
                    if clock[index] <= now_s:
                        replica.advance(until_s)
                clients.send_next()
        event_bound_hit = False
    except EventBoundError:
        event_bound_hit = True
    sent_s, first_s, finish_s = (
        np.array(times)[warmup:] for times in (clients.sent_s, record.first_s, record.finish_s)
    )
    outputs = output_tokens[warmup:]
    gaps = np.where(outputs > 1, outputs - 1, np.nan)
    return ClosedLoop(
        sent_s=sent_s,
        ttft_s=first_s - sent_s,
        tpot_s=(finish_s - first_s) / gaps,
        e2e_s=finish_s - sent_s,
        output_tokens=outputs,
        events=max_events - record.events_left,
        event_bound_hit=event_bound_hit,
    )


class _Clients:
    """Send the first requests at 0, and one more for each that ends."""

    def __init__(self, group: Group, record: Record, concurrency: int) -> None:
        self._group, self._record = group, record
        self.sent_s = [math.nan] * len(record.prompt)
        self._sent = self._seen = 0
        for _ in range(min(concurrency, len(record.prompt))):
            self._send(0.0)

    def send_next(self) -> None:
        record = self._record
        while self._seen < len(record.finished) and self._sent < len(record.prompt):
            self._send(record.finish_s[record.finished[self._seen]])
            self._seen += 1

    def _send(self, now_s: float) -> None:
        self.sent_s[self._sent] = now_s
        self._group.send(self._sent, now_s)
        self._sent += 1
