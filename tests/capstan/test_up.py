"""`capstan up`, `serve` and `calibrate` as a user runs them: in a process of their own, with a real port."""

# ruff: noqa: E402 - what is imported needs packages that may be absent; then the file is skipped
from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
pytest.importorskip("transformers")

from tiny_checkpoints import make_checkpoint

import specs
from capstan.commands.machine import profile_path, this_machine
from capstan.commands.plan import run_plan
from capstan.commands.serve import run_serve
from capstan.commands.up import run_up
from codegen.bundle import compile_plan
from planner.plan import make_plan
from runtime.server.serve import take_port
from runtime.service import load_service
from runtime.tiny import TINY_LLAMA, make_model
from specs.bundle import ModelSource
from specs.deployment import load_deployment
from specs.errors import InputError
from specs.profile import DeviceProfile

ROOT = Path(specs.__file__).parents[1]
QUICKSTART = Path(specs.__file__).parent / "examples" / "quickstart.yaml"
CALL = """
import sys
from pathlib import Path
from capstan.console import guarded
from capstan.commands.{module} import run_{module}
sys.exit(guarded(lambda: run_{module}({arguments})))
"""


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Fresh cache and config directories, shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("homes")
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config"),
            "PYTHONPATH": str(ROOT), "CAPSTAN_TRACEBACK": ""}  # fmt: skip


def command(module: str, arguments: str) -> list[str]:
    return [sys.executable, "-c", CALL.format(module=module, arguments=arguments)]


def run(homes, module: str, arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(module, arguments), env=homes, capture_output=True, text=True, timeout=120)


def test_smoke_plans_compiles_serves_checks_and_stops(homes):
    started = time.monotonic()
    done = run(homes, "up", f"Path({str(QUICKSTART)!r}), smoke=True")
    assert done.returncode == 0, done.stderr
    assert re.search(r"smoke: 7 requests, 72 tokens checked", done.stdout)
    assert re.search(r"predicted TPOT \d+\.\d\d ms \(profile of this CPU: borrowed\), observed \d", done.stdout)
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60


def test_a_damaged_bundle_in_the_cache_is_made_again(homes):
    """After the first run above: its bundle without a manifest is nobody's folder, and no reason to refuse."""
    bundles = list((Path(homes["XDG_CACHE_HOME"]) / "capstan" / "bundles").iterdir())
    assert bundles
    for bundle in bundles:
        (bundle / "manifest.json").unlink()
    done = run(homes, "up", f"Path({str(QUICKSTART)!r}), smoke=True")
    assert done.returncode == 0, done.stderr
    assert all((bundle / "manifest.json").is_file() for bundle in bundles)


def own_checkpoint(tmp_path: Path, variant: str) -> Path:
    """A checkpoint of another family than the spec's, as a user has it, with a tokenizer that needs no download."""
    folder = make_checkpoint(tmp_path / "mine", variant, vocab_size=300, max_position_embeddings=2048)
    shutil.copy(make_model(tmp_path / "made", TINY_LLAMA) / "byte_tokenizer.json", folder)
    return folder


def test_smoke_of_a_users_checkpoint_in_the_place_of_the_model(homes, tmp_path):
    """The architecture comes from the directory, too."""
    folder = own_checkpoint(tmp_path, "qwen2")
    done = run(homes, "up", f"Path({str(QUICKSTART)!r}), model_dir=Path({str(folder)!r}), smoke=True")
    assert done.returncode == 0, done.stderr
    assert "72 tokens checked" in done.stdout


def naming(tmp_path: Path, architecture: str) -> Path:
    """The quickstart with another architecture."""
    text = QUICKSTART.read_text()
    begin, end = text.index("    architecture:"), text.index("    weights:")
    path = tmp_path / "spec.yaml"
    path.write_text(f"{text[:begin]}    architecture: {architecture}\n{text[end:]}")
    return path


def test_a_spec_may_name_the_directory_itself(homes, tmp_path):
    own_checkpoint(tmp_path, "qwen3-moe")
    done = run(homes, "up", f"Path({str(naming(tmp_path, 'mine'))!r}), smoke=True")
    assert done.returncode == 0, done.stderr


def test_a_wrong_program_does_not_pass_the_smoke_test(tmp_path):
    """The check can fail: other weights than the reference's give another answer."""
    from runtime.reference import Reference
    from runtime.smoke import Scored, SmokeError, check

    reference = Reference(make_model(tmp_path / "model", TINY_LLAMA))
    prompt = [65, 66]
    row = reference.logprobs(prompt)[-1]
    best = int(row.argmax())
    right = Scored((best,), (float(row[best]),), "")
    assert check("right", prompt, right, reference, 2e-3, greedy=True) < 1e-4
    with pytest.raises(SmokeError, match="the reference says"):
        check("wrong", prompt, Scored((best,), (float(row[best]) - 0.1,), ""), reference, 2e-3, greedy=True)
    other = int(row.argmin())
    with pytest.raises(SmokeError, match=f"but the reference prefers {best}"):
        check("not greedy", prompt, Scored((other,), (float(row[other]),), ""), reference, 2e-3, greedy=True)


@pytest.fixture
def here(homes, monkeypatch):
    """The same homes for calls inside this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", homes["XDG_CACHE_HOME"])
    monkeypatch.setenv("XDG_CONFIG_HOME", homes["XDG_CONFIG_HOME"])


def test_weights_that_contradict_the_config_are_refused(here, tmp_path):
    folder = make_model(tmp_path / "model", TINY_LLAMA)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 512}))
    with pytest.raises(
        InputError, match=r"model\.safetensors: .* has shape \(256, 128\), which contradicts .*\(512, 128\)"
    ):
        run_up(QUICKSTART, model_dir=folder, smoke=True)


def test_what_up_cannot_serve_is_refused_by_name(here, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(QUICKSTART.read_text().replace("engine: capstan", "engine: vllm"))
    with pytest.raises(InputError, match=r"choices\.engine: plans for vllm"):
        run_up(other, smoke=True)
    with pytest.raises(InputError, match="is a name of the catalogue, which has no weights; expected --model DIR"):
        run_up(naming(tmp_path, "Qwen/Qwen3-0.6B"), smoke=True)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        run_up(QUICKSTART, model_dir=tmp_path)
    two = tmp_path / "two.yaml"
    text = QUICKSTART.read_text().replace("\nhardware:\n", "\n  second: Qwen/Qwen3-0.6B\nhardware:\n", 1)
    conversation = text[text.index("  - name: conversation\n") : text.index("\nchoices:")]
    first = conversation.replace("\n", "\n    model: tiny\n", 1)
    second = conversation.replace("conversation\n", "other\n    model: second\n", 1)
    two.write_text(text.replace(conversation, first + second))
    with pytest.raises(InputError, match="declares 2 models"):
        run_up(two)


UNCOMPILABLE = {
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling", r"rotary embedding \(yarn\)"),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling", r"rotary embedding \(dynamic\)"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling", "factor of the rotary embedding .* is None"),
    "factor of text": (
        {"rope_scaling": {"type": "linear", "factor": "2"}},
        "rope_scaling",
        "factor of the rotary embedding .* is '2'",
    ),
    "no frequencies": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 2.0}},
        "rope_scaling",
        "low_freq_factor and high_freq_factor",
    ),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config", "is stored in fp8"),
}


@pytest.mark.parametrize("case", UNCOMPILABLE)
def test_a_checkpoint_that_cannot_be_compiled_names_its_config_and_key(case, here, tmp_path):
    change, key, reason = UNCOMPILABLE[case]
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA | change))
    with pytest.raises(InputError, match=rf"mine/config\.json: {key}: .*{reason}"):
        run_up(QUICKSTART, model_dir=folder, smoke=True)
    with pytest.raises(InputError, match=rf"mine/config\.json: {key}: .*{reason}"):
        run_plan(naming(tmp_path, "mine"), tmp_path / "plan.json", 0, False)
    assert not (tmp_path / "plan.json").exists()


def test_a_catalogue_model_that_cannot_be_compiled_names_the_line_of_the_spec(tmp_path):
    path = naming(tmp_path, "deepseek-ai/DeepSeek-V3")
    line = path.read_text().splitlines().index("    architecture: deepseek-ai/DeepSeek-V3") + 1
    with pytest.raises(InputError, match=rf"spec\.yaml:{line}: models\.tiny\.architecture: .*'deepseek_v3'") as caught:
        run_plan(path, tmp_path / "plan.json", 0, False)
    assert caught.value.exit_code == 2


@pytest.fixture(scope="module")
def made_bundle(tmp_path_factory):
    """The quickstart compiled for the CPU, its model made from a seed."""
    plan = make_plan(load_deployment(QUICKSTART), QUICKSTART.parent)
    bundle = tmp_path_factory.mktemp("made") / "bundle"
    compile_plan(plan, bundle, ["cpu"], model_sources={"tiny": ModelSource(kind="made")})
    return bundle


@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_eps", 1e-6), ("rope_theta", 5e5), ("num_hidden_layers", 3), ("attention_bias", True)]
)
def test_serving_another_model_than_was_compiled_names_the_key(key, value, here, made_bundle, tmp_path):
    folder = make_model(tmp_path / "other", TINY_LLAMA | {key: value})
    with pytest.raises(InputError, match=rf"other/config\.json: {key}: is {value!r}; the bundle was compiled for"):
        load_service(made_bundle, model_dir=folder)


def test_a_config_that_says_the_same_in_other_words_is_served(here, made_bundle, tmp_path):
    folder = make_model(tmp_path / "same", TINY_LLAMA)
    config = json.loads((folder / "config.json").read_text())
    theta = config.pop("rope_theta")
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "attention_bias": False}
    config |= {"transformers_version": "9.9", "torch_dtype": "bfloat16", "head_dim": 32, "initializer_range": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_service(made_bundle, model_dir=folder).model == "tiny"


def test_serve_verifies_before_it_reads_or_binds(here, made_bundle, tmp_path, monkeypatch):
    from runtime.server import serve

    def bound(*unused):
        raise AssertionError("the port was taken before the bundle was verified")

    monkeypatch.setattr(serve, "take_port", bound)
    bundle = tmp_path / "bundle"
    shutil.copytree(made_bundle, bundle)
    runtime = bundle / "group-0" / "runtime.json"
    runtime.write_text(runtime.read_text().replace('"port": 8000', '"port": 8001'))
    with pytest.raises(InputError, match=r"runtime\.json: differs from its hash"):
        run_serve(bundle)
    runtime.write_text("{")
    with pytest.raises(InputError, match=r"runtime\.json: differs from its hash"):
        run_serve(bundle)


def test_nobody_listens_until_the_model_is_loaded():
    with take_port("127.0.0.1", 0) as taken, socket.socket() as client:
        address = taken.getsockname()
        with pytest.raises(ConnectionRefusedError):
            client.connect(address)
        with pytest.raises(InputError, match="cannot be used"):
            take_port(*address)


def test_a_port_in_use_exits_2_before_the_model_is_loaded(homes):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(homes, "up", f"Path({str(QUICKSTART)!r}), port={port}")
    refused(done, f"port {port}")
    assert "loading" not in done.stderr
    assert "planning" not in done.stderr


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 2 with one clear message."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@contextlib.contextmanager
def serving(homes, module: str, arguments: str):
    """The process and its address once it serves."""
    process = subprocess.Popen(
        command(module, arguments), env=homes, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        address = None
        assert process.stderr is not None
        for line in process.stderr:
            found = re.search(r"serving .* at (http://\S+)/v1", line)
            if found:
                address = found.group(1)
                break
        assert address, "it ended before it served"
        yield process, address
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_sigterm_in_mid_stream_ends_the_stream_whole_and_exits_0(homes):
    arguments = f"Path({str(QUICKSTART)!r}), port=0"
    with serving(homes, "up", arguments) as (process, address):
        body = {"model": "tiny", "prompt": "Hello", "max_tokens": 300, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert len(rest) == 300
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def test_serve_runs_a_compiled_bundle_and_refuses_a_damaged_one(homes, here, made_bundle, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(made_bundle, bundle)
    with serving(homes, "serve", f"Path({str(bundle)!r}), port=0") as (process, address):
        assert httpx.get(f"{address}/health").json() == {"status": "running"}
        answer = httpx.post(f"{address}/v1/completions", json={"model": "tiny", "prompt": "A", "max_tokens": 3})
        assert answer.json()["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 0
    with pytest.raises(InputError, match=r"nope.*group-0"):
        run_serve(bundle, "nope")
    with pytest.raises(InputError, match="none"):
        run_serve(tmp_path / "none")
    program = next(bundle.glob("*/program_torch.py"))
    program.write_text(program.read_text() + "\n# changed\n")
    with pytest.raises(InputError, match=r"program_torch\.py: differs from its hash"):
        run_serve(bundle)


def test_calibrate_writes_a_profile_that_up_takes(homes, tmp_path, monkeypatch):
    target, seen = tmp_path / "cpu.json", tmp_path / "seen.json"
    started = time.monotonic()
    done = run(homes, "calibrate", f"Path({str(target)!r}), measurements=Path({str(seen)!r})")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    profile = DeviceProfile.read(target)
    assert (profile.device, profile.confidence) == ("cpu", "calibrated")
    assert profile.error_quantiles["p50"] < 0.5
    assert len(json.loads(seen.read_text())["kernels"]) > 50
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert this_machine().profile.confidence == "borrowed"
    assert this_machine(target).profile == profile
    profile.write(profile_path())
    assert this_machine().profile == profile
    target.write_text(target.read_text().replace('"device": "cpu"', '"device": "l4"'))
    with pytest.raises(InputError, match="profile of 'l4'"):
        this_machine(target)


def test_smoke_of_a_base_model_without_a_chat_template_checks_completions_only(homes, tmp_path):
    folder = make_checkpoint(tmp_path / "base", "qwen3", vocab_size=300, max_position_embeddings=2048)
    byte_level_tokenizer(folder)
    done = run(homes, "up", f"Path({str(QUICKSTART)!r}), model_dir=Path({str(folder)!r}), smoke=True")
    assert done.returncode == 0, done.stderr
    assert "no chat template" in done.stderr
    assert "smoke: 5 requests, 48 tokens checked" in done.stdout


def byte_level_tokenizer(folder: Path, size: int = 256) -> None:
    """A tokenizer of single bytes (the first `size` of them) in the files of transformers."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:size]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={a: i for i, a in enumerate(letters)}, merges=[]))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe).save_pretrained(folder)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", ["</s>", 1.5, True, [0, "x"], {"a": 1}, -1, 264, [2, 10**30]])
def test_an_end_token_that_is_none_of_the_models_is_refused(file, value, here, made_bundle, tmp_path):
    folder = make_model(tmp_path / "model", TINY_LLAMA)
    (folder / "byte_tokenizer.json").unlink()
    byte_level_tokenizer(folder)
    config = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(config | {"eos_token_id": value}))
    with pytest.raises(InputError, match=rf"{file}: eos_token_id: is .* expected a token id from 0 to 263"):
        load_service(made_bundle, model_dir=folder)


def test_files_that_cannot_be_read_are_named(here, made_bundle, tmp_path):
    from runtime.reference import Reference

    folder = make_model(tmp_path / "model", TINY_LLAMA)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(InputError, match="model: transformers makes no reference of it"):
        Reference(folder)
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"chat_template\.jinja: is no readable text"):
        load_service(made_bundle, model_dir=folder)
