"""Plans at a stated confidence: steps longer by the engine's measured errors, everywhere, and nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from planning import CHAT, L40S, plan_of, problem_of, spec_of

from planner import facts
from planner.cost.margin import Margin, margin_note, margin_of
from planner.cost.pieces import ChunkTable, DecodeTable
from planner.cost.step_times import StepTimes
from planner.explain import explain
from planner.optimize.certify import recheck
from planner.plan_simulation.simulate import replica_model, simulate_plan
from planner.simulate import FleetGroup, Workload, simulate_fleet
from specs.catalog import engine_names, load_engine
from specs.errors import InputError, NoPlanError
from specs.plan import Plan, Route
from specs.profile import EngineProfile

LLAMA = "{small: {architecture: meta-llama/Llama-3.1-8B, weights: bf16}}"
BUSY = CHAT.replace("4/s", "25/s")
SURE = "limits: {confidence: 95%}"
KNOTS = np.array([1.0, 64.0])
TIMES = StepTimes(
    tokens_s=tuple(1e-3 + 1e-6 * tokens for tokens in range(65)),
    sampled_s=tuple(1e-5 * rows for rows in range(33)),
    sequence_s=3e-6,
    decode_launch_s=2e-5,
    decode_context_token_s=4e-9,
    decode_window_token_s=2e-9,
    window_tokens=128,
    prefill_launch_s=5e-5,
    prefill_pair_s=3e-10,
    prefill_window_pair_s=2e-10,
    prefill_context_token_s=1e-9,
    request_s=0.02,
    lanes=2,
    stage_shares=(0.4, 0.6),
    decode_table=DecodeTable(KNOTS, np.array([1.0, 4096.0]), np.array([[1e-6, 2e-6], [3e-6, 9e-6]])),
    decode_window_table=DecodeTable(KNOTS, np.array([1.0, 128.0]), np.array([[2e-6, 3e-6], [4e-6, 5e-6]])),
    chunk_table=ChunkTable(KNOTS, np.array([0.0, 512.0]), np.array([[1e-5, 2e-5], [4e-5, 5e-5]])),
    prefill_step_s=1e-3,
    host_token_s=1e-7,
    eager_s=1.5e-3,
)
STEPS: tuple[tuple[Any, ...], ...] = (
    (32, 32, 32, 32, 4000, 3000, []),
    (40, 9, 9, 8, 900, 500, [(32, 0)]),
    (40, 9, 9, 8, 900, 500, [(16, 100), (16, 700)], 300),
    (1, 1, 1, 0, 0, 0, [(1, 0)]),
)


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {
        "central": plan_of(models=LLAMA, traffic=BUSY),
        "sure": plan_of(models=LLAMA, traffic=BUSY, rest=SURE),
    }


@pytest.mark.parametrize("step", STEPS)
def test_every_step_is_longer_by_the_factor(step: tuple[Any, ...]) -> None:
    for times in (TIMES, TIMES.scaled(1.0), TIMES.scaled(0.5).scaled(2.0)):
        assert times.scaled(1.25).step_s(*step) == pytest.approx(1.25 * TIMES.step_s(*step), rel=1e-12)


def test_the_floor_of_steps_with_prompts_is_longer_too() -> None:
    floored = TIMES.step_s(1, 1, 1, 0, 0, 0, [(1, 0)]), TIMES.eager_s
    assert floored[0] > floored[1]
    high = StepTimes(**{field.name: getattr(TIMES, field.name) for field in fields(TIMES)} | {"eager_s": 0.1})
    assert high.scaled(1.25).step_s(1, 1, 1, 0, 0, 0, [(1, 0)]) == pytest.approx(0.125)


def test_all_seconds_but_those_before_the_queue_are_scaled() -> None:
    """A new field of `StepTimes` must be scaled or named here."""
    kept = {"request_s", "lanes", "stage_shares", "window_tokens", "first_token", "stages"}
    scaled = TIMES.scaled(1.25)
    assert replace(TIMES, stages=(TIMES,)).scaled(1.25).stages[0].tokens_s == scaled.tokens_s
    for field in fields(TIMES):
        before, after = getattr(TIMES, field.name), getattr(scaled, field.name)
        if field.name in kept:
            assert after == before
        elif field.name.endswith("table"):
            assert after.seconds == pytest.approx(1.25 * before.seconds)
        else:
            assert np.asarray(after) == pytest.approx(1.25 * np.asarray(before))
            assert np.any(np.asarray(before)), field.name


def test_a_late_first_token_delays_itself_and_the_end_and_nobody_else(plans: dict[str, Plan]) -> None:
    """The margin of first tokens is in what is reported: steps, queues and tokens after the first are as they were."""
    plan = plans["central"]
    (group,) = plan.groups
    model = replica_model(plan, group)
    late = replace(model, times=model.times.scaled(1.0, 1.5))
    draw = np.random.default_rng(3)
    work = Workload(
        ("chat",),
        np.zeros(40, int),
        np.sort(draw.uniform(0.0, 2.0, 40)),
        draw.integers(64, 512, 40),
        draw.integers(2, 64, 40),
    )
    routes = [Route(request_class="chat", group="one", share=1.0)]
    usual, later = (simulate_fleet([FleetGroup("one", 1, each)], routes, work) for each in (model, late))
    assert later.ttft_s == pytest.approx(1.5 * usual.ttft_s, rel=1e-12)
    assert later.e2e_s == pytest.approx(usual.e2e_s + 0.5 * usual.ttft_s, rel=1e-12)
    assert np.array_equal(later.tpot_s, usual.tpot_s)
    assert np.array_equal(later.start_s, usual.start_s)
    assert later.end_s == usual.end_s


def test_first_tokens_have_a_quantile_of_their_own_and_are_never_planned_early() -> None:
    errors = {"step_error": {"50%": 1.0, "90%": 1.2}, "first_token_error": {"50%": 0.9, "90%": 1.7}}
    engine = load_engine("vllm").model_copy(update=errors)
    assert margin_of(engine, 0.5) == Margin(1.0, 1.0)
    assert margin_of(engine, 0.7) == Margin(pytest.approx(1.1), pytest.approx(1.3))
    assert margin_of(engine.model_copy(update={"first_token_error": {}}), 0.9) == Margin(1.2, 1.0)
    assert "steps 1.2 times the predicted ones, first tokens 1.7 times beside that" in str(
        margin_note({"vllm": engine}, 0.9)
    )


def test_margins_are_linear_between_the_known_quantiles() -> None:
    engine = load_engine("vllm").model_copy(update={"step_error": {"50%": 1.0, "80%": 1.1, "90%": 1.3}})
    margins = [margin_of(engine, share).steps for share in (None, 0.5, 0.65, 0.8, 0.85, 0.9)]
    assert margins == pytest.approx([1.0, 1.0, 1.05, 1.1, 1.2, 1.3])
    for share in (0.49, 0.0, 0.91, 1.0):
        with pytest.raises(InputError, match="expected 50% to 90%") as caught:
            margin_of(engine, share)
        assert caught.value.field == "limits.confidence"
    with pytest.raises(InputError, match="engine vllm states no errors"):
        margin_of(engine.model_copy(update={"step_error": {}}), 0.9)
    assert margin_note({"vllm": engine}, None) is None


@pytest.mark.parametrize("name", engine_names())
def test_every_engine_of_the_catalogue_states_its_errors_and_where_they_are_from(name: str) -> None:
    engine = load_engine(name)
    assert 0.8 < engine.step_error["50%"] < 1.2
    assert engine.step_error["95%"] > engine.step_error["80%"] > engine.step_error["50%"]
    assert engine.sources["step_error"]
    assert list(engine.first_token_error) == list(engine.step_error)
    assert engine.first_token_error["95%"] > engine.first_token_error["50%"]
    assert engine.sources["first_token_error"]
    if name == "capstan":
        assert "not measured" in engine.sources["step_error"]
        others = [load_engine(other).step_error for other in engine_names()]
        assert all(ratio == max(other[key] for other in others) for key, ratio in engine.step_error.items())


@pytest.mark.parametrize(
    "ratios",
    [
        {"80%": 1.1, "90%": 1.2},
        {"50%": 1.0, "90%": 1.2, "80%": 1.1},
        {"50%": 1.0, "90%": 0.9},
        {"50%": 1.0, "100%": 9.0},
        {"50%": 1.0, "p90": 1.2},
        {"50%": 0.0},
    ],
)
def test_errors_that_are_no_distribution_are_refused(ratios: dict[str, float]) -> None:
    document = load_engine("vllm").model_dump() | {"step_error": ratios}
    with pytest.raises(ValueError, match="step_error"):
        EngineProfile.model_validate(document)


def test_a_sure_plan_takes_more_and_its_bounds_are_of_the_same_steps(plans: dict[str, Plan]) -> None:
    central, sure = plans["central"], plans["sure"]
    assert sure.cost.gpus > central.cost.gpus
    assert sure.certificate.value > central.certificate.value
    assert sure.certificate.bound >= central.certificate.bound
    assert sure.certificate.priced_bound > central.certificate.value
    assert sure.certificate.bound <= sure.certificate.priced_bound <= sure.certificate.value
    assert all(check.holds for check in recheck(sure))


def test_the_median_is_nearly_the_prediction(plans: dict[str, Plan]) -> None:
    median = plan_of(models=LLAMA, traffic=BUSY, rest="limits: {confidence: 50%}")
    assert median.certificate.value <= plans["sure"].certificate.value
    assert median.cost.gpus <= plans["sure"].cost.gpus
    for name in engine_names():
        margin = margin_of(load_engine(name), 0.5)
        assert 0.9 < margin.steps < 1.1
        assert 1.0 <= margin.first_token < 1.2


def test_all_configurations_have_steps_longer_by_the_one_margin() -> None:
    central, sure = problem_of(models=LLAMA), problem_of(models=LLAMA, rest=SURE)
    margin = load_engine("vllm").step_error["95%"]
    assert [family.key for family in sure.families] == [family.key for family in central.families]
    for one, other in zip(sure.families, central.families, strict=True):
        step = (64, 32, 32, 31, 9000, 9000, [(33, 0)])
        assert one.times.step_s(*step) == pytest.approx(margin * other.times.step_s(*step), rel=1e-12)
        assert one.times.request_s == other.times.request_s


def test_simulating_a_sure_plan_gives_what_it_predicts_and_says_so(plans: dict[str, Plan]) -> None:
    plan = plans["sure"]
    found = simulate_plan(plan, ".")
    assert found["verdict"]["holds"]
    (predicted,) = plan.predictions.classes
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        stored = getattr(predicted, metric)
        shown = found["classes"][0][metric]
        assert {key: stored.get(key) for key in shown} == pytest.approx(shown, rel=1e-9)
    margin = load_engine("vllm").step_error["95%"]
    said = f"planned at 95 % confidence: steps {margin:.3g} times the predicted ones, first tokens "
    for notes in (plan.predictions.notes, found["notes"], explain(plan).summary):
        assert sum(note.startswith(said) for note in notes) == 1


def test_a_replica_as_predicted_is_what_measurements_are_fitted_on(plans: dict[str, Plan]) -> None:
    plan = plans["sure"]
    central, sure = (replica_model(plan, plan.groups[0], central=central).times for central in (True, False))
    assert sure.tokens_s[64] == pytest.approx(load_engine("vllm").step_error["95%"] * central.tokens_s[64])
    assert sure.host_token_s > central.host_token_s > 0


def test_without_a_confidence_the_errors_decide_nothing(
    plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = load_engine("vllm").model_copy(update={"step_error": {}})
    monkeypatch.setattr(facts, "load_engine", lambda name: unknown)
    plan = plan_of(models=LLAMA, traffic=BUSY)
    embedded = {"engines": plans["central"].engines}
    assert plan.model_copy(update=embedded).to_json() == plans["central"].to_json()
    assert not any("confidence" in note for note in plan.predictions.notes)


@pytest.mark.parametrize("share", ["40%", "99%", "0"])
def test_a_confidence_out_of_reach_is_refused_by_name(share: str) -> None:
    with pytest.raises(InputError, match=r"limits\.confidence.* expected 50% to 95%"):
        problem_of(rest=f"limits: {{confidence: {share}}}")


def test_a_conflict_names_the_confidence_and_the_highest_that_mends_it(plans: dict[str, Plan]) -> None:
    few = L40S.replace("count: 8", f"count: {plans['central'].cost.gpus}")
    with pytest.raises(NoPlanError) as caught:
        plan_of(models=LLAMA, traffic=BUSY, pools=(few,), rest=SURE)
    assert "limits.confidence: 95%" in caught.value.conflict
    (mend,) = [mend for mend in caught.value.mends if mend.startswith("limits.confidence")]
    mended = mend.removeprefix("limits.confidence: ").split(" ")[0]
    rest = "objective: minimise cost" if mended == "none" else f"limits: {{confidence: {mended}}}"
    assert plan_of(models=LLAMA, traffic=BUSY, pools=(few,), rest=rest).cost.gpus <= plans["central"].cost.gpus
    assert spec_of(rest=SURE).limits.confidence == 0.95
