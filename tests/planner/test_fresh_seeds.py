"""The sequential test on fresh seeds: its errors, its overdispersion, what it is given, what a refuted plan becomes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from planning import CHAT, L40S, problem_of, spec_of

from planner.assemble import assemble
from planner.optimize.certify import recheck
from planner.optimize.fresh_seeds import ERROR, MOST_RUNS, ZONE, Judge
from planner.optimize.fresh_traffic import BLOCKS, fresh_workload, reordered
from planner.simulate import Workload
from specs.deployment import SLO, PercentileLimit, parse_deployment
from specs.plan import FreshSeeds

LLAMA = "{small: meta-llama/Llama-3.1-8B}"
ALLOWED = 0.1
LIMIT = {"chat": SLO(percentiles=(PercentileLimit(metric="ttft", percentile=100 * (1 - ALLOWED), limit_s=1.0),))}


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulations of these tests draw from one stream, so their order matters here."""
    monkeypatch.setenv("CAPSTAN_THREADS", "1")


def some_requests(count: int = 4000, seconds: float = 600.0) -> Workload:
    zeros, ones = np.zeros(count, np.int64), np.ones(count, np.int64)
    return Workload(("chat",), zeros, np.linspace(0, seconds, count, endpoint=False), ones, ones, window_s=seconds)


def with_misses(late: Any) -> Any:
    """What `simulate_fleet` tells, as far as the test looks: `late` requests miss."""
    return SimpleNamespace(within=lambda metric, limit_s, places: ~late[places])


def verdict_of(share: float, seed: int, together: int = 1) -> str:
    """The verdict on a plan that misses `share` of its requests, `together` neighbours at a time."""
    random = np.random.default_rng(seed)

    def simulate(workload: Workload) -> Any:
        runs = random.random(math.ceil(len(workload) / together)) < share
        return with_misses(np.repeat(runs, together)[: len(workload)])

    workload = some_requests()
    return Judge(lambda seed: workload, LIMIT, 0)(simulate).evidence.limits[0].verdict


@pytest.mark.parametrize("together", [1, 20])
def test_errors_are_rare_for_independent_and_for_clustered_misses(together: int) -> None:
    cases = 200
    good = [verdict_of(ALLOWED * (1 - ZONE), seed, together) for seed in range(cases)]
    bad = [verdict_of(ALLOWED * (1 + ZONE), seed, together) for seed in range(cases)]
    # of so many cases, 5 % and two and a half standard deviations; independent misses leave none undecided
    most = cases * ERROR + 2.5 * math.sqrt(cases * ERROR * (1 - ERROR))
    assert sum(verdict == "broken" for verdict in good) <= most
    assert sum(verdict == "kept" for verdict in bad) <= most
    if together == 1:
        assert not {"undecided", "kept on average", "broken on average"} & {*good[:50], *bad[:50]}


def test_a_clear_case_takes_one_run_and_a_close_one_takes_all() -> None:
    workload = some_requests()

    def at(every: int) -> FreshSeeds:
        judge = Judge(lambda seed: workload, LIMIT, 7)
        return judge(lambda given: with_misses(np.arange(len(given)) % every == 0)).evidence

    kept, close, broken = at(100), at(10), at(3)
    assert [found.limits[0].verdict for found in (kept, close, broken)] == ["kept", "kept on average", "broken"]
    assert kept.seeds == broken.seeds == (8,), "the seed after the plan's own"
    assert close.seeds == tuple(range(8, 8 + MOST_RUNS))
    assert close.requests == MOST_RUNS * len(workload)
    assert kept.limits[0].met == pytest.approx(0.99)


def test_a_limit_for_every_request_is_broken_by_one() -> None:
    workload, slo = some_requests(), {"chat": SLO(joint={"ttft": 1.0}, attainment=1.0)}
    late = np.zeros(len(workload), np.bool_)
    assert Judge(lambda seed: workload, slo, 0)(lambda given: with_misses(late)).broken == ()
    late[17] = True
    broken = Judge(lambda seed: workload, slo, 0)(lambda given: with_misses(late)).broken
    assert len(broken) == 1
    assert broken[0].startswith("chat: TTFT <= 1 s")


def test_a_handful_of_requests_is_judged_by_its_mean() -> None:
    few = some_requests(count=10)
    late = np.zeros(10, np.bool_)
    late[:2] = True
    found = Judge(lambda seed: few, LIMIT, 0)(lambda given: with_misses(late))
    assert found.evidence.limits[0].verdict in ("broken on average", "broken")
    assert found.broken
    late[:] = False
    late[0] = True
    found = Judge(lambda seed: few, LIMIT, 0)(lambda given: with_misses(late))
    assert (found.evidence.limits[0].verdict, found.broken) == ("kept on average", ())
    assert len(found.evidence.seeds) == MOST_RUNS
    nothing = Judge(lambda seed: None, LIMIT, 0)(lambda given: with_misses(late))
    assert (nothing.evidence.seeds, nothing.broken) == ((), ())
    assert nothing.evidence.limits[0].verdict == "undecided"


def test_recorded_traffic_keeps_its_requests_and_its_bursts_in_another_order() -> None:
    random = np.random.default_rng(3)
    arrival_s = np.sort(np.concatenate([random.random(500) * 600, 300 + random.random(500)]))  # a burst of a second
    tokens = np.arange(1, 1001)
    planned = Workload(("log",), np.zeros(1000, np.int64), arrival_s, tokens, tokens, window_s=600.0)
    fresh = reordered(planned, ["log"], np.random.default_rng(1))
    assert sorted(fresh.prompt_tokens.tolist()) == tokens.tolist()
    assert fresh.prompt_tokens.tolist() != tokens.tolist()
    assert (fresh.prompt_tokens == fresh.output_tokens).all(), "a request keeps its lengths"
    assert 0 <= fresh.arrival_s.min() <= fresh.arrival_s.max() <= 600

    def busiest(workload: Workload) -> int:
        times = workload.arrival_s
        return int((np.searchsorted(times, times + 1.0) - np.arange(len(times))).max())

    assert busiest(fresh) >= 0.45 * busiest(planned), "a burst is cut at most once"
    assert BLOCKS == 20


def test_predecessors_stay_predecessors_and_their_classes_in_order() -> None:
    planned = some_requests(count=40)
    after = np.full(40, -1)
    after[5] = 2
    linked = replace(planned, after=after, gap_s=np.zeros(40))
    assert reordered(linked, ["chat"], np.random.default_rng(1)).after.tolist() == after.tolist()  # type: ignore[union-attr]


def test_fresh_traffic_of_drawn_classes_is_another_draw_and_of_traces_needs_no_file(tmp_path: Path) -> None:
    problem = problem_of()
    fresh = fresh_workload(problem.spec, Path(), problem.declared, 1)
    assert fresh is not None
    assert fresh.horizon_s == problem.declared.horizon_s
    assert len(fresh) == pytest.approx(len(problem.declared), rel=0.2)
    assert fresh.arrival_s[0] != problem.declared.arrival_s[0]
    trace = "  - {name: chat, model: small, trace: {file: gone.csv}, slo: {ttft: {p90: 1s}}}\n"
    spec = spec_of(traffic=trace)
    assert len(fresh_workload(spec, tmp_path, problem.declared, 1) or ()) == len(problem.declared)
    never = parse_deployment(
        f"models: {{small: Qwen/Qwen3-0.6B}}\nhardware: {{pools: [{L40S}]}}\ntraffic:\n{CHAT}"
    ).spec
    slow = never.traffic[0].model_copy(
        update={"arrivals": never.traffic[0].arrivals.model_copy(update={"rate_per_s": 1e-6})}
    )  # type: ignore[union-attr]
    assert fresh_workload(never.model_copy(update={"traffic": (slow,)}), Path(), problem.declared, 1) is None


def test_a_plan_carries_the_evidence_and_its_recheck_reads_it() -> None:
    problem = problem_of(models=LLAMA, traffic=CHAT.replace("4/s", "25/s"), rest="limits: {utilisation: 80%}")
    master = problem.master()
    decision = master.decide()
    assert decision is not None
    plan = assemble(problem, master, decision, "test")
    fresh = plan.certificate.fresh
    assert fresh is not None
    assert fresh.seeds[0] == 1
    assert {limit.limit for limit in fresh.limits} == {"p90 TTFT <= 1 s", "p90 TPOT <= 0.05 s"}
    drawn = problem.fresh(1)
    assert drawn is not None
    assert drawn.horizon_s == problem.workload.horizon_s < problem.declared.horizon_s, "with the headroom of the plan"
    broken = fresh.limits[0].model_copy(update={"verdict": "broken"})
    false = fresh.model_copy(update={"limits": (broken, *fresh.limits[1:])})
    changed = plan.model_copy(update={"certificate": plan.certificate.model_copy(update={"fresh": false})})
    assert [check.law for check in recheck(changed) if not check.holds] == ["limits refuted on fresh seeds"]


def test_a_plan_that_fresh_seeds_refute_is_made_again_with_less_load() -> None:
    problem = problem_of(models=LLAMA, traffic=CHAT.replace("4/s", "25/s"))
    plain = problem.master()
    before = plain.decide()
    assert before is not None

    def harder(seed: int) -> Workload:
        fresh = problem.fresh(seed)
        assert fresh is not None
        return fresh.moved(fresh.arrival_s / 2, fresh.horizon_s / 2)  # twice as much comes as was planned for

    master = problem.master()
    master.judge = Judge(harder, master.pricer.slos, 0)
    after = master.decide()
    assert after is not None
    assert after.value > before.value
    assert after.fresh is not None
    assert not after.fresh.broken
    untested = replace(problem.master(), judge=None).decide()
    assert untested is not None
    assert (untested.fresh, untested.value) == (None, before.value)
