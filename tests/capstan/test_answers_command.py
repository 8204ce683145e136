"""`capstan explain --what-if`, `--alternatives`, `--frontier`, and `capstan plan --time-limit`, as people ask them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from capstan.cli import app
from specs.plan import Plan

SPEC = """\
models: {small: Qwen/Qwen3-0.6B}
hardware: {pools: [{name: l40s, device: l40s, count: 8, gpus_per_node: 4, price: $1/h, rent: gpu}]}
traffic:
  - name: chat
    model: small
    trace: {file: requests.csv, rate: 4/s}
    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}
choices: {disaggregation: never}
"""
TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{index * 0.25},500,60\n" for index in range(1200))


def run(*arguments: object, code: int = 0, width: int = 160) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(width)})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "requests.csv").write_text(TRACE)
    run("plan", folder / "spec.yaml", "-o", folder / "plan.json")
    return folder / "plan.json"


def test_every_answer_as_a_table_and_as_json(plan: Path) -> None:
    asked = ("explain", plan, "--what-if", "--alternatives", 2, "--frontier")
    shown = run(*asked).stdout
    document = json.loads(run(*asked, "--json").stdout)
    assert {"summary", "what_if", "alternatives", "frontier"} <= set(document)
    for row in document["what_if"]:
        assert row["change"] in shown
    assert {row["kind"] for row in document["what_if"]} == {"stock", "traffic", "slo", "price"}
    assert "l40s 20% dearer ($1.20/h)" in shown
    assert "+20.0%" in shown
    assert len(document["alternatives"]) == 2
    assert all(row["value"] >= 1.0 and row["replicas"] in " ".join(shown.split()) for row in document["alternatives"])
    assert [point["scale"] for point in document["frontier"]["points"]]
    for title in ("what if", "next-best different plans", "the price of latency"):
        assert title in shown


def test_answers_with_the_plan_are_those_of_explain(plan: Path, tmp_path: Path) -> None:
    spec = plan.parent / "spec.yaml"
    picture = tmp_path / "frontier.svg"
    asked = ("--alternatives", 1, "--frontier", "--vary", "ttft", "--plot", picture, "--json")
    made = json.loads(run("plan", spec, "-o", tmp_path / "p.json", *asked).stdout)
    assert Plan.model_validate(made["plan"]) == Plan.read(tmp_path / "p.json")
    assert picture.read_text().startswith("<svg")
    explained = json.loads(run("explain", plan, *asked).stdout)
    assert made["alternatives"] == explained["alternatives"]
    assert made["frontier"] == explained["frontier"]
    assert made["frontier"]["metrics"] == ["ttft"]
    assert json.loads(run("plan", spec, "-o", tmp_path / "p.json", "--json").stdout)["kind"] == "Plan"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vary", "ttft"), "--vary: is about the frontier; expected --frontier with it"),
        (("--frontier", "--vary", "tptt"), "--vary: no metric is called 'tptt'; expected ttft | tpot | e2e"),
        (("--frontier", "--vary", "e2e"), "--vary: the spec limits no e2e; expected ttft | tpot"),
        (("--alternatives", "-1"), "--alternatives: -1 plans are asked for; expected 0 to 20"),
        (("--plot", "x.svg"), "--plot: is about the frontier"),
        (("--frontier", "--plot", "."), "is a folder"),
    ],
)
def test_options_that_do_not_fit_are_one_message(plan: Path, options: tuple[str, ...], message: str) -> None:
    result = run("explain", plan, *options, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_a_trace_that_is_gone_is_named(plan: Path, tmp_path: Path) -> None:
    alone = tmp_path / "moved.json"
    alone.write_bytes(plan.read_bytes())
    run("explain", alone)  # needs no trace
    result = run("explain", alone, "--what-if", code=2)
    assert "moved.json" in result.stderr
    assert "trace requests.csv is neither in" in result.stderr


def test_a_plan_that_planning_finds_no_longer_is_compared_with_what_it_finds(plan: Path, tmp_path: Path) -> None:
    document = json.loads(plan.read_text())
    document["certificate"]["value"] = 9.0
    document["traffic_folder"] = str(plan.parent)
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(document))
    result = run("explain", edited, "--what-if")
    assert "solved again, the plan's spec gives $1.00/h, not the $9.00/h" in result.stderr


def test_a_time_limit_gives_a_certified_plan_and_its_true_status(plan: Path, tmp_path: Path) -> None:
    run("plan", plan.parent / "spec.yaml", "-o", tmp_path / "p.json", "--time-limit", "1ms")
    certificate = Plan.read(tmp_path / "p.json").certificate
    assert certificate.solver_status == "time limit"
    assert certificate.value >= certificate.bound
    assert certificate.priced_gap == pytest.approx(1 - certificate.priced_bound / certificate.value)
    assert all(check.holds for check in certificate.checks)
    for wrong in ("5", "soon", "-1s"):
        result = run("plan", plan.parent / "spec.yaml", "--time-limit", wrong, code=2)
        assert "--time-limit" in result.stderr


def test_a_bound_under_a_time_limit_is_one_on_what_was_not_looked_at_too(tmp_path: Path) -> None:
    """Long prompts and a tight TPOT, where prefill and decode apart cost less than any plan without."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "models: {small: {architecture: meta-llama/Llama-3.1-8B, weights: bf16}}\n"
        "hardware: {pools: [{name: h, device: h100-sxm, count: 8, gpus_per_node: 8, price: $3/h, rent: gpu}]}\n"
        "traffic:\n  - {name: chat, model: small, arrivals: 12/s, prompt_tokens: 3000, output_tokens: 100,\n"
        "     slo: {ttft: {p90: 1s}, tpot: {p90: 12ms}}}\n"
    )
    best, early = tmp_path / "best.json", tmp_path / "early.json"
    run("plan", spec, "-o", best)
    run("plan", spec, "-o", early, "--time-limit", "1ms")
    assert Plan.read(best).groups[0].role != "unified"
    assert Plan.read(early).certificate.priced_bound <= Plan.read(best).certificate.value < 12
