"""The declaration: what parses, what it becomes, and what every mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from specs.deployment import (
    DeploymentSpec,
    HistogramLength,
    LognormalLength,
    MeanLength,
    PercentileLimit,
    UniformLength,
    load_deployment,
    parse_deployment,
    refuse_unhonoured,
    resolved,
    unhonoured_statements,
)
from specs.errors import InputError, NotHonouredError

WHOLE_REACH = Path(__file__).parents[1] / "data" / "specs" / "whole_reach.yaml"

BASE = """\
apiVersion: capstan/v1
kind: Deployment
name: base
models:
  chat: {architecture: meta-llama/Llama-3.1-70B}
hardware:
  pools:
    - {name: h100, device: h100-sxm, count: 16, gpus_per_node: 8, price: $2.90/h}
    - {name: l40s, device: l40s, count: 8, gpus_per_node: 4, price: $1.10/h, rent: gpu}
traffic:
  - name: talk
    model: chat
    arrivals: {rate: 5/s}
    prompt_tokens: 100
    output_tokens: 50
    slo: {ttft: {p90: 1s}}
objective: minimise cost
limits: {utilisation: 85%}
choices:
  engine: vllm
"""


def spec_of(text: str) -> DeploymentSpec:
    return parse_deployment(text, "spec.yaml").spec


def with_change(old: str, new: str) -> str:
    assert BASE.count(old) == 1, old
    return BASE.replace(old, new)


def refused(old: str, new: str) -> InputError:
    with pytest.raises(InputError) as caught:
        spec_of(with_change(old, new))
    assert caught.value.file == "spec.yaml"
    assert "\n" not in str(caught.value)
    return caught.value


def test_base_is_valid_and_honoured():
    spec = spec_of(BASE)
    refuse_unhonoured(spec)
    assert spec.traffic[0].slo.percentiles == (PercentileLimit(metric="ttft", percentile=90, limit_s=1),)


def test_the_whole_reach_parses():
    spec = load_deployment(WHOLE_REACH, honour=False)
    h100, h200, l40s = spec.hardware.pools
    assert (h100.usd_per_gpu_hour, h100.rent, h100.nodes) == (2.9, "node", 2)
    assert (h200.rent, h200.power_cap_w) == ("node", 600)
    assert (l40s.spot.discount, l40s.spot.interruptions_per_hour) == (0.6, 0.05)
    assert spec.models["chat"].max_context_tokens == 32768
    assert spec.hardware.network.bandwidth_bytes_per_s == 50e9
    assert spec.hardware.network.latency_s == 5e-6
    assert spec.hardware.host.dram_bytes == 2**40
    assert spec.hardware.carbon_g_per_kwh == 320
    conversation, autocomplete, agents, nightly = spec.traffic
    assert conversation.trace.rate_per_s == 20
    assert (autocomplete.arrivals.process, autocomplete.arrivals.cv) == ("gamma", 4)
    assert autocomplete.prompt_tokens == LognormalLength(mean_tokens=2000, p99_tokens=7000)
    assert autocomplete.output_tokens == MeanLength(mean_tokens=40, max_tokens=256)
    assert autocomplete.slo.joint == {"ttft": 0.3, "e2e": 1.5}
    assert autocomplete.slo.attainment == 0.99
    assert (agents.sessions.turns_mean, agents.sessions.think_time_mean_s) == (6, 8)
    assert agents.prompt_tokens == HistogramLength(file="prod_prompt_hist.csv")
    assert nightly.closed_loop.concurrency == 256
    assert nightly.throughput.at_least_tokens_per_s == 2000
    assert (nightly.window.start_s, nightly.window.end_s) == (3600, 18000)
    assert str(spec.objective) == "minimise cost"
    assert (spec.limits.budget_usd_per_hour, spec.limits.gpus, spec.limits.utilisation) == (80, {"chat": 24}, 0.85)
    assert spec.choices.engine == ("vllm",)
    assert spec.choices.of("chat").tensor_parallel == (2, 4, 8)
    assert spec.choices.of("chat").replicas is None
    assert spec.choices.of("code").tensor_parallel is None


def test_every_statement_of_the_whole_reach_is_honoured():
    assert load_deployment(WHOLE_REACH).models["code"].adapters is not None


def test_every_unhonoured_statement_is_named_with_its_line():
    text = with_change("arrivals: {rate: 5/s}", "closed_loop: {concurrency: 4}")
    text = text.replace("hardware:\n", "hardware:\n  host: {nvme: 6GB/s}\n", 1)
    loaded = parse_deployment(text, "spec.yaml")
    with pytest.raises(NotHonouredError) as caught:
        loaded.refuse_unhonoured()
    lines, named = text.splitlines(), {}
    for row in str(caught.value).splitlines()[1:]:
        line, path = row.strip().removeprefix("line ").split(": ")[:2]
        named[path] = lines[int(line) - 1]
    assert set(named) == {"hardware.host.nvme", "traffic[0].closed_loop"}
    assert "nvme:" in named["hardware.host.nvme"]
    assert "closed_loop:" in named["traffic[0].closed_loop"]


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("arrivals: {rate: 5/s}", "closed_loop: {concurrency: 4}", "traffic[0].closed_loop"),
        ("objective: minimise cost", "objective: minimise cost\nschedule: {slot: 1h}", "schedule"),
    ],
)  # fmt: skip
def test_unhonoured_one_by_one(old, new, path):
    loaded = parse_deployment(with_change(old, new), "spec.yaml")
    assert [statement for statement, _ in unhonoured_statements(loaded.spec)] == [path]
    with pytest.raises(NotHonouredError) as caught:
        loaded.refuse_unhonoured()
    assert caught.value.line == loaded.lines[path]


@pytest.mark.parametrize(
    "choice",
    [
        "disaggregation: never",
        "disaggregation: auto",
        "disaggregation: always",
        "engine: sglang",
        "engine: auto",
        "engine: [vllm, sglang]",
    ],
)
def test_honoured_choices(choice):
    refuse_unhonoured(spec_of(with_change("engine: vllm", choice)))


def test_resolved_reads_back_as_the_same_spec():
    for spec in (spec_of(BASE), load_deployment(WHOLE_REACH, honour=False)):
        document = resolved(spec)
        assert DeploymentSpec.model_validate(document) == spec
        assert DeploymentSpec.model_validate_json(spec.to_json()) == spec


def test_defaults_are_written_out():
    text = "models: {m: x}\nhardware: {pools: [{name: p, device: d, count: 4}]}\n"
    text += "traffic: [{name: t, arrivals: 2/s, prompt_tokens: 9, output_tokens: 9}]\n"
    document = resolved(spec_of(text))
    assert document["name"] == "spec"  # the file's
    assert document["objective"] == {"sense": "minimise", "quantity": "gpus"}  # nothing is priced
    assert document["traffic"][0]["model"] == "m"
    assert document["traffic"][0]["arrivals"] == {
        "rate_per_s": 2.0, "process": "poisson", "cv": 1.0, "diurnal": None,
    }  # fmt: skip
    assert document["hardware"]["pools"][0]["gpus_per_node"] == 4
    assert document["hardware"]["pools"][0]["rent"] == "gpu"
    assert document["models"]["m"]["weights"] == []
    assert document["choices"] == {
        "engine": ["vllm"], "disaggregation": "auto", "router": "least_outstanding", "models": {},
    }  # fmt: skip
    priced = spec_of(text.replace("count: 4", "count: 4, price: $1/h"))
    assert str(priced.objective) == "minimise cost"
    assert priced.hardware.pools[0].rent == "node"


def test_lengths():
    def prompt(written: str) -> object:
        return spec_of(with_change("prompt_tokens: 100", f"prompt_tokens: {written}")).traffic[0].prompt_tokens

    assert prompt("2k").tokens == 2000
    assert prompt("{uniform: [100, 1Ki]}") == UniformLength(low_tokens=100, high_tokens=1024)
    assert prompt("{mean: 100}") == MeanLength(mean_tokens=100)
    assert prompt("{histogram: a.csv}") == HistogramLength(file="a.csv", source="csv")


def test_inline_architecture_keeps_its_values():
    text = with_change("architecture: meta-llama/Llama-3.1-70B", "architecture: {model_type: llama, n: 8, eps: 1e-5}")
    assert spec_of(text).models["chat"].architecture == {"model_type": "llama", "n": 8, "eps": 1e-5}


def test_names_that_yaml_1_1_would_read_as_booleans_and_numbers():
    text = BASE.replace("talk", "on").replace("h100,", "1e3,")
    assert spec_of(text).traffic[0].name == "on"
    assert spec_of(text).hardware.pools[0].name == "1e3"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("gpus_per_node: 8", "gpu_per_node: 8", 8, "hardware.pools[0].gpu_per_node",
         "did you mean 'gpus_per_node'"),
        ("models:", "modells:", 4, "modells", "did you mean 'models'"),
        ("objective: minimise cost", "goal: x", 17, "goal", "expected one of apiVersion, kind, name, models"),
        ("capstan/v1", "capstan/v9", 1, "apiVersion", "expected one of capstan/v1"),
        ("kind: Deployment", "kind: Deploy", 2, "kind", "did you mean 'Deployment'"),
        ("name: base", "name: 'a/b'", 3, "name", "not a usable name"),
        ("model: chat", "model: chatt", 12, "traffic[0].model", "expected one of chat; did you mean 'chat'"),
        ("name: l40s", "name: h100", 9, "hardware.pools[1].name", "'h100' stands twice"),
        ("count: 16", "count: 0", 8, "hardware.pools[0].count", "too small"),
        ("count: 16", "count: -1", 8, "hardware.pools[0].count", "too small"),
        ("count: 16", "count: 1.5", 8, "hardware.pools[0].count", "not a whole number"),
        ("count: 16", "count: 99999999", 8, "hardware.pools[0].count", "absurdly large"),
        ("count: 16", f"count: {'9' * 5000}", 8, "hardware.pools[0].count", "absurdly large"),
        ("count: 16", "count: 20", 8, "hardware.pools[0].count", "a multiple of 8 such as 24, or rent: gpu"),
        ("count: 16, ", "", 8, "hardware.pools[0]", "'count' is missing"),
        ("gpus_per_node: 8", "gpus_per_node: 0", 8, "hardware.pools[0].gpus_per_node", "too small"),
        ("price: $2.90/h", "price: 2.90", 8, "hardware.pools[0].price", "has no unit; expected a price"),
        (", price: $1.10/h", "", 9, "hardware.pools[1]", "pool 'l40s' has no price, and objective: minimise cost"),
        ("rent: gpu", "rent: gpus", 9, "hardware.pools[1].rent", "did you mean 'gpu'"),
        ("rate: 5/s", "rate: 5", 13, "traffic[0].arrivals.rate", "has no unit"),
        ("rate: 5/s", "rate: .nan", 13, "traffic[0].arrivals.rate", "not a finite number"),
        ("rate: 5/s", "rate: 5/s, cv: 2", 13, "traffic[0].arrivals.cv", "expected process: gamma"),
        ("rate: 5/s", "rate: 5/s, process: gamma", 13, "traffic[0].arrivals", "needs cv"),
        ("arrivals: {rate: 5/s}", "window: 01:00-05:00", 11, "traffic[0]", "expected one of trace, arrivals"),
        ("arrivals: {rate: 5/s}", "arrivals: 5/s\n    closed_loop: {concurrency: 2}", 14, "traffic[0].closed_loop",
         "both arrivals and closed_loop"),
        ("arrivals: {rate: 5/s}", "trace: {file: a.csv}", 14, "traffic[0].prompt_tokens", "already holds the lengths"),
        ("arrivals: {rate: 5/s}", "trace: {file: a.csv, format: sharegpt}", 13, "traffic[0].trace", "needs a rate"),
        ("    output_tokens: 50\n", "", 11, "traffic[0]", "'output_tokens' is missing"),
        ("prompt_tokens: 100", "prompt_tokens: -5", 14, "traffic[0].prompt_tokens", "is negative"),
        ("prompt_tokens: 100", "prompt_tokens: 0", 14, "traffic[0].prompt_tokens", "more than 0"),
        ("prompt_tokens: 100", "prompt_tokens: 4KB", 14, "traffic[0].prompt_tokens", "an amount of memory"),
        ("prompt_tokens: 100", "prompt_tokens: {men: 5}", 14, "traffic[0].prompt_tokens", "did you mean 'mean'"),
        ("prompt_tokens: 100", "prompt_tokens: {mean: 5, max: 4}", 14, "traffic[0].prompt_tokens.max", "is below"),
        ("prompt_tokens: 100", "prompt_tokens: {uniform: [9, 5]}", 14, "traffic[0].prompt_tokens.uniform", "no range"),
        ("prompt_tokens: 100", "prompt_tokens: {lognormal: {mean: 5, p99: 5}}", 14,
         "traffic[0].prompt_tokens.lognormal.p99", "no lognormal distribution"),
        ("prompt_tokens: 100", "prompt_tokens: {mean: 5, uniform: [1, 2]}", 14, "traffic[0].prompt_tokens",
         "two distributions"),
        ("{p90: 1s}}", "{p90: 1s}, tpot: 50ms}", 16, "traffic[0].slo", "mixes the joint limit of tpot with percentile"),
        ("{p90: 1s}}", "{p90: 1s}, attainment: 99%}", 16, "traffic[0].slo.attainment", "without joint limits"),
        ("ttft: {p90: 1s}", "ttft: 1s", 16, "traffic[0].slo", "expected attainment: 99%"),
        ("ttft: {p90: 1s}", "attainment: 99%", 16, "traffic[0].slo", "states no latency limit"),
        ("ttft: {p90: 1s}", "tftt: {p90: 1s}", 16, "traffic[0].slo.tftt", "did you mean 'ttft'"),
        ("p90: 1s", "mean: 1s", 16, "traffic[0].slo.ttft.mean", "not a percentile"),
        ("p90: 1s", "p0: 1s", 16, "traffic[0].slo.ttft.p0", "not a percentile"),
        ("p90: 1s", "p101: 1s", 16, "traffic[0].slo.ttft.p101", "not a percentile"),
        ("p90: 1s", "p99.9: 0s", 16, "traffic[0].slo.ttft.p99.9", "more than 0"),
        ("p90: 1s", "p90: 1s, p90.0: 2s", 16, "traffic[0].slo.ttft.p90.0", "stands twice"),
        ("p90: 1s", "p90: 1GB", 16, "traffic[0].slo.ttft.p90", "an amount of memory, not a duration"),
        ("minimise cost", "minimise costs", 17, "objective", "did you mean 'minimise cost'"),
        ("minimise cost", "maximise cost", 17, "objective", "unknown objective"),
        ("85%", "85", 18, "limits.utilisation", "did you mean '85%'"),
        ("85%", "0%", 18, "limits.utilisation", "more than 0"),
        ("{utilisation: 85%}", "{gpus: {code: 4}}", 18, "limits.gpus.code", "expected one of chat"),
        ("limits: {utilisation: 85%}", "limits:", 18, "limits", "is empty"),
        ("limits: {utilisation: 85%}", "limits: [1]", 18, "limits", "is a list"),
        ("engine: vllm", "engine: vlm", 20, "choices.engine", "did you mean 'vllm'"),
        ("engine: vllm", "engin: vllm", 20, "choices.engin", "did you mean 'engine'"),
        ("engine: vllm", "chatt: {replicas: 2}", 20, "choices.chatt", "names no model"),
        ("engine: vllm", "chat: {tensor_parallel: [2, 2]}", 20, "choices.chat.tensor_parallel", "stands twice"),
        ("engine: vllm", "chat: {tensor_parallel: []}", 20, "choices.chat.tensor_parallel", "empty list"),
        ("engine: vllm", "chat: {pool: h10}", 20, "choices.chat.pool", "did you mean 'h100'"),
        ("engine: vllm", "chat: {stages_over: [h100, l4]}", 20, "choices.chat.stages_over", "did you mean 'l40s'"),
        ("engine: vllm", "chat: {stages_over: [h100]}", 20, "choices.chat.stages_over", "two or more different pools"),
        ("engine: vllm", "chat: {stages_over: [h100, h100]}", 20, "choices.chat.stages_over", "different pools"),
        ("engine: vllm", "chat: {stages_over: h100}", 20, "choices.chat.stages_over", "is not a list"),
        ("engine: vllm", "engine: sglang\n  chat: {stages_over: [h100, l40s]}", 21, "choices.chat.stages_over",
         "sglang cannot run the stages of one replica on unlike machines; expected engine: vllm"),
        ("engine: vllm", "chat: {stages_over: [h100, l40s], pipeline_parallel: 1}", 20, "choices.chat.stages_over",
         "pipeline_parallel allows none"),
        ("engine: vllm", "disaggregation: always\n  chat: {stages_over: [h100, l40s]}", 21, "choices.chat.stages_over",
         "do both phases"),
        ("  chat: {architecture", "  engine: {architecture", 5, "models.engine", "cannot be called 'engine'"),
        ("  chat: {architecture: meta", "  other: x\n  chat: {architecture: meta", 5, "models.other", "has no traffic"),
        ("  chat: {architecture: meta-llama/Llama-3.1-70B}", "  chat: {weights: fp7, architecture: x}", 5,
         "models.chat.weights", "expected one of fp32"),
        ("  chat: {architecture: meta-llama/Llama-3.1-70B}", "  chat: {}", 5, "models.chat", "is empty"),
    ],
)  # fmt: skip
def test_mistakes(old, new, line, field, says):
    error = refused(old, new)
    assert says in str(error)
    assert (error.line, error.field) == (line, field)


@pytest.mark.parametrize(
    ("old", "new"),
    [("minimise cost", "minimise energy"), ("utilisation: 85%", "survive_node_failures: 1")],
)
def test_what_is_not_planned_for_replicas_over_several_pools(old, new):
    text = with_change("engine: vllm", "chat: {stages_over: [h100, l40s]}")
    assert spec_of(text).choices.of("chat").stages_over == ("h100", "l40s")
    with pytest.raises(InputError, match="is not planned") as caught:
        spec_of(text.replace(old, new))
    assert caught.value.field == "choices.chat.stages_over"


def test_two_classes_of_one_name():
    second = BASE[BASE.index("  - name: talk") : BASE.index("objective")]
    error = refused("objective: minimise cost", second + "objective: minimise cost")
    assert (error.field, error.line) == ("traffic[1].name", 17)


def test_a_budget_needs_prices():
    text = BASE.replace(", price: $1.10/h", "").replace("minimise cost", "minimise gpus")
    spec_of(text)
    with pytest.raises(InputError, match=r"pool 'l40s' has no price, and limits\.budget"):
        spec_of(text.replace("{utilisation: 85%}", "{budget: $80/h}"))


@pytest.mark.parametrize("part", ["models", "hardware", "traffic"])
def test_missing_parts(part):
    lines, kept, skip = BASE.splitlines(), [], False
    for line in lines:
        if not line.startswith(" "):
            skip = line.startswith(part)
        if not skip:
            kept.append(line)
    with pytest.raises(InputError, match=f"'{part}' is missing"):
        spec_of("\n".join(kept))


def test_importing_specs_loads_no_other_room_and_no_heavy_library():
    import subprocess
    import sys

    code = "import specs, specs.deployment, sys; print(sorted(m for m in sys.modules if m.split('.')[0] in "
    code += "('torch', 'numpy', 'pyarrow', 'networkx', 'pulp', 'planner', 'codegen', 'capstan')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
