"""A closed loop: a fixed number of clients, each of which sends its next request when its last one ends.

That is how serving benchmarks load a server: all clients start together at 0, so the first prompts queue, and the mean
over all requests contains that burst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.simulate import native
from planner.simulate.conditions import Conditions
from planner.simulate.fleet import MAX_EVENTS, MAX_EVENTS_EXACT
from planner.simulate.model import FleetGroup, FloatArray, IntArray, ReplicaModel, Workload
from planner.simulate.result import FleetResult
from specs.plan import Route


@dataclass(frozen=True)
class ClosedLoop:
    """Arrays by request in the order of sending, those of the warm-up left out. NaN where a run ended before."""

    sent_s: FloatArray
    ttft_s: FloatArray
    tpot_s: FloatArray  # (end-to-end - TTFT) / (output tokens - 1); NaN for one output token
    e2e_s: FloatArray
    output_tokens: IntArray  # asked for
    refusal: IntArray  # index into `result.REFUSALS`; 0: served
    events: int
    event_bound_hit: bool

    @property
    def finished(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.e2e_s)

    @property
    def seconds(self) -> float:
        """From the first request sent to the last one done, or to the last one sent where none is."""
        return float((self.sent_s + np.nan_to_num(self.e2e_s)).max() - self.sent_s.min())

    @property
    def requests_per_s(self) -> float:
        """Served; 0 where none is."""
        return float(self.finished.sum()) / self.seconds if self.seconds > 0.0 else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        """Of the requests that were served."""
        return float(self.output_tokens[self.finished].sum()) / self.seconds if self.seconds > 0.0 else 0.0


def simulate_closed_loop(
    model: ReplicaModel,
    concurrency: int,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    *,
    warmup: int = 0,
    replicas: int = 1,
    exact: bool = False,
    max_events: int | None = None,
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
    groups, routes = (FleetGroup("all", replicas, model),), (Route(request_class="all", group="all", share=1.0),)
    if not exact and native.unsupported(groups, workload) is None:
        most = MAX_EVENTS if max_events is None else max_events
        result = native.simulate(groups, routes, workload, max_events=most, clients=concurrency)
    else:
        from planner.simulate.arrivals import ClosedLoopClients
        from planner.simulate.run import FleetRun

        most = MAX_EVENTS_EXACT if max_events is None else max_events
        clients = ClosedLoopClients(count, concurrency)
        result = FleetRun(groups, routes, workload, clients, Conditions(), max_events=most).result()
    return ClosedLoop(
        sent_s=result.arrivals_s(workload)[warmup:],
        ttft_s=result.ttft_s[warmup:],
        tpot_s=result.tpot_s[warmup:],
        e2e_s=result.e2e_s[warmup:],
        output_tokens=output_tokens[warmup:],
        refusal=_refusal(result)[warmup:],
        events=result.events,
        event_bound_hit=result.event_bound_hit,
    )


def _refusal(result: FleetResult) -> IntArray:
    assert result.refusal is not None
    return result.refusal
