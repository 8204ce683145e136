"""The oracle against arithmetic done by hand, and both paths against the laws of queues."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulator import balance, mooncake, orca, queues, waits
from benchmarks.simulator.capacity import at_rate
from benchmarks.simulator.servers import STEP_S
from benchmarks.simulator.servers import replica as server
from benchmarks.simulator.table import Row
from benchmarks.simulator.token_gaps import serve_with_gaps
from planner.cost.step_times import FREE, StepTimes
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, native, simulate_fleet
from specs.plan import Limits, Route, Scheduling
from specs.traffic import Prefixes

ROUTES = (Route(request_class="a", group="g", share=1.0),)
millions_of_steps = pytest.mark.skipif(native.compiled() is None, reason="the oracle alone takes minutes for it")


def replica(
    *,
    seats: int = 8,
    budget: int = 16,
    blocks: int = 1000,
    block_size: int = 16,
    window: int | None = None,
    lanes: int = 1,
    request_s: float = 0.0,
    flat_s: float | None = None,
    stage_shares: tuple[float, ...] = (),
) -> ReplicaModel:
    """Step times of round numbers: 1 s + 0.1 s a token, a decode's context 1 ms a token, and so on. Or all flat."""
    some = 0.0 if flat_s is not None else 1.0
    return ReplicaModel(
        times=StepTimes(
            tokens_s=tuple(flat_s if flat_s is not None else 1.0 + 0.1 * n for n in range(budget + 1)),
            sampled_s=tuple(some * 0.01 * n for n in range(seats + 1)),
            sequence_s=some * 0.002,
            decode_launch_s=some * 0.5,
            decode_context_token_s=some * 0.001,
            decode_window_token_s=some * (0.0 if window is None else 0.0001),
            window_tokens=window,
            prefill_launch_s=some * 0.25,
            prefill_pair_s=some * 0.01,
            prefill_window_pair_s=some * (0.0 if window is None else 0.001),
            prefill_context_token_s=some * 0.05,
            request_s=request_s,
            lanes=lanes,
            stage_shares=stage_shares,
        ),
        limits=Limits(max_num_seqs=seats, max_num_batched_tokens=budget, max_model_len=100_000),
        num_blocks=blocks,
        block_size_tokens=block_size,
        scheduling=Scheduling(),
    )


def workload(requests: list[tuple[float, int, int]], window_s: float | None = None) -> Workload:
    arrivals, prompts, outputs = zip(*requests, strict=True)
    return Workload(
        ("a",),
        np.zeros(len(requests), np.int64),
        np.array(arrivals, float),
        np.array(prompts),
        np.array(outputs),
        window_s,
    )


def simulate(model: ReplicaModel, load: Workload, *, exact: bool, replicas: int = 1) -> FleetResult:
    return simulate_fleet((FleetGroup("g", replicas, model),), ROUTES, load, exact=exact)


@pytest.mark.parametrize("exact", [True, False])
def test_one_request_by_hand(exact: bool) -> None:
    result = simulate(replica(budget=8), workload([(2.0, 11, 3)]), exact=exact)
    first = 1.8 + 0.002 + 0.25 + 0.01 * 36  # 8 tokens, none sampled, 8 * 9 / 2 pairs
    second = 1.3 + 0.01 + 0.002 + 0.25 + 0.01 * (3 * 8 + 6) + 0.05 * 8  # 3 tokens over 8 cached, one sampled
    third = 1.1 + 0.01 + 0.002 + 0.5 + 0.001 * 12
    fourth = 1.1 + 0.01 + 0.002 + 0.5 + 0.001 * 13
    assert result.ttft_s[0] == pytest.approx(first + second, rel=1e-12)
    assert result.e2e_s[0] == pytest.approx(first + second + third + fourth, rel=1e-12)
    assert result.tpot_s[0] == pytest.approx((third + fourth) / 2, rel=1e-12)
    assert result.groups[0].steps == 4
    assert result.end_s == pytest.approx(2.0 + result.e2e_s[0])


@pytest.mark.parametrize("exact", [True, False])
def test_attention_window_by_hand(exact: bool) -> None:
    """Prompt 4, window 5: the decodes see 5, then 5 again of 6, in windowed layers."""
    result = simulate(replica(window=5), workload([(0.0, 4, 3)]), exact=exact)
    prefill = 1.4 + 0.01 + 0.002 + 0.25 + 0.01 * 10 + 0.001 * 10
    decodes = 2 * (1.1 + 0.01 + 0.002 + 0.5) + 0.001 * (5 + 6) + 0.0001 * (5 + 5)
    assert result.e2e_s[0] == pytest.approx(prefill + decodes, rel=1e-12)


@pytest.mark.parametrize("exact", [True, False])
def test_an_arrival_joins_at_the_next_step_boundary(exact: bool) -> None:
    """Flat steps of 1 s from 0.9 on; the second request comes at 4.1 and is ready `request_s` later."""
    for request_s, ttft in ((0.0, 1.8), (0.5, 1.8), (0.9, 2.8)):
        model = replica(flat_s=1.0, request_s=request_s)
        result = simulate(model, workload([(0.9 - request_s, 2, 9), (4.1, 2, 1)]), exact=exact)
        assert result.ttft_s[1] == pytest.approx(ttft)


@pytest.mark.parametrize("exact", [True, False])
def test_requests_of_one_moment_share_the_first_step(exact: bool) -> None:
    result = simulate(replica(flat_s=1.0), workload([(0.0, 4, 1)] * 5), exact=exact)
    assert result.ttft_s.tolist() == [1.0, 1.0, 1.0, 1.0, 2.0]  # 16 tokens of budget hold four prompts of 4
    assert np.isnan(result.tpot_s).all()


@pytest.mark.parametrize("exact", [True, False])
def test_pipeline_lanes_follow_each_other_through_the_stages(exact: bool) -> None:
    """Two lanes of one seat, steps of 1 s in two stages: lane 1 enters when lane 0 leaves the first stage, at 0.5 s."""
    model = replica(seats=2, lanes=2, flat_s=1.0)
    result = simulate(model, workload([(0.0, 4, 3), (0.0, 4, 2), (0.0, 4, 1), (0.0, 4, 1)]), exact=exact)
    assert result.e2e_s.tolist() == [3.0, 2.5, 4.0, 3.5]
    assert result.groups[0].running_peak == 2


@pytest.mark.parametrize("exact", [True, False])
def test_a_heavy_second_stage_holds_the_next_batch_up(exact: bool) -> None:
    """Steps of 1 s, a quarter of it in the first stage: lane 1 enters at 0.25, its second stage begins at 1."""
    model = replica(seats=2, lanes=2, flat_s=1.0, stage_shares=(0.25, 0.75))
    result = simulate(model, workload([(0.0, 4, 2), (0.0, 4, 2)]), exact=exact)
    assert result.ttft_s.tolist() == [1.0, 1.75]
    assert result.e2e_s.tolist() == [2.5, 3.25]  # lane 0 is back at 1.0, through stage 1 at 1.25, stage 2 free at 1.75


@pytest.mark.parametrize("exact", [True, False])
def test_stages_on_unlike_machines_take_their_own_times(exact: bool) -> None:
    """A prompt of 4 takes 1 s and 3 s in the stages, a decode 2 s and 1 s: no fixed shares of a step say both.

    Lane 0: prompt in stage 0 until 1, in stage 1 until 4. Lane 1 follows: 1 to 2, 4 to 7. Lane 0 decodes from 4: until
    6, then 7 (stage 1 is busy until then) to 8. Lane 1 decodes from 7: until 9 and 10.
    """
    model = replica(seats=2, lanes=2, flat_s=4.0)
    prompt_s, decode_s = (1.0, 3.0), (2.0, 1.0)
    stages = tuple(
        replace(model.times, lanes=1, tokens_s=(0.0, decode, *(prompt,) * 15))
        for prompt, decode in zip(prompt_s, decode_s, strict=True)
    )
    model = replace(model, times=replace(model.times, stages=stages))
    result = simulate(model, workload([(0.0, 4, 2), (0.0, 4, 2)]), exact=exact)
    assert result.ttft_s.tolist() == [4.0, 7.0]
    assert result.e2e_s.tolist() == [8.0, 10.0]


@pytest.mark.parametrize("exact", [True, False])
def test_a_lane_that_waits_for_the_first_stage_takes_in_what_arrives_meanwhile(exact: bool) -> None:
    """Lane 0 holds the first stage until 0.5; of the pair at 0.1 the second goes to lane 1 and shares its step."""
    model = replica(seats=4, lanes=2, flat_s=1.0)
    result = simulate(model, workload([(0.0, 4, 1), (0.0, 4, 1), (0.1, 4, 1), (0.1, 4, 1), (0.4, 4, 1)]), exact=exact)
    assert result.ttft_s.tolist() == pytest.approx([1.0, 1.5, 1.9, 1.4, 1.6])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4),
    st.integers(1, 40),
    st.booleans(),
)
def test_a_pipeline_is_never_faster_than_its_heaviest_stage(
    lanes: int, weights: list[float], output: int, exact: bool
) -> None:
    """A saturated replica ends at most one step per time of its heaviest stage, however many lanes it has."""
    shares = tuple(weight / sum(weights[:lanes]) for weight in weights[:lanes])
    model = replica(seats=2 * lanes, lanes=lanes, flat_s=1.0, stage_shares=shares)
    result = simulate(model, workload([(0.0, 4, output)] * (6 * lanes)), exact=exact)
    least_s = result.groups[0].steps * max(shares)
    assert result.end_s >= least_s - 1e-9
    assert result.end_s >= 3 * output - 1e-9  # each lane runs its three pairs of requests one after the other


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
def test_equal_stages_are_kept_full(lanes: int, exact: bool) -> None:
    """Three pairs of requests of 5 tokens a lane, steps of 1 s: 15 s, and the last lane enters (S - 1) / S s later."""
    model = replica(seats=2 * lanes, lanes=lanes, flat_s=1.0)
    result = simulate(model, workload([(0.0, 4, 5)] * (6 * lanes)), exact=exact)
    assert result.end_s == pytest.approx(15 + (lanes - 1) / lanes)


@pytest.mark.parametrize("exact", [True, False])
def test_what_can_never_fit_is_refused_and_the_rest_is_served(exact: bool) -> None:
    model = replica(blocks=4, block_size=4, flat_s=1.0)
    result = simulate(model, workload([(0.0, 15, 2), (0.0, 15, 3), (0.0, 2, 2)]), exact=exact)
    assert result.rejected.tolist() == [False, True, False]
    assert np.isnan(result.e2e_s).tolist() == [False, True, False]
    assert result.replica_index[1] == -1
    assert result.percentile_s("ttft", 99) == math.inf


def test_md1_waiting_time_and_littles_law() -> None:
    """Poisson arrivals, one seat, constant service of 4 steps: Pollaczek-Khinchine's mean wait, load x D / 2(1 - load).

    60,000 requests at load 0.7: the standard error of the mean wait is about 1.5 % (measured over seeds), so 5 %.
    """
    random = np.random.default_rng(1)
    service_s, load, count = 1.0, 0.7, 60_000
    model = replica(seats=1, flat_s=service_s / 4)
    arrivals = np.cumsum(random.exponential(service_s / load, count))
    result = simulate(model, workload([(at, 3, 4) for at in arrivals]), exact=False)
    wait_s = result.e2e_s - service_s
    assert wait_s.mean() == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.05)
    assert (wait_s < 1e-9).mean() == pytest.approx(1 - load, rel=0.03)  # those who find it empty
    assert result.utilisation(0) == pytest.approx(load, rel=0.02)
    in_system = result.e2e_s.sum() / result.end_s
    assert in_system == pytest.approx(load + load**2 / (2 * (1 - load)), rel=0.05)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=25),
    st.integers(1, 5),
    st.sampled_from([3, 8, 200]),
    st.booleans(),
)
def test_a_replica_works_whenever_there_is_work(
    requests: list[tuple[float, int, int]], seats: int, blocks: int, exact: bool
) -> None:
    """Work conservation: busy exactly while some request is in the system."""
    model = replica(seats=seats, blocks=blocks)
    load = workload(sorted(requests), window_s=1e9)
    result = simulate(model, load, exact=exact)
    busy_s, reached_s = 0.0, 0.0
    for at, e2e_s in zip(load.arrival_s, result.e2e_s, strict=True):
        if not math.isnan(e2e_s):
            busy_s += max(0.0, at + e2e_s - max(at, reached_s))
            reached_s = max(reached_s, at + e2e_s)
    assert result.groups[0].busy_s[0] == pytest.approx(busy_s, rel=1e-9, abs=1e-9)
    assert result.groups[0].requests == len(requests) - result.rejected.sum()
    assert result.groups[0].blocks_peak <= blocks


@pytest.mark.parametrize("exact", [True, False])
def test_burst_over_replicas_goes_round(exact: bool) -> None:
    result = simulate(replica(flat_s=1.0), workload([(0.0, 2, 2)] * 7), exact=exact, replicas=3)
    assert result.replica_index.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_events_are_steps() -> None:
    """What the bound on events counts does not depend on the path."""
    load = workload([(0.5 * number, 10, 40) for number in range(200)])
    model = replica(seats=64, budget=64, blocks=10**6, flat_s=0.01)
    fast, oracle = (simulate(model, load, exact=exact) for exact in (False, True))
    assert oracle.events == oracle.groups[0].steps == fast.events == fast.groups[0].steps


@pytest.mark.parametrize("exact", [True, False])
def test_event_bound_is_said(exact: bool) -> None:
    groups = (FleetGroup("g", 1, replica()),)
    result = simulate_fleet(groups, ROUTES, workload([(0.0, 3, 5)] * 4 + [(99.0, 3, 5)]), exact=exact, max_events=2)
    assert result.event_bound_hit
    assert result.events == 2
    assert np.isnan(result.e2e_s).any()


def test_contradictions_are_refused() -> None:
    groups = (FleetGroup("g", 1, replica()),)
    load = workload([(0.0, 1, 1)])
    with pytest.raises(ValueError, match="no route"):
        simulate_fleet(groups, (), load)
    with pytest.raises(ValueError, match="do not fit"):
        simulate_fleet(groups, (Route(request_class="a", group="other", share=1.0),), load)
    with pytest.raises(ValueError, match="in order"):
        workload([(1.0, 1, 1), (0.0, 1, 1)])
    with pytest.raises(ValueError, match="at least one"):
        workload([(1.0, 1, 0)])
    with pytest.raises(ValueError, match="starve"):
        replica(seats=20, budget=10)


def within_chance(row: Row, *, narrow: float) -> None:
    """The law is met within twice the half width of the 95 % interval, which has to be narrow to say anything."""
    assert row.expected is not None
    assert row.half_width is not None
    assert row.half_width < narrow * row.expected, row
    assert abs(row.simulated - row.expected) < 2 * row.half_width, row


@millions_of_steps
def test_waits_of_single_and_many_servers() -> None:
    """Pollaczek and Khinchine; Erlang's C with half a step for the clock that seats share."""
    for row in [*waits.first_come_rows(20_000), waits.many_servers_row(40_000)]:
        within_chance(row, narrow=0.25)


@millions_of_steps
def test_a_batch_whose_steps_grow_with_it_shares_the_processor() -> None:
    """Mean response E[S] / (1 - load), whatever the distribution of sizes."""
    for row in waits.sharing_rows(20_000):
        within_chance(row, narrow=0.15)


@millions_of_steps
def test_priorities_shortest_first_and_shortest_remaining() -> None:
    """Cobham, Phipps, Schrage and Miller; SRPT against the formula for preemption at the ends of steps."""
    *ranked, shortest, _, remaining = waits.ordered_rows(20_000)
    for row in [*ranked, shortest, remaining]:
        within_chance(row, narrow=0.4)


def test_formulas_agree_where_they_meet() -> None:
    """Equal sizes leave nothing to choose; one server of Erlang is M/M/1; one choice of queues is random."""
    equal = np.full(10, 20)
    rate, service_s = 2.0, 20 * STEP_S
    fcfs_s = queues.pollaczek_khinchine(rate, equal)
    assert queues.srpt_response(rate, equal) == pytest.approx(fcfs_s + service_s)
    assert queues.shortest_first_wait(rate, equal) == pytest.approx(fcfs_s)
    assert queues.priority_wait(rate, equal, np.zeros(10, np.int64)) == pytest.approx([fcfs_s])
    assert queues.erlang_c(rate, service_s, 1) == pytest.approx(0.4 * service_s / 0.6)
    assert queues.busy_share(0.4, 1) == pytest.approx(0.4)
    assert queues.square_law(0.9, 1) == pytest.approx(10.0)
    assert queues.square_law(0.9, 2) == pytest.approx(2.6141, rel=1e-4)  # Mitzenmacher's table


def test_order_of_service_changes_no_work() -> None:
    """Busy seconds are the steps asked for, whatever order, preempted by swap or not; recompute adds to them."""
    *kept, anew = balance.work_rows(1500)
    for row in kept:
        assert row.simulated == pytest.approx(row.expected, rel=1e-9), row
    assert anew.simulated > 1.1


def test_littles_law_tokens_and_blocks_balance() -> None:
    for row in [*balance.balance_rows(5000), *balance.block_rows()]:
        assert row.holds if row.relation != "=" else row.simulated == pytest.approx(row.expected), row


def test_fair_shares_keep_their_bound_and_arrival_order_does_not() -> None:
    by_counter, by_arrival = balance.fairness_rows(400)
    assert by_counter.holds, by_counter
    assert by_arrival.holds, by_arrival


@millions_of_steps
def test_two_choices_are_exponentially_better_than_one() -> None:
    """Mitzenmacher's limit within 10 %: forty queues are not infinitely many, and they begin empty."""
    two, shortest = balance.routing_rows(30_000, replicas=40)
    assert two.simulated == pytest.approx(two.expected, rel=0.1)
    assert shortest.simulated < two.simulated


def test_gaps_between_tokens_by_hand() -> None:
    """Prompts first: the third request's prompt, a step of 1 s, comes between two tokens of the first two."""
    times = replace(FREE, tokens_s=(0.0, *(1.0,) * 8))
    model = server(times, 4, scheduling=Scheduling(prefill_policy="prefill_first"))
    requests = workload([(0.0, 2, 4), (0.0, 2, 4), (1.5, 2, 2)])
    result, gaps_s = serve_with_gaps(model, replace(requests, classes=("all",)))
    assert result.e2e_s.tolist() == [5.0, 5.0, 2.5]
    assert sorted(gaps_s.tolist()) == [1.0] * 5 + [2.0] * 2


def test_request_level_batches_are_those_of_arithmetic() -> None:
    """decode_first with eight seats beside a recursion over batches."""
    requests = at_rate(orca.drawn(300), 0.5)
    simulated = orca.until_the_batch_ends_s(orca.engine("decode_first", orca.BATCH, 1), requests)
    assert simulated == pytest.approx(orca.batch_server_s(requests, orca.BATCH, token_by_token=False), rel=1e-9)


def test_prefix_hits_are_those_counted() -> None:
    """Requests that never overlap find what all earlier ones left, in a cache without bounds."""
    random = np.random.default_rng(5)
    chains = [[group * 10 + unit for unit in range(random.integers(1, 6))] for group in random.integers(0, 20, 60)]
    prompts = np.array([len(units) * mooncake.UNIT + random.integers(0, 100) for units in chains])
    offsets = np.concatenate(([0], np.cumsum([len(units) for units in chains])))
    load = workload([(10.0 * number, int(prompt), 2) for number, prompt in enumerate(prompts)])
    prefixes = Prefixes(mooncake.UNIT, offsets, np.array([unit for units in chains for unit in units]))
    load = replace(load, classes=("all",), prefixes=prefixes)
    assert mooncake.hit_rate(mooncake.served(load, 10_000), load) == pytest.approx(mooncake.counted(load))
    assert mooncake.hit_rate(mooncake.served(load, 8), load) < mooncake.counted(load)
