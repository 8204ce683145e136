"""The Chrome trace of a run: every request begins and ends once in each phase, and the counters add up."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from test_simulate_laws import ROUTES, replica, simulate, workload

from planner.simulate import FleetGroup, FleetResult, Workload, chrome_trace, simulate_fleet

# what the "Trace Event Format" asks of each kind of event
REQUIRED = {
    "M": {"name", "pid", "tid", "args"},
    "b": {"name", "cat", "id", "pid", "tid", "ts"},
    "e": {"name", "cat", "id", "pid", "tid", "ts"},
    "n": {"name", "cat", "id", "pid", "tid", "ts"},
    "C": {"name", "pid", "ts", "args"},
    "X": {"name", "pid", "tid", "ts", "dur"},
    "s": {"name", "cat", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"},
}


def events_of(result: FleetResult, load: Workload, groups: tuple[FleetGroup, ...] = ()) -> list[dict]:
    """Events of the trace, each checked against what its kind has to hold."""
    events = json.loads(chrome_trace(result, load, groups))["traceEvents"]
    for event in events:
        assert REQUIRED[event["ph"]] <= set(event)
        assert event.get("ts", 0.0) >= 0
    return events


def test_by_hand() -> None:
    load = workload([(0.0, 1, 3), (0.5, 1, 1), (9.0, 99, 2)])
    result = replace(simulate(replica(seats=1, budget=1, flat_s=1.0, blocks=5), load, exact=False), start_s=None)
    events = events_of(result, load)
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
    events = events_of(result, load)
    begun = [(event["id"], event["name"]) for event in events if event["ph"] == "b"]
    ended = [(event["id"], event["name"]) for event in events if event["ph"] == "e"]
    assert Counter(name for _, name in begun)["decode"] == 200
    assert sorted(begun) == sorted(ended)
    assert {event["tid"] for event in events if event["ph"] == "b"} == {0, 1, 2}
    counters = [event["args"] for event in events if event["ph"] == "C"]
    assert counters[-1] == {"waiting": 0, "decoding": 0}
    assert min(value for counter in counters for value in counter.values()) == 0


def test_prefill_begins_with_the_first_step_that_holds_the_request() -> None:
    """One seat, steps of 1 s: the second request starts when the first one has ended, not when it arrived."""
    load = workload([(0.0, 1, 3), (0.5, 1, 1)])
    result = simulate(replica(seats=1, budget=1, flat_s=1.0), load, exact=True)
    events = events_of(replace(result, start_s=np.array([0.0, 3.0])), load)
    spans = [(event["id"], event["ph"], event["ts"]) for event in events if event["name"] == "prefill"]
    assert spans == [(0, "b", 0.0), (0, "e", 1e6), (1, "b", 3e6), (1, "e", 4e6)]


def test_a_refused_request_says_why() -> None:
    load = workload([(0.0, 1, 1), (1.0, 99, 2)])
    result = simulate(replica(seats=1, budget=1, flat_s=1.0, blocks=5), load, exact=False)
    events = events_of(replace(result, refusal=np.array([0, 2])), load)
    assert [event["args"]["reason"] for event in events if event["name"] == "refused"] == ["larger than the KV cache"]


def test_a_request_decodes_where_it_was_handed_to() -> None:
    load = workload([(0.0, 1, 3)])
    result = simulate(replica(seats=1, budget=1, flat_s=1.0), load, exact=False, replicas=2)
    both = (result.groups[0], replace(result.groups[0], group="decode"))
    handed = replace(result, groups=both, decode_group_index=np.array([1]), decode_replica_index=np.array([1]))
    events = events_of(handed, load)
    places = {event["name"]: (event["pid"], event["tid"]) for event in events if event["ph"] == "b"}
    assert places["to first token"] == (0, 0)
    assert places["decode"] == (1, 1)
    counters = [(event["pid"], event["ts"], *event["args"].values()) for event in events if event["ph"] == "C"]
    assert counters == [(0, 0.0, 1, 0), (0, 1e6, 0, 0), (1, 1e6, 0, 1), (1, 3e6, 0, 0)]


def test_turns_of_a_session_are_joined() -> None:
    """Two sessions of two turns and a single request: an arrow from each first turn's end to the second's arrival."""
    rows = [(0.0, 1, 1), (0.0, 1, 1), (0.0, 1, 1), (50.0, 1, 2), (60.0, 1, 2)]
    load = replace(workload(rows), session=np.array([7, 8, 9, 8, 7]))
    result = simulate(replica(seats=1, budget=1, flat_s=1.0), load, exact=False)
    events = events_of(result, load)
    arrows = [(event["ph"], event["id"], event["ts"]) for event in events if event["name"] == "turn"]
    assert arrows == [("s", 4, 1e6), ("f", 4, 60e6), ("s", 3, 2e6), ("f", 3, 50e6)]
    slices = [(event["name"], event["ts"]) for event in events if event["ph"] == "X"]
    assert slices == [("session 7", 1e6), ("session 7", 60e6), ("session 8", 2e6), ("session 8", 50e6)]


def test_the_cache_has_a_counter_where_groups_are_given() -> None:
    load = workload([(at, 20, 30) for at in range(100)])
    groups = (FleetGroup("g", 1, replica(flat_s=0.1)),)
    result = simulate_fleet(groups, ROUTES, load)
    shares = [event["args"]["in use"] for event in events_of(result, load, groups) if event["name"].startswith("KV")]
    assert len(shares) == 1001
    assert shares[-1] == 0.0
    assert 0 < max(shares) <= 100 * 1.5 * result.groups[0].blocks_peak / result.groups[0].num_blocks


def test_what_is_beyond_the_most_is_counted() -> None:
    load = workload([(float(at), 1, 2) for at in range(20)])
    result = simulate(replica(flat_s=0.1), load, exact=False)
    trace = json.loads(chrome_trace(result, load, most=5))
    assert trace["otherData"] == {"requests": 20, "requests_left_out": 15}
    assert {event["id"] for event in trace["traceEvents"] if event["ph"] == "b"} == set(range(5))


@pytest.mark.parametrize("rows", [[(0.0, 99, 2)], [(0.0, 99, 2), (1.0, 98, 2)]])
def test_a_run_that_served_nothing_is_valid_too(rows: list[tuple[float, int, int]]) -> None:
    load = workload(rows, window_s=5.0)
    groups = (FleetGroup("g", 1, replica(seats=1, budget=1, flat_s=1.0, blocks=5)),)
    events = events_of(simulate_fleet(groups, ROUTES, load), load, groups)
    assert sum(event["name"] == "refused" for event in events) == len(rows)
