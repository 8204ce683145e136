"""Measured serving points that predictions must not move away from, engine by engine.

`serving_golden.csv`: twenty rows of each engine of the serving table of NVIDIA aiconfigurator-core 0.12.0 (Apache-2.0),
as many of each (model, device). They were drawn at random until every change of `CHANGES` was seen in one of the
figures; over the whole table some of them (a prompt's time in the frontend of sglang) are hardly seen.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.fit_engines import with_values
from planner.estimate import Latency, Point, deployment_of, is_mixture, protocol_of, simulate_point
from specs.catalog import load_engine
from specs.profile import EngineProfile

SLACK = 1.1
FIGURES = ("TTFT p50", "TPOT p50", "throughput p50", "TTFT p90", "TPOT p90", "throughput p90")
# |predicted / measured - 1| of the catalogue's profiles, which are fitted to these rows among others.
TODAY = {
    "sglang": (0.078, 0.112, 0.099, 0.298, 0.234, 0.302),
    "trtllm": (0.095, 0.111, 0.098, 0.506, 0.342, 0.526),
    "vllm": (0.054, 0.059, 0.061, 0.262, 0.160, 0.180),
}
CHANGES = {
    "kernels.gemm": 1.3,
    "kernels.prefill_experts": 1.5,
    "step_overhead_s": 3.0,
    "sequence_overhead_s": 3.0,
    "request_overhead_s": 4.0,
    "request_serial_s": 6.0,
}


@cache
def golden(engine: str) -> list[dict[str, str]]:
    path = Path(__file__).parents[1] / "data" / "serving_golden.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["engine"] == engine]


def ratios(engine: str, changed: str | None = None) -> NDArray[np.float64]:
    """(rows, 3) predicted / measured TTFT, TPOT and throughput, with one parameter changed."""
    found = []
    for row in golden(engine):
        point = Point.read(row)
        deployment = deployment_of(point)
        profile = load_engine(engine).at(point.engine_version)
        protocol = protocol_of(point.isl, point.osl, engine, is_mixture(deployment.architecture))
        own = simulate_point(point, deployment, scaled(profile, changed), protocol)
        true = Latency(float(row["ttft_ms"]) / 1e3, float(row["tpot_ms"]) / 1e3, own.in_flight, own.held)
        throughput = [one.output_tokens_per_s(point.osl, point.concurrency) for one in (own, true)]
        found.append((own.ttft_s / true.ttft_s, own.tpot_s / true.tpot_s, throughput[0] / throughput[1]))
    return np.array(found)


def scaled(profile: EngineProfile, path: str | None) -> EngineProfile:
    if path is None:
        return profile
    place, _, name = path.rpartition(".")
    before: float = getattr(getattr(profile, place) if place else profile, name)
    return with_values(profile, {path: before * CHANGES[path]})


def worse(engine: str, found: NDArray[np.float64]) -> list[str]:
    """The figures that are beyond what they are today."""
    error = np.abs(found - 1.0)
    figures = (*np.median(error, axis=0), *np.quantile(error, 0.9, axis=0))
    return [
        f"{engine} {name}: {100 * figure:.1f} %, was {100 * today:.1f} %"
        for name, figure, today in zip(FIGURES, figures, TODAY[engine], strict=True)
        if figure > SLACK * today
    ]


@pytest.mark.parametrize("engine", TODAY)
def test_golden_points_do_not_worsen(engine: str) -> None:
    assert len(golden(engine)) == 20
    assert worse(engine, ratios(engine)) == []


@pytest.mark.parametrize("engine", TODAY)
@pytest.mark.parametrize("changed", CHANGES)
def test_a_profile_that_worsens_is_seen(engine: str, changed: str) -> None:
    assert worse(engine, ratios(engine, changed))


@pytest.mark.parametrize("engine", TODAY)
@pytest.mark.parametrize("column", [0, 1, 2])
def test_each_figure_is_seen(engine: str, column: int) -> None:
    found = ratios(engine)
    found[:, column] *= 10.0
    assert [FIGURES[column] in words for words in worse(engine, found)].count(True) == 1
