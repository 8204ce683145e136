"""Classes that state a throughput: as arrivals, by Little's law, priced by loops, judged whole."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from planning import CHAT, L40S, plan_of, problem_of, spec_of

from planner.candidates.rungs import Rung
from planner.optimize.fresh_seeds import Judge
from planner.optimize.whole_plan import WholePlan
from planner.plan_simulation.simulate import simulate_plan
from planner.problem import pose
from planner.simulate import Workload, simulate_closed_loop
from planner.throughput import (
    KEEPS_UP,
    Throughput,
    in_flight,
    kept_up,
    loop_of,
    loop_tokens_per_s,
    short_loops,
    throughputs_of,
    unsustained,
    with_arrivals,
)
from specs.errors import InputError

LLAMA = "{small: meta-llama/Llama-3.1-8B}"
LOOP = """  - name: batch
    model: small
    closed_loop: {concurrency: 64}
    throughput: {at_least: 6000 tokens/s}
    prompt_tokens: 900
    output_tokens: 100
"""
PIN = "choices: {small: {tensor_parallel: 1, pipeline_parallel: 1}}"


def test_a_loop_is_planned_as_the_arrivals_of_its_throughput() -> None:
    spec = with_arrivals(spec_of(traffic=LOOP), Path())
    assert spec.traffic[0].arrivals is not None
    assert spec.traffic[0].arrivals.rate_per_s == pytest.approx(6.0)
    assert with_arrivals(spec, Path()) is spec
    assert throughputs_of(spec, Path()) == {"batch": Throughput(6000.0, pytest.approx(6000.0), 64)}  # type: ignore[arg-type]
    untouched = spec_of(traffic=CHAT)
    assert with_arrivals(untouched, Path()) is untouched
    with pytest.raises(InputError, match="no rate to plan for"):
        pose(spec_of(traffic=LOOP.replace("    throughput: {at_least: 6000 tokens/s}\n", "")), Path())


def test_more_than_arrives_cannot_be_asked_for() -> None:
    open_class = LOOP.replace("closed_loop: {concurrency: 64}", "arrivals: 5/s")
    with pytest.raises(InputError, match="6,000 tokens/s are asked for, and 5,000 arrive") as caught:
        problem_of(traffic=open_class).master()
    assert caught.value.field == "traffic[0].throughput.at_least"
    with pytest.raises(InputError, match="leaves out what does not pay"):
        problem_of(traffic=LOOP, rest="objective: maximise throughput").master()
    enough = LOOP.replace("closed_loop: {concurrency: 64}", "arrivals: 7/s")
    assert problem_of(traffic=enough).master().pricer.throughputs["batch"].clients is None


def requests(arrival_s: list[float], tokens: int = 10, window_s: float = 100.0) -> Workload:
    count = len(arrival_s)
    halves = np.full(count, tokens // 2)
    return Workload(("batch",), np.zeros(count, np.int64), np.array(arrival_s), halves, halves, window_s=window_s)


def ended(e2e_s: list[float]) -> Any:
    """What `simulate_fleet` tells, as far as these laws look."""
    return SimpleNamespace(e2e_s=np.array(e2e_s), arrivals_s=lambda workload: workload.arrival_s)


def test_what_is_kept_up_and_in_flight_by_hand() -> None:
    workload = requests([0, 30, 60, 90])  # the warm-up ends at 25 s, the window at 100 s
    assert kept_up(ended([1, 1, 1, 1]), workload, "batch") == 1.0
    assert kept_up(ended([30, 1, 1, 20]), workload, "batch") == 1.0, "one came before, one ends after"
    assert kept_up(ended([1, 1, 1, 20]), workload, "batch") == pytest.approx(2 / 3)
    assert kept_up(ended([1, 1, math.nan, 1]), workload, "batch") == pytest.approx(2 / 3)
    assert in_flight(ended([30, 15, 15, 20]), workload, "batch") == pytest.approx((5 + 15 + 15 + 10) / 75)


def test_what_is_not_sustained_is_said_in_words() -> None:
    workload = requests([0, 30, 60, 90])
    stated = {"batch": Throughput(0.4, 0.4, clients=1), "elsewhere": Throughput(9.0, 9.0)}
    assert unsustained(ended([1, 1, 1, 1]), workload, stated) == ()
    assert unsustained(ended([1, 1, 1, 20]), workload, stated) == ("batch: throughput >= 0 tokens/s (reaches 0)",)
    crowded = requests([0.0, *np.arange(30.0, 90.0, 1.0)])
    many = {"batch": Throughput(6.1, 6.1, clients=2)}
    assert unsustained(ended([1.0] * 61), crowded, many) == ()
    assert unsustained(ended([1.0, *[9.0] * 60]), crowded, many) == (
        "batch: 2 requests in flight (needs 7 on average)",
    )


def test_a_loop_has_its_part_of_the_clients_and_of_the_seats() -> None:
    assert loop_of(Throughput(1.0, 1.0), 0.5, 300) == (300, 1.0)
    assert loop_of(Throughput(1.0, 1.0, clients=64), 0.5, 300) == (32, 1.0)
    assert loop_of(Throughput(1.0, 1.0, clients=64), 2.0, 100) == (100, 1.0)
    assert loop_of(Throughput(1.0, 1.0, clients=4), 0.1, 100) == (1, 0.4)


def test_the_rate_of_a_loop_is_that_of_its_steady_state() -> None:
    problem = problem_of(models=LLAMA, traffic=LOOP, rest=PIN)
    pricer = problem.master().pricer
    variant = pricer.first_limits(problem.families[0], ("batch",))
    assert variant is not None
    prompts, outputs = np.full(100, 900), np.full(100, 100)
    found = loop_tokens_per_s(variant.replica, 2, 32, prompts, outputs)
    long = simulate_closed_loop(variant.replica, 32, np.full(3000, 900), np.full(3000, 100), warmup=500, replicas=2)
    assert found == pytest.approx(1000 * long.requests_per_s, rel=0.05)
    assert loop_tokens_per_s(variant.replica, 1, 4, np.full(9, 10**6), np.full(9, 1)) == 0.0, "fits nowhere"


def test_a_plan_for_a_loop_reaches_its_throughput_when_clients_send() -> None:
    plan = plan_of(models=LLAMA, traffic=LOOP, rest=PIN)
    prediction = plan.predictions.classes[0]
    assert prediction.tokens_per_s is not None
    assert KEEPS_UP * 6000 <= prediction.tokens_per_s <= 6000
    assert "batch: throughput (simulated, to 5%)" in {check.law for check in plan.certificate.checks}
    assert any("64 requests in flight are planned as arrivals at 6/s" in note for note in plan.predictions.notes)
    loop = simulate_plan(plan, ".")["closed_loop"]
    assert loop["concurrency"] == 64
    assert loop["requests_per_s"] >= 6.0 * KEEPS_UP


def test_the_clients_themselves_are_served_on_replicas_of_their_own() -> None:
    problem = problem_of(models=LLAMA, traffic=LOOP, rest=PIN)
    master = problem.master()
    decision = master.decide()
    assert decision is not None
    whole = WholePlan(decision.bought, decision.routes, decision.placement, problem.spec.hardware)
    assert short_loops(whole, problem.workload, master.pricer.throughputs) == ()
    few = {"batch": Throughput(6000.0, 6000.0, clients=2)}
    (text,) = short_loops(whole, problem.workload, few)
    assert text.startswith("batch: throughput >= 6,000 tokens/s (2 clients reach ")
    shared = replace(whole, routes=(*whole.routes, decision.routes[0].model_copy(update={"request_class": "chat"})))
    assert short_loops(shared, problem.workload, few) == (), "judged as arrivals"


def test_a_throughput_is_tested_on_fresh_seeds_too() -> None:
    problem = problem_of(models=LLAMA, traffic=LOOP, rest=PIN)
    master = problem.master()
    decision = master.decide()
    assert decision is not None
    assert decision.fresh is not None
    (limit,) = decision.fresh.evidence.limits
    assert (limit.request_class, limit.required, limit.verdict) == ("batch", KEEPS_UP, "kept on average")
    assert limit.met >= KEEPS_UP
    workload = requests(list(range(100)))
    judge = Judge(lambda seed: workload, {}, 0, {"batch": Throughput(10.0, 10.0)})
    late = judge(lambda given: ended([20.0] * 50 + [math.nan] * 50))
    assert late.broken == (
        "batch: throughput: tokens finished as fast as they come (met by 60.0% of 100 fresh requests)",
    )


def test_fewer_clients_and_more_tokens_take_more_replicas() -> None:
    def replicas(loop: str) -> int:
        return sum(group.replicas for group in plan_of(models=LLAMA, traffic=loop, rest=PIN).groups)

    usual = replicas(LOOP)
    assert replicas(LOOP.replace("6000", "18000")) > usual
    assert replicas(LOOP.replace("concurrency: 64", "concurrency: 16")) > usual


def test_a_replica_that_cannot_keep_up_is_not_sold_as_one_that_does() -> None:
    """The utilisation law alone would sell it: batches are never the best ones all the time."""
    loop = LOOP.replace("6000", "30000").replace("concurrency: 64", "concurrency: 1000")
    problem = problem_of(models=LLAMA, traffic=loop, rest=PIN)
    pricer, family = problem.master().pricer, problem.families[0]
    variant = pricer.first_limits(family, ("batch",))
    assert variant is not None
    most = 1 / pricer.load(family, "batch")
    full, half = (pricer.trial(variant, Rung(1, share * most), ("batch",)) for share in (0.999, 0.5))
    assert full.broken
    assert full.broken[0].startswith("batch: throughput >=")
    assert half.passed
    assert half.simulated


def test_too_few_clients_are_known_without_simulating() -> None:
    problem = problem_of(models=LLAMA, traffic=LOOP.replace("concurrency: 64", "concurrency: 2"), rest=PIN)
    pricer, family = problem.master().pricer, problem.families[0]
    assert pricer.hopeless(family, ("batch",))[0].startswith("batch: 2 requests in flight (needs ")
    assert problem.master().decide() is None
    assert pricer.simulations == 0
    enough = problem_of(models=LLAMA, traffic=LOOP, rest=PIN)
    assert enough.master().pricer.hopeless(family, ("batch",)) == ()


def test_a_batch_beside_people_is_planned_with_them() -> None:
    plan = plan_of(models=LLAMA, traffic=CHAT + LOOP, rest=PIN)
    assert {item.request_class for item in plan.predictions.classes} == {"chat", "batch"}
    assert simulate_plan(plan, ".")["verdict"]["holds"]
    assert plan.certificate.fresh is not None
    best_effort = LOOP.replace("closed_loop: {concurrency: 64}", "arrivals: 6/s").replace(
        "    throughput: {at_least: 6000 tokens/s}\n", ""
    )
    free = plan_of(models=LLAMA, traffic=CHAT + best_effort, rest=PIN)
    assert "batch: best effort: bought by its work alone, nothing is promised" in free.predictions.notes
    assert free.certificate.value <= plan.certificate.value
    assert free.predictions.classes[1].tokens_per_s is None


def test_plans_for_changing_traffic_say_how_they_were_made() -> None:
    plan = plan_of(pools=(L40S,), traffic=CHAT.replace("    slo", "    window: 01:00-05:00\n    slo"))
    assert any("`capstan schedule` plans the day" in note for note in plan.predictions.notes)
    assert not any("capstan schedule" in note for note in plan_of().predictions.notes)
