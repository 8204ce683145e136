"""What tenants get: rates, attainment by the objectives of each request's class, and fairness among those that wait."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_simulate_laws import replica
from test_simulate_objectives import percentile_slo

from planner.simulate import FleetGroup, Workload, fairness, result_summary, simulate_fleet
from planner.simulate.answers.tenants import served_tokens
from specs.plan import Route, Scheduling

ROUTES = (Route(request_class="a", group="g", share=1.0), Route(request_class="b", group="g", share=1.0))


def load_of(rows: list[tuple[float, int, int, int, int]], window_s: float | None = None) -> Workload:
    """Rows of (arrival, prompt, output, class, tenant)."""
    arrival, prompt, output, klass, tenant = (np.array(column) for column in zip(*rows, strict=True))
    return Workload(
        ("a", "b"),
        klass,
        arrival.astype(float),
        prompt,
        output,
        window_s,
        tenants=("north", "south"),
        tenant_index=tenant,
    )


def flat(seats: int = 1) -> FleetGroup:
    return FleetGroup("g", 1, replica(flat_s=1.0, seats=seats, budget=max(seats, 4)))


def test_rows_by_hand() -> None:
    """One seat, steps of 1 s: ends at 2, 3, 5, 6. `a` wants its first token within 1.5 s, `b` the last within 4."""
    load = load_of([(0.0, 2, 2, 0, 0), (0.0, 1, 1, 1, 1), (2.0, 3, 2, 0, 0), (2.5, 1, 1, 1, 0)], window_s=10.0)
    slos = {"a": percentile_slo("ttft", 50, 1.5), "b": percentile_slo("e2e", 50, 3.2)}
    summary = result_summary(simulate_fleet((flat(),), ROUTES, load), load, slos)
    north, south = summary["tenants"]
    assert (north["tenant"], north["requests"], north["rejected"]) == ("north", 3, 0)
    assert north["attainment"]["share"] == pytest.approx(1 / 3)  # the third's first token takes 2 s, the last 3.5 s
    assert north["goodput_per_s"] == pytest.approx(0.1)
    assert north["prompt_tokens_per_s"] == pytest.approx(0.6)
    assert north["output_tokens_per_s"] == pytest.approx(0.5)
    assert (south["attainment"]["share"], south["e2e_s"]["p50"]) == (1.0, 3.0)
    assert south["ttft_interval_s"]["p50"] is None


def test_a_tenant_without_objectives_has_no_attainment() -> None:
    load = load_of([(0.0, 2, 2, 0, 0), (0.0, 1, 1, 1, 1)], window_s=10.0)
    rows = result_summary(simulate_fleet((flat(),), ROUTES, load), load, {"a": percentile_slo("ttft", 50, 9.0)})
    assert "attainment" in rows["tenants"][0]
    assert "attainment" not in rows["tenants"][1]


def test_served_tokens_grow_to_what_was_asked_for() -> None:
    random = np.random.default_rng(3)
    load = load_of(
        [(at, 5, 9, 0, at_tenant) for at, at_tenant in zip(range(40), random.integers(0, 2, 40), strict=True)]
    )
    result = simulate_fleet((flat(seats=4),), ROUTES, load)
    everyone = np.ones(40, dtype=np.bool_)
    prompt, output = served_tokens(result, load, everyone, np.linspace(0.0, result.end_s, 300))
    assert (np.diff(prompt) >= 0).all()
    assert (np.diff(output) >= -1e-9).all()
    assert (prompt[-1], output[-1]) == (200, pytest.approx(360))
    first_s = float(result.ttft_s[0])
    assert served_tokens(result, load, everyone, np.array([first_s - 1e-6, first_s]))[0].tolist() == [0.0, 5.0]


def test_fairness_of_equal_service_is_one_and_a_flood_gets_more() -> None:
    """Both always wait, one seat in turn: equal. Three of four requests from one tenant: three times as much."""
    turns = [(0.0, 1, 1, 0, tenant) for tenant in [0, 1] * 100]
    even = load_of(turns, window_s=150.0)
    found = fairness(simulate_fleet((flat(),), ROUTES, even), even)
    assert found is not None
    assert found.ratio == pytest.approx(1.0, abs=0.05)
    assert found.jain == pytest.approx(1.0, abs=1e-3)
    flood = load_of([(0.0, 1, 1, 0, int(tenant == 0)) for tenant in [0, 1, 2, 3] * 100], window_s=300.0)
    found = fairness(simulate_fleet((flat(),), ROUTES, flood), flood)
    assert found is not None
    assert found.ratio == pytest.approx(3.0, abs=0.1)
    assert found.jain == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)), abs=0.01)


def test_vtc_is_fairer_than_fcfs_to_a_quiet_tenant() -> None:
    """North floods the replica at the start; south sends a request every two seconds, half of what there is."""
    rows = [(0.0, 4, 4, 0, 0)] * 60 + [(8.0 * k, 4, 4, 0, 1) for k in range(30)]
    load = load_of(sorted(rows), window_s=240.0)
    ratios = []
    for order in ("fcfs", "vtc"):
        model = replica(flat_s=1.0, seats=1, budget=4)
        group = FleetGroup("g", 1, replace(model, scheduling=Scheduling(order=order)))
        result = simulate_fleet((group,), ROUTES, load, exact=True)
        south = load.tenant_index == 1
        ratios.append(result.percentile_s("ttft", 50, np.asarray(south)))
    assert ratios[1] < ratios[0] / 2


def test_nobody_is_compared_where_nobody_waits() -> None:
    load = load_of([(10.0 * k, 1, 1, 0, k % 2) for k in range(20)])
    result = simulate_fleet((flat(),), ROUTES, load)
    found = fairness(result, load)
    assert found is not None
    assert (found.tenants, found.ratio, found.jain) == ((), None, None)
    assert fairness(result, replace(load, tenants=(), tenant_index=None)) is None
    assert result_summary(result, replace(load, tenants=(), tenant_index=None))["tenants"] == []
