"""A run as a Chrome trace (chrome://tracing, Perfetto): each request from arrival to its last token, on its replica.

Format: "Trace Event Format" (Google, 2016), JSON object form. Requests overlap on a replica, so their phases are
asynchronous events (`b`, `e`) with the request's number as id; times are microseconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from planner.simulate.answers.over_time import decode_places, kv_over_time
from planner.simulate.model import FleetGroup, FloatArray, Workload
from planner.simulate.result import REFUSALS, FleetResult

MOST_TRACED = 50_000  # requests: about 60 MB, what a browser still opens
_KV_POINTS = 1000

Event = dict[str, Any]
Spans = tuple[FloatArray, FloatArray]  # beginnings and ends


def chrome_trace(
    result: FleetResult, workload: Workload, groups: Sequence[FleetGroup] = (), most: int = MOST_TRACED
) -> str:
    """JSON text. A process is a replica group, a thread a replica.

    Counters say how many requests are in each phase and, given the simulated `groups`, how full the KV cache is.
    Requests that were refused, or had no last token when the run ended, are instants (`refused`, `unfinished`). Turns
    of a session are joined by flow arrows. Requests beyond the first `most` are left out and counted in `otherData`.
    """
    traced = min(len(workload), most)
    events = [_name("process_name", group, 0, load.group) for group, load in enumerate(result.groups)]
    for group, load in enumerate(result.groups):
        events += [_name("thread_name", group, index, f"replica {index}") for index in range(len(load.busy_s))]
    events += _requests(result, workload, traced)
    events += _flows(result, workload, traced)
    arrival_s = result.arrivals_s(workload)
    first_s, finish_s = arrival_s + result.ttft_s, arrival_s + result.e2e_s
    served = ~np.isnan(finish_s) & (np.arange(len(workload)) < traced)
    decode_group = decode_places(result)[0]
    for group in range(len(result.groups)):
        before, after = served & (result.group_index == group), served & (decode_group == group)
        events += _counters(group, (arrival_s[before], first_s[before]), (first_s[after], finish_s[after]))
    for group, kv in enumerate(kv_over_time(result, workload, groups, _KV_POINTS)):
        events += [
            {"name": "KV cache % (estimate)", "ph": "C", "pid": group, "ts": 1e6 * at, "args": {"in use": 100 * share}}
            for at, share in zip(kv["time_s"], kv["occupancy"], strict=True)
        ]
    document = {
        "displayTimeUnit": "ms",
        "otherData": {"requests": len(workload), "requests_left_out": len(workload) - traced},
        "traceEvents": events,
    }
    return json.dumps(document, separators=(",", ":"))


def _requests(result: FleetResult, workload: Workload, count: int) -> Iterator[Event]:
    """The phases of each request: `to first token` (with `prefill` in it, where starts are known), then `decode`."""
    arrival_s = result.arrivals_s(workload)
    start_s = np.full(len(workload), math.nan) if result.start_s is None else result.start_s
    refusal = result.rejected.astype(np.int64) if result.refusal is None else result.refusal
    cached = np.zeros(len(workload), np.int64) if result.cached_tokens is None else result.cached_tokens
    columns = (
        1e6 * arrival_s,
        1e6 * start_s,
        1e6 * (arrival_s + result.ttft_s),
        1e6 * (arrival_s + result.e2e_s),
        *(np.maximum(place, 0) for place in (result.group_index, result.replica_index, *decode_places(result))),
        refusal,
        result.rejected,
        workload.class_index,
        workload.prompt_tokens,
        workload.output_tokens,
        cached,
        result.preemptions,
    )
    for request, row in enumerate(zip(*(column[:count].tolist() for column in columns), strict=True)):
        arrival, start, first, finish, group, replica, to_group, to_replica, reason, rejected, klass, *tokens = row
        where = {"cat": workload.classes[klass], "pid": group, "tid": replica, "id": request}
        args: Event = dict(zip(("prompt_tokens", "output_tokens", "cached_tokens", "preemptions"), tokens, strict=True))
        if rejected or finish != finish:
            if rejected and result.refusal is not None:
                args["reason"] = REFUSALS[reason]
            if arrival == arrival:
                name = "refused" if rejected else "unfinished"
                yield {"name": name, "ph": "n", "ts": arrival, **where, "args": args}
            continue
        yield {"name": "to first token", "ph": "b", "ts": arrival, **where, "args": args}
        if start == start:
            yield {"name": "prefill", "ph": "b", "ts": start, **where}
            yield {"name": "prefill", "ph": "e", "ts": first, **where}
        yield {"name": "to first token", "ph": "e", "ts": first, **where}
        where |= {"pid": to_group, "tid": to_replica}
        yield {"name": "decode", "ph": "b", "ts": first, **where, "args": args}
        yield {"name": "decode", "ph": "e", "ts": finish, **where}


def _flows(result: FleetResult, workload: Workload, count: int) -> Iterator[Event]:
    """An arrow from the last token of a turn to the arrival of the next one of its session.

    Arrows begin and end at slices, which asynchronous phases are not: each end gets a slice without length.
    """
    if workload.session is None:
        return
    arrival_s = result.arrivals_s(workload)
    finish_s = arrival_s + result.e2e_s
    order = np.lexsort((arrival_s[:count], workload.session[:count]))
    for before, after in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        session = int(workload.session[after])
        times = float(min(finish_s[before], arrival_s[after])), float(arrival_s[after])
        if workload.session[before] != session or not all(map(math.isfinite, times)):
            continue
        for request, at_s, phase in zip((before, after), times, ("s", "f"), strict=True):
            where = {
                "pid": max(int(result.group_index[request]), 0),
                "tid": max(int(result.replica_index[request]), 0),
                "ts": 1e6 * at_s,
            }
            yield {"name": f"session {session}", "cat": "session", "ph": "X", "dur": 0, **where}
            yield {"name": "turn", "cat": "session", "ph": phase, "bp": "e", "id": after, **where}


def _name(kind: str, group: int, replica: int, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": group, "tid": replica, "args": {"name": name}}


def _counters(group: int, waiting: Spans, decoding: Spans) -> list[Event]:
    """Requests before and after their first token, at every change."""
    begins, ends = zip(waiting, decoding, strict=True)
    times = np.concatenate([*begins, *ends])
    counts = [len(part) for part in (*begins, *ends)]
    order = np.argsort(times, kind="stable")
    levels = [np.cumsum(np.repeat(change, counts)[order]) for change in ((1, 0, -1, 0), (0, 1, 0, -1))]
    moments = times[order]
    last = np.append(np.diff(moments) > 0, True)[: len(moments)]  # of the changes at one moment
    return [
        {"name": "requests", "ph": "C", "pid": group, "ts": 1e6 * at, "args": {"waiting": before, "decoding": after}}
        for at, before, after in zip(moments[last].tolist(), *(level[last].tolist() for level in levels), strict=True)
    ]
