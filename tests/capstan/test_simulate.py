"""`capstan simulate`: another trace in another format, plans that contradict themselves, traffic that has no rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capstan.cli import app

SPEC = """\
models:
  chat: Qwen/Qwen3-0.6B
hardware:
  pools:
    - {name: l40s, device: l40s, count: 4, price: $1.10/h, rent: gpu}
traffic:
  - name: conversation
    trace: {file: t.csv}
    slo: {ttft: {p90: 1s}, tpot: {p90: 60ms}}
"""
HEADER = "arrival_s,prompt_tokens,output_tokens\n"


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "t.csv").write_text(HEADER + "".join(f"{second},300,20\n" for second in range(100)))
    (folder / "spec.yaml").write_text(SPEC)
    run("plan", folder / "spec.yaml", "-o", folder / "plan.json")
    return folder / "plan.json"


def test_a_trace_of_another_format_is_simulated(plan: Path, tmp_path: Path) -> None:
    trace = tmp_path / "week.csv"
    rows = "".join(f"2024-01-01 00:00:{second:02d}.0,300,20\n" for second in range(60))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    found = json.loads(run("simulate", plan, "--trace", trace, "--format", "azure", "--json").stdout)
    assert found["simulated_requests"] == 60
    refused = run("simulate", plan, "--trace", trace, code=2)  # as the plan's own trace is: csv
    assert "arrival_s" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--trace", "t.csv", "--format", "azur"), "did you mean 'azure'"),
        (("--format", "azure"), "--format: no trace is given"),
    ],
)
def test_a_wrong_format_is_named(plan: Path, arguments: tuple[str, ...], says: str) -> None:
    assert says in run("simulate", plan, *arguments, code=2).stderr


def test_limits_that_contradict_each_other_end_with_2(plan: Path) -> None:
    document = json.loads(plan.read_text())
    document["groups"][0]["limits"]["max_num_batched_tokens"] = 8
    edited = plan.with_name("edited.json")
    edited.write_text(json.dumps(document))
    assert "groups[0]: max_num_batched_tokens must reach max_num_seqs" in run("simulate", edited, code=2).stderr


def test_one_request_is_no_traffic_to_plan_for(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEADER + "0,300,20\n")
    (tmp_path / "spec.yaml").write_text(SPEC)
    refused = run("plan", tmp_path / "spec.yaml", "-o", tmp_path / "plan.json", code=2)
    assert "come at one moment" in refused.stderr
    assert not (tmp_path / "plan.json").exists()


def test_a_timeline_is_written_and_a_folder_refused(plan: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    found = run("simulate", plan, "--timeline", file)
    assert "run.json" in found.stdout.replace("\n", "")
    events = json.loads(file.read_text())["traceEvents"]
    assert sum(event["ph"] == "b" for event in events) == 200  # a hundred requests of two phases
    refused = run("simulate", plan, "--timeline", tmp_path, code=2)
    assert "not a regular file" in refused.stderr


def test_json_says_how_far_it_can_be_trusted(plan: Path) -> None:
    found = json.loads(run("simulate", plan, "--json").stdout)
    assert found["verdict"]["stability"] == "stable"
    low, high = found["classes"][0]["ttft_interval_s"]["p50"]
    assert low <= found["classes"][0]["ttft_s"]["p50"] <= high
    assert found["classes"][0]["ttft_interval_s"]["p99"] is None  # a hundred requests hold one beyond it
    assert len(found["queue"]["time_s"]) == len(found["queue"]["waiting"]) == 61
    assert found["classes"][0]["goodput_per_s"] > 0
