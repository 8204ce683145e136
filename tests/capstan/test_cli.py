"""What people and programs see: help with examples, one JSON document, tables that fit the width, the decision."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import specs
from capstan import console
from capstan.cli import app
from specs.plan import Plan

EXAMPLES = Path(specs.__file__).parent / "examples"
COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)
PLANNED = ("minimal", "two-classes", "existing-deployment", "two-models")
TWO_MODELS = """\
models:
  chat: {architecture: Qwen/Qwen3-32B, weights: [bf16, fp8]}
  code: Qwen/Qwen3-8B
hardware:
  pools:
    - {name: h100, device: h100-sxm, count: 16, gpus_per_node: 8, price: $2.90/h, rent: node}
    - {name: l40s, device: l40s, count: 8, gpus_per_node: 4, price: $1.10/h, rent: gpu}
traffic:
  - name: conversation
    model: chat
    arrivals: 6/s
    prompt_tokens: 1200
    output_tokens: 100
    slo: {ttft: {p90: 1s, p97: 3s}, tpot: {p90: 50ms}}
  - name: completion
    model: code
    arrivals: 5/s
    prompt_tokens: 1k
    output_tokens: 20
    slo: {ttft: 600ms, e2e: 2s, attainment: 95%}
"""


def run(*arguments: object, code: int = 0, width: int | None = None):
    env = {} if width is None else {"COLUMNS": str(width)}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Name of a spec -> its plan file."""
    folder = tmp_path_factory.mktemp("plans")
    (folder / "two-models.yaml").write_text(TWO_MODELS)
    for name in PLANNED:
        spec = folder / f"{name}.yaml" if name == "two-models" else EXAMPLES / f"{name}.yaml"
        run("plan", spec, "-o", folder / f"{name}.json", "--json")
    return {name: folder / f"{name}.json" for name in PLANNED}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_the_command_line_accepts(command):
    shown = " ".join(run(command, "--help", width=200).stdout.split())
    example = re.search(rf"Examples?: (capstan {command}[^()]*)", shown)
    assert example is not None, shown
    words = shlex.split(example[1])[2:]
    options = [word for word in words if word.startswith("-")]
    assert all(option in shown for option in options)
    assert all(Path(specs.__file__).parents[1].joinpath(word).is_file() for word in words if word.startswith("specs/"))


def test_the_examples_work_as_pasted(tmp_path, plans, monkeypatch):
    """In the repository's folder, one after the other; the second plan of `diff` is any other one."""
    monkeypatch.chdir(tmp_path)
    Path("specs").symlink_to(Path(specs.__file__).parent)
    Path("other.json").write_bytes(plans["minimal"].read_bytes())
    for command in ("plan", "explain", "diff", "simulate", "export", "validate", "schema", "catalog"):
        shown = " ".join(run(command, "--help", width=200).stdout.split())
        example = re.search(rf"Example: (capstan {command} .*)", shown)[1]
        words = shlex.split(example, comments=True)[1:]
        run(*words[: words.index(">")] if ">" in words else words)
    assert Path("plan.json").is_file()
    assert Path("deploy", "README.md").is_file()


def test_the_example_of_init_works(tmp_path):
    shown = " ".join(run("init", "--help", width=200).stdout.split())
    words = shlex.split(re.search(r"Example: capstan (init .*)", shown)[1])
    words[words.index("-o") + 1] = str(tmp_path / "spec.yaml")
    run(*words)
    run("validate", tmp_path / "spec.yaml")


def test_without_a_command_the_help_is_shown_and_version_is_printed():
    assert "capstan plan specs/examples/chat-70b.yaml" in " ".join(run("--help").stdout.split())
    assert re.fullmatch(r"capstan \d+\.\d+\.\d+\n", run("--version").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "PLAN"),
        ("diff", "PLAN", "OTHER"),
        ("simulate", "PLAN", "--seconds", "60"),
        ("export", "PLAN", "--to", "vllm", "-o", "FOLDER"),
        ("export", "PLAN", "--to", "kubernetes", "-o", "FOLDER"),
        ("validate", EXAMPLES / "minimal.yaml"),
        ("catalog", "models"),
        ("catalog", "devices"),
        ("catalog", "nodes"),
        ("catalog", "engines"),
        ("catalog", "devices", "h100-sxm"),
        ("catalog", "models", "Qwen/Qwen3-8B"),
    ],
)
def test_json_is_one_document_and_nothing_else(tmp_path, plans, arguments):
    real = {"PLAN": plans["two-classes"], "OTHER": plans["minimal"], "FOLDER": tmp_path / "out"}
    result = run(*(real.get(argument, argument) for argument in arguments), "--json")
    assert json.loads(result.stdout)
    assert result.stdout.endswith("\n")


def test_plan_prints_the_very_document_that_it_writes(tmp_path):
    result = run("plan", EXAMPLES / "minimal.yaml", "-o", tmp_path / "plan.json", "--json")
    assert result.stdout == (tmp_path / "plan.json").read_text()
    assert result.stderr == ""


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("name", ["two-models", "two-classes"])
def test_what_is_printed_fits_the_width_and_loses_no_word(tmp_path, plans, name, width):
    plan, other = plans[name], plans["minimal"]
    spec = EXAMPLES / "two-classes.yaml" if name == "two-classes" else plan.with_suffix(".yaml")
    pictures = [
        run("plan", spec, "-o", tmp_path / "plan.json", width=width).stdout,
        run("explain", plan, width=width).stdout,
        run("simulate", plan, "--seconds", "60", width=width).stdout,
        run("validate", spec, width=width).stdout,
    ]
    for picture in pictures:
        lines = [line for line in picture.splitlines() if str(tmp_path) not in line]
        assert max(len(line.rstrip()) for line in lines) <= width
        assert "…" not in picture
    assert run("diff", plan, other, width=width).stdout


def test_the_decision_says_what_to_run_and_what_it_will_do(plans, tmp_path):
    shown = run("plan", plans["two-models"].with_suffix(".yaml"), "-o", tmp_path / "p.json", width=160).stdout
    plan = Plan.read(tmp_path / "p.json")
    assert 2 <= len(plan.groups) <= 5
    for group in plan.groups:
        assert f"{group.cache.num_blocks:,} blocks of {group.cache.block_size_tokens}" in shown
        assert f"TP {group.layout.tensor_parallel}, PP {group.layout.pipeline_parallel}" in shown
        assert f"{group.layout.gpus * group.replicas} x {group.device}" in shown
    for told in (f"${plan.cost.usd_per_hour:.2f}/h", "per million tokens", "tokens/s", "gap", "laws hold", "p97:"):
        assert told in shown
    rows = {tuple(line.split()[:2]): line for line in shown.splitlines()}
    chat = plan.predictions.classes[0]
    assert f"p90: {console.seconds_text(chat.ttft_s['p90'])} of 1 s" in rows["conversation", "TTFT"]
    assert "within 600 ms" in rows["completion", "TTFT"]
    assert f"{plan.predictions.classes[1].attainment:.2%} of 95%" in shown


def test_one_of_a_thing_is_not_many_and_a_cpu_is_no_gpu(tmp_path):
    shown = run("plan", EXAMPLES / "minimal.yaml", "-o", tmp_path / "p.json").stdout
    assert "1 GPU on 1 node" in shown
    assert "1 GPUs" not in shown
    shown = run("plan", EXAMPLES / "quickstart.yaml", "-o", tmp_path / "p.json").stdout
    assert "1 CPU on 1 node of host" in shown
    assert "capstan export" not in shown  # it runs on no engine that is exported to


def test_the_catalogue_says_what_active_parameters_are():
    """DeepSeek-V3 publishes 37 B with the input embedding (0.93 B); without it 36.6 B."""
    shown = " ".join(run("catalog", "models", width=200).stdout.split())
    assert "without the input embedding" in shown
    assert re.search(r"deepseek-ai/DeepSeek-V3 deepseek_v3 61 671\.0 B 36\.6 B", shown)


def test_diff_of_a_plan_with_itself_says_so(plans):
    assert run("diff", plans["minimal"], plans["minimal"]).stdout == "the plans say the same\n"
    assert json.loads(run("diff", plans["minimal"], plans["minimal"], "--json").stdout) == []


def test_simulate_tells_a_broken_promise(plans):
    shown = " ".join(run("simulate", plans["minimal"], "--rate", "60", "--seconds", "120").stdout.split())
    assert "conversation: p90 TTFT <= 1 s, attained by" in shown
    assert "p90 1 s" in shown
    assert "every objective holds" in run("simulate", plans["minimal"]).stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0001234, "0.123 ms"), (0.05, "50 ms"), (0.5064, "506 ms"), (0.9996, "1 s"), (1.064, "1.06 s"),
     (16.65, "16.6 s"), (999.7, "1,000 s"), (12345.6, "12,346 s")],
)  # fmt: skip
def test_seconds_are_three_digits_in_a_readable_unit(seconds, text):
    assert console.seconds_text(seconds) == text


def test_progress_stays_off_stdout_and_off_pipes(capsys):
    with console.progress_line("planning") as progress:
        progress("simulating [x]")
    assert capsys.readouterr() == ("", "")
