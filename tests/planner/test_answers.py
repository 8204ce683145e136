"""What if, other plans, the price of latency: answers are those of planning anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from planning import CHAT, H100, L40S, plan_of, problem_of

from planner.answers.alternatives import alternatives
from planner.answers.changes import Change, changes, scaled, stated_metrics, with_pool
from planner.answers.frontier import Frontier, Point, frontier
from planner.answers.plot import frontier_svg
from planner.answers.resolve import Solved, changed, solved
from planner.answers.structure import difference, element_of, elements, in_words, replicas_of
from planner.answers.what_if import Answer, answer, what_if
from planner.problem import pose
from specs.deployment import SLO, PercentileLimit, read_deployment

LLAMA = "{small: {architecture: meta-llama/Llama-3.1-8B, weights: bf16}}"
TOGETHER = "choices: {disaggregation: never}"
BUSY = CHAT.replace("4/s", "20/s")  # takes two L40S
FEW = L40S.replace("count: 8", "count: 1")
PARTS: dict[str, Any] = {"models": LLAMA, "traffic": BUSY, "pools": (FEW, H100), "rest": TOGETHER}


@pytest.fixture(scope="module")
def own() -> Solved:
    found = solved(problem_of(**PARTS))
    assert found.decision is not None
    return found


@pytest.fixture(scope="module")
def answers(own: Solved) -> dict[str, Answer]:
    done: list[tuple[int, int]] = []
    found = what_if(own, at=lambda now, of: done.append((now, of)))
    assert done == [(index, len(found)) for index in range(len(found) + 1)]
    return {item.change: item for item in found}


def test_every_kind_of_question_is_asked(answers: dict[str, Answer]) -> None:
    assert list(answers) == [
        "one more l40s",
        "one more h100",
        "10% more traffic",
        "TTFT within 800ms",
        next(text for text in answers if text.startswith("TTFT within") and "800" not in text),
        "TPOT within 40ms",
        next(text for text in answers if text.startswith("TPOT within") and "40" not in text),
        "h100 20% dearer ($3.60/h)",
    ]
    assert [item.kind for item in answers.values()] == ["stock", "stock", "traffic", *["slo"] * 4, "price"]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("one more l40s", {"pools": (FEW.replace("count: 1", "count: 2"), H100)}),
        ("one more h100", {"pools": (FEW, H100.replace("count: 8", "count: 9"))}),
        ("10% more traffic", {"traffic": BUSY.replace("20/s", "22/s")}),
        ("TTFT within 800ms", {"traffic": BUSY.replace("p90: 1s", "p90: 800ms")}),
        ("TPOT within 40ms", {"traffic": BUSY.replace("50ms", "40ms")}),
        ("h100 20% dearer ($3.60/h)", {"pools": (FEW, H100.replace("$3/h", "$3.6/h"))}),
    ],
)
def test_an_answer_is_the_plan_of_the_changed_spec(
    answers: dict[str, Answer], own: Solved, change: str, parts: dict[str, Any]
) -> None:
    planned = plan_of(**{**PARTS, **parts})
    found = answers[change]
    assert found.value == pytest.approx(planned.certificate.value)
    assert own.decision is not None
    assert found.step == pytest.approx(planned.certificate.value - own.decision.value)
    assert found.status == "optimal"


def test_a_second_cheap_device_replaces_the_dear_one(answers: dict[str, Answer]) -> None:
    found = answers["one more l40s"]
    assert found.value == 2.0
    assert found.gpus == 2
    assert "on l40s" in found.decision
    assert "-1 x TP 1 on h100" in found.decision
    assert found.replicas.endswith("on l40s (bf16, KV bf16)")


def test_what_changes_nothing_says_so(answers: dict[str, Answer]) -> None:
    assert answers["one more h100"].decision == "the same replicas"
    assert answers["one more h100"].step == 0.0


def test_a_change_that_leaves_no_plan() -> None:
    parts: dict[str, Any] = {"models": LLAMA, "traffic": CHAT.replace("4/s", "14/s"), "pools": (FEW,), "rest": TOGETHER}
    found = {item.change: item for item in what_if(solved(problem_of(**parts)))}
    tight = found["TPOT within 40ms"]
    assert (tight.value, tight.step, tight.gap) == (None, None, None)
    assert tight.status.startswith("no plan")


def test_dearer_hardware_is_simulated_no_further(own: Solved) -> None:
    spec = with_pool(own.problem.spec, 1, usd_per_gpu_hour=3.01)
    again = solved(changed(own.problem, spec), like=own)
    assert again.decision is not None
    anew = solved(changed(own.problem, spec))
    assert again.master.pricer.simulations < anew.master.pricer.simulations == own.master.pricer.simulations
    assert anew.decision is not None
    assert again.decision.value == anew.decision.value
    assert all(
        bracket.rungs is not own.master.brackets[key].rungs for key, bracket in again.master.brackets.items()
    )  # what the second search learns does not reach the first


def test_looser_promises_never_make_a_plan_worse(own: Solved, answers: dict[str, Answer]) -> None:
    assert own.decision is not None
    for text, item in answers.items():
        if item.kind in ("slo", "stock") and text not in ("TTFT within 800ms", "TPOT within 40ms"):
            assert item.value is not None
            assert item.value <= own.decision.value


def test_the_own_plan_is_kept_where_the_search_finds_a_worse_one(own: Solved) -> None:
    """A change that keeps the plan valid, and a search that (here, by a tighter limit) misses it."""
    assert own.decision is not None
    traffic = tuple(
        item.model_copy(update={"slo": scaled(item.slo, 0.1)}) for item in own.problem.spec.traffic if item.slo
    )
    tight = own.problem.spec.model_copy(update={"traffic": traffic})
    worse = answer(own, own.decision, Change("slo", ("x",), (lambda: tight,)), lambda text: None)
    assert worse.value is None or worse.value > own.decision.value
    kept = answer(own, own.decision, Change("slo", ("x",), (lambda: tight,), keeps=True), lambda text: None)
    assert (kept.value, kept.decision) == (own.decision.value, "the same replicas")


def test_without_a_plan_there_is_nothing_to_ask(own: Solved) -> None:
    nothing = replace(own, decision=None)
    assert what_if(nothing) == ()
    assert alternatives(nothing, 3).plans == ()
    assert frontier(nothing).points == ()


def test_prices_are_asked_of_pools_in_use_where_money_matters(own: Solved) -> None:
    by_gpus = problem_of(**{**PARTS, "rest": "objective: minimise gpus"})
    assert not [item for item in changes(by_gpus, frozenset({"h100"})) if item.kind == "price"]
    budget = problem_of(**{**PARTS, "rest": "objective: minimise gpus\nlimits: {budget: $9/h}"})
    assert [item.text for item in changes(budget, frozenset({"l40s"})) if item.kind == "price"] == [
        ("l40s 20% dearer ($1.20/h)",)
    ]
    node = problem_of(pools=(L40S.replace("rent: gpu", "rent: node"),))
    (more,) = [item for item in changes(node, frozenset()) if item.kind == "stock"]
    assert more.text == ("one more node of l40s (4 l40s)",)
    assert more.steps[0]().hardware.pools[0].count == 12


def test_limits_of_one_metric_are_scaled_alone() -> None:
    slo = SLO(
        percentiles=(
            PercentileLimit(metric="ttft", percentile=90, limit_s=1),
            PercentileLimit(metric="tpot", percentile=90, limit_s=2),
        )
    )
    assert [limit.limit_s for limit in scaled(slo, 0.5, ("tpot",)).percentiles] == [1, 1]
    joint = SLO(joint={"ttft": 1.0, "e2e": 4.0}, attainment=0.9)
    assert scaled(joint, 0.5).joint == {"ttft": 0.5, "e2e": 2.0}
    assert stated_metrics(problem_of().spec) == ("ttft", "tpot")


def test_other_plans_each_lack_something_that_every_better_one_has(own: Solved) -> None:
    assert own.decision is not None
    found = alternatives(own, 3)
    assert found.complete
    assert len(found.plans) == 3
    plans = [own.decision, *found.plans]
    values = [plan.value for plan in plans]
    assert values == sorted(values)
    for index, plan in enumerate(plans):
        for better in plans[:index]:
            assert not elements(better) <= elements(plan)


def test_the_next_best_plan_is_the_best_without_some_part_of_the_best(own: Solved) -> None:
    """Against planning anew without each part, one by one, with nothing taken over."""
    assert own.decision is not None
    values = []
    for part in elements(own.decision):
        families = tuple(family for family in own.problem.families if element_of(family) != part)
        anew = solved(replace(own.problem, families=families)).decision
        values += [] if anew is None else [anew.value]
    assert alternatives(own, 1).plans[0].value == pytest.approx(min(values))


def test_where_nothing_else_satisfies_the_spec_there_is_no_other_plan() -> None:
    rest = "choices: {disaggregation: never, small: {tensor_parallel: 1, pipeline_parallel: 1}}"
    found = alternatives(solved(problem_of(pools=(FEW,), rest=rest)), 2)
    assert found.plans == ()
    assert found.complete


def test_a_search_for_other_plans_is_bounded_and_says_so(own: Solved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.answers.alternatives.MOST_SOLVES", 1)
    found = alternatives(own, 5)
    assert not found.complete
    assert len(found.plans) <= 1


@pytest.fixture(scope="module")
def curve(own: Solved) -> Frontier:
    return frontier(own)


def test_points_of_the_frontier_are_better_the_looser_the_limits(curve: Frontier, own: Solved) -> None:
    scales, values = [p.scale for p in curve.points], [p.value for p in curve.points]
    assert scales == sorted(scales)
    assert values == sorted(set(values), reverse=True)
    assert len(values) >= 2
    assert not set(scales) & set(curve.dominated)
    assert own.decision is not None
    tightest = min(point.value for point in curve.points if point.scale <= 1)
    assert tightest <= own.decision.value
    for point in curve.points:
        for limit in point.limits:
            assert 0 < limit.reached_s <= limit.limit_s


def test_a_point_is_the_plan_of_its_limits(curve: Frontier) -> None:
    point = curve.points[0]
    traffic = BUSY.replace("p90: 1s", f"p90: {point.scale:g}s").replace("50ms", f"{50 * point.scale:g}ms")
    assert plan_of(**{**PARTS, "traffic": traffic}).certificate.value == pytest.approx(point.value)


def test_where_the_ladder_ends_is_told() -> None:
    small = frontier(solved(problem_of(models=LLAMA, pools=(FEW,), rest=TOGETHER)), ("tpot",))
    assert small.impossible is not None
    assert small.impossible < min(point.scale for point in small.points)
    assert small.metrics == ("tpot",)
    assert {limit.limit_s for point in small.points for limit in point.limits if limit.metric == "ttft"} == {1.0}


def test_the_picture_of_a_frontier_is_xml_with_a_mark_for_each_point(curve: Frontier) -> None:
    picture = ElementTree.fromstring(frontier_svg(curve, "cost", "a < b & c"))
    marks = [node for node in picture.iter() if node.tag.endswith("circle")]
    assert len(marks) == len(curve.points)
    assert "a < b & c" in [node.text for node in picture.iter()]
    points = (Point(1.0, 2.0, 0.5, False, 1, "x", ()),)
    unproven = frontier_svg(replace(curve, points=points), "gpus", "t")
    assert 'fill="white" stroke' in unproven
    assert "2 GPUs" in unproven
    assert ElementTree.fromstring(frontier_svg(replace(curve, points=()), "cost", "t")) is not None


def test_differences_in_words(own: Solved) -> None:
    assert own.decision is not None
    own_replicas = replicas_of(own.decision)
    assert difference(own_replicas, own_replicas) == "the same replicas"
    assert difference({}, own_replicas).startswith("+")
    assert difference(own_replicas, {}).startswith("-")
    two = {
        (element_of(replace(family, model=model)), "bf16"): 2
        for model, family in (("a", own.problem.families[0]), ("b", own.problem.families[0]))
    }
    assert in_words(two) == "2 x TP 1 on l40s for a (bf16) + 2 x TP 1 on l40s for b (bf16)"


def test_a_tighter_limit_that_the_plan_in_hand_keeps_costs_nothing() -> None:
    """Prices of classes whose promises stay as they are must not lead the search away from the plan in hand."""
    example = Path(__file__).parents[2] / "specs" / "examples" / "two-classes.yaml"
    loaded = read_deployment(example)
    found = what_if(solved(pose(loaded.spec, loaded.base_dir)))
    tighter = [item for item in found if item.kind == "slo"]
    assert len(tighter) == 6
    assert [item.step for item in tighter] == pytest.approx([0.0] * 6)
