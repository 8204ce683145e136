"""What the benchmark of deployments makes of its rows: quantiles of steps, plots."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import fit_engines, serving_errors
from benchmarks.fit_engines import Problem, fit
from benchmarks.operator_scatter import scatter
from benchmarks.serving_accuracy import INTRODUCTION, regret
from benchmarks.serving_errors import (
    QUANTILES,
    Coverage,
    Errors,
    LeftOut,
    coverage_of,
    error_table,
    errors_of,
    quantile,
    write_errors,
)
from benchmarks.serving_rows import read_rows
from benchmarks.serving_scatter import plots
from specs.catalog import engine_names, load_engine
from specs.catalog.facts import CATALOG
from specs.profile import EngineProfile


def row(model: str, tpot_s: float, engine: str = "vllm", concurrency: int = 8) -> Any:
    architecture, device = SimpleNamespace(name=model), SimpleNamespace(name="h100-sxm")
    return SimpleNamespace(
        point=SimpleNamespace(concurrency=concurrency),
        deployment=SimpleNamespace(architecture=architecture, device=device, engine=engine),
        group=(model, "h100-sxm", engine),
        ttft_s=0.1,
        tpot_s=tpot_s,
    )


def test_a_quantile_is_the_least_value_that_holds_the_weight() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.0])
    assert [quantile(values, weights, share) for share in (0.5, 0.51, 0.75, 0.76, 1.0)] == [1.0, 2.0, 2.0, 3.0, 3.0]


def predicting(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, tuple[float, float]]) -> None:
    """Rows of these models are predicted so (TTFT, TPOT), TTFT half made of steps; of others not at all."""

    def simulated(rows: Any, profile: Any, longer: float = 1.0) -> Any:
        known = [seconds.get(row.group[0], (np.nan, np.nan)) for row in rows]
        return np.array([(0.5 * ttft * (1.0 + longer), longer * tpot) for ttft, tpot in known]).reshape(-1, 2)

    monkeypatch.setattr(serving_errors, "simulate", simulated)


def left_out(rows: list[Any]) -> LeftOut:
    return LeftOut(rows, {row.group: load_engine("vllm") for row in rows})


def test_groups_count_the_same_and_what_is_not_measured_borrows_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows took as long as predicted, one of another model twice as long: it has half of the weight."""
    rows = [*(row("many", 0.01) for _ in range(8)), row("one", 0.02)]
    rows += [row("other", 0.015, "sglang"), row("lost", 0.5, "sglang")]
    predicting(monkeypatch, dict.fromkeys(("many", "one", "other"), (0.1, 0.01)))
    found = errors_of(left_out(rows))
    assert found["vllm"].steps == {"50%": 1.0} | {f"{q}%": 2.0 for q in QUANTILES[1:]}
    assert (found["vllm"].groups, found["vllm"].rows) == (2, 9)
    assert set(found["sglang"].steps.values()) == {1.5}
    assert found["capstan"].steps == found["trtllm"].steps == {"50%": 1.5} | {f"{q}%": 2.0 for q in QUANTILES[1:]}
    table = error_table(found, {"vllm": Coverage((0.9, 0.91), (0.8, 0.85))})
    assert "| vllm | steps | 2 | 9 | 1.000 | 2.000 |" in table
    assert "capstan: the largest of the measured engines: not measured itself." in table
    assert "| vllm | 90 % | 91 % | 80 % | 85 % |" in table


def test_first_tokens_are_late_beside_the_longer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps took 1.5 times as long, which makes TTFT 1.25 times as long: what is left of 2.5 is 2."""
    rows = [row("one", 0.015), row("two", 0.015)]
    predicting(monkeypatch, dict.fromkeys(("one", "two"), (0.04, 0.01)))
    found = errors_of(left_out(rows))["vllm"]
    assert set(found.steps.values()) == {1.5}
    assert list(found.first_token.values()) == pytest.approx([2.0] * len(QUANTILES))


def test_what_margins_cover_is_tried_on_groups_that_they_have_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow group is covered by its own errors only."""
    rows = [row("usual", 0.01), row("other", 0.01), row("slow", 0.03)]
    predicting(monkeypatch, dict.fromkeys(("usual", "other", "slow"), (0.1, 0.01)))
    every = left_out(rows)
    found = coverage_of(every.of("vllm"), errors_of(every)["vllm"])
    assert found.own == (1.0, 1.0)
    assert found.unseen == (pytest.approx(2 / 3), 1.0)


def golden_problem(count: int = 12) -> Problem:
    rows, _ = read_rows(Path(__file__).parents[1] / "data" / "serving_golden.csv")
    return Problem.of(load_engine("vllm"), [one for one in rows if one.deployment.engine == "vllm"][:count])


def test_a_group_counts_for_the_root_of_its_rows_in_the_fit() -> None:
    base = load_engine("vllm")
    rows = [*(row("many", 0.01) for _ in range(36)), *(row("some", 0.01) for _ in range(9))]
    weights = Problem.of(base, rows).weights
    assert weights[:36].sum() == pytest.approx(2 * weights[36:].sum())
    assert weights[36:].sum() == pytest.approx(3.0)


def test_a_group_that_is_off_as_a_whole_moves_parameters_less_than_one_that_differs_inside() -> None:
    """Twice too slow everywhere is the group's own; twice too slow under many clients only is the engine's."""
    problem = golden_problem()
    slopes = np.zeros((len(problem.rows), 2, len(problem.names)))
    slopes[6:, 1, 0] = 1.0 / fit_engines.TPOT_WIDTH  # a parameter that half of the rows show
    one_group = Problem(**{**vars(problem), "groups": np.zeros(len(problem.rows), int)})
    inside, whole = np.zeros((2, len(problem.rows), 2))
    whole[:, 1], inside[6:, 1] = -0.1 / fit_engines.TPOT_WIDTH, -0.1 / fit_engines.TPOT_WIDTH
    moved = [one_group.step(found, slopes, problem.middle)[0] for found in (whole, inside)]
    assert 0.0 < 2 * moved[0] < moved[1]
    assert one_group.cost(whole, problem.middle) < one_group.cost(inside, problem.middle)


def test_a_fit_gains_and_stays_near_priors_that_the_rows_do_not_speak_against() -> None:
    problem = golden_problem(8)

    def cost(profile: EngineProfile) -> float:
        at = np.log([float(_value(profile, name)) for name in problem.names])
        return problem.cost(problem.residuals(at), at)

    start, fitted = (fit(problem.base, problem.rows, rounds) for rounds in (0, 2))
    assert cost(fitted) < 0.98 * cost(start)
    for name in ("kernels.gemm", "kernels.elementwise"):
        assert 0.8 < _value(fitted, name) < 1.25


def _value(profile: EngineProfile, path: str) -> float:
    place: Any = profile.model_dump()
    for name in path.split("."):
        place = place[int(name)] if name.isdigit() else place[name]
    return float(place)


@pytest.mark.parametrize("name", engine_names())
def test_errors_are_written_and_all_else_stays(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (CATALOG / "engines" / f"{name}.yaml").read_text()
    monkeypatch.setattr(serving_errors, "CATALOG", tmp_path)
    path = tmp_path / "engines" / f"{name}.yaml"
    path.parent.mkdir()
    path.write_text(before)
    shipped = load_engine(name)
    write_errors({name: Errors({"50%": 1.0, "90%": 1.25}, {"50%": 1.0, "90%": 1.5})})
    written = EngineProfile.model_validate(yaml.safe_load(path.read_text()))
    assert written.step_error == {"50%": 1.0, "90%": 1.25}
    assert written.first_token_error == {"50%": 1.0, "90%": 1.5}
    assert set(written.sources) == {*shipped.sources, "step_error", "first_token_error"}
    assert written.kernels == shipped.kernels
    groups = 0 if name == "capstan" else 1
    write_errors({name: Errors(shipped.step_error, shipped.first_token_error, groups, groups)})
    assert path.read_text() == before


def test_the_regret_of_a_layout_counts_every_device() -> None:
    """Eight ranks of attention data parallelism take eight devices: as fast as two, they cost four times as much."""
    rows = []
    for tensor, data, tpot_s in ((2, 1, 0.02), (1, 8, 0.02)):
        one = row("one", tpot_s)
        layout = {"tensor_parallel": tensor, "pipeline_parallel": 1, "attention_data_parallel": data}
        vars(one.deployment).update(layout, expert_parallel=1, devices=tensor * data)
        vars(one.point).update(isl=128, osl=64)
        rows.append(one)
    wrong = np.array([[0.1, 0.2], [0.1, 0.02]])  # the eight are thought to be the only ones under the limit
    regrets, missed = regret(rows, wrong)
    assert missed == 0
    assert max(regrets) == pytest.approx(3.0)


def test_the_page_says_what_left_out_leaves_in() -> None:
    """Parameters that one group alone shows, and what all variants were judged by."""
    page = (Path(__file__).parents[2] / "docs" / "accuracy-serving.md").read_text(encoding="utf-8")
    assert page.startswith(INTRODUCTION)
    for words in ("rows of one group only", "vLLM before 0.13", "`kernels.scan`", "run until it settles"):
        assert words in " ".join(page.split())


def test_plots_are_by_model_device_and_batch_and_the_same_each_time() -> None:
    rows = [row("maker/a", 0.01), row("maker/b", 0.02, concurrency=64), row("maker/a", 0.03, "sglang", 500)]
    predicted = np.array([[0.1, 0.011], [0.2, 0.02], [np.nan, np.nan]])
    rows.append(row("maker/a", 0.04, "sglang", 500))
    predicted = np.vstack([predicted, [[0.1, 0.03]]])
    made = plots(rows, predicted)
    stems = ("vllm", "sglang", "device", "batch")
    assert set(made) == {f"serving-{stem}-{metric}.svg" for stem in stems for metric in ("tpot", "ttft")}
    assert made == plots(rows, predicted)
    labels = [text.text for text in ElementTree.fromstring(made["serving-batch-tpot.svg"]).iter() if text.text]
    assert [label for label in labels if label in ("5 to 16", "17 to 64", "65 and more")] == [
        "5 to 16",
        "17 to 64",
        "65 and more",
    ]
    assert ">a<" in made["serving-vllm-tpot.svg"]
    assert ">b<" not in made["serving-sglang-tpot.svg"]


def test_short_axes_have_more_ticks_than_decades() -> None:
    seconds = np.array([0.012, 0.06])
    assert ">20 ms<" in scatter("short", {"one": (seconds, seconds)})
    long = np.array([1e-6, 1e-2])
    assert ">20 µs<" not in scatter("long", {"one": (long, long)})
