"""The screen of `capstan simulate`: each sentence appears where there is something to say, and only there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from capstan.commands.simulate_screen import bars, print_summary
from planner.cost.step_times import FREE
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, result_summary, simulate_fleet
from planner.simulate.result import LinkLoad
from specs.plan import Limits, Route, Scheduling

MODEL = ReplicaModel(
    times=replace(FREE, tokens_s=(1.0,) * 9, sampled_s=(0.0,) * 3),
    limits=Limits(max_num_seqs=2, max_num_batched_tokens=8, max_model_len=100),
    num_blocks=20,
    block_size_tokens=4,
    scheduling=Scheduling(),
)
GROUPS = (FleetGroup("g", 2, MODEL),)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def served(count: int = 40, **changed: Any) -> tuple[FleetResult, Workload]:
    load = Workload(
        ("a",), np.zeros(count, np.int64), np.arange(count) * 0.5, np.full(count, 8), np.full(count, 3), **changed
    )
    return simulate_fleet(GROUPS, (Route(request_class="a", group="g", share=1.0),), load), load


def screen(capsys: pytest.CaptureFixture[str], result: FleetResult, load: Workload, **changed: Any) -> str:
    """What is printed of a run, without line breaks inside sentences."""
    summary = result_summary(result, load, groups=GROUPS)
    summary |= {
        "closed_loop": None,
        "energy": None,
        "notes": [],
        "simulated_requests": len(load),
        "simulated_s": 9.0,
        "cpu_s": 0.1,
        "command_cpu_s": 0.2,
    }
    print_summary(summary | changed, {})
    return " ".join(capsys.readouterr().out.split())


def test_a_plain_run_says_nothing_of_what_did_not_happen(capsys: pytest.CaptureFixture[str]) -> None:
    text = screen(capsys, *served(4))
    for word in ("refused", "prefix cache", "preempted g", "moved", "failures", "sessions", "fairness", "tenants"):
        assert word not in text
    assert "no objectives are declared" in text


def test_what_happened_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    result, load = served(session=np.arange(40) // 4)
    load_g = replace(
        result.groups[0],
        preemptions=7,
        swaps=2,
        moved_tokens=1234,
        hit_tokens=80,
        looked_up_tokens=320,
        lost=3,
    )
    refusal = np.zeros(40, np.int64)
    refusal[:2] = 3
    result = replace(
        result, groups=(load_g,), refusal=refusal, links=(LinkLoad("rdma", result.horizon_s / 2, 9, 4.5e9),)
    )
    text = screen(capsys, result, load, notes=["order vtc is first come"])
    assert "g: 25.0% of prompt tokens found, 80 in all" in text
    assert "g: 5 times by recompute, 2 times by swap" in text
    assert "g: 1,234 tokens between device and host" in text
    assert "g: 3 requests lost and served anew" in text
    assert "refused 2 queue full" in text
    assert "rdma: 9 transfers, 4.5 GB in all, busy 50.0%" in text
    assert "sessions 10 of 4.0 turns" in text
    assert "note order vtc is first come" in text


def test_tenants_have_a_table_where_they_are_not_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    result, load = served(tenants=("north", "south"), tenant_index=np.arange(40) % 2)
    text = screen(capsys, result, load)
    assert "tenants tenant requests" in text
    assert "was served 1." in text
    assert "Jain's index" in text
    alike = replace(load, tenants=("a",), tenant_index=np.zeros(40, np.int64))
    assert "tenants tenant" not in screen(capsys, result, alike)


def test_energy_names_what_is_borrowed(capsys: pytest.CaptureFixture[str]) -> None:
    energy = {
        "power_w": 1500.0,
        "joules": 7.2e6,
        "joules_per_output_token": 0.5,
        "grams_co2": 800.0,
        "groups": [{"group": "g", "power_w": 1500.0}],
        "notes": ["devices only", "h200: shares of its power range are borrowed from a100"],
    }
    text = screen(capsys, *served(4), energy=energy)
    assert "1.50 kW (predicted, devices only), 2.00 kWh; 0.5 J per output token; 800 g CO2" in text
    assert "borrowed from a100" in text


def test_small_figures_keep_their_digits(capsys: pytest.CaptureFixture[str]) -> None:
    energy = {"power_w": 63.2, "joules": 36_000.0, "joules_per_output_token": None, "grams_co2": None}
    text = screen(capsys, *served(4), energy=energy | {"groups": [], "notes": []})
    assert "63.2 W (predicted, devices only), 10 Wh" in text


def test_an_interval_of_nothing_is_not_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    result, load = served(400)
    equal = replace(result, ttft_s=np.full(400, 0.25) + 1e-17 * np.arange(400))
    text = screen(capsys, equal, load)
    assert "± <0.1%" in text
    assert "e-" not in text


def test_bars_show_the_largest_of_each_piece() -> None:
    assert bars([0, 0, 7, 0, 1, 14], width=3) == "▁▅█"
    assert bars([0, 0]) == "▁▁"
