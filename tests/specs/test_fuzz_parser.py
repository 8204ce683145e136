"""Whatever the bytes: a spec, or an `InputError` on one line. Nothing else, and soon."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specs.deployment import DeploymentSpec, parse_deployment, resolved
from specs.errors import InputError

SEEDS = [
    (Path(__file__).parents[1] / "data" / "specs" / "whole_reach.yaml").read_text(),
    """{models: {m: {architecture: x, weights: [bf16, fp8]}}, hardware: {pools: [{name: p, device: d, count: 8,
    price: $1/h}]}, traffic: [{name: t, arrivals: {rate: 2/s}, prompt_tokens: {uniform: [1, 2k]}, output_tokens: 9,
    slo: {ttft: 1s, attainment: 99%}}], choices: {m: {replicas: 2, pool: p}}}""",
    """{models: {m: x}, hardware: {pools: [{name: p, device: d, count: 8, price: $1/h}]}, traffic: [{name: t, arrivals:
    1/s, prompt_tokens: 9, output_tokens: 9}], choices: {m: {groups: [{name: a, pool: p, nodes: [0], replicas: 1,
    serves: {t: 40%}, pipeline_stages: [2, 3]}, {role: prefill, replicas: 1, hands_over_to: b}, {name: b, role: decode,
    replicas: 1, tensor_parallel: 2, engine_version: 0.1, memory_fraction: 90%}]}}}""",
]
SNIPPETS = st.sampled_from(
    ["", " ", "\n", ":", "- ", "{", "}", "[", "]", "&a ", "*a", "!!int ", "null", "~", "-1", "0", "1e99", ".nan", "inf",
     "99999999999", "NaN%", "$", "1/s", "5 GB", "auto", "\t", "'", '"', "#", "|", ">", "?", "<<: ", "\u0000", "\ufeff",
     "\u2028", "\u0661", "p90", "tokens", "choices:", "true", "on", "\\x", "{a: {b: {c: 1}}}", "x" * 300]
)  # fmt: skip


def outcome(source: str | bytes) -> DeploymentSpec | None:
    """Parse; anything but a spec or an `InputError` fails the test, and so does taking long."""
    start = time.process_time()
    try:
        spec = parse_deployment(source, "fuzz.yaml").spec
    except InputError as error:
        spec, message = None, str(error)
    else:
        message = ""
    assert time.process_time() - start < 1.0
    assert "\n" not in message
    assert len(message) < 1500
    assert "pydantic" not in message
    return spec


@given(st.binary(max_size=400))
def test_bytes(data):
    assert outcome(data) is None


@given(st.text(max_size=400))
def test_text(text):
    assert outcome(text) is None


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_specs(data):
    text = data.draw(st.sampled_from(SEEDS))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.sampled_from([0, 0, 1, 2, 5, 20, 100])))
        text = text[:start] + data.draw(SNIPPETS) + text[end:]
    spec = outcome(text)
    if spec is not None:  # what was accepted has no NaN, no infinity, and reads back
        assert DeploymentSpec.model_validate(resolved(spec)) == spec


@settings(max_examples=200)
@given(st.data())
def test_mutated_values(data):
    """One value of a valid spec replaced by anything: the structure stays, so this reaches every field."""
    text = data.draw(st.sampled_from(SEEDS))
    cuts = [i for i, char in enumerate(text) if char == ":" and text[i + 1 : i + 2] in (" ", "\n")]
    start = data.draw(st.sampled_from(cuts)) + 2
    end = min(i for i in (text.find(c, start) for c in ",}]\n#") if i > 0)
    value = data.draw(st.one_of(SNIPPETS, st.text(max_size=20), st.floats().map(repr), st.integers().map(str)))
    outcome(text[:start] + value + text[end:])


@pytest.mark.parametrize("cut", range(0, len(SEEDS[1]), 7))
def test_truncated(cut):
    assert outcome(SEEDS[1][:cut]) is None


def test_huge_fields_are_refused_in_bounded_time_and_space():
    for value in (
        "x" * 900_000,
        "9" * 900_000,
        "[" + "1, " * 20_000 + "1]",
        "{" + ", ".join(f"k{i}: 1" for i in range(9000)) + "}",
    ):
        assert outcome(SEEDS[1].replace("prompt_tokens: {uniform: [1, 2k]}", f"prompt_tokens: {value}")) is None
        assert outcome(f"{'y' * 1000}: {value}") is None
