"""Replicas that fail and come back: timelines worked by hand, and the laws that no failure may break."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulate_laws import ROUTES, replica, workload

from planner.simulate import Fault, FleetGroup, FleetResult, ReplicaModel, Workload, meets, simulate_fleet
from planner.simulate.model import Prefixes
from planner.simulate.result import REFUSALS
from specs.deployment import SLO, PercentileLimit
from specs.plan import RouterName, Scheduling, Speculation
from specs.service import ROUTERS

FLAT = replica(flat_s=1.0)  # 8 seats, 16 tokens a step, steps of 1 s


def simulate(
    load: Workload, *faults: tuple[int, float, float], model: ReplicaModel = FLAT, replicas: int = 1, **options: Any
) -> FleetResult:
    down = [Fault("g", *fault) for fault in faults]
    return simulate_fleet((FleetGroup("g", replicas, model),), ROUTES, load, exact=True, faults=down, **options)


def test_a_failure_mid_decode_by_hand() -> None:
    """Tokens at 1, 2 and 3; lost at 3.5. The other replica computes 4 + 3 tokens and samples the fourth at 4.5."""
    result = simulate(workload([(0.0, 4, 10)], window_s=20.0), (0, 3.5, 8.0), replicas=2)
    assert result.ttft_s.tolist() == [1.0]  # it was sampled
    assert result.e2e_s.tolist() == [10.5]
    assert result.replica_index.tolist() == [1]
    group = result.groups[0]
    assert group.busy_s == (3.5, 7.0)
    assert (group.lost, group.steps, group.preemptions) == (1, 11, 0)
    assert result.events == 12  # eleven steps, and one request sent again


def test_what_is_lost_is_computed_anew() -> None:
    """1 s + 0.1 s a token: the prompt of 4 and the one token sampled by 2 s are five tokens in one step."""
    model = replica()
    alone = simulate(workload([(0.0, 4, 2)]), model=model)
    first_s, second_s = alone.ttft_s[0], alone.e2e_s[0] - alone.ttft_s[0]
    result = simulate(workload([(0.0, 4, 2)]), (0, first_s + second_s / 2, math.inf), model=model, replicas=2)
    again = simulate(workload([(0.0, 5, 1)]), model=model)
    assert result.e2e_s[0] == pytest.approx(first_s + second_s / 2 + again.ttft_s[0])


def test_a_step_that_ends_at_the_moment_of_the_failure_counts() -> None:
    """Two tokens are there at 2, and the last one follows elsewhere at 3. A bit earlier only one is."""
    load = workload([(0.0, 4, 3)])
    assert simulate(load, (0, 2.0, math.inf), replicas=2).e2e_s[0] == 3.0
    assert simulate(load, (0, 1.75, math.inf), replicas=2).e2e_s[0] == 3.75


def test_requests_wait_in_order_until_a_replica_is_up() -> None:
    """The only replica of one seat is down from 2.5 to 10: what it had goes first, what arrived meanwhile after it."""
    load = workload([(0.0, 4, 4), (5.0, 4, 1), (6.0, 4, 1), (10.0, 4, 1)])
    result = simulate(load, (0, 2.5, 10.0), model=replica(flat_s=1.0, seats=1))
    assert (load.arrival_s + result.e2e_s).tolist() == [12.0, 13.0, 14.0, 15.0]
    assert result.ttft_s[0] == 1.0


def test_a_delay_of_the_start_is_a_fault_from_zero() -> None:
    result = simulate(workload([(0.0, 4, 1), (1.0, 4, 1)]), (0, 0.0, 7.0))
    assert result.ttft_s.tolist() == [8.0, 7.0]
    assert result.groups[0].lost == 0


def test_failures_of_one_moment_are_seen_before_anything_is_sent_again() -> None:
    """Replicas 0 and 1 fail together: all goes to replica 2, nothing to a replica that is about to fail."""
    result = simulate(workload([(0.0, 4, 5)] * 4), (0, 1.5, 9.0), (1, 1.5, 9.0), replicas=3)
    assert result.replica_index.tolist() == [2, 2, 2, 2]
    assert result.groups[0].lost == 3


def test_overlapping_faults_are_one() -> None:
    load = workload([(0.0, 4, 1), (4.0, 4, 1), (12.0, 4, 1)])
    once = simulate(load, (0, 3.0, 10.0))
    assert once.ttft_s.tolist() == [1.0, 7.0, 1.0]
    for faults in (((0, 3.0, 6.0), (0, 5.0, 10.0)), ((0, 3.0, 6.0), (0, 6.0, 10.0)), ((0, 3.0, 10.0), (0, 4.0, 5.0))):
        np.testing.assert_array_equal(simulate(load, *faults).ttft_s, once.ttft_s)


def test_the_prefix_cache_is_empty_after_recovery() -> None:
    model = replace(replica(flat_s=1.0, block_size=4), prefix_caching=True)
    load = workload([(0.0, 9, 1), (5.0, 9, 1), (20.0, 9, 1), (25.0, 9, 1)])
    load = replace(load, prefixes=Prefixes(4, np.arange(5) * 2, np.array([1, 2] * 4)))
    cached = [simulate(load, *faults, model=model).cached_tokens for faults in ((), ((0, 10.0, 15.0),))]
    assert [hits.tolist() for hits in cached if hits is not None] == [[0, 8, 8, 8], [0, 8, 0, 8]]


def test_a_replica_that_never_comes_back_leaves_requests_refused() -> None:
    load = workload([(0.0, 4, 1), (0.0, 4, 9), (7.0, 4, 1)])
    result = simulate(load, (0, 2.0, math.inf))
    assert result.refusal is not None
    assert [REFUSALS[reason] for reason in result.refusal] == ["", "no replica up", "no replica up"]
    assert np.isnan(result.ttft_s).tolist() == [False, True, True]
    slos = {"a": SLO(percentiles=(PercentileLimit(metric="ttft", percentile=50.0, limit_s=5.0),))}
    assert not meets(result, load, slos).holds


def test_followers_of_a_request_that_waits_for_ever_are_refused() -> None:
    load = replace(workload([(0.0, 4, 9), (0.0, 4, 1)]), after=np.array([-1, 0]), gap_s=np.zeros(2))
    result = simulate(load, (0, 2.0, math.inf))
    assert result.refusal is not None
    assert [REFUSALS[reason] for reason in result.refusal] == ["no replica up", "session ended"]


def test_a_replica_that_fails_over_and_over_meets_the_event_bound() -> None:
    """Each try lasts 0.5 s, and a step 1 s: nothing is ever done, and every try is an event."""
    faults = [(0, 0.5 + at, 0.75 + at) for at in range(1000)]
    load = workload([(0.0, 4, 1)])
    result = simulate(load, *faults, max_events=200)
    assert result.event_bound_hit
    assert result.events == 200
    whole = simulate(load, *faults)
    assert whole.ttft_s[0] == 1000 - 0.25 + 1.0  # until the last fault is over


def test_pipelined_replicas_fail_too() -> None:
    """Two lanes in two stages, one request each: tokens of lane 0 at 1 and 2. Lost at 2.25, both start anew at 5."""
    model = replica(seats=2, lanes=2, flat_s=1.0)
    result = simulate(workload([(0.0, 4, 3), (0.0, 4, 3)], window_s=20.0), (0, 2.25, 5.0), model=model)
    assert result.e2e_s.tolist() == [6.0, 7.5]  # two tokens were there of the first, one of the second
    assert result.ttft_s.tolist() == [1.0, 1.5]
    lanes = (2.25 + 1.0, 1.75 + 2.0)  # lane 1 runs from 0.5 to 2.25, and from 5.5 to 7.5
    assert result.groups[0].busy_s == (sum(lanes) / 2,)


def test_a_lost_sessions_requests_return_to_their_replica() -> None:
    """Sticky: the sessions of a failed replica move, and come back with it; the others stay."""
    load = workload([(float(at), 1, 1) for at in range(0, 60, 2)])
    load = replace(load, session=np.arange(30) % 10)
    usual = simulate(load, replicas=3, router="sticky").replica_index.reshape(3, 10)
    result = simulate(load, (int(usual[0, 0]), 15.0, 39.0), replicas=3, router="sticky")
    first, second, third = result.replica_index.reshape(3, 10)
    np.testing.assert_array_equal(first[:8], usual[0, :8])
    np.testing.assert_array_equal(third, usual[2])
    moved = second != usual[1]
    np.testing.assert_array_equal(moved, usual[1] == usual[0, 0])
    assert moved.any()


def some(random: np.random.Generator) -> tuple[Workload, ReplicaModel]:
    """A small workload whose prompts share prefixes, and a replica under rules of service drawn from all there are."""
    count = int(random.integers(1, 30))
    times = np.round(np.sort(random.random(count) * 20), 1).tolist()
    load = workload([(at, int(random.integers(1, 40)), int(random.integers(1, 15))) for at in times], window_s=15.0)
    units = [tuple(range(100 * start, 100 * start + 9)) for start in random.integers(0, 4, count).tolist()]
    load = replace(load, prefixes=Prefixes(4, np.arange(count + 1) * 9, np.array(units).ravel()))
    lanes = int(random.integers(1, 3))
    model = replica(seats=2 * lanes, blocks=14 * lanes, block_size=4, lanes=lanes)
    times = replace(model.times, sampled_s=(0.0,) * 20, host_token_s=0.01)
    scheduling = Scheduling(
        order=random.choice(["fcfs", "edf", "srpt", "mlfq", "vtc"]),
        prefill_policy=random.choice(["mixed_chunked", "prefill_first", "decode_first"]),
        preemption=random.choice(["recompute", "swap"]),
        speculation=random.choice([None, Speculation(draft_tokens=2, acceptance=0.6)]),
        max_waiting_tokens=random.choice([None, 60]),
    )
    caches = bool(random.integers(0, 2))
    return load, replace(model, times=times, scheduling=scheduling, prefix_caching=caches, host_blocks=10 * caches)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(ROUTERS), st.sampled_from((0.0, 2.0)))
def test_faults_that_never_hit_change_nothing(seed: int, router: RouterName, poll_s: float) -> None:
    load, model = some(np.random.default_rng(seed))
    options: dict[str, Any] = {"model": model, "replicas": 3, "router": router, "poll_s": poll_s}
    without, later = simulate(load, **options), simulate(load, (1, 1e6, 2e6), (2, 1e6, math.inf), **options)
    for name in ("ttft_s", "tpot_s", "e2e_s", "replica_index", "preemptions", "rejected"):
        np.testing.assert_array_equal(getattr(without, name), getattr(later, name))
    assert without.groups == later.groups
    assert without.events == later.events


def random_faults(random: np.random.Generator, replicas: int) -> list[tuple[int, float, float]]:
    faults = []
    for _ in range(int(random.integers(1, 7))):
        from_s = round(float(random.random()) * 25, 1)
        until_s = math.inf if random.random() < 0.2 else from_s + round(float(random.random()) * 8 + 0.1, 1)
        faults.append((int(random.integers(0, replicas)), from_s, until_s))
    return faults


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(ROUTERS), st.sampled_from((0.0, 0.7, 5.0)))
def test_replicas_that_run_by_themselves_in_between_equal_moment_by_moment(
    seed: int, router: RouterName, poll_s: float
) -> None:
    """With a follower that arrives when all is over, every end of a step is a moment; nothing else changes."""
    random = np.random.default_rng(seed)
    load, model = some(random)
    faults = random_faults(random, 3)
    last = workload([*zip(load.arrival_s, load.prompt_tokens, load.output_tokens, strict=True), (1e6, 1, 1)])
    follows = replace(last, after=np.array([-1] * len(load) + [0]), gap_s=np.zeros(len(load) + 1))
    options: dict[str, Any] = {"model": model, "replicas": 3, "router": router, "poll_s": poll_s}
    results = [simulate(those, *faults, **options) for those in (last, follows)]
    for name in ("ttft_s", "tpot_s", "e2e_s", "replica_index", "preemptions", "refusal"):
        np.testing.assert_array_equal(*[getattr(result, name)[:-1] for result in results])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(ROUTERS), st.booleans())
def test_every_request_ends_or_is_refused_whatever_fails(seed: int, router: RouterName, dependent: bool) -> None:
    random = np.random.default_rng(seed)
    load, model = some(random)
    if dependent:
        after = np.array([int(random.integers(-1, index)) if index else -1 for index in range(len(load))])
        load = replace(load, after=after, gap_s=random.random(len(load)))
    faults = random_faults(random, 3)
    result = simulate(load, *faults, model=model, replicas=3, router=router, poll_s=float(random.choice([0.0, 3.0])))
    done = ~np.isnan(result.e2e_s)
    assert (done ^ result.rejected).all()
    assert result.arrival_s is not None
    assert (result.ttft_s[done] > 0).all()
    assert (result.e2e_s[done] >= result.ttft_s[done]).all()
    assert result.groups[0].output_tokens == load.output_tokens[done].sum()
    assert max(result.groups[0].busy_s) <= 15.0 + 1e-9
    assert min(result.groups[0].busy_s) >= -1e-9


def test_faults_that_do_not_fit_are_refused() -> None:
    load = workload([(0.0, 1, 1)])
    with pytest.raises(ValueError, match="a fault of group 'h'; the groups are g"):
        simulate_fleet((FleetGroup("g", 1, FLAT),), ROUTES, load, faults=(Fault("h", 0, 0.0),))
    for index in (-1, 2):
        with pytest.raises(ValueError, match="has the replicas 0 to 1"):
            simulate(load, (index, 0.0, 1.0), replicas=2)
    for from_s, until_s in ((-1.0, 2.0), (2.0, 2.0), (3.0, 1.0), (math.nan, 1.0), (math.inf, math.inf)):
        with pytest.raises(ValueError, match="cannot be down from"):
            Fault("g", 0, from_s, until_s)
