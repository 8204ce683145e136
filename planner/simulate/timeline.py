"""A run as a Chrome trace (chrome://tracing, Perfetto): each request from arrival to its last token, on its replica.

Format: "Trace Event Format" (Google, 2016), JSON object form. Requests overlap on a replica, so their phases are
asynchronous events (`b`, `e`) with the request's number as id; times are microseconds.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from planner.simulate.model import FloatArray, Workload
from planner.simulate.result import FleetResult


def chrome_trace(result: FleetResult, workload: Workload) -> str:
    """JSON text. A process is a replica group, a thread a replica; counters say how many requests are in each phase.

    Requests that were refused, or had no last token when the run ended, are instants (`refused`, `unfinished`).
    """
    events = [_name("process_name", group, 0, load.group) for group, load in enumerate(result.groups)]
    for group, load in enumerate(result.groups):
        events += [_name("thread_name", group, index, f"replica {index}") for index in range(len(load.busy_s))]
    first_s, finish_s = workload.arrival_s + result.ttft_s, workload.arrival_s + result.e2e_s
    columns = (
        workload.arrival_s.tolist(),
        first_s.tolist(),
        finish_s.tolist(),
        result.group_index.tolist(),
        result.replica_index.tolist(),
        result.rejected.tolist(),
        workload.class_index.tolist(),
        workload.prompt_tokens.tolist(),
        workload.output_tokens.tolist(),
        result.preemptions.tolist(),
    )
    for request, row in enumerate(zip(*columns, strict=True)):
        arrival, first, finish, group, replica, rejected, klass, prompt, output, preemptions = row
        where = {"cat": workload.classes[klass], "pid": max(group, 0), "tid": max(replica, 0), "id": request}
        args = {"prompt_tokens": prompt, "output_tokens": output, "preemptions": preemptions}
        if rejected or finish != finish:
            name = "refused" if rejected else "unfinished"
            events.append({"name": name, "ph": "n", "ts": 1e6 * arrival, **where, "args": args})
            continue
        for name, start, end in (("to first token", arrival, first), ("decode", first, finish)):
            events.append({"name": name, "ph": "b", "ts": 1e6 * start, **where, "args": args})
            events.append({"name": name, "ph": "e", "ts": 1e6 * end, **where})
    for group in range(len(result.groups)):
        own = (result.group_index == group) & ~np.isnan(finish_s)
        events += _counters(group, workload.arrival_s[own], first_s[own], finish_s[own])
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"))


def _name(kind: str, group: int, replica: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": group, "tid": replica, "args": {"name": name}}


def _counters(group: int, arrival_s: FloatArray, first_s: FloatArray, finish_s: FloatArray) -> list[dict[str, Any]]:
    """Requests before and after their first token, at every change."""
    times = np.concatenate([arrival_s, first_s, finish_s])
    ones, zeros = np.ones(len(arrival_s), np.int64), np.zeros(len(arrival_s), np.int64)
    order = np.argsort(times, kind="stable")
    waiting = np.cumsum(np.concatenate([ones, -ones, zeros])[order])
    decoding = np.cumsum(np.concatenate([zeros, ones, -ones])[order])
    moments = times[order]
    last = np.append(np.diff(moments) > 0, True)  # of the changes at one moment
    return [
        {"name": "requests", "ph": "C", "pid": group, "ts": 1e6 * at, "args": {"waiting": before, "decoding": after}}
        for at, before, after in zip(
            moments[last].tolist(), waiting[last].tolist(), decoding[last].tolist(), strict=True
        )
    ]
