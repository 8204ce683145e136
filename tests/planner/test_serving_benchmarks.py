"""What the benchmark of deployments makes of its rows: quantiles of steps, plots."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import serving_errors
from benchmarks.fit_engines import GROUP_WEIGHT, _cost, _priors, _settled, _weights, around
from benchmarks.operator_scatter import scatter
from benchmarks.serving_accuracy import INTRODUCTION, regret
from benchmarks.serving_errors import QUANTILES, StepError, error_table, quantile, step_errors, write_step_errors
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


def test_groups_count_the_same_and_what_is_not_measured_borrows_the_largest() -> None:
    """Eight rows took as long as predicted, one of another model twice as long: it has half of the weight."""
    rows = [*(row("many", 0.01) for _ in range(8)), row("one", 0.02)]
    rows += [row("other", 0.015, "sglang"), row("lost", 0.5, "sglang")]
    without = np.full((len(rows), 2), 0.01)
    without[-1] = np.nan
    found = step_errors(rows, without)
    assert found["vllm"].ratios == {"50%": 1.0} | {f"{q}%": 2.0 for q in QUANTILES[1:]}
    assert (found["vllm"].groups, found["vllm"].rows) == (2, 9)
    assert set(found["sglang"].ratios.values()) == {1.5}
    assert found["capstan"].ratios == found["trtllm"].ratios == {"50%": 1.5} | {f"{q}%": 2.0 for q in QUANTILES[1:]}
    table = error_table(found)
    assert "| vllm | 2 | 9 | 1.000 | 2.000 |" in table
    assert "capstan: the largest of the measured engines: not measured itself." in table


def test_a_group_counts_for_the_root_of_its_rows_in_the_fit() -> None:
    rows = [*(row("many", 0.01) for _ in range(36)), *(row("some", 0.01) for _ in range(9))]
    many, some = _weights(rows)[:36], _weights(rows)[36:]
    assert many.sum() == pytest.approx(2 * some.sum())
    assert some.sum() == pytest.approx(3 * GROUP_WEIGHT)
    assert _weights(rows[:1]).tolist() == [GROUP_WEIGHT]


def test_a_fit_without_a_group_gains_with_every_step() -> None:
    rows, _ = read_rows(Path(__file__).parents[1] / "data" / "serving_golden.csv")
    base = load_engine("vllm")
    start = around(base, [one for one in rows if one.deployment.engine == "vllm"][4:])
    kept = [one for one in rows if one.deployment.engine == "vllm"][4:]
    _, middle, width = _priors(base)

    def cost(rounds: int) -> float:
        found = _settled(base, kept, start, rounds)
        return _cost(found.residuals, found.values, middle, width, _weights(kept))

    costs = [cost(rounds) for rounds in range(3)]
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < costs[1] < costs[0]


@pytest.mark.parametrize("name", engine_names())
def test_errors_are_written_and_all_else_stays(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (CATALOG / "engines" / f"{name}.yaml").read_text()
    monkeypatch.setattr(serving_errors, "CATALOG", tmp_path)
    path = tmp_path / "engines" / f"{name}.yaml"
    path.parent.mkdir()
    path.write_text(before)
    shipped = load_engine(name)
    write_step_errors({name: StepError({"50%": 1.0, "90%": 1.25}, "a source: with a colon")})
    written = EngineProfile.model_validate(yaml.safe_load(path.read_text()))
    assert written.step_error == {"50%": 1.0, "90%": 1.25}
    assert written.sources == {**shipped.sources, "step_error": "a source: with a colon"}
    write_step_errors({name: StepError(shipped.step_error, shipped.sources["step_error"])})
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
    """Parameters that one group alone shows, and fits that stop after one step."""
    page = (Path(__file__).parents[2] / "docs" / "accuracy-serving.md").read_text(encoding="utf-8")
    assert page.startswith(INTRODUCTION)
    for words in ("rows of one group only", "vLLM before 0.13", "`kernels.scan`", "one step is not all of the way"):
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
