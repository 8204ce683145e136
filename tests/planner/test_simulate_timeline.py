"""The Chrome trace of a run: every request begins and ends once in each phase, and the counters add up."""

from __future__ import annotations

import json

import numpy as np
from test_simulate_laws import replica, simulate, workload

from planner.simulate import chrome_trace


def test_by_hand() -> None:
    load = workload([(0.0, 1, 3), (0.5, 1, 1), (9.0, 99, 2)])
    result = simulate(replica(seats=1, budget=1, flat_s=1.0, blocks=5), load, exact=False)
    trace = json.loads(chrome_trace(result, load))
    events = trace["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["g", "replica 0"]
    spans = [(event["id"], event["name"], event["ph"], event["ts"]) for event in events if event["ph"] in "be"]
    assert spans == [
        (0, "to first token", "b", 0.0),
        (0, "to first token", "e", 1e6),
        (0, "decode", "b", 1e6),
        (0, "decode", "e", 3e6),
        (1, "to first token", "b", 0.5e6),
        (1, "to first token", "e", 4e6),
        (1, "decode", "b", 4e6),
        (1, "decode", "e", 4e6),
    ]
    assert [(event["id"], event["name"]) for event in events if event["ph"] == "n"] == [(2, "refused")]
    counters = [(event["ts"], *event["args"].values()) for event in events if event["ph"] == "C"]
    assert counters == [(0.0, 1, 0), (0.5e6, 2, 0), (1e6, 1, 1), (3e6, 1, 0), (4e6, 0, 0)]


def test_every_span_ends_and_counters_return_to_nothing() -> None:
    random = np.random.default_rng(5)
    load = workload([(at, 20, 30) for at in np.cumsum(random.exponential(1.0, 200))])
    result = simulate(replica(), load, exact=False, replicas=3)
    events = json.loads(chrome_trace(result, load))["traceEvents"]
    begun = [(event["id"], event["name"]) for event in events if event["ph"] == "b"]
    ended = [(event["id"], event["name"]) for event in events if event["ph"] == "e"]
    assert len(begun) == 400
    assert sorted(begun) == sorted(ended)
    assert {event["tid"] for event in events if event["ph"] == "b"} == {0, 1, 2}
    counters = [event["args"] for event in events if event["ph"] == "C"]
    assert counters[-1] == {"waiting": 0, "decoding": 0}
    assert min(value for counter in counters for value in counter.values()) == 0
