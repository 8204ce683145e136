"""`capstan simulate`: another trace in another format, plans that contradict themselves, traffic that has no rate."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
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


def test_a_prefill_group_without_a_decode_group_ends_with_2(plan: Path) -> None:
    document = json.loads(plan.read_text())
    document["groups"][0]["role"] = "prefill"
    edited = plan.with_name("prefill.json")
    edited.write_text(json.dumps(document))
    assert "groups[0].hands_over_to: prefill group group-0 hands over to none" in run("simulate", edited, code=2).stderr


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
    phases = Counter(event["name"] for event in events if event["ph"] == "b")
    assert phases["to first token"] == phases["decode"] == 100
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("--order", "srpt", "--predictor-error", "0.5"),
        ("--prefill-policy", "decode_first"),
        ("--preemption", "swap", "--host-blocks", "50"),
        ("--prefix-caching",),
        ("--no-prefix-caching",),
        ("--router", "power_of_two", "--poll", "500ms"),
        ("--speculate", "2:0.7:1ms"),
        ("--max-waiting-tokens", "2000"),
    ],
)
def test_policies_are_tried_without_a_new_plan(plan: Path, arguments: tuple[str, ...]) -> None:
    found = json.loads(run("simulate", plan, *arguments, "--json").stdout)
    assert found["simulated_requests"] == 100
    assert found["groups"][0]["requests"] == 100
    assert "conversation" in run("simulate", plan, *arguments).stdout


def test_every_example_of_the_help_works(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.json").symlink_to(plan)
    Path("t.csv").symlink_to(plan.with_name("t.csv"))
    shown = " ".join(CliRunner().invoke(app, ["simulate", "--help"], env={"COLUMNS": "300"}).stdout.split())
    examples = re.findall(r"capstan (simulate plan\.json .+?)(?=#|capstan simulate|$)", shown)
    assert len(examples) == 5
    for example in examples:
        run(*shlex.split(example))
    assert Path("run.json").is_file()


def test_a_draft_makes_answers_quicker(plan: Path) -> None:
    without = json.loads(run("simulate", plan, "--json").stdout)
    drafted = json.loads(run("simulate", plan, "--speculate", "4:0.8", "--json").stdout)
    assert drafted["classes"][0]["tpot_s"]["p50"] < 0.6 * without["classes"][0]["tpot_s"]["p50"]


def test_a_failure_is_told(plan: Path) -> None:
    """The only replica is away from 10.2 s to 30 s: who arrives then waits for it, nobody is lost for good."""
    found = json.loads(run("simulate", plan, "--fail", "group-0:0@10.2-30s", "--json").stdout)
    assert found["groups"][0]["requests"] == 100
    assert found["classes"][0]["ttft_s"]["p99"] > 15
    for_good = json.loads(run("simulate", plan, "--fail", "group-0:0@10.2-", "--json").stdout)
    assert for_good["refused"] == {"no replica up": 89}
    assert not for_good["verdict"]["holds"]
    assert "89 no replica up" in run("simulate", plan, "--fail", "group-0:0@10.2-").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--order", "srtp"), "did you mean 'srpt'"),
        (("--router", "sticki"), "did you mean 'sticky'"),
        (("--preemption", "swap"), "--preemption: there are no host blocks"),
        (("--poll", "fast"), "--poll: "),
        (("--poll", "-1"), "--poll: '-1' is not a time"),
        (("--speculate", "4"), "--speculate: '4' is no draft"),
        (("--speculate", "4:1.5"), "--speculate: '4:1.5' is no draft"),
        (("--speculate", "0:0.5"), "--speculate: '0:0.5' is no draft"),
        (("--fail", "group-0"), "--fail: 'group-0' does not say"),
        (("--fail", "group-0:0@9-3"), "ends before it begins"),
        (("--fail", "group-0:0@nan-3"), "--fail: 'nan' is not a time"),
        (("--fail", "group-0:7@0-3"), "--fail: group-0 has no replica 7"),
        (("--fail", "group-8:0@0-3"), "--fail: the plan has no group 'group-8'"),
    ],
)
def test_a_wrong_policy_is_named(plan: Path, arguments: tuple[str, ...], says: str) -> None:
    assert says in run("simulate", plan, *arguments, code=2).stderr


def undocumented(summary: dict) -> set[str]:
    """Fields of a summary that docs/simulate-json.md does not name; those of windows are the plan document's own."""
    text = (Path(__file__).parents[2] / "docs" / "simulate-json.md").read_text()
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    percentiles = {"p50", "p90", "p95", "p99"}

    def names(value: object) -> set[str]:
        if isinstance(value, dict):
            return (set(value) - percentiles).union(*(names(item) for item in value.values()))
        return set().union(*map(names, value)) if isinstance(value, list) else set()

    return names({name: value for name, value in summary.items() if name not in ("windows", "refused")}) - words


def test_every_field_of_the_json_is_documented(plan: Path) -> None:
    assert undocumented(json.loads(run("simulate", plan, "--json").stdout)) == set()
    assert undocumented({"classes": [{"nowhere": 1}]}) == {"nowhere"}


def other_traffic(folder: Path, classes: str) -> Path:
    """A spec with other request classes, of a model that the plan calls otherwise."""
    (folder / "other.yaml").write_text(
        "models: {bot: Qwen/Qwen3-0.6B}\n"
        "hardware: {pools: [{name: l40s, device: l40s, count: 4}]}\n"
        "traffic:\n" + classes
    )
    return folder / "other.yaml"


SESSIONS = """\
  - name: agents
    sessions: {rate: 1/s, turns: {mean: 4}, think_time: {mean: 2s}, growing_context: true}
    prompt_tokens: 60
    output_tokens: 20
    slo: {e2e: {p90: 10s}}
  - {name: batch, priority: low, arrivals: 1/s, prompt_tokens: 90, output_tokens: 9, slo: {e2e: {p90: 60s}}}
"""


def test_the_traffic_of_another_spec_is_served(plan: Path, tmp_path: Path) -> None:
    spec = other_traffic(tmp_path, SESSIONS)
    arguments = ("simulate", plan, "--traffic", spec, "--seconds", "60", "--prefix-caching", "--order", "priority")
    found = json.loads(run(*arguments, "--json").stdout)
    assert [entry["class"] for entry in found["classes"]] == ["agents", "batch"]
    assert found["sessions"]["turns_mean"] > 1.5
    assert found["sessions"]["seconds"]["p90"] > found["classes"][0]["e2e_s"]["p90"]
    assert found["groups"][0]["prefix_hit_rate"] > 0.1
    assert "class agents goes where the plan sends conversation" in found["notes"]
    assert undocumented(found) == set()
    shown = run(*arguments).stdout
    assert "sessions" in shown
    assert "p90 60 s" in shown


def test_a_rate_scales_drawn_arrivals_from_what_is_declared(plan: Path, tmp_path: Path) -> None:
    """Of 1 session/s of 4 turns and 1 request/s, not of what a short window happened to draw."""
    arguments = ("simulate", plan, "--traffic", other_traffic(tmp_path, SESSIONS), "--seconds", "3", "--rate", "50")
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["windows"][1]["source"] == "poisson arrivals at 10/s"


def test_clients_of_a_closed_loop_are_served(plan: Path, tmp_path: Path) -> None:
    loop = "  - {name: bench, closed_loop: {concurrency: 4, warmup: 8}, prompt_tokens: 90, output_tokens: 10}\n"
    spec = other_traffic(tmp_path, loop)
    found = json.loads(run("simulate", plan, "--traffic", spec, "--json").stdout)
    assert (found["closed_loop"]["concurrency"], found["closed_loop"]["warmup"]) == (4, 8)
    assert (found["classes"][0]["requests"], found["simulated_requests"]) == (40, 48)
    in_flight = found["closed_loop"]["requests_per_s"] * found["classes"][0]["e2e_s"]["p50"]
    assert in_flight == pytest.approx(4, rel=0.1)  # Little's law
    assert undocumented(found) == set()
    assert "4 clients: " in run("simulate", plan, "--traffic", spec).stdout
    refused = run("simulate", plan, "--traffic", spec, "--rate", "3", code=2)
    assert "--rate: does not apply to the clients" in refused.stderr


def test_windows_of_another_spec_are_taken_as_open_and_a_missing_one_is_named(plan: Path, tmp_path: Path) -> None:
    spec = other_traffic(tmp_path, SESSIONS.replace("priority: low", "window: 09:00-17:00"))
    shown = " ".join(run("simulate", plan, "--traffic", spec).stdout.split())
    assert "batch: taken as sending all the time, not from 09:00 to 17:00 only" in shown
    missing = run("simulate", plan, "--traffic", tmp_path / "none.yaml", code=2)
    assert "none.yaml" in missing.stderr
