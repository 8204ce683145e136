"""`capstan estimate SPEC.yaml`, and `capstan plan` of the same file: what is printed, what is written, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import specs
from capstan.cli import app
from capstan.commands.estimate_spec import is_spec, promises_of
from specs.plan import Plan

EXAMPLES = Path(specs.__file__).parent / "examples"
SPEC = """\
models: {chat: Qwen/Qwen3-0.6B}
hardware:
  pools:
    - {name: old, device: l40s, count: 4, price: $1/h}
    - {name: new, device: h100-sxm, count: 4, price: $3/h}
traffic:
  - name: talk
    arrivals: 4/s
    prompt_tokens: 500
    output_tokens: 60
    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}
choices:
  chat:
    groups:
      - {name: a, pool: old, replicas: 2}
      - {name: b, pool: new, replicas: 1, engine: sglang, serves: {talk: 60%}}
"""
BROKEN = SPEC.replace("p90: 50ms", "p90: 1ms")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "140"})


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "fleet.yaml"
    file.write_text(SPEC)
    return file


def test_the_tables_say_what_each_group_and_class_does(spec, tmp_path):
    result = run("estimate", spec)
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    for words in ("fleet: as it stands", "a x 2", "b x 1", "talk",
                  "stated, not searched", "every promise is kept (simulated): 2 of 2", "slack", "$16.00/h",
                  "per million tokens"):  # fmt: skip
        assert words in shown
    assert list(tmp_path.iterdir()) == [spec]  # nothing is written without -o


def test_the_plan_is_read_by_the_other_commands(spec, tmp_path):
    plan = tmp_path / "plan.json"
    assert run("estimate", spec, "-o", plan).exit_code == 0
    assert Plan.read(plan).traffic_folder == "."
    simulated = json.loads(run("simulate", plan, "--json").stdout)
    (talk,) = Plan.read(plan).predictions.classes
    assert simulated["classes"][0]["tpot_s"]["p90"] == talk.tpot_s["p90"]
    assert "stands: 2 x TP 1 bf16" in " ".join(run("explain", plan).stdout.split())
    assert run("export", plan, "--to", "kubernetes", "-o", tmp_path / "k8s").exit_code == 0
    assert {"a.yaml", "b.yaml"} <= {file.name for file in (tmp_path / "k8s").iterdir()}
    one = run("export", plan, "--to", "vllm", "-o", tmp_path / "vllm")
    assert one.exit_code == 2
    assert "--to kubernetes" in one.stderr
    what_if = run("explain", plan, "--what-if")
    assert what_if.exit_code == 2
    assert "all replicas of chat are stated" in what_if.stderr


def test_json_is_one_document_with_the_plan_and_every_promise(spec):
    result = run("estimate", spec, "--json")
    found = json.loads(result.stdout)
    assert Plan.model_validate(found["plan"]).groups[0].id == "a"
    assert (found["kept"], found["broken"]) == (True, [])
    assert found["slack"] > 1.0
    ttft, tpot = found["promises"]
    assert (ttft["promise"], ttft["promised_s"], ttft["kept"]) == ("p90 TTFT", 1.0, True)
    assert tpot["reached_over_promised"] == pytest.approx(tpot["reached_s"] / 0.05)


def test_broken_promises_are_told_and_end_with_0_where_it_is_estimated_and_3_where_it_is_planned(spec, tmp_path):
    spec.write_text(BROKEN)
    plan = tmp_path / "plan.json"
    result = run("estimate", spec, "-o", plan)
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    assert "1 broken; 1 promise kept (simulated)" in shown
    assert "talk: p90 TPOT <= 0.001 s (met by" in shown
    assert "times what is promised" in shown
    assert "slack none" in shown
    promises = list(promises_of(Plan.read(plan)))
    assert [item["kept"] for item in promises] == [True, False]
    planned = run("plan", spec, "-o", tmp_path / "other.json")
    assert planned.exit_code == 3
    assert "talk: p90 TPOT <= 0.001 s" in planned.stderr
    assert "capstan estimate" in planned.stderr
    assert not (tmp_path / "other.json").exists()
    assert "does not keep 1 of its promises" in run("simulate", plan).stderr


def test_planning_a_deployment_that_keeps_its_promises_writes_the_same_plan(spec, tmp_path):
    assert run("estimate", spec, "-o", tmp_path / "a.json").exit_code == 0
    planned = run("plan", spec, "-o", tmp_path / "b.json")
    assert planned.exit_code == 0, planned.stderr
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("question", [["--alternatives", "2"], ["--frontier"]])
def test_questions_about_other_plans_are_refused_before_anything_is_written(spec, tmp_path, question):
    result = run("plan", spec, "-o", tmp_path / "plan.json", *question)
    assert result.exit_code == 2
    assert "all replicas of chat are stated" in result.stderr
    assert f"{spec}:" in result.stderr
    assert not (tmp_path / "plan.json").exists()


def test_the_time_of_a_group_is_shown_by_phase_and_operator(spec):
    shown = run("estimate", spec, "--explain", "2").stdout
    for words in ("b: where the time goes (predicted)", "first token", "further token", "gate_up_proj", "waiting"):
        assert words in shown
    first, further = json.loads(run("estimate", spec, "--explain", "2", "--json").stdout)["explained"]
    assert (first["phase"], further["phase"]) == ("first token", "further token")
    parts = sum(part["ms"] for part in further["parts"])
    assert parts + further["waiting_ms"] == pytest.approx(further["total_ms"])


def test_joint_promises_are_shares_of_requests(spec, tmp_path):
    spec.write_text(SPEC.replace("slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}", "slo: {e2e: 2s, attainment: 95%}"))
    (promise,) = json.loads(run("estimate", spec, "--json").stdout)["promises"]
    assert promise["promise"] == "end to end 2 s for 95 % of requests"
    assert promise["promised_share"] == 0.95
    assert promise["kept"]


def test_a_throughput_is_a_promise_too(spec):
    spec.write_text(
        SPEC.replace("arrivals: 4/s", "closed_loop: {concurrency: 8}\n    throughput: {at_least: 900 tokens/s}")
        .replace("    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}\n", "")
    )  # fmt: skip
    (promise,) = json.loads(run("estimate", spec, "--json").stdout)["promises"]
    assert (promise["promise"], promise["promised_tokens_per_s"], promise["kept"]) == ("throughput", 900.0, True)
    assert promise["reached_tokens_per_s"] == pytest.approx(900.0, rel=0.05)


def test_a_spec_is_told_from_a_table_by_its_name_or_by_what_it_says(tmp_path):
    for name, text, expected in (
        ("a.yaml", "", True), ("a.yml", "x,y", True), ("a.csv", "models: {}", False), ("a.parquet", "", False),
        ("deployment", "# fleet\nname: x\nmodels:\n  chat: y\n", True), ("points", "model,gpu\n", False),
    ):  # fmt: skip
        file = tmp_path / name
        file.write_text(text)
        assert is_spec(file) is expected, name
    assert not is_spec(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--client", "exact"], "--client: is not of a spec"),
        (["--device", "l40s"], "--device: is not of a spec"),
        (["--explain", "3"], "there is no group 3; expected 1 to 2"),
        (["-o", "."], "is a folder"),
    ],
)
def test_options_of_tables_are_refused(spec, arguments, words):
    result = run("estimate", spec, *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_a_table_still_needs_a_place_to_go(tmp_path):
    (tmp_path / "points.csv").write_text("model,gpu\n")
    result = run("estimate", tmp_path / "points.csv")
    assert result.exit_code == 2
    assert "--output: is missing" in result.stderr


def test_what_is_left_open_is_named_with_the_way_out(spec):
    spec.write_text(SPEC[: SPEC.index("choices:")])
    result = run("estimate", spec)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "choices.chat.replicas" in said
    assert "`capstan plan` chooses them" in said


def test_an_error_about_a_group_has_its_line(spec):
    spec.write_text(SPEC.replace("name: b, pool: new", "name: b, pool: new, tensor_parallel: 3"))
    result = run("estimate", spec)
    assert result.exit_code == 2
    assert f"{spec}:16: choices.chat.groups[1]" in result.stderr


def test_validate_counts_stated_configurations(spec):
    result = run("validate", spec)
    assert result.exit_code == 0, result.stderr
    assert "boots on none" not in result.stderr


def test_the_example_runs_as_its_head_says():
    result = run("estimate", EXAMPLES / "uneven-fleet.yaml")
    assert result.exit_code == 0, result.stderr
    assert "every promise is kept" in result.stdout
