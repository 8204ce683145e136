"""Measured request rates in the place of the cost model, in Melange's setting."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from planner.measured_rates import load_measured
from planner.plan import make_plan
from planner.problem import pose
from specs.deployment import DeploymentSpec, load_deployment
from specs.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "specs" / "examples"
HEADER = "model,device,tp,prompt_tokens,output_tokens,requests_per_s"
RATES = {("short", "l4"): 1.6, ("long", "l4"): 0.12, ("short", "a100"): 3.4, ("long", "a100"): 0.95}
PRICES = {"l4": 0.70, "a100": 3.67}


def example() -> DeploymentSpec:
    return load_deployment(EXAMPLES / "measured-mix.yaml")


def cheapest_mix(demand: dict[str, float]) -> float:
    """By trying every number of devices: long requests on A100s first, the rest where there is room."""
    best = math.inf
    for l4, a100 in itertools.product(range(17), range(9)):
        for kept in np.linspace(0.0, 1.0, 401):  # share of the long requests on A100s
            room = a100 - kept * demand["long"] / RATES["long", "a100"]
            work = (1.0 - kept) * demand["long"] / RATES["long", "l4"]
            left = max(0.0, demand["short"] - max(0.0, room) * RATES["short", "a100"])
            if room >= -1e-9 and work + left / RATES["short", "l4"] <= l4 + 1e-9:
                best = min(best, l4 * PRICES["l4"] + a100 * PRICES["a100"])
    return best


def test_the_mix_is_the_cheapest_by_the_measured_rates() -> None:
    plan = make_plan(example(), EXAMPLES)
    demand = {item.request_class: item.rate_per_s for item in plan.predictions.classes}
    assert plan.certificate.value == pytest.approx(cheapest_mix(demand))
    assert {group.pool for group in plan.groups} == {"l4", "a100"}
    assert {item.basis for item in plan.predictions.classes} == {"measured"}
    assert any("basis: measured" in note and "measured-rates.csv" in note for note in plan.predictions.notes)
    assert all(check.holds for check in plan.certificate.checks)
    assert plan.certificate.simulations <= 3  # of the whole plan, for its latencies; none for a price


def rates_file(folder: Path, *rows: str) -> DeploymentSpec:
    (folder / "rates.csv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return example().model_copy(update={"measured": "rates.csv"})


def test_what_was_not_measured_is_simulated(tmp_path: Path) -> None:
    """Rates for the A100 alone, without a bucket for long requests: those and the L4 are priced by simulation."""
    spec = rates_file(tmp_path, "chat,a100-sxm,1,256,256,3.4")
    plan = make_plan(spec, tmp_path)
    basis = {item.request_class: item.basis for item in plan.predictions.classes}
    assert basis["long"] == "simulated"
    assert plan.certificate.simulations > 3


def test_a_request_counts_in_the_least_bucket_that_holds_it(tmp_path: Path) -> None:
    spec = rates_file(tmp_path, "chat,a100-sxm,1,100,50,10", "chat,a100-sxm,1,100,90,4", "chat,a100-sxm,1,400,90,2")
    problem = pose(spec, tmp_path)
    rates = load_measured(spec, tmp_path, problem.facts)
    assert rates is not None
    family = next(family for family in problem.families if family.pool.name == "a100")
    prompts, outputs = np.array([100, 1, 100, 101, 400]), np.array([50, 51, 90, 1, 90])
    assert rates.busy(family, prompts, outputs) == pytest.approx(0.1 + 0.25 + 0.25 + 0.5 + 0.5)
    assert rates.busy(family, np.array([401]), np.array([1])) == math.inf
    assert not rates.covers(next(f for f in problem.families if f.pool.name == "l4"), prompts, outputs)


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ("chat,l4,1,256,256,0", "requests_per_s", "positive number"),
        ("chat,l4,1,256,256,fast", "requests_per_s", "fast"),
        ("chatt,l4,1,256,256,1", "model", "chatt"),
        ("chat,l44,1,256,256,1", "device", "l44"),
        ("chat,l4,two,256,256,1", "tp", "whole number"),
        ("chat,l4,1,-1,256,1", "prompt_tokens", "-1"),
        ("chat,a100-sxm,1,10,10,1", "prompt_tokens", "twice"),
    ],
)
def test_a_wrong_row_is_named_with_its_line_and_column(tmp_path: Path, row: str, field: str, words: str) -> None:
    spec = rates_file(tmp_path, "chat,a100-sxm,1,10,10,1", row)
    with pytest.raises(InputError, match=r"rates\.csv") as caught:
        make_plan(spec, tmp_path)
    error = caught.value
    assert (error.line, error.field) == (3, field)
    assert words in str(error)


def test_a_missing_file_and_missing_columns_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        make_plan(example().model_copy(update={"measured": "none.csv"}), tmp_path)
    (tmp_path / "rates.csv").write_text("model,device\nchat,l4\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"rates\.csv"):
        make_plan(example().model_copy(update={"measured": "rates.csv"}), tmp_path)
    with pytest.raises(InputError, match="measures none"):
        make_plan(rates_file(tmp_path, "chat,h100-sxm,1,256,256,1"), tmp_path)
