"""Host times fitted to closed loops: loops that a known engine would show give that engine back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capstan.commands.machine import this_machine
from planner.estimate.design import Designed, design, designed_loads
from planner.estimate.observed import (
    class_summary,
    counted,
    difference,
    judged_rows,
    latencies_of,
    measured_summary,
    workload_of_rows,
)
from planner.estimate.overheads import applied, described, fit_overheads, observed_loops
from planner.plan import make_plan
from planner.plan_simulation.simulate import replica_model
from planner.simulate import Workload, simulate_closed_loop
from specs.deployment import SLO, PercentileLimit, load_deployment
from specs.errors import InputError
from specs.measurements import Environment, Load, Measurements, RequestRow
from specs.plan import Limits

QUICKSTART = Path(__file__).parents[2] / "specs" / "examples" / "quickstart.yaml"
TRUE = np.array([0.009, 0.0007, 0.00011, 0.0021, 30.0, 12.0, 1.7])


@pytest.fixture(scope="module")
def plan():
    return make_plan(load_deployment(QUICKSTART), QUICKSTART.parent, machine=this_machine())


@pytest.fixture(scope="module")
def model_of(plan):
    return lambda engine: replica_model(plan.model_copy(update={"engines": {"capstan": engine}}), plan.groups[0])


def row(name="a", arrival_s=0.0, ttft_s=0.1, e2e_s=0.5, output=5, prompt=10, **more) -> RequestRow:
    return RequestRow(
        request_class=name,
        arrival_s=arrival_s,
        prompt_tokens=prompt,
        output_tokens=output,
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        **more,
    )


def seen_of(rows, *loads) -> Measurements:
    return Measurements(source="here", environment=Environment(device="cpu"), requests=tuple(rows), loads=loads)


def made_measurements(model, designs, noise=0.0, seed=0) -> Measurements:
    """What clients of a server with this replica would see."""
    random = np.random.default_rng(seed)
    rows, loads = [], []
    for load in designed_loads(designs, 60.0):
        first, clients = load.requests[0], load.concurrency
        count = 8 * clients
        prompts, outputs = np.full(count, first.prompt_tokens), np.full(count, first.output_tokens)
        loop = simulate_closed_loop(model, clients, prompts, outputs)
        for sent_s, ttft_s, e2e_s in zip(loop.sent_s, loop.ttft_s, loop.e2e_s, strict=True):
            times = np.array([ttft_s, e2e_s]) * np.exp(noise * random.standard_normal())
            rows.append(row(first.request_class, sent_s, *times.tolist(), first.output_tokens, first.prompt_tokens))
        loads.append(
            Load(
                request_class=first.request_class,
                kind="closed",
                concurrency=clients,
                seconds=loop.seconds,
                warmup_requests=load.warmup_requests,
            )
        )
    return seen_of(rows, *loads)


@pytest.fixture(scope="module")
def designs(plan):
    return design(plan.groups[0].limits, plan.groups[0].cache.capacity_tokens)[::2]


def test_a_known_engine_comes_back(plan, model_of, designs):
    true = applied(plan.engines["capstan"], TRUE)
    seen = made_measurements(model_of(true), designs)
    fitted = fit_overheads(observed_loops(seen), plan.engines["capstan"], model_of)
    assert fitted.residual_p50 < 0.005
    assert fitted.residual_p90 < 0.02
    assert fitted.repeat_p50 == pytest.approx(0.0, abs=1e-9)
    assert fitted.engine.request_overhead_s == pytest.approx(0.009, rel=0.1)
    assert fitted.engine.sequence_overhead_s == pytest.approx(0.00011, rel=0.2)
    assert fitted.factors[0] == pytest.approx(30.0, rel=0.2)


def test_it_predicts_what_it_has_not_seen_through_noise(plan, model_of, designs):
    true = applied(plan.engines["capstan"], TRUE)
    seen = made_measurements(model_of(true), designs, noise=0.2)
    fitted = fit_overheads(observed_loops(seen), plan.engines["capstan"], model_of)
    others = (np.full(60, 200), np.full(60, 60))
    wanted = simulate_closed_loop(model_of(true), 6, *others)
    before = simulate_closed_loop(model_of(plan.engines["capstan"]), 6, *others)
    after = simulate_closed_loop(model_of(fitted.engine), 6, *others)
    assert np.median(after.tpot_s) == pytest.approx(np.median(wanted.tpot_s), rel=0.1)
    assert np.median(after.ttft_s) == pytest.approx(np.median(wanted.ttft_s), rel=0.15)
    assert np.median(before.tpot_s) < 0.7 * np.median(wanted.tpot_s)  # so there was something to fit
    assert fitted.repeat_p50 > 0.01


def test_one_bad_loop_does_not_spoil_the_fit(plan, model_of, designs):
    true = applied(plan.engines["capstan"], TRUE)
    seen = made_measurements(model_of(true), designs)
    bad = f"{designs[-1].name}/1"
    rows = [
        one.model_copy(update={"ttft_s": 20 * one.ttft_s, "e2e_s": 20 * one.e2e_s}) if one.request_class == bad else one
        for one in seen.requests
    ]
    fitted = fit_overheads(
        observed_loops(seen.model_copy(update={"requests": tuple(rows)})), plan.engines["capstan"], model_of
    )
    assert fitted.residual_p50 < 0.05


def test_the_profile_says_where_it_comes_from(plan, model_of, designs):
    seen = made_measurements(model_of(plan.engines["capstan"]), designs[:2])
    fitted = fit_overheads(observed_loops(seen), plan.engines["capstan"], model_of)
    profile = described(fitted, seen, "the borrowed profile of cpu")
    (text,) = (text for text in profile.sources.values() if "calibrate --url" in text)
    assert "at here" in text
    assert "borrowed profile of cpu" in text
    assert profile.releases == ()
    assert profile.kernels.collective == plan.engines["capstan"].kernels.collective


def test_no_closed_loop_is_no_calibration():
    open_load = Load(request_class="a", seconds=1.0)
    with pytest.raises(InputError, match="no closed loop"):
        observed_loops(seen_of([row(), row(), row()], open_load))
    failed = [row(status="failed", e2e_s=None) for _ in range(9)]
    loop = Load(request_class="a", kind="closed", concurrency=1, seconds=1.0)
    with pytest.raises(InputError, match="no closed loop"):
        observed_loops(seen_of(failed, loop))


def test_a_design_fits_the_replica():
    limits = Limits(max_num_seqs=16, max_num_batched_tokens=256, max_model_len=2048)
    designs = design(limits, 4000)
    assert {one.prompt_tokens for one in designs if one.concurrency == 1} == {32, 128, 512}
    assert {one.concurrency for one in designs} == {1, 2, 4, 8, 16}
    assert all(one.concurrency * (one.prompt_tokens + one.output_tokens) <= 4000 for one in designs)
    assert Designed(16, 512, 64) not in designs  # its KV cache would not fit
    tiny = design(Limits(max_num_seqs=1, max_num_batched_tokens=64, max_model_len=128), 128)
    assert tiny == (Designed(1, 32, 32),)
    two = design(limits, 4000, replicas=2)
    assert {one.concurrency for one in two if one.output_tokens == 64} == {4, 8, 16, 32}


def test_rounds_run_in_opposite_orders():
    loads = designed_loads((Designed(1, 32, 32), Designed(2, 64, 64)), 40.0)
    assert [load.requests[0].request_class for load in loads] == [
        "1 x 32+32/1",
        "2 x 64+64/1",
        "2 x 64+64/2",
        "1 x 32+32/2",
    ]
    assert all(load.limit_s == 10.0 for load in loads)


def test_failures_are_endless_and_cut_ones_not_judged():
    rows = [row(), row(status="rejected", ttft_s=None, e2e_s=None), row(status="cut", e2e_s=None), row(output=1)]
    judged = judged_rows(seen_of(rows), "a")
    assert len(judged) == 3
    times = latencies_of(judged)
    assert times.ttft_s.tolist() == [0.1, np.inf, 0.1]
    assert times.tpot_s.tolist()[:2] == pytest.approx([0.1, np.inf])
    assert np.isnan(times.tpot_s[2])
    limit = SLO(percentiles=(PercentileLimit(metric="tpot", percentile=50, limit_s=0.2),))
    entry = measured_summary(seen_of(rows), "a", limit)
    assert entry["ttft_s"] == {"p50": 0.1, "p90": None, "p95": None, "p99": None}
    assert entry["attainment"]["share"] == pytest.approx(2 / 3)
    assert entry["status"] == {"ok": 2, "rejected": 1, "failed": 0, "cut": 1}


def test_goodput_is_of_the_window():
    limit = SLO(joint={"ttft": 0.2})
    load = Load(request_class="a", seconds=4.0)
    entry = measured_summary(seen_of([row(), row(ttft_s=0.3)], load), "a", limit)
    assert entry["goodput_per_s"] == pytest.approx(0.25)


def test_a_warm_up_is_left_out():
    load = Load(request_class="a", kind="closed", concurrency=2, seconds=1.0, warmup_requests=2)
    rows = [row(ttft_s=9.0), row(ttft_s=9.0), row()]
    assert [one.ttft_s for one in judged_rows(seen_of(rows, load), "a")] == [0.1]


def test_the_prediction_is_of_what_was_sent():
    sent = Workload(("a",), np.zeros(3, np.int64), np.arange(3.0), np.full(3, 10), np.full(3, 5), 3.0)
    seen = seen_of([row(number=0, prompt=12, output=4), row(number=2, status="failed", e2e_s=None, output=0)])
    served = counted(sent, seen)
    assert served.prompt_tokens.tolist() == [12, 10]
    assert served.output_tokens.tolist() == [4, 5]
    assert served.arrival_s.tolist() == [0.0, 2.0]
    early = seen.model_copy(update={"loads": (Load(request_class="a", seconds=2.5),)})
    assert counted(sent, early).horizon_s == 2.5  # the run was ended there


def test_rows_as_a_workload():
    rows = [row(arrival_s=7.0), row(arrival_s=5.0, output=0, asked_tokens=9, status="failed", e2e_s=None)]
    made = workload_of_rows(seen_of(rows, Load(request_class="a", seconds=4.0)), ("x", "a"), "a")
    assert made.arrival_s.tolist() == [0.0, 2.0]
    assert made.output_tokens.tolist() == [9, 5]
    assert made.class_index.tolist() == [1, 1]
    assert made.horizon_s == 4.0


def test_differences():
    predicted = class_summary(latencies_of([row(ttft_s=0.2)]), 1.0)
    measured = class_summary(latencies_of([row(), row(status="failed")]), 1.0)
    found = difference(predicted, measured)
    assert found["ttft_s"]["p50"] == pytest.approx(1.0)
    assert found["ttft_s"]["p99"] is None
