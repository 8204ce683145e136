"""The fast path against the oracle: request by request, on random fleets, limits, caches and arrivals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.pieces import ChunkTable, DecodeTable
from planner.cost.step_times import StepTimes
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, simulate_fleet
from specs.plan import Limits, Route, Scheduling


def decode_table(random: np.random.Generator, seats: int) -> DecodeTable:
    """Seconds that grow with the keys, at knots inside what the requests reach."""
    sequences = np.array([1.0, max(2, seats // 2), max(3, seats)])
    keys = np.cumsum([1, *random.integers(1, 60, 3)]).astype(np.float64)
    return DecodeTable(sequences, keys, np.cumsum(random.random((3, 4)), axis=1) * 1e-3)


def chunk_table(random: np.random.Generator, budget: int) -> ChunkTable:
    new = np.array([1.0, max(2, budget // 2), max(3, budget)])
    return ChunkTable(new, np.array([0.0, 20.0, 90.0]), random.random((3, 3)) * 1e-2)


@st.composite
def replica_models(draw: st.DrawFn) -> ReplicaModel:
    """Irregular step times (no two events fall on one instant by chance), tight limits, small caches."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    seats = draw(st.integers(1, 12))
    budget = draw(st.integers(seats, 200))
    window = draw(st.none() | st.integers(1, 80))
    lanes = draw(st.integers(1, 4))
    stages = draw(st.none() | st.just(random.random(lanes) + 0.1))
    block = draw(st.sampled_from([1, 2, 3, 8, 16, 64]))
    scale = draw(st.sampled_from([0.0, 1e-5, 1e-3]))  # contexts matter not at all, a little, most
    slopes = random.random(9) * scale
    tables = random.random(3) < draw(st.sampled_from([0.0, 0.7]))
    return ReplicaModel(
        times=StepTimes(
            tokens_s=tuple((0.01 + 1e-4 * np.cumsum(random.random(budget + 1))).tolist()),
            sampled_s=tuple((1e-4 * random.random(seats + 1)).tolist()),
            sequence_s=float(slopes[0]),
            decode_launch_s=float(random.random() * 1e-3),
            decode_context_token_s=float(slopes[1]),
            decode_window_token_s=float(slopes[2]),
            window_tokens=window,
            prefill_launch_s=float(slopes[3]),
            prefill_pair_s=float(slopes[4]) / 100,
            prefill_window_pair_s=float(slopes[5]) / 100,
            prefill_context_token_s=float(slopes[6]),
            request_s=draw(st.sampled_from([0.0, 0.0037, 0.4])),
            lanes=lanes,
            stage_shares=() if stages is None else tuple((stages / stages.sum()).tolist()),
            decode_table=decode_table(random, seats) if tables[0] else None,
            decode_window_table=decode_table(random, seats) if tables[1] and window else None,
            chunk_table=chunk_table(random, budget) if tables[2] else None,
            prefill_step_s=float(random.random() * 1e-2) if tables[2] else 0.0,
        ),
        limits=Limits(max_num_seqs=seats, max_num_batched_tokens=budget, max_model_len=draw(st.integers(60, 400))),
        num_blocks=lanes * draw(st.integers(1, 40)) * max(1, 64 // block),
        block_size_tokens=block,
        scheduling=Scheduling(prefill_policy=draw(st.sampled_from(["mixed_chunked", "prefill_first"]))),
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Random requests of two classes; some arrive together at 0, where ties are exact."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 60))
    rate = draw(st.sampled_from([0.5, 5.0, 50.0]))
    arrivals = np.cumsum(random.exponential(1 / rate, count))
    arrivals[: draw(st.integers(0, count))] = 0.0
    longest = draw(st.sampled_from([3, 40, 200]))
    return Workload(
        ("a", "b"),
        random.integers(0, 2, count),
        arrivals,
        random.integers(1, draw(st.sampled_from([3, 60, 250])) + 1, count),
        random.integers(1, longest + 1, count),
        draw(st.sampled_from([None, 1.0, 1e4])),
    )


def assert_equal(fast: FleetResult, oracle: FleetResult) -> None:
    np.testing.assert_array_equal(fast.replica_index, oracle.replica_index)
    np.testing.assert_array_equal(fast.group_index, oracle.group_index)
    np.testing.assert_array_equal(fast.rejected, oracle.rejected)
    np.testing.assert_array_equal(fast.preemptions, oracle.preemptions)
    np.testing.assert_allclose(fast.ttft_s, oracle.ttft_s, rtol=1e-9)
    np.testing.assert_allclose(fast.e2e_s, oracle.e2e_s, rtol=1e-9)
    np.testing.assert_allclose(fast.tpot_s, oracle.tpot_s, rtol=1e-9)
    for left, right in zip(fast.groups, oracle.groups, strict=True):
        assert left.steps == right.steps
        assert left.preemptions == right.preemptions
        assert left.blocks_peak == right.blocks_peak
        assert left.running_peak == right.running_peak
        assert (left.requests, left.prompt_tokens, left.output_tokens) == (
            right.requests,
            right.prompt_tokens,
            right.output_tokens,
        )
        assert left.busy_s == pytest.approx(right.busy_s, rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(replica_models(), st.integers(1, 3)), min_size=1, max_size=2),
    workloads(),
    st.sampled_from([0.5, 0.3, 0.9]),
    st.sampled_from(["least_outstanding", "round_robin"]),
)
def test_fast_equals_oracle(
    models: list[tuple[ReplicaModel, int]], workload: Workload, share: float, router: str
) -> None:
    groups = tuple(FleetGroup(f"g{index}", replicas, model) for index, (model, replicas) in enumerate(models))
    routes = [Route(request_class="a", group="g0", share=1.0)]
    if len(groups) == 1:
        routes.append(Route(request_class="b", group="g0", share=1.0))
    else:
        routes.append(Route(request_class="b", group="g0", share=share))
        routes.append(Route(request_class="b", group="g1", share=1 - share))
    fast = simulate_fleet(groups, routes, workload, router=router)  # type: ignore[arg-type]
    oracle = simulate_fleet(groups, routes, workload, router=router, exact=True)  # type: ignore[arg-type]
    assert_equal(fast, oracle)
    assert not oracle.event_bound_hit
    np.testing.assert_array_equal(np.isnan(oracle.e2e_s), oracle.rejected)


def tight_cache(policy: str, window: int | None) -> tuple[ReplicaModel, Workload]:
    """Eight growing sequences in a cache for three: preemption again and again."""
    model = ReplicaModel(
        times=StepTimes(
            tokens_s=tuple(0.01 + 1.3e-4 * n for n in range(65)),
            sampled_s=tuple(1e-5 * n for n in range(9)),
            sequence_s=1.1e-5,
            decode_launch_s=3e-4,
            decode_context_token_s=1.7e-6,
            decode_window_token_s=0.0 if window is None else 2.3e-6,
            window_tokens=window,
            prefill_launch_s=2e-4,
            prefill_pair_s=1e-8,
            prefill_window_pair_s=0.0 if window is None else 1e-8,
            prefill_context_token_s=1e-7,
            request_s=0.0,
            lanes=1,
        ),
        limits=Limits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=400),
        num_blocks=24,
        block_size_tokens=16,
        scheduling=Scheduling(prefill_policy=policy),  # type: ignore[arg-type]
    )
    random = np.random.default_rng(7)
    count = 150
    workload = Workload(
        ("a",),
        np.zeros(count, np.int64),
        np.cumsum(random.exponential(0.15, count)),
        random.integers(1, 120, count),
        random.integers(20, 200, count),
    )
    return model, workload


@pytest.mark.parametrize("policy", ["mixed_chunked", "prefill_first"])
@pytest.mark.parametrize("window", [None, 32])
def test_fast_equals_oracle_under_constant_preemption(policy: str, window: int | None) -> None:
    model, workload = tight_cache(policy, window)
    groups = (FleetGroup("g", 1, model),)
    routes = (Route(request_class="a", group="g", share=1.0),)
    fast = simulate_fleet(groups, routes, workload)
    oracle = simulate_fleet(groups, routes, workload, exact=True)
    assert oracle.groups[0].preemptions > 50
    assert_equal(fast, oracle)
