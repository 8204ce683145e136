"""`validate`, `init` and `schema`: what they print, what they write, what they refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

import specs
from capstan.commands import init, validate
from capstan.commands.init import run_init
from capstan.commands.plan import run_plan
from capstan.commands.schema import DOCUMENTS, run_schema
from capstan.commands.validate import run_validate
from specs.architecture import load_architecture
from specs.deployment import DeploymentSpec, load_deployment
from specs.deployment.written import written_schema
from specs.errors import InputError, NotHonouredError

EXAMPLES = Path(specs.__file__).parent / "examples"
WHOLE_REACH = Path(__file__).parents[1] / "data" / "specs" / "whole_reach.yaml"


def with_models(spec: DeploymentSpec, **defaults: object) -> DeploymentSpec:
    """The spec with what its models leave to their configs and their traffic filled in."""
    models = {name: model.model_dump() | defaults for name, model in spec.models.items()}
    return DeploymentSpec.model_validate(spec.model_dump() | {"models": models})


def test_validate_shows_all_defaults(capsys):
    run_validate(EXAMPLES / "minimal.yaml", False)
    text = capsys.readouterr().out
    shown = yaml.safe_load(text.split("may be used")[0])
    assert DeploymentSpec.model_validate(shown) == with_models(
        load_deployment(EXAMPLES / "minimal.yaml"),
        weights=("bf16",),
        max_context_tokens=1024,  # requests of 800 + 200
    )
    assert "null" not in text
    assert "[]" not in text
    assert shown["hardware"]["pools"][0]["rent"] == "gpu"  # a default
    for told in ("must be served", "conversation", "4/s poisson", "p90 TTFT <= 1 s", "60 ms"):
        assert told in text
    assert "valid: minimise gpus" in text


def test_validate_json_is_one_document(capsys):
    run_validate(EXAMPLES / "chat-70b.yaml", True)
    document = json.loads(capsys.readouterr().out)
    assert document["models"]["chat"]["max_context_tokens"] == 16384  # as declared
    assert DeploymentSpec.model_validate(document) == load_deployment(EXAMPLES / "chat-70b.yaml")


def test_validate_shows_the_context_that_is_planned_for(tmp_path, capsys):
    """The longest request is 900 + 200 tokens, rounded up to a multiple of 1024, whatever the model allows."""
    text = (EXAMPLES / "minimal.yaml").read_text().replace("prompt_tokens: 800", "prompt_tokens: 900")
    (tmp_path / "spec.yaml").write_text(text)
    run_validate(tmp_path / "spec.yaml", True)
    assert json.loads(capsys.readouterr().out)["models"]["chat"]["max_context_tokens"] == 2048


@pytest.mark.parametrize(
    ("folder", "models", "warns"),
    [
        ("Small-FP8", "{chat: {architecture: Small-FP8}}", True),
        ("Small-W4A16-v2", "{chat: {architecture: ./Small-W4A16-v2/config.json}}", True),
        ("Small-FP8", "{chat: {architecture: Small-FP8, weights: fp8}}", False),
        ("Small-int", "{chat: {architecture: Small-int}}", False),
    ],
)
def test_a_checkpoint_that_only_its_name_calls_quantised_is_warned_of(tmp_path, capsys, folder, models, warns):
    config = dict(load_architecture("Qwen/Qwen3-0.6B").config)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "config.json").write_text(json.dumps(config))
    text = (EXAMPLES / "minimal.yaml").read_text().replace("models:\n  chat: Qwen/Qwen3-8B", f"models: {models}")
    (tmp_path / "spec.yaml").write_text(text)
    run_validate(tmp_path / "spec.yaml", False)
    assert ("16-bit weights are planned" in capsys.readouterr().err) is warns
    run_plan(tmp_path / "spec.yaml", tmp_path / "plan.json", 0, True)
    assert ("16-bit weights are planned" in capsys.readouterr().err) is warns


def test_validate_names_what_is_not_honoured(tmp_path, capsys):
    spec = tmp_path / "spec.yaml"
    spec.write_text((EXAMPLES / "minimal.yaml").read_text().replace("hardware:", "hardware:\n  host: {nvme: 6GB/s}"))
    with pytest.raises(NotHonouredError) as caught:
        run_validate(spec, False)
    assert caught.value.exit_code == 2
    assert "hardware.host.nvme" in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("device: h100-sxm", "device: h100-sxn", 21, "h100-sxm"),
        ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-71B", 13, "meta-llama"),
        ("azure_2023_conversation.csv.gz", "nowhere.csv", None, "nowhere.csv"),
    ],
)
def test_validate_checks_what_the_spec_names(tmp_path, old, new, line, says):
    text = (EXAMPLES / "chat-70b.yaml").read_text()
    assert old in text
    spec = tmp_path / "spec.yaml"
    spec.write_text(text.replace(old, new))
    with pytest.raises(InputError) as caught:
        run_validate(spec, False)
    assert says in str(caught.value)
    if line is not None:
        assert (caught.value.file, caught.value.line) == (str(spec), line)
        assert old in text.splitlines()[line - 1]


def test_slo_in_words():
    spec = load_deployment(EXAMPLES / "code-30b-moe.yaml")
    assert validate.slo_in_words(spec.traffic[0].slo) == "95% of requests: TTFT <= 600 ms, E2E <= 2 s"


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.mark.usefixtures("no_terminal")
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"model": "Qwen/Qwen3-32B", "device": "l40s", "gpus": 8, "price": "$1.10/h", "rate": "600/min"},
        {"device": "h100-sxm", "gpus": 12, "price": "$2/h"},  # no whole number of nodes: rented singly
        {"model": "../models/my model #1: \"best\" 'é'", "gpus": 1, "prompt_tokens": "2k", "ttft": "500ms"},
        {"model": "null", "engine": "sglang", "tpot": "0.05s", "output_tokens": "32"},
    ],
)
def test_what_init_writes_loads(tmp_path, flags):
    file = tmp_path / "my spec.yaml"
    run_init(file, False, **flags)
    spec = load_deployment(file)
    assert spec.models["main"].architecture == flags.get("model", "Qwen/Qwen3-8B")
    assert spec.hardware.pools[0].count == flags.get("gpus", 8)
    assert str(spec.objective) == ("minimise cost" if "price" in flags else "minimise gpus")
    assert spec.name == "my-spec"
    assert "#" in file.read_text()
    jsonschema.Draft202012Validator(written_schema()).validate(yaml.safe_load(file.read_text()))


@pytest.mark.usefixtures("no_terminal")
def test_what_the_comments_of_a_starter_offer_loads_too(tmp_path):
    file = tmp_path / "spec.yaml"
    run_init(file, False, price="$2/h")
    lines = file.read_text().splitlines()
    offered = [
        line.replace("# ", "", 1) if line.lstrip().startswith(("# max_context", "# main:")) else line for line in lines
    ]
    start = next(i for i, line in enumerate(offered) if line.startswith("# limits:"))
    offered[start : start + 3] = [line.removeprefix("# ") for line in offered[start : start + 3]]
    file.write_text("\n".join(offered))
    spec = load_deployment(file)
    assert spec.models["main"].max_context_tokens == 16384
    assert spec.limits.budget_usd_per_hour == 40
    assert spec.choices.of("main").tensor_parallel == (1, 2, 4)


@pytest.mark.usefixtures("no_terminal")
def test_init_prints_without_a_file(capsys):
    run_init(None, False)
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "Deployment"


@pytest.mark.usefixtures("no_terminal")
def test_init_never_overwrites_unasked(tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text("mine")
    with pytest.raises(InputError, match="--force"):
        run_init(file, False)
    assert file.read_text() == "mine"
    run_init(file, True)
    load_deployment(file)


@pytest.mark.usefixtures("no_terminal")
@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("ttft", "1", "--ttft: '1' has no unit"), ("tpot", "0s", "--tpot"), ("rate", "5/y", "--rate"),
        ("gpus", 0, "--gpus"), ("price", "2", "--price"), ("device", "h1000", "--device"),
        ("engine", "vlm", "did you mean 'vllm'"), ("model", "", "--model"), ("prompt_tokens", "-1", "--prompt-tokens"),
    ],
)  # fmt: skip
def test_init_names_the_wrong_flag_and_writes_nothing(tmp_path, flag, value, says):
    file = tmp_path / "spec.yaml"
    with pytest.raises(InputError) as caught:
        run_init(file, False, **{flag: value})
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_init_asks_at_a_terminal_and_explains_wrong_answers(tmp_path, monkeypatch):
    answers = ["Qwen/Qwen3-32B", "l40s", "16", "", "nonsense", "9/s", "", "", "500ms", "", ""]
    monkeypatch.setattr("sys.stdin", Terminal("\n".join(answers) + "\n"))
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    run_init(tmp_path / "spec.yaml", False)
    spec = load_deployment(tmp_path / "spec.yaml")
    assert spec.models["main"].architecture == "Qwen/Qwen3-32B"
    assert spec.hardware.pools[0].count == 16
    assert spec.traffic[0].arrivals.rate_per_s == 9
    assert "'nonsense' is not a rate" in shown.getvalue()
    assert all(question in " ".join(shown.getvalue().split()) for question in init.QUESTIONS.values())


def test_init_stops_when_the_input_ends(monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal("Qwen/Qwen3-8B\n"))
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(InputError, match="input ended"):
        run_init(None, False)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_schemas_are_schemas(document, capsys):
    run_schema(document)
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]


def test_schema_of_nothing():
    with pytest.raises(InputError, match="did you mean 'plan'"):
        run_schema("plans")
