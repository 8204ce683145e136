"""`traffic:` as it is written: diurnal rates, sessions, shared prefixes, closed loops, tenants; good and bad."""

from __future__ import annotations

import pytest

from specs.deployment import (
    ArrivalSpec,
    ClosedLoopSpec,
    DiurnalSpec,
    SessionSpec,
    SharedPrefixSpec,
    TrafficClass,
    parse_deployment,
    unhonoured_statements,
)
from specs.errors import InputError

BASE = """\
models: {{m: x}}
hardware: {{pools: [{{name: p, device: d, count: 4}}]}}
traffic:
  - name: t
    output_tokens: 9
    prompt_tokens: {prompt}
    slo: {{ttft: {{p90: 1s}}}}
    {statement}
"""


def read(statement: str, prompt: str = "{mean: 100}") -> TrafficClass:
    return parse_deployment(BASE.format(statement=statement, prompt=prompt), "spec.yaml").spec.traffic[0]


def test_a_diurnal_rate() -> None:
    found = read("arrivals: {rate: 2/s, process: diurnal, peak_to_mean: 1.8, period: 12h, peak_at: 3h}")
    swing = DiurnalSpec(peak_to_mean=1.8, period_s=43_200, peak_at_s=10_800)
    assert found.arrivals == ArrivalSpec(rate_per_s=2.0, process="diurnal", cv=1.0, diurnal=swing)
    short = read("arrivals: {rate: 2/s, process: diurnal, peak_to_mean: 1.5, period: 1h}")
    assert short.arrivals is not None
    assert short.arrivals.diurnal == DiurnalSpec(peak_to_mean=1.5, period_s=3600, peak_at_s=1800)


def test_sessions_shared_prefixes_closed_loops_and_tenants() -> None:
    found = read("sessions: {rate: 30/min, turns: {mean: 6}, think_time: {mean: 8s}, growing_context: true}")
    assert found.sessions == SessionSpec(rate_per_s=0.5, turns_mean=6, think_time_mean_s=8, growing_context=True)
    found = read("arrivals: 1/s\n    shared_prefix: {tokens: 1k, groups: 20, skew: 1.1}\n    tenant: team-a")
    assert found.shared_prefix == SharedPrefixSpec(tokens=1000, groups=20, skew=1.1)
    assert found.tenant == "team-a"
    found = read("closed_loop: {concurrency: 64, requests: 100, warmup: 128}")
    assert found.closed_loop == ClosedLoopSpec(concurrency=64, requests=100, warmup=128)


@pytest.mark.parametrize(
    ("statement", "prompt", "field", "message"),
    [
        ("arrivals: {rate: 2/s, process: diurnal}", "9", "arrivals", "needs peak_to_mean"),
        ("arrivals: {rate: 2/s, process: diurnal, peak_to_mean: 2.5}", "9", "arrivals.peak_to_mean", "from 1 to 2"),
        ("arrivals: {rate: 2/s, process: diurnal, peak_to_mean: 1.5, cv: 2}", "9", "arrivals.cv", "has cv 1"),
        ("arrivals: {rate: 2/s, peak_at: 3h}", "9", "arrivals.peak_at", "the same rate all day"),
        ("arrivals: {rate: 2/s, process: gamma, cv: 2, peak_to_mean: 1.2}", "9", "arrivals.peak_to_mean",
         "expected process: diurnal"),
        ("arrivals: {rate: 2/s, process: diurnal, peak_to_mean: 1.5, period: 2h, peak_at: 2h}", "9",
         "arrivals.peak_at", "within a period of 7200 s"),
        ("arrivals: {rate: 2/s, process: diurnal, peak_to_mean: 1.5, period: 0s}", "9", "arrivals.period", "is zero"),
        ("sessions: {rate: 2/s, turns: {mean: 0.9}}", "9", "sessions.turns.mean", "from 1 to"),
        ("sessions: {rate: 2/s}", "9", "sessions", "'turns' is missing"),
        ("arrivals: 2/s\n    shared_prefix: {tokens: 10}", "9", "shared_prefix.tokens", "at most 9"),
        ("arrivals: 2/s\n    shared_prefix: {tokens: 10}", "{uniform: [1, 9]}", "shared_prefix.tokens", "at most 9"),
        ("arrivals: 2/s\n    shared_prefix: {tokens: 10}", "{mean: 5, max: 9}", "shared_prefix.tokens", "at most 9"),
        ("arrivals: 2/s\n    shared_prefix: {tokens: 5, groups: 0}", "9", "shared_prefix.groups", "too small"),
        ("closed_loop: {concurrency: 2}\n    shared_prefix: {tokens: 5}", "9", "shared_prefix", "share nothing"),
        ("closed_loop: {concurrency: 2, requests: 0}", "9", "closed_loop.requests", "too small"),
        ("arrivals: 2/s\n    tenant: a b", "9", "tenant", "not a usable name"),
    ],
)  # fmt: skip
def test_bad_traffic_is_told_where(statement: str, prompt: str, field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(statement, prompt)
    assert caught.value.field == f"traffic[0].{field}"
    assert caught.value.line is not None
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("statement", "planned"),
    [
        ("sessions: {rate: 2/s, turns: {mean: 4}, growing_context: true}", True),
        ("arrivals: {rate: 2/s, process: diurnal, peak_to_mean: 1.5}\n    shared_prefix: {tokens: 5}", True),
        ("arrivals: 2/s\n    tenant: a", True),
        ("arrivals: 2/s\n    priority: high", True),
        ("closed_loop: {concurrency: 2}", False),
        ("closed_loop: {concurrency: 2}\n    throughput: {at_least: 100 tokens/s}", True),
        ("arrivals: 2/s\n    window: 01:00-05:00", True),
    ],
)
def test_what_planning_refuses_a_simulation_may_serve(statement: str, planned: bool) -> None:
    spec = parse_deployment(BASE.format(statement=statement, prompt="9"), "spec.yaml").spec
    assert (unhonoured_statements(spec) == ()) is planned
    assert unhonoured_statements(spec, planning=False) == ()
    silent = spec.model_copy(update={"traffic": (spec.traffic[0].model_copy(update={"slo": None}),)})
    assert (unhonoured_statements(silent) == ()) is planned, "a class without limits is served with best effort"
    assert unhonoured_statements(silent, planning=False) == ()
