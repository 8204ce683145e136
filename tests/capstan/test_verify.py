"""`capstan verify` against a server with known delays: the table, the files, the exit codes."""

# ruff: noqa: E402 - what is imported needs packages that may be absent; then the file is skipped
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
from fake_endpoint import fake_endpoint
from rich.table import Table
from typer.testing import CliRunner

from capstan.cli import app
from capstan.commands.calibrate_url import _doubts
from capstan.commands.machine import this_machine
from capstan.commands.verify_bundle import _wait
from capstan.commands.verify_table import SHOWN, _class_rows
from capstan.commands.verify_traffic import alone, of_model, one_replica, open_load
from planner.plan import make_plan
from planner.plan_simulation.traffic import planned_workload
from planner.simulate import Workload
from specs.deployment import load_deployment
from specs.errors import InputError
from specs.measurements import Environment, Load, Measurements, RequestRow
from specs.profile import EngineProfile

EXAMPLES = Path(__file__).parents[2] / "specs" / "examples"
QUICKSTART = EXAMPLES / "quickstart.yaml"


@pytest.fixture(scope="module")
def plan():
    return make_plan(load_deployment(QUICKSTART), QUICKSTART.parent, machine=this_machine())


@pytest.fixture(scope="module")
def folder(plan, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("plan")
    plan.write(made / "plan.json")
    return made


def run(*words: object, code: int = 0):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output + result.stderr
    return result


def verify(fake, folder: Path, *words: object, code: int = 0, seconds: float = 2.0):
    return run(
        *("verify", "--url", fake.base, "--plan", folder / "plan.json", "-o", folder / "seen.json"),
        *("--seconds", seconds, *words),
        code=code,
    )


def test_predicted_beside_measured(folder):
    with fake_endpoint(first_s=0.2, token_s=0.001) as fake:
        report = json.loads(verify(fake, folder, "--json").stdout)
        bodies = fake.runs
    (entry,) = report["classes"]
    assert entry["class"] == "conversation"
    assert entry["measured"]["status"]["ok"] == entry["measured"]["requests"] == entry["predicted"]["requests"]
    assert all(len(body["prompt"]) == 200 and body["max_tokens"] == 60 for body in bodies)
    assert 0.19 < entry["measured"]["ttft_s"]["p50"] < 1.0
    predicted = entry["predicted"]["ttft_s"]["p50"]
    assert 0 < predicted < 0.1
    off = entry["difference"]["ttft_s"]["p50"]
    assert off == pytest.approx(predicted / entry["measured"]["ttft_s"]["p50"] - 1)
    assert entry["measured"]["attainment"]["share"] == 1.0
    seen = Measurements.read(folder / "seen.json")
    assert seen.plan_sha256
    assert seen.environment.engine == "capstan"
    assert len(seen.requests) == len(bodies)


def test_a_plan_at_a_confidence_is_compared_at_it(plan, tmp_path):
    limits = {**plan.spec["limits"], "confidence": 0.9}
    plan.model_copy(update={"spec": {**plan.spec, "limits": limits}}).write(tmp_path / "plan.json")
    with fake_endpoint() as fake:
        report = json.loads(verify(fake, tmp_path, "--json").stdout)
    assert report["notes"][0].startswith("planned at 90 % confidence: steps 1.")


def test_the_table(folder):
    with fake_endpoint() as fake:
        text = verify(fake, folder).stdout
    for word in ("TTFT", "TPOT", "end to end", "predicted", "measured", "difference", "p90 1 s", "all limits", "wrote"):
        assert word in text
    assert "partial" not in text


def test_the_load_can_be_scaled(folder):
    with fake_endpoint(token_s=0.0) as fake:
        verify(fake, folder, "--scale", 6)
        fast = len(fake.runs)
        verify(fake, folder, "--scale", 0.5)
        slow = len(fake.runs) - fast
    assert fast > 7 * slow > 0


def test_a_closed_loop(folder):
    with fake_endpoint(first_s=0.02, token_s=0.0, serial=True) as fake:
        report = json.loads(verify(fake, folder, "--concurrency", 2, "--json").stdout)
    (entry,) = report["classes"]
    assert Measurements.read(folder / "seen.json").loads[0].concurrency == 2
    assert entry["predicted"]["tpot_s"]["p50"] > 0


SPEC = """
models: {tiny: {architecture: Qwen/Qwen3-0.6B}}
hardware: {pools: [{name: host, device: cpu, count: 1}]}
choices: {engine: capstan}
traffic:
"""


def test_a_declared_closed_loop(folder):
    spec = folder / "loop.yaml"
    loop = "closed_loop: {concurrency: 3, requests: 6, warmup: 3}, prompt_tokens: 40, output_tokens: 5"
    spec.write_text(f"{SPEC}  - {{name: conversation, {loop}}}\n")
    with fake_endpoint() as fake:
        report = json.loads(verify(fake, folder, "--traffic", spec, "--json").stdout)
        assert [(len(body["prompt"]), body["max_tokens"]) for body in fake.runs] == [(40, 5)] * 9
        assert "states its own" in verify(fake, folder, "--traffic", spec, "--rate", 3, code=2).stderr
    (entry,) = report["classes"]
    assert entry["measured"]["requests"] == entry["predicted"]["requests"] == 6
    assert Measurements.read(folder / "seen.json").loads[0].concurrency == 3


def test_declared_sessions(folder):
    spec = folder / "sessions.yaml"
    spec.write_text(
        f"{SPEC}  - name: conversation\n    sessions: {{rate: 3/s, turns: {{mean: 3}}, think_time: {{mean: 100ms}}, "
        "growing_context: true}\n    prompt_tokens: 30\n    output_tokens: 5\n"
    )
    with fake_endpoint(first_s=0.01, token_s=0.0) as fake:
        report = json.loads(verify(fake, folder, "--traffic", spec, "--json").stdout)
        prompts = [tuple(body["prompt"]) for body in fake.runs]
    assert report["partial"] is None
    later = [prompt for prompt in prompts if len(prompt) > 30]
    assert later
    assert any(prompt[:16] == first[:16] for prompt in later for first in prompts if len(first) == 30)


def test_an_engine_profile_changes_the_prediction(plan, folder):
    slow = plan.engines["capstan"].model_copy(update={"request_overhead_s": 0.5})
    slow.write(folder / "engine.json")
    plan.engines["capstan"].model_copy(update={"name": "vllm"}).write(folder / "other.json")
    with fake_endpoint() as fake:
        report = json.loads(verify(fake, folder, "--engine-profile", folder / "engine.json", "--json").stdout)
        assert (
            "which the plan does not use"
            in verify(fake, folder, "--engine-profile", folder / "other.json", code=2).stderr
        )
    assert 0.5 < report["classes"][0]["predicted"]["ttft_s"]["p50"] < 0.6


def test_a_plan_can_be_made_with_an_engine_profile(plan, folder):
    slow = plan.engines["capstan"].model_copy(update={"request_overhead_s": 0.5})
    slow.write(folder / "slow.json")
    run("plan", QUICKSTART, "--engine-profile", folder / "slow.json", "-o", folder / "slow-plan.json")
    made = type(plan).read(folder / "slow-plan.json")
    assert made.engines["capstan"].request_overhead_s == 0.5
    assert 0.5 < made.predictions.classes[0].ttft_s["p50"] < 0.6
    words = ("--engine-profile", folder / "slow.json", "--seconds", 20, "--json")
    summary = json.loads(run("simulate", folder / "plan.json", *words).stdout)
    assert 0.5 < summary["classes"][0]["ttft_s"]["p50"] < 0.6
    slow.model_copy(update={"name": "vllm"}).write(folder / "vllm.json")
    result = run("plan", QUICKSTART, "--engine-profile", folder / "vllm.json", "-o", folder / "no.json", code=2)
    assert "which the spec does not plan for" in result.stderr


def test_a_bundle_is_served_for_the_time_of_the_run(folder, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run("compile", folder / "plan.json", "-o", folder / "bundle", "--target", "cpu")
    words = ("--seconds", 2, "--rate", 3, "-o", folder / "seen.json", "--json")
    report = json.loads(run("verify", folder / "bundle", *words).stdout)
    assert report["partial"] is None
    assert report["endpoint"]["model"] == "tiny"
    with pytest.raises(httpx.ConnectError):
        httpx.get(report["url"], trust_env=False)


def test_a_bundle_that_does_not_start_says_why(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with (tmp_path / "said").open("w+") as said:
        said.write("loading\nerror: no such weights\n")
        with pytest.raises(InputError, match="is not served: error: no such weights"):
            _wait(process, "http://127.0.0.1:9", tmp_path, said)


def test_a_partial_result_is_marked_and_written(folder):
    with fake_endpoint(fault="dies", fault_from=3) as fake:
        result = verify(fake, folder, "--rate", 4)
    assert "partial:" in result.stdout
    assert "disconnected" in result.stdout
    assert Measurements.read(folder / "seen.json").partial


def test_percentiles_that_fall_on_failed_requests_say_so(folder):
    with fake_endpoint(fault="500", fault_from=6) as fake:
        report = json.loads(verify(fake, folder, "--rate", 4, "--json").stdout)
    (entry,) = report["classes"]
    assert entry["measured"]["status"]["failed"] > 0
    assert entry["measured"]["ttft_s"]["p99"] is None
    made = Table(*("class", "metric", ""), *SHOWN, "limit")
    _class_rows(made, entry)
    assert list(made.columns[3 + SHOWN.index("p99")].cells)[1] == "failed"


def test_no_answer_at_all_is_an_error_with_its_measurements(folder):
    (folder / "seen.json").unlink(missing_ok=True)
    with fake_endpoint(fault="500") as fake:
        result = verify(fake, folder, code=2)
    assert "not one request was served" in result.stderr
    assert all(row.error.startswith("http 500") for row in Measurements.read(folder / "seen.json").requests)


def test_the_key_comes_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("CAPSTAN_TEST_KEY", "sk-secret")
    with fake_endpoint(key="sk-secret") as fake:
        result = verify(fake, folder, "--api-key-env", "CAPSTAN_TEST_KEY", "--json")
        assert "wants a key" in verify(fake, folder, code=2).stderr
        assert "not set" in verify(fake, folder, "--api-key-env", "CAPSTAN_NO_KEY", code=2).stderr
    assert "sk-secret" not in result.stdout + (folder / "seen.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing is given"),
        (("bundle", "--url", "http://x"), "BUNDLE and --url is given"),
        (("--url", "http://x"), "--plan: is missing"),
        (("bundle", "--plan", "plan.json"), "a bundle holds its plan"),
        (("--url", "http://x", "--plan", "PLAN", "--rate", 1, "--scale", 1), "beside --rate"),
        (("--url", "http://x", "--plan", "PLAN", "--seconds", 0), "--seconds: 0 is out of range"),
        (("--url", "http://x", "--plan", "PLAN", "--concurrency", -1), "--concurrency: -1 is out of range"),
        (("--url", "http://x", "--plan", "PLAN", "--api", "soap"), "'soap' is not known"),
        (("--url", "ftp://x", "--plan", "PLAN"), "no address of a server"),
        (("--url", "http://127.0.0.1:9", "--plan", "PLAN"), "nothing answers there"),
        (("--url", "http://x", "--plan", "PLAN", "--group", "grop-0"), "did you mean 'group-0'"),
        (("--url", "http://x", "--plan", "nowhere.json"), "nowhere.json: cannot be read"),
        (("--url", "http://x", "--plan", "PLAN", "-o", "/"), "is a folder"),
        (("--result", "nowhere.json", "--plan", "PLAN"), "nowhere.json: cannot be read"),
        (("nowhere",), "plan.json: cannot be read"),
    ],
)
def test_wrong_input(folder, words, message):
    result = run("verify", *(folder / "plan.json" if word == "PLAN" else word for word in words), code=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def row(name: str, number: int, **more) -> RequestRow:
    return RequestRow(
        request_class=name,
        arrival_s=0.4 * number,
        prompt_tokens=200,
        output_tokens=60,
        ttft_s=0.02,
        e2e_s=0.2,
        **more,
    )


def test_a_result_that_is_there_already(folder):
    seen = Measurements(
        source="yesterday",
        environment=Environment(device="cpu"),
        requests=tuple(row(name, number) for name in ("open", "closed") for number in range(12)),
        loads=(
            Load(request_class="open", seconds=5.0),
            Load(request_class="closed", kind="closed", concurrency=3, seconds=5.0),
        ),
    )
    seen.write(folder / "old.json")
    result = run("verify", "--result", folder / "old.json", "--plan", folder / "plan.json", "--json")
    opened, closed = json.loads(result.stdout)["classes"]
    assert opened["measured"]["ttft_s"]["p50"] == 0.02
    assert 0 < opened["predicted"]["e2e_s"]["p50"] < closed["predicted"]["e2e_s"]["p99"]
    assert opened["limits"]["ttft"] == "p90 1 s"
    assert "yesterday" in run("verify", "--result", folder / "old.json", "--plan", folder / "plan.json").stdout


def test_vllm_bench_as_a_result(folder):
    bench = {
        "completed": 2,
        "request_throughput": 1.0,
        "request_rate": 1.0,
        "input_lens": [200, 200],
        "output_lens": [3, 3],
        "ttfts": [0.1, 0.1],
        "itls": [[0.01, 0.01]] * 2,
        "start_times": [5.0, 6.0],
        "duration": 2.0,
    }
    (folder / "bench.json").write_text(json.dumps(bench))
    result = run("verify", "--result", folder / "bench.json", "--plan", folder / "plan.json", "--json")
    assert json.loads(result.stdout)["classes"][0]["measured"]["tpot_s"]["p50"] == pytest.approx(0.01)


def test_one_replica_gets_its_share(plan):
    group = plan.groups[0].model_copy(update={"replicas": 4, "placement": plan.groups[0].placement * 4})
    four = plan.model_copy(update={"groups": (group,)})
    count = 4000
    session = np.repeat(np.arange(count // 4), 4)
    whole = Workload(
        ("conversation",), np.zeros(count, np.int64), np.arange(float(count)), np.full(count, 9), np.full(count, 9),
        session=session,
    )  # fmt: skip
    single, part = one_replica(four, whole, "group-0", 0)
    assert single.groups[0].replicas == 1
    assert len(single.groups[0].placement) == 1
    assert 0.2 < len(part) / count < 0.3
    assert all(count == 4 for count in np.unique(part.session, return_counts=True)[1])  # sessions stay whole
    assert alone(four, "group-0") == single


def test_turns_and_prefixes_are_handed_on(plan):
    workload = Workload(
        ("a",), np.zeros(2, np.int64), np.array([1.0, 2.0]), np.array([9, 20]), np.array([5, 5]), 10.0,
        after=np.array([-1, 0]), gap_s=np.array([0.0, 3.0]),
    )  # fmt: skip
    first, second = open_load(workload).requests
    assert (first.due_s, first.after, second.due_s, second.after, second.gap_s) == (1.0, None, 2.0, 0, 3.0)


def test_a_plan_of_several_models_wants_to_know_which(plan):
    other = plan.groups[0].model_copy(update={"id": "group-1", "model": "second"})
    drawn = planned_workload(plan, QUICKSTART.parent, seconds=5)
    two = plan.model_copy(update={"groups": (*plan.groups, other)})
    with pytest.raises(InputError, match="2 models"):
        of_model(two, drawn.spec, drawn.workload, None)
    assert of_model(two, drawn.spec, drawn.workload, "tiny")[0] == "tiny"
    with pytest.raises(InputError, match="no request is for second"):
        of_model(two, drawn.spec, drawn.workload, "second")


def test_calibrate_by_url_writes_a_profile_that_verify_takes(folder, monkeypatch):
    monkeypatch.setattr("planner.estimate.design.THINK_S", 0.0)
    monkeypatch.setattr("planner.estimate.design.MOST_CLIENTS", 4)
    with fake_endpoint(first_s=0.02, token_s=0.0) as fake:
        words = ("calibrate", "--url", fake.base, "--plan", folder / "plan.json", "--minutes", 0.02)
        text = run(*words, "-o", folder / "fit.json", "--measurements", folder / "loops.json").stdout
    assert "per request" in text
    assert "equal loads differ by" in text
    profile = EngineProfile.read(folder / "fit.json")
    assert profile.name == "capstan"
    again = run("calibrate", "--result", folder / "loops.json", "--plan", folder / "plan.json", "-o", folder / "2.json")
    assert "closed loops" in again.stdout
    assert EngineProfile.read(folder / "2.json").request_overhead_s == profile.request_overhead_s


def test_a_profile_of_an_unsteady_machine_is_warned_of():
    def said(repeat: float | None, residual: float) -> list[str]:
        return list(_doubts(SimpleNamespace(repeat_p50=repeat, residual_p50=residual)))

    assert said(0.02, 0.05) == []
    assert said(None, 0.05) == []
    (text,) = said(0.32, 0.18)
    assert "equal loads differ by 32%" in text
    (text,) = said(0.02, 0.3)
    assert "off by 30%" in text
    assert "not set up as the plan says" in text


def test_a_server_that_fails_is_not_calibrated(folder):
    with fake_endpoint(fault="500") as fake:
        words = ("calibrate", "--url", fake.base, "--plan", folder / "plan.json", "--minutes", 0.05)
        result = run(*words, "-o", folder / "none.json", code=2)
    assert "no closed loop" in result.stderr
    assert "gave up" in result.stderr
    assert not (folder / "none.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--url", "http://x"), "--plan: is missing"),
        (("--url", "http://x", "--plan", "PLAN", "--minutes", 0), "--minutes: 0 is out of range"),
        (("--url", "http://x", "--plan", "PLAN", "--group", "g"), "no group 'g'"),
        (("--url", "http://127.0.0.1:9", "--plan", "PLAN"), "nothing answers there"),
    ],
)
def test_wrong_input_of_calibrate(folder, words, message):
    result = run("calibrate", *(folder / "plan.json" if word == "PLAN" else word for word in words), code=2)
    assert message in result.stderr
