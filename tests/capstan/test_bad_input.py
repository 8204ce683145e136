"""Wrong input through the real entry point: one clear message, the documented exit code, nothing half-written."""

from __future__ import annotations

import copy
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from capstan.cli import app

SPEC = """\
models:
  chat: Qwen/Qwen3-8B
hardware:
  pools:
    - {name: l40s, device: l40s, count: 4, price: $1.10/h, rent: gpu}
traffic:
  - name: conversation
    arrivals: 1/s
    prompt_tokens: 300
    output_tokens: 50
    slo: {ttft: {p90: 1s}, tpot: {p90: 60ms}}
"""
TRACED = SPEC.replace("    arrivals: 1/s\n    prompt_tokens: 300\n    output_tokens: 50\n", "    trace: {TRACE}\n")
HEADER = "arrival_s,prompt_tokens,output_tokens\n"
ROWS = "".join(f"{second},300,50\n" for second in range(100))
INLINE = """\
  chat:
    architecture: {architectures: [LlamaForCausalLM], model_type: llama, hidden_size: 896, intermediate_size: 256,
      num_hidden_layers: 2, num_attention_heads: 7, num_key_value_heads: 7, vocab_size: 264,
      max_position_embeddings: 2048, rms_norm_eps: 1.0e-5, torch_dtype: bfloat16}
"""


def changed(old: str, new: str, text: str = SPEC) -> str:
    assert old in text
    return text.replace(old, new)


def inline(old: str = "", new: str = "") -> str:
    return changed("  chat: Qwen/Qwen3-8B\n", INLINE if not old else changed(old, new, INLINE))


def run(*arguments: object):
    """The command in this process; every outcome must be one of the documented ones."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    assert result.exit_code in (0, 2, 3), result.output
    return result


def refused(result, code: int, *says: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    for text in says:
        assert text in result.stderr


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
WRONG_SPECS = {
    "empty": ("", "is empty"),
    "not-utf8": (b"models: \xff\xfe\n", "is not UTF-8"),
    "nul": (b"\x00\x00", "is not YAML"),
    "deep": ("a: " + "[" * 5000, "nested deeper"),
    "bomb": (BOMB, "aliases expanded"),
    "large": (b"#" * 1_100_000, "larger than 1,000,000 bytes"),
    "unknown-field": (changed("arrivals", "arivals"), "spec.yaml:8: traffic[0].arivals", "did you mean 'arrivals'"),
    "duplicate-key": (changed("hardware:", "name: a\nname: b\nhardware:"), "stands twice"),
    "duplicate-pool": (
        changed("traffic:", "    - {name: l40s, device: l40s, count: 1, price: $1/h}\ntraffic:"),
        "hardware.pools[1].name",
    ),
    "wrong-unit": (changed("1s", "1GB"), "spec.yaml:11: traffic[0].slo.ttft.p90", "not a duration"),
    "nan": (changed("1/s", ".nan/s"), "not a finite number"),
    "negative": (changed("1/s", "-1/s"), "is negative"),
    "zero-rate": (changed("1/s", "0/s"), "must be more than 0"),
    "rate-1e12": (changed("1/s", "1e12/s"), "spec.yaml:8", "absurdly large"),
    "rate-too-many-requests": (changed("1/s", "1000000/s"), "spec.yaml:8", "1.2e+08 requests", "at most 41,667/s"),
    "rate-no-request": (changed("1/s", "0.0000001/s"), "spec.yaml:8", "no request arrives"),
    "zero-output": (changed("output_tokens: 50", "output_tokens: 0"), "must be more than 0"),
    "billion-tokens": (changed("prompt_tokens: 300", "prompt_tokens: 1000000000"), "spec.yaml:9", "1000000000"),
    "billion-mean": (changed("prompt_tokens: 300", "prompt_tokens: {mean: 1000000000}"), "spec.yaml:9"),
    "longer-than-model": (changed("prompt_tokens: 300", "prompt_tokens: 41k"), "more than 40960"),
    "longer-than-context": (
        changed("chat: Qwen/Qwen3-8B", "chat: {architecture: Qwen/Qwen3-8B, max_context: 256}"),
        "spec.yaml:2: models.chat.max_context",
        "at least 350",
    ),
    "billion-gpus": (changed("count: 4", "count: 1000000000"), "absurdly large"),
    "unknown-architecture": (changed("Qwen3-8B", "Qwen3-9B"), "spec.yaml:2", "did you mean 'Qwen/Qwen3-8B'"),
    "unknown-device": (changed("device: l40s", "device: l40x"), "spec.yaml:5", "did you mean 'l40s'"),
    "unknown-family": (inline("llama", "llamma"), "architecture.model_type", "did you mean 'llama'"),
    "inline-without-width": (inline("hidden_size: 896,", ""), "architecture.hidden_size", "is missing"),
    "inline-negative": (inline("hidden_size: 896", "hidden_size: -896"), "is -896"),
    "inline-huge": (inline("num_hidden_layers: 2", "num_hidden_layers: 200000000"), "from 1 to 4096"),
    "not-honoured": (
        changed("hardware:", "hardware:\n  host: {nvme: 6GB/s}"),
        "spec.yaml:4",
        "hardware.host.nvme",
    ),
}
WRONG_TRACES = {
    "missing": (None, "cannot be read"),
    "empty": (b"", "is empty"),
    "header-only": (HEADER.encode(), "holds no requests"),
    "nan": ((HEADER + "0,300,50\nnan,300,50\n").encode(), ".csv:3: arrival_s: is 'nan'"),
    "zero-output": ((HEADER + "0,300,0\n").encode(), ".csv:2: output_tokens: is '0'"),
    "unsorted": ((HEADER + "5,300,50\n1,300,50\n").encode(), ".csv:3: arrival_s: comes before"),
    "truncated-row": ((HEADER + ROWS + "100,30").encode(), ".csv:102: has 2 fields"),
    "binary": (bytes(range(256)) * 20, "UTF-8"),
    "one-moment": ((HEADER + "0,300,50\n0,300,50\n").encode(), "spec.yaml:8: traffic[0].trace"),
    "huge-prompt": ((HEADER + "0,99999999999999999999,50\n").encode(), ".csv:2: prompt_tokens"),
    "other-format": ((ROWS * 2).encode(), "arrival_s: is missing"),
}


@pytest.mark.parametrize("name", WRONG_SPECS)
@pytest.mark.parametrize("command", ["plan", "validate"])
def test_a_wrong_spec_is_refused_with_one_message(tmp_path, name, command):
    content, *says = WRONG_SPECS[name]
    spec = tmp_path / "spec.yaml"
    spec.write_bytes(content if isinstance(content, bytes) else content.encode())
    output = ["-o", tmp_path / "plan.json"] if command == "plan" else []
    refused(run(command, spec, *output), 2, "spec.yaml", *says)
    assert os.listdir(tmp_path) == ["spec.yaml"]


@pytest.mark.parametrize("name", WRONG_TRACES)
@pytest.mark.parametrize("command", ["plan", "validate"])
def test_a_wrong_trace_is_refused_at_its_row(tmp_path, name, command):
    content, *says = WRONG_TRACES[name]
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    (tmp_path / "spec.yaml").write_text(changed("{TRACE}", "{file: t.csv, rate: 1/s}", TRACED))
    output = ["-o", tmp_path / "plan.json"] if command == "plan" else []
    refused(run(command, tmp_path / "spec.yaml", *output), 2, *says)
    assert not (tmp_path / "plan.json").exists()


def test_a_truncated_archive_is_refused(tmp_path):
    whole = gzip.compress((HEADER + ROWS).encode())
    (tmp_path / "t.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "spec.yaml").write_text(changed("{TRACE}", "{file: t.csv.gz, rate: 1/s}", TRACED))
    refused(run("plan", tmp_path / "spec.yaml", "-o", tmp_path / "plan.json"), 2, "t.csv.gz", "truncated")


NO_PLAN = {
    "tpot": (
        changed("tpot: {p90: 60ms}", "tpot: {p90: 10us}"),
        "traffic[0] conversation: slo: {tpot: {p90: 0.01ms}}",
        "least change",
    ),
    "budget": (SPEC + "limits: {budget: $0.50/h}\n", "limits.budget: $0.5/h", "limits.budget: $1.10/h"),
    "inventory": (
        changed("count: 4", "count: 1", changed("1/s", "40/s")),
        "hardware.pools[0] l40s: count: 1",
        "least change",
    ),
    "heads": (
        inline() + "choices: {chat: {tensor_parallel: [2, 4]}}\n",
        "7 attention heads",
        "choices.chat.tensor_par",
    ),
    "memory": (changed("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-405B"), "boots on none", "weights take"),
    "pinned-sequences": (SPEC + "choices: {chat: {max_num_seqs: 999999}}\n", "choices.chat.max_num_seqs: 999999"),
    "pinned-replicas": (SPEC + "choices: {chat: {replicas: 1000000}}\n", "choices.chat.replicas: 1000000"),
}


@pytest.mark.parametrize("name", NO_PLAN)
def test_where_nothing_satisfies_the_spec_the_conflict_is_named(tmp_path, name):
    content, *says = NO_PLAN[name]
    (tmp_path / "spec.yaml").write_text(content)
    started = time.process_time()
    result = run("plan", tmp_path / "spec.yaml", "-o", tmp_path / "plan.json")
    refused(result, 3, "statements in conflict", *says)
    assert time.process_time() - started < 60
    assert not (tmp_path / "plan.json").exists()


def test_validate_warns_of_a_model_that_boots_nowhere(tmp_path):
    (tmp_path / "spec.yaml").write_text(changed("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-405B"))
    result = run("validate", tmp_path / "spec.yaml", "--json")
    assert result.exit_code == 0
    assert "models.chat boots on none of the declared devices" in result.stderr
    assert json.loads(result.stdout)["models"]["chat"]


@pytest.fixture(scope="module")
def plan_document(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "spec.yaml").write_text(SPEC)
    assert run("plan", folder / "spec.yaml", "-o", folder / "plan.json").exit_code == 0
    return json.loads((folder / "plan.json").read_text())


def edit(*path, value):
    def apply(document):
        for part in path[:-1]:
            document = document[part]
        document[path[-1]] = value

    return apply


EDITS = {
    "unknown field": (edit("extra", value=1), "extra"),
    "negative replicas": (edit("groups", 0, "replicas", value=-1), "groups.0.replicas"),
    "NaN": (edit("cost", "power_w", value=float("nan")), "cost.power_w"),
    "no groups": (edit("groups", value=[]), "groups: is empty"),
    "unknown model": (edit("groups", 0, "model", value="chatt"), "groups[0].model", "did you mean 'chat'"),
    "unknown pool": (edit("groups", 0, "pool", value="nowhere"), "groups[0].pool"),
    "unknown engine": (edit("groups", 0, "engine", value="trtllm"), "groups[0].engine"),
    "more than the pool": (edit("groups", 0, "replicas", value=100_000_000), "groups[0].replicas", "at most 4"),
    "huge budget": (edit("groups", 0, "limits", "max_num_batched_tokens", value=10**8), "max_num_batched_tokens"),
    "route to nowhere": (edit("routes", 0, "group", value="nowhere"), "routes[0].group"),
    "route of nothing": (edit("routes", 0, "request_class", value="nothing"), "routes[0].request_class"),
    "half a share": (edit("routes", 0, "share", value=0.5), "add up to 0.5"),
    "no predictions": (edit("predictions", "classes", value=[]), "predictions.classes"),
    "no architecture": (edit("architectures", value={}), "architectures"),
    "no device": (edit("devices", value={}), "devices"),
    "no profile": (edit("profiles", value={}), "profiles"),
    "no engine": (edit("engines", value={}), "engines"),
    "no spec": (edit("spec", value={}), "spec.name"),
    "no traffic": (edit("spec", "traffic", value=[]), "spec.traffic: is empty"),
    "traffic of no model": (edit("spec", "traffic", 0, "model", value="chatt"), "spec.traffic[0].model"),
    "another version": (edit("version", value=2), "version"),
    "no pools": (edit("spec", "hardware", "pools", value=[]), "spec.hardware.pools: is empty"),
    "objective": (edit("spec", "objective", "sense", value="please"), "spec.objective.sense"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_plan_is_refused_by_the_commands_that_compute_with_it(tmp_path, plan_document, name):
    apply, *says = EDITS[name]
    document = copy.deepcopy(plan_document)
    apply(document)
    plan, good = tmp_path / "plan.json", tmp_path / "good.json"
    plan.write_text(json.dumps(document))
    good.write_text(json.dumps(plan_document))
    for arguments in (("explain", plan), ("simulate", plan), ("diff", good, plan)):
        refused(run(*arguments), 2, "plan.json", *says)
    run("export", plan, "--to", "vllm", "-o", tmp_path / "deploy")  # by rules of its own; no traceback


def test_a_plan_whose_laws_no_longer_hold_is_shown_with_a_warning(tmp_path, plan_document):
    document = copy.deepcopy(plan_document)
    document["cost"]["usd_per_hour"] = 0.01
    (tmp_path / "plan.json").write_text(json.dumps(document))
    result = run("explain", tmp_path / "plan.json")
    assert result.exit_code == 0
    assert "warning: this plan breaks a law of its certificate: the hourly cost adds up" in result.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is not JSON"), (b"[]", "expected a Plan"), (b'{"kind": "Plan", ', "is not JSON"), (b"\xff\xfe", "read"),
     (b"[" * 100_000, "is not JSON"), (b'{"kind": "Bundle"}', "kind")],
)  # fmt: skip
def test_what_is_no_plan_is_refused(tmp_path, content, says):
    plan = tmp_path / "plan.json"
    plan.write_bytes(content)
    for arguments in (("explain", plan), ("simulate", plan), ("diff", plan, plan)):
        refused(run(*arguments), 2, "plan.json", says)


@pytest.mark.parametrize("command", ["plan", "validate", "explain", "simulate"])
def test_missing_files_and_folders_are_refused(tmp_path, command):
    refused(run(command, tmp_path / "nowhere"), 2, "nowhere")
    refused(run(command, tmp_path), 2, str(tmp_path))


def test_outputs_that_cannot_be_written_are_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "folder").mkdir()
    refused(run("plan", tmp_path / "spec.yaml", "-o", tmp_path / "folder"), 2, "folder")
    refused(run("plan", tmp_path / "spec.yaml", "-o", tmp_path / "spec.yaml" / "plan.json"), 2, "cannot be written")
    refused(run("plan", tmp_path / "spec.yaml", "-o", "/dev/null"), 2, "not a regular file")
    refused(run("init", "-o", tmp_path / "spec.yaml"), 2, "exists already")
    assert sorted(os.listdir(tmp_path)) == ["folder", "spec.yaml"]
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize("output", ["folder", "spec.yaml/plan.json", "/dev/null", "closed/new/plan.json"])
def test_an_output_that_cannot_be_written_is_refused_before_planning(tmp_path, monkeypatch, output):
    """A spec whose trace is missing: a message about the output says that planning had not begun."""
    (tmp_path / "spec.yaml").write_text(changed("{TRACE}", "{file: nowhere.csv}", TRACED))
    (tmp_path / "folder").mkdir()
    closed = tmp_path / "closed"
    closed.mkdir()
    may = os.access  # the superuser may write anywhere, so a test cannot close a folder
    monkeypatch.setattr(os, "access", lambda path, mode, **rest: path != closed and may(path, mode, **rest))
    result = run("plan", tmp_path / "spec.yaml", "-o", tmp_path / output)
    refused(result, 2, str(tmp_path / output))
    assert "nowhere.csv" not in result.stderr


def test_an_output_folder_that_is_missing_is_made(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    assert run("plan", tmp_path / "spec.yaml", "-o", tmp_path / "new" / "deep" / "plan.json").exit_code == 0
    assert (tmp_path / "new" / "deep" / "plan.json").is_file()


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (changed("{TRACE}", "{file: nowhere.csv}", TRACED), "spec.yaml:8: traffic[0].trace.file: "),
        (changed("300", "{histogram: nowhere.csv}"), "spec.yaml:9: traffic[0].prompt_tokens.histogram: "),
    ],
)
def test_a_missing_file_is_refused_at_the_line_that_names_it(tmp_path, spec, line):
    (tmp_path / "spec.yaml").write_text(spec)
    for command in ("plan", "validate"):
        refused(run(command, tmp_path / "spec.yaml"), 2, line, str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plam",), "plan"),
        (("plan",), "SPEC"),
        (("plan", "spec.yaml", "--ouput", "x"), "--output"),
        (("plan", "spec.yaml", "--seed", "-1"), "--seed"),
        (("simulate", "plan.json", "--rate", "fast"), "--rate"),
        (("export", "plan.json"), "--to"),
    ],
)
def test_usage_errors_end_with_2_and_name_the_option(arguments, says):
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rate", "-1"), "--rate"),
        (("--rate", "nan"), "--rate"),
        (("--rate", "100000000"), "state a share of the traffic"),
        (("--seconds", "0"), "--seconds"),
        (("--seconds", "nan"), "--seconds"),
        (("--trace", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_simulate_names_the_wrong_option(tmp_path, plan_document, arguments, says):
    (tmp_path / "plan.json").write_text(json.dumps(plan_document))
    refused(run("simulate", tmp_path / "plan.json", *arguments), 2, says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("catalog", "gpus"), "one of models, devices, nodes, engines"),
        (("catalog", "devices", "h1000"), "did you mean 'h100-sxm'"),
        (("catalog", "models", "llama"), "is no model"),
        (("catalog", "engines", "vlm"), "vllm"),
        (("schema", "plans"), "did you mean 'plan'"),
        (("init", "--rate", "10"), "--rate: '10' has no unit"),
    ],
)
def test_the_other_commands_name_what_is_wrong(arguments, says):
    refused(run(*arguments), 2, says)


def start(*arguments: object, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "capstan.cli", *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path):
    (tmp_path / "spec.yaml").write_text(changed("count: 4", "count: 512", changed("1/s", "800/s")))
    process = start("plan", tmp_path / "spec.yaml", "-o", tmp_path / "plan.json")
    time.sleep(2.5)  # into planning, which takes several seconds more
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert "Traceback" not in told
    assert process.returncode == 130
    assert "interrupted" in told
    assert os.listdir(tmp_path) == ["spec.yaml"]


def test_a_closed_stdout_is_no_failure():
    process = start("schema", "plan")
    process.stdout.close()  # what `| head -1` does, sooner
    told = process.stderr.read()
    assert (process.wait(timeout=20), told) == (0, "")


def test_help_into_a_closed_pipe_is_no_failure():
    process = start("--help")
    process.stdout.close()
    told = process.stderr.read()
    assert (process.wait(timeout=20), told) == (0, "")


def test_ctrl_c_while_python_imports_is_one_line(tmp_path):
    """A stand-in for typer, the first import, gets the signal: what a hasty Ctrl-C does."""
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "capstan", "catalog"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_under_stdout_is_said():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "capstan.cli", "catalog"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "no space is left" in done.stderr
