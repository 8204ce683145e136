"""What the benchmarks of operator latencies add: plots, whole layers, splits."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from benchmarks.operator_layers import MODELS, Part, layer, layer_errors
from benchmarks.operator_scatter import scatter
from benchmarks.operator_tables import held_out
from planner.operators import OperatorTable
from planner.operators.cores import operator_facts
from specs.catalog import load_device

PLOTS = Path(__file__).parents[2] / "docs" / "accuracy"


def test_a_plot_holds_one_square_per_cell_and_darkens_it() -> None:
    seconds = np.array([1e-6] * 10 + [1e-3])
    text = scatter("a < b", {"one": (seconds, seconds)})
    assert text == scatter("a < b", {"one": (seconds, seconds)})
    paths = [one.get("d") or "" for one in ElementTree.fromstring(text).iter() if one.get("fill-opacity")]
    assert [path.count("M") for path in paths] == [1, 1]  # a lone point, and ten in one cell
    assert "a &lt; b" in text


def test_shipped_plots_are_small_and_linked() -> None:
    plots = sorted(PLOTS.glob("*.svg"))
    assert len(plots) >= 30
    for plot in plots:
        page = "accuracy-serving.md" if plot.name.startswith("serving-") else "accuracy.md"
        assert plot.stat().st_size < 60_000
        assert f"(accuracy/{plot.name})" in (PLOTS.parent / page).read_text(encoding="utf-8")


def test_flops_of_a_layer_are_those_of_the_model() -> None:
    """Llama-3.1-70B: 855,638,016 weights of a layer's products, by hand 8192 (10240 + 8192 + 3 x 28672)."""
    parts = list(layer(MODELS[0], 1, "bfloat16", 1, 1, 1024))
    weights = sum(part.wanted["n"] * part.wanted["k"] for part in parts if part.family == "gemm")
    assert weights == 8192 * (10240 + 8192 + 3 * 28672) == 855_638_016
    cut = list(layer(MODELS[0], 8, "bfloat16", 1, 1, 1024))
    assert sum(part.wanted["n"] * part.wanted["k"] for part in cut if part.family == "gemm") == weights / 8
    assert [part.family for part in cut].count("custom_allreduce") == 2


def test_a_layer_without_a_family_is_not_counted() -> None:
    tables = {"gemm": made(Part("gemm", "bfloat16", {"m": 1, "n": 8192, "k": 8192}))}
    assert layer_errors(tables, operator_facts(load_device("h200-sxm"))) == {}


def made(part: Part) -> OperatorTable:
    rows = {name: np.full(20, float(value)) for name, value in part.wanted.items()}
    return OperatorTable(part.family, rows, np.array([part.lane] * 20), np.full(20, 1e-5))


@pytest.mark.parametrize("split", ["rows", "shapes"])
def test_a_split_leaves_out_about_a_fifth_and_shapes_whole(split: str) -> None:
    widths = np.repeat(np.arange(1.0, 101.0), 10)
    table = OperatorTable("gemm", {"m": widths, "n": widths, "k": widths}, np.array(["fp8"] * 1000), widths)
    out = held_out(split, table)
    assert 0.1 < out.mean() < 0.3
    if split == "shapes":
        assert set(out.reshape(100, 10).sum(axis=1).tolist()) == {0, 10}
