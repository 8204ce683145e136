"""What the search of a large fleet is made of: prices of rows, rungs that are worth a trial, models simulated whole."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_column_generation import fleet

from planner.candidates.fleet_pricing import FleetPricer
from planner.candidates.pricing import Pricer
from planner.candidates.rungs import Bracket, Rung, Trial
from planner.candidates.shared_times import tables_of, with_shared_times
from planner.optimize import column_generation
from planner.optimize.column_generation import FleetMaster
from planner.optimize.decision import Bought, group_id, routes_of
from planner.optimize.fleet_models import KnownJudge, KnownPlan
from planner.optimize.fleet_relaxation import fewest_devices, shadow_prices
from planner.optimize.parts import Column, OptimisticFamily, Pool, Programme
from planner.optimize.solve import relaxation, solve
from planner.optimize.whole_plan import WholePlan, placed
from planner.problem import Problem, pose
from planner.simulate import Workload
from planner.simulate.traffic import window

NODES, DEVICES = Pool("n", 16, 8, 2.0, "node"), Pool("d", 3, 8, 1.0, "gpu")


def column(key: str, model: str, pool: str, gpus: int, share: float) -> Column:
    return Column(key, model, pool, gpus, ((model, share),))


# ------------------------------------------------------------------------------------------------- prices of rows


def test_a_demand_costs_what_its_cheapest_devices_cost() -> None:
    """0.25 of the demand on one device of $2: all of it costs $8, and a device has to carry a quarter."""
    data = Programme((NODES,), (column("a", "m", "n", 1, 0.25),), (), ("m",), "cost")
    prices = shadow_prices(data)
    assert prices.demand["m"] == pytest.approx(8.0, rel=1e-5)
    assert prices.least_share("m", NODES, 1) == pytest.approx(0.25, rel=1e-5)
    assert prices.least_share("m", NODES, 2) == pytest.approx(0.5, rel=1e-5)
    assert not prices.short


def test_full_pools_cost_more_than_their_rent() -> None:
    """Three devices of $1 carry 0.2 each; what is left goes to nodes at $2 for the same: a device of $1 is worth $2."""
    columns = (column("cheap", "m", "d", 1, 0.2), column("dear", "m", "n", 1, 0.2))
    prices = shadow_prices(Programme((NODES, DEVICES), columns, (), ("m",), "cost"))
    assert prices.cost("m", DEVICES, 1) == pytest.approx(2.0, rel=1e-4)
    assert prices.value == pytest.approx(3 * 1.0 + 2 * 2.0, rel=1e-4)


def test_what_no_column_carries_is_dear_and_an_empty_pool_costs_its_rent() -> None:
    prices = shadow_prices(Programme((NODES,), (), (), ("m",), "cost"))
    assert prices.short
    assert prices.cost("m", NODES, 4) == pytest.approx(8.0)
    assert prices.least_share("m", NODES, 4) == pytest.approx(8.0 / (10.0 * 32.0), rel=1e-3)


def test_a_column_is_wanted_exactly_when_it_carries_more_than_it_costs() -> None:
    known = (column("a", "m", "n", 1, 0.25), column("b", "m", "d", 1, 0.1))
    data = Programme((NODES, DEVICES), known, (), ("m",), "cost")
    prices = shadow_prices(data)
    least = prices.least_share("m", NODES, 2)
    for share, better in ((0.99 * least, False), (1.01 * least, True)):
        more = replace(data, columns=(*known, column("new", "m", "n", 2, share)))
        assert ("new" in relaxation(more)[1]) == better


def test_the_bound_needs_no_family_that_takes_more_devices_for_every_class() -> None:
    def family(key: str, gpus: int, *loads: float) -> OptimisticFamily:
        return OptimisticFamily(key, "m", "n", gpus, tuple(zip("xy", loads, strict=True)))

    families = (family("a", 1, 4.0, 4.0), family("b", 2, 2.5, 2.5), family("c", 2, 1.5, 3.0))
    data = Programme((NODES,), (), families, ("x", "y"), "cost")
    kept = fewest_devices(families, data)
    assert [item.key for item in kept] == ["a", "c"]
    assert relaxation(replace(data, families=kept))[0] == pytest.approx(relaxation(data)[0])


def test_fixed_columns_stay() -> None:
    data = Programme((NODES,), (column("a", "m", "n", 1, 0.5), column("b", "m", "n", 1, 0.25)), (), ("m",), "cost")
    assert solve(data).replicas.get("b", 0) == 0
    assert solve(data, fixed={"b": 3}).replicas == {"a": 1, "b": 3}


# ------------------------------------------------------------------------------------------------------- rungs


def bracket(**known: Any) -> Any:
    """Of twenty rungs, a twentieth apart; 1 / load is the first of them."""
    family = SimpleNamespace(key="f", model="m", device=SimpleNamespace(name="h100"), options=None)
    rungs = [Rung(1, 1.0 - 0.05 * step) for step in range(20)]
    return Bracket(family, ("k",), 1.0, rungs, factor=1.0, **known)  # type: ignore[arg-type]


def pricer(least: float) -> FleetPricer:
    workload = Workload(("k",), *(np.zeros(0, np.int64) for _ in range(4)))
    return FleetPricer(workload=workload, slos={}, choices={}, _least={"f|k": least})


def test_a_family_that_should_fail_is_asked_for_just_what_matters() -> None:
    assert pricer(0.88)._next_rung(bracket()) == 2  # 0.9, above the knee
    assert pricer(0.3)._next_rung(bracket()) == 5  # 0.75, the usual knee


def test_after_a_failure_strides_grow_but_not_beyond_what_matters() -> None:
    asked = pricer(0.42)
    assert [asked._next_rung(bracket(failed=at)) for at in (5, 6, 8)] == [6, 8, 11]
    assert pricer(0.67)._next_rung(bracket(failed=5)) == 6


def test_what_passed_climbs_by_growing_strides_and_is_halved_once_something_failed() -> None:
    asked = pricer(0.0)
    assert [asked._next_rung(bracket(passed=at)) for at in (10, 9, 7)] == [9, 7, 3]
    assert asked._next_rung(bracket(passed=10, failed=4)) == 7


def test_what_passed_for_too_little_is_asked_for_what_matters() -> None:
    assert pricer(0.78)._next_rung(bracket(passed=10)) == 4


def test_nothing_more_is_asked_of_a_family_that_cannot_carry_enough() -> None:
    asked = pricer(0.72)
    assert asked._matters(bracket(failed=4))
    assert not asked._matters(bracket(failed=5))


def test_a_price_has_to_hold_on_another_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planned traffic passes at 0.75, the other draw only at 0.6."""

    def trials(self: Pricer, asks: Any) -> list[Trial]:
        most = 0.75 if isinstance(self, FleetPricer) else 0.6
        return [
            Trial(limits, rung, classes, () if rung.share <= most + 1e-9 else ("k: p90 TTFT",), frozenset(), 1.0, 1)
            for limits, rung, classes in asks
        ]

    monkeypatch.setattr(Pricer, "trials", trials)
    monkeypatch.setattr(Pricer, "first_limits", lambda *_: "limits")
    monkeypatch.setattr(Pricer, "_refuted_unsimulated", lambda *_: False)
    monkeypatch.setattr(Pricer, "_others", lambda *_: [])
    asked, found = pricer(0.0), bracket()
    found.family.options = SimpleNamespace(role="unified")
    asked.take_unseen(("k",), asked.workload)
    while not found.closed:
        asked.narrow_for([(found, 0.0)])
    assert found.rungs[found.passed].share == pytest.approx(0.6)


# ---------------------------------------------------------------------------------------------- models simulated whole


@pytest.fixture(scope="module")
def problem() -> Problem:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "FLEET_REQUESTS", 1_000)
        patch.setattr(column_generation, "PAIRS", 0)
        return pose(fleet(), Path())


def master_of(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> FleetMaster:
    monkeypatch.setattr(column_generation, "PAIRS", 0)
    master = problem.master()
    assert isinstance(master, FleetMaster)
    return master


def bought_of(master: FleetMaster, model: str, replicas: int) -> tuple[Bought, ...]:
    family = next(item for item in master.families if item.model == model and item.device.name == "h100-sxm")
    (column,) = master.open(family)
    column.variant = master.pricer.first_limits(family, column.classes)
    column.passed, column.failed = 0, -1
    return (Bought(column, replicas),)


def test_the_fewest_replicas_that_hold_are_found(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    master = master_of(problem, monkeypatch)
    trial = master._trial_of("large")
    least = next(n for n in range(1, 9) if not trial.run(bought_of(master, "large", n)).broken)
    assert least > 1
    found = trial.settle(bought_of(master, "large", 1))
    assert [item.replicas for item in found.run.bought] == [least]
    assert [item.replicas for item in found.refuted] == [least - 1]
    assert trial.settle(bought_of(master, "large", least)).refuted == ()


def test_known_models_are_the_whole_plan(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put together, the runs of single models are what the simulation of all of them gives."""
    master = master_of(problem, monkeypatch)
    runs = tuple(master._trial_of(model).run(bought_of(master, model, 4)) for model in ("large", "small"))
    bought = tuple(item for run in runs for item in run.bought)
    routes = routes_of(bought, problem.workload.classes)
    arguments = (bought, routes, placed(bought, problem.spec.hardware, {}), problem.spec.hardware, "least_outstanding")
    known = KnownPlan(*arguments, runs=runs, planned=problem.workload).simulate(problem.workload, None)  # type: ignore[arg-type]
    whole = WholePlan(*arguments).simulate(problem.workload, None)  # type: ignore[arg-type]
    for item in dataclasses.fields(whole):
        one, other = getattr(known, item.name), getattr(whole, item.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=item.name)
        elif item.name == "groups":
            assert [load.group for load in one] == [group_id(0), group_id(1)]
            assert one == other


def test_a_judge_of_known_models_tells_their_evidence_in_the_order_of_the_classes(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = master_of(problem, monkeypatch)
    runs = tuple(master._trial_of(model).run(bought_of(master, model, 4)) for model in ("large", "small"))
    assert master.judge is not None
    found = KnownJudge(**vars(master.judge), runs=runs)(lambda workload: pytest.fail("nothing is simulated again"))
    assert [limit.request_class for limit in found.evidence.limits] == ["a", "a", "b", "b"]
    assert found.evidence.requests == sum(run.fresh.evidence.requests for run in runs if run.fresh is not None)
    assert found.broken == ()


def test_the_judgement_of_a_large_fleet_draws_no_traffic_of_all_models(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the models is enough; all of them together are millions of requests."""
    master = master_of(problem, monkeypatch)
    runs = {model: master._trial_of(model).run(bought_of(master, model, 4)) for model in ("large", "small")}
    bought = tuple(item for run in runs.values() for item in run.bought)
    master._runs = runs
    assert master.judge is not None
    master.judge = replace(master.judge, draw=lambda seed: pytest.fail("drawn again"))
    routes = routes_of(bought, problem.workload.classes)
    whole = WholePlan(bought, routes, placed(bought, problem.spec.hardware, {}), problem.spec.hardware)
    found = master.judgement(whole, {})
    assert found.broken == ()
    assert found.whole is whole
    assert found.fresh is not None
    assert len(found.fresh.evidence.limits) == 4


def test_the_traffic_of_a_model_is_its_part_of_the_whole(problem: Problem) -> None:
    whole = problem.fresh(7)
    part = problem.fresh_of(7, ("b",))
    assert whole is not None
    assert part is not None
    assert part.horizon_s == whole.horizon_s
    np.testing.assert_array_equal(part.arrival_s, whole.arrival_s[whole.of_class("b")])
    np.testing.assert_array_equal(part.output_tokens, whole.output_tokens[whole.of_class("b")])


def test_a_refuted_purchase_is_left_just_too_little(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    master = master_of(problem, monkeypatch)
    bought = bought_of(master, "small", 3)
    column = bought[0].column
    column.rungs, column.passed, column.load = [Rung(3, 1.0)], 0, 1.0
    other = master.open(next(item for item in master.families if item.model == "small" and item is not column.family))[
        0
    ]
    before = other.factor
    master._lower(bought)
    assert 0.99 < 3 * column.lower < 1.0
    assert other.factor == before  # what was not simulated is not blamed
    master._lower(())
    assert 0.99 < 3 * column.lower < 1.0


def test_columns_whose_price_is_known_at_once_are_columns(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """As measured rates are: nothing is simulated for them, and the relaxation still has to be solved with them."""
    master = master_of(problem, monkeypatch)

    def known(self: Pricer, family: Any, classes: tuple[str, ...]) -> Bracket:
        load = sum(self.load(family, name) for name in classes)
        return Bracket(family, classes, load, [Rung(1, 0.5 / load)], passed=0, simulated=False, factor=1.0)

    monkeypatch.setattr(Pricer, "bracket", known)
    assert master._price_relaxed()
    assert {item.family.model for item in master.brackets.values()} == {"small", "large"}
    found = master._generated({})
    assert found is not None
    assert set(found.replicas) <= set(master.brackets)
    assert master.pricer.simulations == 0


# ------------------------------------------------------------------------------------------------- shared step times


def test_models_of_one_architecture_share_their_step_times(problem: Problem) -> None:
    spec = problem.spec
    small = [item for item in problem.families if item.model == "small"]
    twins = [replace(item, key=item.key.replace("small", "twin", 1), model="twin") for item in small]
    known: dict[Any, Any] = {}
    choices = spec.choices.of("small")
    assert with_shared_times(small, spec.models["small"], choices, known) == small
    shared = with_shared_times(twins, spec.models["small"], choices, known)
    assert all(twin.times is item.times for twin, item in zip(shared, small, strict=True))
    assert tables_of([*small, *shared]) == len(small)
    unlike = choices.model_copy(update={"max_num_seqs": (64,)})
    apart = with_shared_times(twins[:1], spec.models["small"], unlike, known)
    assert apart[0].times is not small[0].times
