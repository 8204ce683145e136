"""Routers in a fleet, views that lag, unlike replicas, and requests that depend on each other."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulate_laws import ROUTES, replica, workload

from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, meets, simulate_fleet
from planner.simulate.model import Prefixes
from planner.simulate.result import REFUSALS
from specs.deployment import SLO, PercentileLimit
from specs.plan import Route, RouterName
from specs.service import ROUTERS

FLAT = replica(flat_s=1.0)  # 8 seats, 16 tokens a step, steps of 1 s


def simulate(load: Workload, *, model: ReplicaModel = FLAT, replicas: int = 1, **options: Any) -> FleetResult:
    return simulate_fleet((FleetGroup("g", replicas, model),), ROUTES, load, exact=True, **options)


def chained(requests: list[tuple[float, int, int]], after: list[int], gap_s: list[float], **more: Any) -> Workload:
    """Each request may follow another one: `after` its end, `gap_s` later."""
    return replace(workload(requests), after=np.array(after), gap_s=np.array(gap_s), **more)


def with_units(load: Workload, units: list[tuple[int, ...]], unit_tokens: int) -> Workload:
    offsets = np.cumsum([0, *(len(own) for own in units)])
    return replace(load, prefixes=Prefixes(unit_tokens, offsets, np.array([unit for own in units for unit in own])))


# -------------------------------------------------------------------------------------------------- views and routers


def test_a_lagging_view_herds() -> None:
    """Loads as of 0 and 10 s: all before 10 go to the replica that was empty first, the next ones all to the other."""
    load = workload([(float(at), 1, 50) for at in (1, 2, 3, 4, 10, 11)])
    assert simulate(load, replicas=2, poll_s=10.0).replica_index.tolist() == [0, 0, 0, 0, 1, 1]
    assert simulate(load, replicas=2).replica_index.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_poll_sees_what_ends_at_its_moment_and_not_what_arrives_then() -> None:
    """The first request ends at 2; at the poll of that moment both are empty, and the arrivals at 2 come after it."""
    load = workload([(0.0, 1, 2), (2.0, 1, 5), (2.0, 1, 5), (3.9, 1, 5), (4.0, 1, 5)])
    assert simulate(load, replicas=2, poll_s=2.0).replica_index.tolist() == [0, 0, 0, 0, 1]


def test_a_poll_between_two_arrivals_is_not_missed() -> None:
    """At 4, between the arrivals, the first request still runs; at 5.5 both replicas are empty."""
    load = workload([(3.0, 1, 2), (5.5, 1, 1)])
    assert simulate(load, replicas=2, poll_s=4.0).replica_index.tolist() == [0, 1]
    assert simulate(load, replicas=2).replica_index.tolist() == [0, 0]


def test_least_kv_looks_at_blocks_not_at_requests() -> None:
    """A prompt of 14 blocks on replica 0 against two of one block each on replica 1."""
    model = replica(flat_s=1.0, blocks=40, block_size=1, budget=64)
    load = workload([(0.0, 14, 20), (0.0, 1, 20), (1.5, 1, 20), (2.5, 1, 20)])
    assert simulate(load, model=model, replicas=2, router="least_kv").replica_index.tolist() == [0, 1, 1, 1]
    assert simulate(load, model=model, replicas=2).replica_index.tolist() == [0, 1, 0, 1]


def test_prefix_aware_and_sticky_keep_prefixes_where_they_are() -> None:
    """Three conversations of four turns over three replicas: three of four turns find what went before."""
    model = replace(replica(flat_s=1.0, blocks=1000, block_size=4, budget=64), prefix_caching=True)
    turns = [(turn, session) for turn in range(4) for session in np.roll((0, 1, 2), turn).tolist()]
    sessions = np.array([session for _, session in turns])
    load = workload([(20.0 * turn + place % 3, 8 * (turn + 1) + 1, 2) for place, (turn, _) in enumerate(turns)])
    units = [tuple(range(10 * session, 10 * session + 2 * (turn + 1))) for turn, session in turns]
    load = replace(with_units(load, units, unit_tokens=4), session=sessions)
    reused = {}
    for router in ("round_robin", "prefix_aware", "sticky"):
        result = simulate(load, model=model, replicas=3, router=router)
        assert result.cached_tokens is not None
        reused[router] = int(result.cached_tokens.sum())
        if router != "round_robin":
            for session in (0, 1, 2):
                assert len(set(result.replica_index[sessions == session].tolist())) == 1
    assert reused["prefix_aware"] == reused["sticky"] == 3 * (8 + 16 + 24)
    assert reused["round_robin"] < reused["sticky"]


def test_power_of_two_follows_the_seed() -> None:
    load = workload([(0.1 * at, 1, 30) for at in range(40)])
    chosen = [simulate(load, replicas=4, router="power_of_two", seed=seed).replica_index.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert set(chosen[0]) == {0, 1, 2, 3}


# ---------------------------------------------------------------------------------------------------- unlike replicas


def test_unlike_replicas_have_their_own_step_times() -> None:
    group = FleetGroup("g", 2, FLAT, models=(FLAT, replica(flat_s=4.0)))
    result = simulate_fleet((group,), ROUTES, workload([(0.0, 4, 2)] * 2), exact=True)
    assert result.e2e_s.tolist() == [2.0, 8.0]


def test_routers_weigh_by_capacity_only_where_it_is_stated() -> None:
    models, load = (FLAT, replica(flat_s=4.0)), workload([(0.0, 1, 9)] * 5)
    plain = FleetGroup("g", 2, FLAT, models=models)
    weighed = replace(plain, weights=(4.0, 1.0))
    chosen = [simulate_fleet((group,), ROUTES, load, exact=True).replica_index.tolist() for group in (plain, weighed)]
    assert chosen == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]]


def test_a_request_goes_only_where_it_fits() -> None:
    """Replica 0 has 2 blocks of 4 tokens. What fits nowhere is refused."""
    small, large = replica(flat_s=1.0, blocks=2, block_size=4), replica(flat_s=1.0, blocks=8, block_size=4)
    group = FleetGroup("g", 2, small, models=(small, large))
    load = workload([(0.0, 4, 20), (0.1, 4, 20), (0.2, 4, 5), (0.3, 20, 20)])
    result = simulate_fleet((group,), ROUTES, load, exact=True)
    assert result.replica_index.tolist() == [1, 1, 0, -1]
    assert result.rejected.tolist() == [False, False, False, True]
    assert result.groups[0].num_blocks == 8


# ----------------------------------------------------------------------------------------------- dependent requests


def test_a_follower_arrives_a_gap_after_its_predecessor_ends() -> None:
    """The first ends at 3; its followers come 2 s later, at their own time where that is later, and at once."""
    requests = [(0.0, 4, 3), (0.0, 4, 1), (1.0, 4, 1), (10.0, 4, 1)]
    result = simulate(chained(requests, [-1, 0, 0, 0], [0.0, 2.0, 0.0, 0.0]))
    assert result.arrival_s is not None
    assert result.arrival_s.tolist() == [0.0, 5.0, 3.0, 10.0]
    assert result.ttft_s.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert result.end_s == 11.0


def test_a_follower_joins_the_step_that_starts_when_its_predecessor_ends() -> None:
    """Replica busy with request 1 until 8: the step at 3 takes the follower in."""
    result = simulate(chained([(0.0, 4, 3), (0.0, 4, 8), (0.0, 4, 2)], [-1, -1, 0], [0.0, 0.0, 0.0]))
    assert result.e2e_s.tolist() == [3.0, 8.0, 2.0]
    assert result.groups[0].steps == 8


def test_followers_on_other_replicas_are_in_time() -> None:
    """Replica 1 is in a step from 0.5 to 1.5 when the chain of replica 0 sends it the follower at 1: it waits."""
    load = chained([(0.0, 4, 1), (0.5, 4, 9), (0.5, 4, 9), (0.6, 4, 1)], [-1, -1, -1, 0], [0.0, 0.0, 0.0, 0.0])
    result = simulate(load, replicas=2, router="round_robin")
    assert result.replica_index.tolist() == [0, 1, 0, 1]
    assert result.ttft_s.tolist() == [1.0, 1.0, 1.5, 1.5]


def test_a_refused_predecessor_ends_its_session() -> None:
    model = replica(flat_s=1.0, blocks=4, block_size=4)
    load = chained([(0.0, 4, 1), (0.0, 40, 1), (1.0, 4, 1), (2.0, 4, 1)], [-1, -1, 1, 2], [0.0, 0.0, 0.0, 0.0])
    result = simulate(load, model=model)
    assert result.refusal is not None
    reasons = [REFUSALS[reason] for reason in result.refusal]
    assert reasons == ["", "larger than the KV cache", "session ended", "session ended"]
    assert np.isnan(result.e2e_s).tolist() == [False, True, True, True]


def test_deadlines_of_followers_count_from_their_arrival() -> None:
    """Both wait for the one seat until 9. Due 1 s after its arrival, at 8, the follower is behind the other's 7.5."""
    model = replica(flat_s=1.0, seats=1)
    model = replace(model, scheduling=model.scheduling.model_copy(update={"order": "edf"}))
    load = chained([(0.0, 1, 1), (0.0, 1, 1), (1.0, 1, 8), (6.0, 1, 1)], [-1, 0, -1, -1], [0.0, 6.0, 0.0, 0.0])
    result = simulate(replace(load, deadline_s=np.array([1.0, 1.0, 20.0, 7.5])), model=model)
    first_s = result.arrivals_s(load) + result.ttft_s
    assert first_s.tolist() == [1.0, 11.0, 2.0, 10.0]


def test_a_session_that_misses_its_limits_is_refuted_early() -> None:
    """TTFT of the follower is 1 s from its arrival at 5, and 6 s from the declared time: only 0.5 s is missed."""
    load = chained([(0.0, 4, 3), (0.0, 4, 1)], [-1, 0], [0.0, 2.0])
    for limit_s, holds in ((1.5, True), (0.5, False)):
        slos = {"a": SLO(percentiles=(PercentileLimit(metric="ttft", percentile=99.0, limit_s=limit_s),))}
        result = simulate(load, refute=slos)
        assert meets(result, load, slos).holds is holds
        assert (result.refuted_early is None) is holds


def test_a_request_cannot_wait_for_itself_or_a_later_one() -> None:
    for after in ([0, -1], [1, -1]):
        with pytest.raises(ValueError, match="only come after one that stands before"):
            chained([(0.0, 1, 1), (0.0, 1, 1)], after, [0.0, 0.0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(("least_outstanding", "round_robin")), st.booleans())
def test_moments_equal_lanes_that_run_by_themselves(seed: int, router: RouterName, exact: bool) -> None:
    """With a dependency that never matters every end of a step is a moment, and nothing changes; so with jumps."""
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 30))
    at = np.round(np.cumsum(random.exponential(random.choice([0.01, 1.0, 5.0]), count)), 2)
    load = workload([(float(t), int(random.integers(1, 40)), int(random.integers(1, 20))) for t in at])
    late = float(at[-1]) + 10_000.0
    model = replica(seats=4, blocks=int(random.integers(5, 40)), block_size=4, lanes=int(random.integers(1, 3)))
    extra = workload([*zip(at.tolist(), load.prompt_tokens, load.output_tokens, strict=True), (late, 1, 1)])
    follows = replace(extra, after=np.array([-1] * count + [0]), gap_s=np.zeros(count + 1))
    groups = (FleetGroup("g", int(random.integers(1, 4)), model),)
    plain, coupled = (simulate_fleet(groups, ROUTES, those, router=router, exact=exact) for those in (extra, follows))
    unserved = np.isnan(plain.e2e_s[0])
    for name in ("ttft_s", "tpot_s", "e2e_s", "replica_index", "preemptions"):
        both = [getattr(result, name)[: count if unserved else None] for result in (plain, coupled)]
        np.testing.assert_array_equal(*both)
    if not unserved:
        assert plain.groups[0].steps == coupled.groups[0].steps


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(ROUTERS), st.sampled_from((0.0, 0.7, 5.0)))
def test_every_request_ends_or_is_refused_and_followers_come_after(
    seed: int, router: RouterName, poll_s: float
) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 40))
    requests = [
        (float(t), int(random.integers(1, 60)), int(random.integers(1, 12))) for t in sorted(random.random(count) * 9)
    ]
    after = [int(random.integers(-1, index)) if index else -1 for index in range(count)]
    load = chained(requests, after, (random.random(count) * 3).tolist(), session=random.integers(-1, 4, count))
    model = replica(seats=3, blocks=12, block_size=4)
    result = simulate(load, model=model, replicas=3, router=router, poll_s=poll_s)
    assert result.arrival_s is not None
    done = ~np.isnan(result.e2e_s)
    assert (done ^ result.rejected).all()
    assert (result.arrival_s >= load.arrival_s).all()
    finish_s = result.arrival_s + result.e2e_s
    for index, before in enumerate(after):
        if before >= 0 and done[index]:
            assert result.arrival_s[index] >= finish_s[before] + load.gap_s[index] - 1e-9  # type: ignore[index]
        if before >= 0 and result.rejected[before]:
            assert result.rejected[index]
    assert result.groups[0].output_tokens == load.output_tokens[done].sum()


def test_the_event_bound_holds_for_dependent_requests() -> None:
    result = simulate(chained([(0.0, 4, 3)] * 3, [-1, 0, 1], [0.0, 1.0, 1.0]), max_events=4)
    assert result.event_bound_hit
    assert result.events == 4
    assert result.arrival_s is not None
    assert math.isnan(result.arrival_s[2])  # had not arrived


def test_progress_is_told() -> None:
    told: list[float] = []
    simulate(workload([(0.01 * at, 1, 1) for at in range(1200)]), progress=told.append)
    assert told == [0.0, 500 / 1200, 1000 / 1200]


def test_what_does_not_fit_is_refused() -> None:
    load = workload([(0.0, 1, 1)])
    group = FleetGroup("g", 2, FLAT)
    with pytest.raises(ValueError, match="no replica groups"):
        simulate_fleet((), ROUTES, load)
    with pytest.raises(ValueError, match="has 0 replicas"):
        FleetGroup("g", 0, FLAT)
    with pytest.raises(ValueError, match="has 2 replicas and 1 models"):
        replace(group, models=(FLAT,))
    with pytest.raises(ValueError, match="has 2 replicas and 3 weights"):
        replace(group, weights=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="must be positive"):
        replace(group, weights=(1.0, 0.0))
    with pytest.raises(ValueError, match="no router 'best'"):
        simulate_fleet((group,), ROUTES, load, router="best")  # type: ignore[arg-type]
    for poll_s in (-1.0, math.inf, math.nan, 1e-12):
        with pytest.raises(ValueError, match="look at loads"):
            simulate_fleet((group,), ROUTES, load, poll_s=poll_s)
    decode = FleetGroup("d", 1, FLAT, role="decode")
    with pytest.raises(ValueError, match="takes handoffs only"):
        simulate_fleet((decode,), (Route(request_class="a", group="d", share=1.0),), load)
