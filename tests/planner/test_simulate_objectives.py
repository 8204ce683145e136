"""Percentiles, attainment, verdicts and the early end of runs that are already refuted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.step_times import StepTimes
from planner.simulate import (
    FleetGroup,
    FleetResult,
    ReplicaModel,
    Workload,
    attainment,
    meets,
    nearest_rank,
    result_summary,
    simulate_fleet,
    wilson_interval,
)
from planner.simulate.answers.percentiles import percentile_table
from specs.deployment import SLO, PercentileLimit
from specs.plan import Limits, Route, Scheduling

ROUTES = (Route(request_class="a", group="g", share=1.0), Route(request_class="b", group="g", share=1.0))
MODEL = ReplicaModel(
    times=StepTimes(
        tokens_s=tuple(0.02 + 1e-3 * n for n in range(65)),
        sampled_s=(0.0,) * 9,
        sequence_s=1e-4,
        decode_launch_s=1e-3,
        decode_context_token_s=1e-5,
        decode_window_token_s=0.0,
        window_tokens=None,
        prefill_launch_s=1e-3,
        prefill_pair_s=0.0,
        prefill_window_pair_s=0.0,
        prefill_context_token_s=0.0,
        request_s=0.0,
        lanes=1,
    ),
    limits=Limits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=300),
    num_blocks=60,
    block_size_tokens=16,
    scheduling=Scheduling(),
)


def random_workload(seed: int, count: int, rate: float) -> Workload:
    random = np.random.default_rng(seed)
    return Workload(
        ("a", "b"),
        random.integers(0, 2, count),
        np.cumsum(random.exponential(1 / rate, count)),
        random.integers(1, 150, count),
        random.integers(1, 60, count),
    )


def run(load: Workload, refute: dict[str, SLO] | None = None, replicas: int = 1, exact: bool = False) -> FleetResult:
    return simulate_fleet((FleetGroup("g", replicas, MODEL),), ROUTES, load, refute=refute, exact=exact)


def percentile_slo(metric: str, percentile: float, limit_s: float) -> SLO:
    return SLO(percentiles=(PercentileLimit(metric=metric, percentile=percentile, limit_s=limit_s),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),  # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=60), st.sampled_from([50.0, 90.0, 99.0, 99.9]), st.integers(0, 20)
)
def test_nearest_rank_is_the_percentile_that_the_limit_means(values: list[int], percentile: float, limit: int) -> None:
    met = sum(value <= limit for value in values)
    assert (nearest_rank(sorted(values), percentile) <= limit) == (1000 * met >= round(10 * percentile) * len(values))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1.0, 5.0, 20.0]),
    st.sampled_from(
        [
            percentile_slo("ttft", 90, 0.3),
            percentile_slo("tpot", 80, 0.05),
            percentile_slo("e2e", 50, 1.5),
            SLO(joint={"ttft": 0.5, "tpot": 0.06}, attainment=0.8),
            SLO(joint={"e2e": 1.0}),
        ]
    ),
    st.booleans(),
)
def test_refuted_early_means_refuted(seed: int, rate: float, slo: SLO, exact: bool) -> None:
    load = random_workload(seed, 150, rate)
    whole = run(load, exact=exact)
    early = run(load, {"a": slo}, exact=exact)
    verdict = meets(whole, load, {"a": slo})
    if early.refuted_early is None:
        np.testing.assert_array_equal(early.e2e_s, whole.e2e_s)
        assert meets(early, load, {"a": slo}).holds == verdict.holds
    else:
        assert not verdict.holds
        assert early.refuted_early.startswith("a: ")
        assert not meets(early, load, {"a": slo}).holds


def test_a_saturated_fleet_ends_early_with_a_short_queue() -> None:
    load = random_workload(1, 4000, 60.0)
    slo = percentile_slo("ttft", 90, 1.0)
    whole, early = run(load), run(load, {"a": slo, "b": slo})
    assert early.refuted_early is not None
    assert "p90 TTFT <= 1 s" in early.refuted_early
    assert early.events < whole.events / 5
    assert (early.group_index == -1).sum() > 3000


def test_an_end_to_end_limit_is_refuted_before_anything_has_finished() -> None:
    """250 tokens take five seconds at the least: after two, a request is late whenever it ends."""
    load = Workload(("a",), np.zeros(8, np.int64), np.arange(8) * 0.5, np.full(8, 10), np.full(8, 250))
    early = run(load, {"a": percentile_slo("e2e", 90, 2.0)})
    assert early.refuted_early == "a: p90 E2E <= 2 s"
    assert np.isnan(early.e2e_s).all()


def test_percentile_and_verdict_agree() -> None:
    load = random_workload(5, 400, 8.0)
    result = run(load)
    mask = load.of_class("b")
    for metric in ("ttft", "tpot", "e2e"):
        p90 = result.percentile_s(metric, 90, mask)  # type: ignore[arg-type]
        if metric == "tpot":  # one-token requests have none and meet the limit, so the verdict is a little milder
            assert meets(result, load, {"b": percentile_slo(metric, 90, p90)}).holds
            continue
        exactly = {"b": percentile_slo(metric, 90, p90)}
        assert meets(result, load, exactly).holds
        assert run(load, exactly).refuted_early is None  # as many misses as allowed, not one more
        verdict = meets(result, load, {"b": percentile_slo(metric, 90, p90 * (1 - 1e-9))})
        assert not verdict.holds
        assert f"p90 {metric.upper()}" in str(verdict)


def test_attainment_counts_requests_that_meet_all() -> None:
    load = random_workload(6, 300, 8.0)
    result = run(load)
    slo = SLO(joint={"ttft": 0.4, "tpot": 0.055}, attainment=0.5)
    mask = load.of_class("a")
    one_token = load.output_tokens == 1
    good = mask & (result.ttft_s <= 0.4) & (one_token | (result.tpot_s <= 0.055))
    met = attainment(result, load, "a", slo)
    assert 0 < good.sum() < mask.sum()
    assert met.share == good.sum() / mask.sum()
    assert met.low < met.share < met.high
    assert meets(result, load, {"a": slo}).holds == (met.share >= 0.5)


def test_summary_is_plain_json() -> None:
    load = random_workload(7, 100, 5.0)
    summary = result_summary(run(load), load, {"a": percentile_slo("ttft", 90, 10.0)})
    assert summary["verdict"] == {
        "holds": True,
        "saturated": False,
        "stability": "stable",
        "text": "every objective holds",
    }
    assert summary["classes"][0]["attainment"]["share"] == 1.0
    assert "attainment" not in summary["classes"][1]
    assert summary["classes"][0]["ttft_s"]["p90"] <= summary["classes"][0]["ttft_s"]["p99"]
    assert 0 < summary["groups"][0]["utilisation"][0] <= 1


def test_whole_sessions_by_hand() -> None:
    """Session 4 lasts from its first arrival to the last token of its second turn; session 9 is never served whole."""
    flat = replace(MODEL, times=replace(MODEL.times, tokens_s=(1.0,) * 65, sequence_s=0.0, decode_launch_s=0.0,
                                        decode_context_token_s=0.0, prefill_launch_s=0.0))  # fmt: skip
    load = Workload(
        ("a",),
        np.zeros(4, np.int64),
        np.array([1.0, 2.0, 10.0, 20.0]),
        np.array([4, 4, 4, 299]),  # the last one is too long
        np.array([2, 1, 3, 9]),
        session=np.array([4, 9, 4, 9]),
    )
    result = simulate_fleet((FleetGroup("g", 1, flat),), ROUTES, load)
    found = result_summary(result, load)["sessions"]
    assert (found["sessions"], found["turns_mean"], found["unfinished"]) == (2, 2.0, 1)
    assert found["seconds"] == {"p50": 13.0 - 1.0, "p90": None, "p95": None, "p99": None}
    assert result_summary(result, replace(load, session=None))["sessions"] is None
    assert result_summary(result, replace(load, session=np.arange(4)))["sessions"] is None  # nobody comes twice
    apart = replace(load, classes=("a", "b"), class_index=np.array([0, 1, 0, 1]), session=np.array([4, 8, 4, 9]))
    assert result_summary(result, apart)["sessions"]["sessions"] == 1  # those of `b` are single requests


def test_refusals_by_reason_and_replicas_out_of_balance() -> None:
    load = Workload(("a",), np.zeros(4, np.int64), np.arange(4.0), np.array([10, 299, 50, 10]), np.array([5, 9, 20, 5]))
    result = replace(run(load, replicas=2), replica_index=np.array([0, -1, 1, 1]), refusal=np.array([0, 1, 0, 0]))
    summary = result_summary(result, load)
    assert summary["refused"] == {"too long": 1}
    group = summary["groups"][0]
    assert group["tokens_by_replica"] == [15, 70 + 15]
    assert group["imbalance"] == pytest.approx(85 / 50)


def test_counters_of_caches_become_shares() -> None:
    load = random_workload(3, 20, 5.0)
    result = run(load)
    counted = replace(result.groups[0], hit_tokens=30, looked_up_tokens=120, moved_tokens=7, preemptions=5, swaps=2)
    group = result_summary(replace(result, groups=(counted,)), load)["groups"][0]
    assert group["prefix_hit_rate"] == 0.25
    assert (group["preemptions"], group["preemptions_by_swap"], group["moved_tokens"]) == (5, 2, 7)
    assert result_summary(result, load)["groups"][0]["prefix_hit_tokens"] == 0


def test_dependent_arrivals_are_taken_in_their_true_order() -> None:
    """A late first request must not count as the start of the run, nor as a neighbour of the early ones."""
    load = random_workload(8, 400, 5.0)
    result = run(load)
    late = result.arrivals_s(load).copy()
    late[0] += 2 * result.end_s
    values = result.ttft_s.copy()
    values[0] = 1e6
    moved = replace(result, arrival_s=late, ttft_s=values)
    last = np.roll(np.arange(400), -1)
    same = replace(result, ttft_s=values[last])
    ordered = Workload(load.classes, load.class_index[last], load.arrival_s, load.prompt_tokens, load.output_tokens)
    intervals = [
        percentile_table(moved, load, load.of_class("a"))["ttft_interval_s"]["p50"],
        percentile_table(same, ordered, ordered.of_class("a"))["ttft_interval_s"]["p50"],
    ]
    assert intervals[0] == intervals[1]
    assert intervals[0] is not None


def test_a_run_that_served_nothing_is_plain_json_too() -> None:
    load = Workload(
        ("a",),
        np.zeros(2, np.int64),
        np.arange(2.0),
        np.full(2, 299),
        np.full(2, 9),
        tenants=("x", "y"),
        tenant_index=np.array([0, 1]),
        session=np.zeros(2, np.int64),
    )
    summary = result_summary(
        run(load), load, {"a": percentile_slo("ttft", 90, 1.0)}, groups=(FleetGroup("g", 1, MODEL),)
    )
    text = json.dumps(summary, allow_nan=False)
    assert json.loads(text)["classes"][0]["ttft_s"]["p50"] is None
    assert summary["groups"][0]["imbalance"] is None
    assert summary["groups"][0]["prefix_hit_rate"] is None
    assert sum(summary["refused"].values()) == 2
    assert summary["kv"][0]["mean"] == 0.0
    assert not summary["verdict"]["holds"]
