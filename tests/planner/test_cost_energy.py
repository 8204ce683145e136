"""Energy: laws of a step's joules, worked numbers, power caps, grams of CO2, and the fit behind the shares."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_fixture import chat_plan, device

from benchmarks.fit_energy import DEVICE, MODELS, Served, errors, fit, main, read_rows
from planner.cost.energy import (
    active_w,
    bounded_joules,
    capped_seconds,
    dynamic_joules,
    grams_co2,
    grams_co2_per_million_tokens,
    idle_joules,
    mean_power_w,
    step_joules,
)
from specs.catalog import device_names, load_device, load_power
from specs.document import DType
from specs.errors import InputError
from specs.plan import Plan
from specs.profile import PowerProfile

# 700 W, idle 70 W: a range of 630 W
H100 = device()
POWER = PowerProfile(
    device="h100-sxm",
    confidence="measured",
    provenance="round figures for tests",
    licence="none",
    active_share=0.2,
    compute_share=0.6,
    memory_share=0.5,
)
PEAK, BANDWIDTH = H100.flops[DType.BF16], H100.hbm_bytes_per_s
SHARE = st.floats(0.0, 3.0)
SECONDS = st.floats(1e-6, 100.0)


def joules(compute: float, memory: float, seconds: float, cap: float | None = None) -> float:
    """Of a step that would keep the arithmetic and the memory busy for these shares of its time."""
    return float(
        step_joules(compute * PEAK * seconds, memory * BANDWIDTH * seconds, seconds, H100, POWER, power_cap_w=cap)
    )


def test_a_step_worked_by_hand() -> None:
    # 70 + 630 x (0.2 + 0.6 x 0.25 + 0.5 x 0.5) = 448 W
    assert joules(0.25, 0.5, 0.02) == pytest.approx(448 * 0.02)
    assert active_w(H100, POWER) == pytest.approx(196)
    assert joules(0.0, 0.0, 0.02) == pytest.approx(196 * 0.02)
    assert joules(1.0, 1.0, 0.02) == pytest.approx(700 * 0.02)  # needs 889 W


@given(SHARE, SHARE, SECONDS, st.one_of(st.none(), st.floats(200.0, 900.0)))
def test_joules_lie_between_idle_and_the_limit(
    compute: float, memory: float, seconds: float, cap: float | None
) -> None:
    limit = 700.0 if cap is None else min(700.0, cap)
    found = joules(compute, memory, seconds, cap)
    assert float(idle_joules(seconds, H100)) <= found <= limit * seconds * (1 + 1e-9)


@given(SHARE, SHARE, SHARE)
def test_more_work_never_takes_fewer_joules(compute: float, memory: float, more: float) -> None:
    assert joules(compute + more, memory, 1.0) >= joules(compute, memory, 1.0)
    assert joules(compute, memory + more, 1.0) >= joules(compute, memory, 1.0)


def test_joules_of_operators_add_up_to_those_of_the_step() -> None:
    flops, moved = np.array([3e12, 0.0, 5e11]), np.array([1e9, 4e9, 2e9])
    seconds = np.array([0.009, 0.004, 0.006])
    apart = step_joules(flops, moved, seconds, H100, POWER)
    assert (apart < 700 * seconds).all()
    assert float(apart.sum()) == pytest.approx(float(step_joules(flops.sum(), moved.sum(), seconds.sum(), H100, POWER)))


def test_arithmetic_in_a_type_of_twice_the_peak_costs_half() -> None:
    sixteen = float(dynamic_joules(1e12, 0.0, H100, POWER))
    eight = float(dynamic_joules(1e12, 0.0, H100, POWER, DType.FP8))
    assert eight / sixteen == pytest.approx(PEAK / H100.flops[DType.FP8])
    with pytest.raises(InputError, match="does not compute in fp4"):
        dynamic_joules(1e12, 0.0, H100, POWER, DType.FP4)


def test_a_cap_lengthens_a_step_by_hand() -> None:
    # 448 W need, of which 196 are there anyhow: under 322 W the other 252 become 126, and the step takes twice as long
    dynamic = dynamic_joules(0.25 * PEAK, 0.5 * BANDWIDTH, H100, POWER)
    assert float(capped_seconds(dynamic, 1.0, H100, POWER, 322)) == pytest.approx(2.0)
    assert float(bounded_joules(dynamic, 2.0, H100, POWER, 322)) == pytest.approx(2.0 * 322)


def test_a_step_at_its_own_limit_already_takes_the_time_of_that() -> None:
    # 889 W need, held to 700: 504 of dynamic power in its time; 252 under 448 W: twice as long, not 2.75 times
    dynamic = dynamic_joules(PEAK, BANDWIDTH, H100, POWER)
    assert float(capped_seconds(dynamic, 1.0, H100, POWER, 448)) == pytest.approx(2.0)
    assert float(capped_seconds(dynamic, 1.0, H100, POWER, 700)) == pytest.approx(1.0)


@given(SHARE, SHARE, st.floats(200.0, 900.0), st.floats(0.0, 300.0))
def test_a_lower_cap_is_never_faster(compute: float, memory: float, cap: float, room: float) -> None:
    dynamic = dynamic_joules(compute * PEAK, memory * BANDWIDTH, H100, POWER)
    tight, loose = (float(capped_seconds(dynamic, 1.0, H100, POWER, watts)) for watts in (cap, cap + room))
    assert 1.0 <= loose <= tight * (1 + 1e-12)
    assert float(bounded_joules(dynamic, tight, H100, POWER, cap)) >= joules(compute, memory, 1.0) * (1 - 1e-9)


def test_a_cap_above_the_need_changes_nothing() -> None:
    dynamic = dynamic_joules(0.25 * PEAK, 0.5 * BANDWIDTH, H100, POWER)
    for cap in (None, 448.1, 700.0, 5000.0):
        assert float(capped_seconds(dynamic, 1.0, H100, POWER, cap)) == 1.0


def test_a_cap_that_stops_all_work_is_refused() -> None:
    with pytest.raises(InputError, match=r"196 W before it computes anything; a cap of 150 W stops it") as caught:
        step_joules(1.0, 1.0, 1.0, H100, POWER, power_cap_w=150)
    assert caught.value.field == "power_cap"


def test_mean_power_counts_the_idle_time() -> None:
    assert mean_power_w(0.0, 0.0, 10.0, H100) == 70
    assert mean_power_w(4 * 500.0, 4.0, 10.0, H100) == pytest.approx((2000 + 6 * 70) / 10)
    with pytest.raises(ValueError, match=r"busy for 11.0 s of 10.0 s"):
        mean_power_w(1.0, 11.0, 10.0, H100)


def test_grams_by_hand() -> None:
    assert float(grams_co2(3.6e6, 400)) == pytest.approx(400)  # one kilowatt-hour
    assert float(grams_co2(3.6e6, 400, pue=1.25)) == pytest.approx(500)
    # 5.6 kW at 2,000 tokens/s: 2.8 J per token, 2.8 MJ per million = 0.7778 kWh, at 320 g/kWh
    assert grams_co2_per_million_tokens(5600, 2000, 320) == pytest.approx(248.889, rel=1e-5)
    assert grams_co2_per_million_tokens(5600, 0.0, 320) is None
    with pytest.raises(ValueError, match="below 1"):
        grams_co2(1.0, 400, pue=0.9)


# The catalogue's shares and their fit


@pytest.mark.parametrize("name", device_names())
def test_every_device_has_a_power_profile_with_its_source(name: str) -> None:
    power, facts = load_power(name), load_device(name)
    assert power.device == name
    assert (power.confidence == "measured") == (power.relative_of is None) == (name == DEVICE)
    assert "Mutinifni/splitwise-sim" in power.provenance
    assert power.licence == "MIT"
    assert facts.idle_power_w < active_w(facts, power) < facts.power_w


def test_the_measured_profile_states_an_error_on_rows_it_has_not_seen() -> None:
    held_out = load_power(DEVICE).error_quantiles
    assert set(held_out) == {"decode_p50", "decode_max", "prompt_p50", "prompt_max"}
    assert held_out["decode_max"] < 0.1
    assert held_out["prompt_max"] < 0.2


def measurements(path: Path, power: PowerProfile) -> None:
    """A file in the published form, whose watts follow from `power`; the slow prompts carry nonsense."""
    a100 = load_device(DEVICE)

    def share(model: Served, tokens: float, keys: float, read: float, ranks: int, seconds: float) -> float:
        moved = (model.weights_bytes + model.kv_bytes(read)) / ranks
        spent = step_joules(model.flops(tokens, keys) / ranks, moved, seconds, a100, power)
        return float(spent) / seconds / a100.power_w

    columns = "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time"
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow([*columns.split(","), "e2e_time", "tensor_parallel"])
        for name, model in MODELS.items():
            for ranks in (4, 8):
                for prompt, prompt_s in ((128, 0.05), (256, 0.15), (512, 0.3), (1024, 0.39), (4096, 2.0)):
                    decode = share(model, 1, prompt + 64, prompt + 64, ranks, 0.06)
                    peak = share(model, prompt, prompt / 2, prompt, ranks, prompt_s)
                    if prompt == 4096:
                        decode, peak = 0.18, 0.2
                    row = [peak, decode, prompt_s * 1e3, 60.0, prompt_s * 1e3 + 128 * 60.0, ranks]
                    rows.writerow([name, "a100-80gb", prompt, 1, 128, *row])
                    rows.writerow([name, "h100-80gb-pcap", prompt, 1, 128, 0.5, 0.5, *row[2:]])
            rows.writerow([name, "a100-80gb", 512, 1, 256, "", "", 300.0, 60.0, 15660.0, 8])


def test_the_fit_finds_the_shares_behind_its_data(tmp_path: Path) -> None:
    a100 = load_device(DEVICE)
    wanted = POWER.model_copy(update={"device": DEVICE, "active_share": 0.15, "compute_share": 1.2})
    measurements(tmp_path / "power.csv", wanted)
    rows = read_rows(tmp_path / "power.csv", a100)
    assert sorted({row.kind for row in rows}) == ["decode", "prompt"]
    assert len(rows) == 2 * 2 * (4 + 3)  # four short prompts each, three of them of 0.1 to 0.4 s
    found = fit(rows, a100)
    assert (found.active_share, found.compute_share, found.memory_share) == pytest.approx((0.15, 1.2, 0.5), abs=2e-3)
    assert errors(rows, a100, found).max() < 0.01


OTHER_MODEL = (
    "model,hardware,tensor_parallel,prompt_size,batch_size,token_size,average_power\nopt,a100-80gb,1,1,1,1,0.5\n"
)


@pytest.mark.parametrize("text", ["nothing,of,this\n1,2,3\n", "hardware,average_power\na100-80gb,many\n", OTHER_MODEL])
def test_another_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read as Splitwise's measurements"):
        read_rows(path, load_device(DEVICE))


def test_the_script_stops_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fit_energy", str(tmp_path), "-o", str(tmp_path / "power")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "splitwise_perf_model.csv" in capsys.readouterr().err
    assert not (tmp_path / "power").exists()


# Plans


def test_plans_made_before_energy_was_kept_still_read(tmp_path: Path) -> None:
    document = chat_plan().model_dump(mode="json")
    del document["power"], document["predictions"]["groups"][0]["power_w"]
    for field in [name for name in document["cost"] if name.startswith(("joules", "grams"))]:
        del document["cost"][field]
    plan = Plan.model_validate(document)
    assert plan.cost.joules_per_token is None
    assert plan.cost.grams_co2_per_million_output_tokens is None
    assert plan.power == {}
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
