"""Operator latencies: accuracy on rows that no fit saw, physics, refusals, devices without measurements, the lint."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.operators import (
    DeviceModel,
    OperatorTable,
    check_table,
    device_model,
    fit_device_profile,
    fitted_devices,
    lint,
    load_operator_profile,
    predict,
    read_columns,
)
from planner.operators.bound import least_seconds
from planner.operators.cores import Parameter, operator_facts, seen_tiles
from planner.operators.datasheet import fit_datasheet_profile, source_lane
from planner.operators.fingerprint import pack_rows, unpack_rows
from planner.operators.fit import fit_grid, pattern_search
from planner.operators.grid import Axis, Grid
from planner.operators.predict import datasheet_profile
from planner.operators.profile import DATASHEET, FOLDER, load_datasheet_profile
from specs.catalog import device_names, load_device
from specs.errors import InputError

GOLDEN = Path(__file__).parents[1] / "data" / "operators_golden.csv"
# Median error of the golden rows when the profiles were fitted; a change of the model may not make one larger
GOLDEN_MEDIAN = {
    "gemm": 0.036,
    "context_attention": 0.0383,
    "generation_attention": 0.0215,
    "moe": 0.0285,
    "nccl": 0.0181,
    "custom_allreduce": 0.0217,
    "mla_context_module": 0.0096,
    "mla_generation_module": 0.0077,
    "mla_bmm": 0.0143,
    "moe_a2a": 0.087,
}
GROWTH = 0.002  # what rounding on another machine may add


def golden() -> list[dict[str, str]]:
    with GOLDEN.open(encoding="utf-8") as stream:
        return list(csv.DictReader(line for line in stream if not line.startswith("#")))


def golden_errors(changed: dict[str, float] | None = None) -> dict[str, list[float]]:
    """Errors by family; `changed`: factors on parameters of that name, to see that the guard notices."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in golden():
        groups[row["device"], row["family"]].append(row)
    errors: dict[str, list[float]] = defaultdict(list)
    for (device, family), rows in groups.items():
        shapes = [dict(part.split("=", 1) for part in row["shape"].split(";")) for row in rows]
        columns: dict[str, list[object]] = {name: [shape[name] for shape in shapes] for name in shapes[0]}
        columns["latency"] = [row["latency_ms"] for row in rows]
        if "op_name" not in columns:
            columns["op_name"] = [family] * len(rows)
        table = read_columns(columns)
        model = device_model(device)
        seconds, _ = predict(table, with_changed(model, family, changed) if changed else model)
        assert table.family == family
        assert table.seconds is not None
        errors[family] += list(np.abs(seconds / table.seconds - 1.0))
    return errors


def with_changed(model: DeviceModel, family: str, factors: dict[str, float]) -> DeviceModel:
    lanes = {
        name: fit.model_copy(
            update={"parameters": {one: value * factors.get(one, 1.0) for one, value in fit.parameters.items()}}
        )
        for name, fit in model.profile.lanes[family].items()
    }
    profile = model.profile.model_copy(update={"lanes": {**model.profile.lanes, family: lanes}})
    return replace(model, profile=profile)


def grown(errors: dict[str, list[float]]) -> set[str]:
    return {family for family, found in errors.items() if np.median(found) > GOLDEN_MEDIAN[family] + GROWTH}


def test_median_error_of_rows_that_no_fit_saw_does_not_grow() -> None:
    errors = golden_errors()
    assert sum(map(len, errors.values())) >= 320
    assert set(errors) == set(GOLDEN_MEDIAN)
    assert grown(errors) == set()


@pytest.mark.parametrize(
    ("parameter", "families"),
    [
        ("start_s", {"generation_attention", "moe", "custom_allreduce", "mla_generation_module", "mla_bmm"}),
        ("compute_share", {"gemm", "context_attention"}),
        ("link_share", {"nccl"}),
        ("gemm_share", {"mla_context_module"}),
    ],
)
def test_a_parameter_off_by_a_tenth_is_noticed(parameter: str, families: set[str]) -> None:
    assert families <= grown(golden_errors({parameter: 0.9}))


def test_every_profile_is_small_and_says_where_it_comes_from() -> None:
    assert fitted_devices() == ("a100-sxm", "h100-sxm", "h200-sxm", "l40s")
    for device in fitted_devices():
        assert (FOLDER / f"{device}.json").stat().st_size < 200_000
        profile = load_operator_profile(device)
        assert "aiconfigurator-core 0.12.0" in profile.provenance
        assert profile.licence == "Apache-2.0"


def gemm(
    m: list[int], n: int = 8192, k: int = 8192, dtype: str = "bfloat16", **more: list[object]
) -> dict[str, list[object]]:
    count = len(m)
    return {
        "op_name": ["gemm"] * count,
        "gemm_dtype": [dtype] * count,
        "m": list(m),
        "n": [n] * count,
        "k": [k] * count,
        **more,
    }


def test_far_outside_the_tables_a_gemm_stays_near_the_peak_and_never_beats_it() -> None:
    model = device_model("h200")
    seconds, _ = predict(read_columns(gemm([100_000], n=100_000, k=100_000)), model)
    peak = 2 * 100_000.0**3 / 989.4e12
    assert peak < seconds[0] < 2 * peak
    seconds, _ = predict(read_columns(gemm([1], n=262_144, k=65_536)), model)
    read = 2 * 262_144 * 65_536 / 4.8e12
    assert read * 0.99 < seconds[0] < 1.6 * read


def test_key_tiles_of_a_causal_prefill_by_counting() -> None:
    for new, prefix, window in [(128, 0, 0), (512, 0, 0), (1024, 256, 0), (1024, 0, 256), (2048, 512, 1024)]:
        reach = window // 128 + 1 if window else 10**9
        counted = sum(min(prefix // 128 + i + 1, max(reach, 0)) for i in range(new // 128))
        found = seen_tiles(*(np.array([float(v)]) for v in (new, prefix, window)), tile=128.0)
        assert found[0] == pytest.approx(counted)


def test_bound_of_a_gemm_by_hand() -> None:
    facts = load_operator_profile("h200-sxm").facts()
    table = read_columns(gemm([1], n=100_000, k=10_000))
    moved = 2 * (100_000 * 10_000 + 10_000 + 100_000)
    assert least_seconds("gemm", "bfloat16", table.rows, facts)[0] == pytest.approx((moved - 52_428_800) / 4.8e12)


def test_folder_names_and_aliases_are_the_same_device() -> None:
    table = read_columns(gemm([16, 17]))
    own, _ = predict(table, device_model("h100-sxm"))
    for name in ("h100_sxm", "h100", "NVIDIA H100"):
        seconds, notes = predict(table, device_model(name))
        assert (seconds == own).all()
        assert notes == ()


def test_a_device_without_measurements_is_predicted_from_its_datasheet_and_says_so() -> None:
    table = read_columns(gemm([4096]))
    seconds, notes = predict(table, device_model("b200"))
    assert "b200 has no measurements: predicted from its datasheet" in notes[0]
    assert "confidence: datasheet" in notes[1]
    assert "% on h100-sxm" in notes[1]
    assert seconds[0] < predict(table, device_model("h200"))[0][0]  # its peak is higher
    with pytest.raises(InputError, match=r"mi300x.*no relative.*a100-sxm"):
        device_model("mi300x")


def test_every_unmeasured_device_of_nvidia_stays_between_its_peaks_and_four_times_them() -> None:
    table = read_columns(gemm([8192], n=8192, k=8192))
    for name in device_names():
        device = load_device(name)
        if device.vendor != "nvidia":
            continue
        floor = least_seconds("gemm", "bfloat16", table.rows, operator_facts(device))[0]
        assert floor <= predict(table, device_model(name))[0][0] < 4 * floor, name


def test_same_architecture_lends_its_fit_and_the_same_link_its_collectives() -> None:
    l4, note = datasheet_profile("l4")
    assert "under the fit of l40s" in note
    assert l4.lanes["gemm"] == load_operator_profile("l40s").lanes["gemm"]
    h100_pcie, _ = datasheet_profile("h100-pcie")
    assert h100_pcie.lanes["nccl"] == load_datasheet_profile("warp").lanes["nccl"]
    assert h100_pcie.lanes["moe"] == load_operator_profile("h100-sxm").lanes["moe"]


def test_shipped_datasheet_fits_are_small_and_say_what_their_error_was() -> None:
    for generation, devices in {"warp": {"a100-sxm", "l40s"}, "warp_group": {"h100-sxm", "h200-sxm"}}.items():
        profile = load_datasheet_profile(generation)
        assert (DATASHEET / f"{generation}.json").stat().st_size < 200_000
        assert profile.confidence == "datasheet"
        assert set(profile.left_out) == devices
    error = load_datasheet_profile("warp").left_out["a100-sxm"]
    assert all(error[family].p50 < 0.21 for family in ("gemm", "context_attention", "generation_attention", "moe"))


def made_table(device: str, m: tuple[int, ...] = (1, 8, 64, 512, 4096), dtype: str = "bfloat16") -> OperatorTable:
    """A made-up GEMM table of a device: its model's own predictions with 2 % of noise."""
    shapes = [(rows, n, k) for rows in m for n in (1024, 4096, 8192) for k in (1024, 4096, 16384)]
    columns: dict[str, list[object]] = {"op_name": ["gemm"] * len(shapes), "gemm_dtype": [dtype] * len(shapes)}
    for place, name in enumerate("mnk"):
        columns[name] = [shape[place] for shape in shapes]
    table = read_columns(columns)
    seconds, _ = predict(table, device_model(device))
    return replace(table, seconds=seconds * np.exp(np.random.default_rng(4).normal(0, 0.02, len(seconds))))


def test_a_joint_fit_predicts_a_device_that_it_did_not_see() -> None:
    tables = {device: [made_table(device)] for device in ("a100-sxm", "h100-sxm")}
    facts = operator_facts(load_device("l40s"))
    profile = fit_datasheet_profile(tables, facts, "made up", "none")
    assert profile.confidence == "datasheet"
    seen = made_table("l40s")
    seconds, _ = predict(seen, DeviceModel("l40s", profile, facts, 1.0, None))
    assert seen.seconds is not None
    assert np.median(np.abs(seconds / seen.seconds - 1)) < 0.35


def test_a_generation_without_rows_of_a_type_takes_its_own_16_bit_kernel() -> None:
    none = np.ones(1)
    plain = OperatorTable("moe", {"tokens": none}, np.array(["bfloat16"]), none)
    fp8 = OperatorTable("moe", {"tokens": none}, np.array(["fp8"]), none)
    tables = {"a100-sxm": [plain], "h100-sxm": [plain, fp8]}
    assert source_lane("moe", "fp8", tables, operator_facts(load_device("l40s"))) == "bfloat16"
    assert source_lane("moe", "fp8", tables, operator_facts(load_device("b200"))) == "fp8"
    assert source_lane("gemm", "fp8", tables, operator_facts(load_device("l40s"))) == "fp8"


@pytest.mark.parametrize(
    ("device", "clock_hz"),
    [
        ("a100-sxm", 1.41e9),
        ("a30", 1.44e9),
        ("h100-sxm", 1.98e9),
        ("h100-pcie", 1.755e9),
        ("l40s", 2.52e9),
        ("l4", 2.04e9),
        ("rtx-4090", 2.52e9),
        ("mi300x", 2.1e9),
    ],
)
def test_the_clock_follows_from_the_peak_of_the_datasheet(device: str, clock_hz: float) -> None:
    """The makers' boost clocks."""
    assert operator_facts(load_device(device)).clock_hz == pytest.approx(clock_hz, rel=0.005)


def test_element_types_without_tables_rest_on_their_own_peak_and_say_so() -> None:
    large, small = gemm([8192]), gemm([1], n=65536, k=8192)
    for device, slower in (("h100", "bfloat16"), ("a100", "bfloat16")):
        model = device_model(device)
        for columns in (large, small):
            seconds, notes = predict(read_columns({**columns, "gemm_dtype": ["int8"]}), model)
            assert "no table measures gemm int8" in notes[0]
            wide, _ = predict(read_columns({**columns, "gemm_dtype": [slower]}), model)
            assert 0.4 * wide[0] < seconds[0] < 0.9 * wide[0]
    nvfp4 = read_columns({**large, "gemm_dtype": ["nvfp4"]})
    assert predict(nvfp4, device_model("b200"))[0][0] < predict(read_columns(large), device_model("b200"))[0][0]
    with pytest.raises(InputError, match="'nvfp4' is not in"):
        predict(nvfp4, device_model("h200"))


def exchange(latency: list[object]) -> dict[str, list[object]]:
    count = len(latency)
    return {
        "op_name": ["moe_a2a"] * count,
        "comm_backend": ["deepep_ht"] * count,
        "phase": ["dispatch"] * count,
        "ep_size": [8] * count,
        "node_num": [1] * count,
        "hidden_size": [7168] * count,
        "topk": [8] * count,
        "num_experts": [256] * count,
        "num_tokens": [2 ** (10 + row) for row in range(count)],
        "latency": latency,
    }


def test_the_expert_exchange_is_in_microseconds() -> None:
    """Published: 608 us for 2048 tokens, 1457 us for 4096 on an H100."""
    table = read_columns(exchange([445.0, 608.0, 1457.0]))
    assert table.seconds == pytest.approx([445e-6, 608e-6, 1457e-6])
    seconds, notes = predict(table, device_model("h100"))
    assert seconds[1:] == pytest.approx(table.seconds[1:], rel=0.3)
    assert any("microseconds" in note for note in notes)
    with pytest.raises(InputError, match="microseconds above zero"):
        read_columns(exchange([445.0, -1.0]))


def test_a_family_that_was_not_measured_on_a_device_is_predicted_from_its_datasheet() -> None:
    table = read_columns(exchange([445.0, 608.0, 1457.0]))
    seconds, notes = predict(table, device_model("a100"))
    assert "a100-sxm has no measurements of moe_a2a: confidence: datasheet" in notes[0]
    assert seconds[2] > predict(table, device_model("h100"))[0][2]  # its links are slower


def test_the_absorbed_projections_of_latent_attention() -> None:
    columns: dict[str, list[object]] = {
        "op_name": ["mla_gen_pre", "mla_gen_post"],
        "bmm_dtype": ["bfloat16"] * 2,
        "num_tokens": [4096, 16],
        "num_heads": [128, 16],
    }
    seconds, _ = predict(read_columns(columns), device_model("h100"))
    assert seconds == pytest.approx([257.9e-6, 4.6e-6], rel=0.1)  # published
    with pytest.raises(InputError, match="mla_gen_pre"):
        read_columns({**columns, "op_name": ["mla_gen_pre", "mla_gen_prr"]})


def test_check_table_counts_rows_over_all_lanes() -> None:
    table, facts = made_table("h200-sxm"), operator_facts(load_device("h200-sxm"))
    assert table.seconds is not None
    assert check_table(table, facts) == ()
    other = made_table("h200-sxm", dtype="fp8")
    assert other.seconds is not None
    both = OperatorTable(
        "gemm",
        {name: np.concatenate([other.rows[name], table.rows[name]]) for name in table.rows},
        np.concatenate([other.lanes, table.lanes]),
        np.concatenate([other.seconds, table.seconds]),
    )
    assert check_table(both, facts) == ()
    seconds = both.seconds.copy()  # type: ignore[union-attr]
    seconds[50] = 1e-9
    found = check_table(replace(both, seconds=seconds), facts)
    assert [(one.severity, one.rows[0]) for one in found] == [("refuse", 50)]
    assert "bfloat16: " in found[0].text
    copied = np.concatenate([table.seconds, table.seconds])
    assert any(
        "equal those of bfloat16 of this table" in one.text for one in check_table(replace(both, seconds=copied), facts)
    )


def test_check_table_refuses_with_rows_on_devices_without_measurements_too() -> None:
    table, facts = made_table("b200"), operator_facts(load_device("b200"))
    assert table.seconds is not None
    assert [one for one in check_table(table, facts) if one.severity == "refuse"] == []
    for wrong in (table.seconds * 1e3, table.seconds / 1e3, np.full(45, 1e-4)):
        refused_ = [one for one in check_table(replace(table, seconds=wrong), facts) if one.severity == "refuse"]
        assert refused_
        assert all(one.rows for one in refused_)
    copy = check_table(table, facts, {"gb200": replace(table, seconds=table.seconds / 1.3)})
    assert any("gb200's bfloat16 times 1.300" in one.text and one.rows for one in copy)
    with pytest.raises(InputError, match="no latencies"):
        check_table(replace(table, seconds=None), facts)


@pytest.mark.parametrize("factor", [1.0, 1.3, 0.9])
def test_a_copy_of_a_published_table_is_known_by_a_few_of_its_rows(factor: float) -> None:
    fit = load_operator_profile("h100-sxm").lanes["generation_attention"]["fp8/full"]
    names = ["batch", "head_dim", "heads", "keys", "kv_heads", "window"]
    rows, seconds = unpack_rows(fit.sample, names)
    assert len(seconds) == 24
    table = OperatorTable("generation_attention", rows, np.array(["fp8/full"] * 24), seconds * factor)
    found = check_table(table, operator_facts(load_device("b200")))
    assert any("h100-sxm's fp8/full" in one.text and one.severity == "refuse" and one.rows for one in found)
    noisy = seconds * np.exp(np.random.default_rng(5).normal(0, 0.1, 24))
    found = check_table(replace(table, seconds=noisy), operator_facts(load_device("b200")))
    assert not any("h100" in one.text for one in found)


def test_rows_survive_packing() -> None:
    rows = {"b": np.arange(1.0, 101.0), "a": np.full(100, 7.0)}
    again, seconds = unpack_rows(pack_rows(rows, rows["b"] * 1e-6), ["b", "a"])
    assert (again["a"] == 7.0).all()
    assert again["b"][[0, -1]].tolist() == [1.0, 100.0]
    assert seconds == pytest.approx(again["b"] * 1e-6)


def test_a_column_of_shapes_is_no_latency() -> None:
    table = made_table("h200-sxm")
    found = check_table(replace(table, seconds=table.rows["n"] * 1e-8), operator_facts(load_device("h200-sxm")))
    assert any("latency is the column n times 1e-08" in one.text and one.rows for one in found)


def test_one_impossible_row_is_refused_in_a_large_table() -> None:
    table = made_table("h200-sxm", m=tuple(range(1, 200)))
    assert table.seconds is not None
    seconds = table.seconds.copy()
    seconds[700] /= 20
    found = check_table(replace(table, seconds=seconds), operator_facts(load_device("h200-sxm")))
    assert ("refuse", (700,)) in [(one.severity, one.rows) for one in found]


def test_a_profile_fitted_to_a_small_table_follows_it_and_is_the_same_every_time() -> None:
    table = made_table("h200-sxm", m=(1, 2, 4, 8, 16, 64, 256, 512, 1024, 4096))
    slower = replace(table, seconds=table.seconds * 1.3)  # type: ignore[operator]
    profile = fit_device_profile([slower], "h200", "made up", "none")
    assert profile == fit_device_profile([slower], "h200", "made up", "none")
    assert profile.device == "h200-sxm"
    fit = profile.lanes["gemm"]["bfloat16"]
    assert fit.rows == 90
    assert fit.held_out is not None
    assert fit.held_out.p50 < 0.15
    seconds, _ = predict(slower, DeviceModel("h200-sxm", profile, profile.facts(), 1.0, None))
    assert np.median(np.abs(seconds / slower.seconds - 1)) < 0.05  # type: ignore[operator]
    with pytest.raises(InputError, match="two tables of gemm"):
        fit_device_profile([slower, slower], "h200", "made up")
    with pytest.raises(InputError, match=r"peaks allow.*\(rows "):
        fit_device_profile([replace(table, seconds=table.seconds / 1e3)], "h200", "made up")  # type: ignore[operator]
    few = OperatorTable("gemm", {k: v[:5] for k, v in table.rows.items()}, table.lanes[:5], table.seconds[:5])  # type: ignore[index]
    with pytest.raises(InputError, match="too few"):
        fit_device_profile([few], "h200", "made up")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (gemm([1], dtype="fp9"), ["gemm_dtype", "row 1", "'fp8'"]),
        (gemm([4, 0]), ["m: ", "row 2", "at least 1"]),
        (gemm([4, -3]), ["m: ", "row 2"]),
        (gemm([4, float("nan")]), ["m: ", "row 2"]),  # type: ignore[list-item]
        (gemm([4, 5], latency=[1.0, float("nan")]), ["latency", "row 2"]),
        (gemm([4, 5], latency=[1.0, -1.0]), ["latency", "row 2"]),
        (gemm([4], latency_us=[3.0]), ["latency_us", "milliseconds"]),
        ({"op_name": ["gemm"], "gemm_dtype": ["fp8"], "m": [1], "n": [1]}, ["lacks 'k'"]),
        ({"op_name": ["moe_a2a"]}, ["moe_a2a", "lacks 'comm_backend'"]),
        ({"op_name": ["moe_x"]}, ["moe_x", "'moe'"]),
        ({"a": [1]}, ["family cannot be told"]),
        (
            {"op_name": ["all_reduce"], "nccl_dtype": ["half"], "num_gpus": [16], "message_size": [1024]},
            ["num_gpus", "one of 2, 4, 8"],
        ),
    ],
)
def test_bad_tables_are_refused_by_column_and_row(columns: dict[str, list[object]], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        predict(read_columns(columns), device_model("h200"))
    for word in words:
        assert word in str(caught.value)


def test_a_grid_reproduces_a_multilinear_function_and_survives_packing() -> None:
    axes = (Axis("a", (1, 2, 4, 8), smooth=0.0, flat=1e-6), Axis("b", (0, 1), log=False, smooth=0.0, flat=1e-6))
    generator = np.random.default_rng(0)
    rows = {"a": np.exp(generator.uniform(0, np.log(8), 400)), "b": generator.uniform(0, 1, 400)}
    target = 0.3 * np.log2(rows["a"]) - 0.2 * rows["b"]
    grid = fit_grid(Grid(axes, np.zeros((4, 2))), rows, target)
    assert np.abs(grid(rows) - target).max() < 0.02
    again = Grid.unpack(axes, grid.pack())
    assert (again.values == grid.rounded().values).all()
    outside = {"a": np.array([8.0, 1e6]), "b": np.array([1.0, 1.0])}
    assert again(outside)[0] == again(outside)[1]
    with pytest.raises(InputError, match="damaged"):
        Grid.unpack(axes, "%%%")


def test_pattern_search_finds_a_minimum_and_leaves_fixed_parameters() -> None:
    parameters = (Parameter("x", 1.0, 0.01, 100.0), Parameter("fixed", 3.0, 3.0, 3.0))
    found = pattern_search(lambda p: abs(np.log(p[0] / 7.0)), parameters)
    assert found[0] == pytest.approx(7.0, rel=0.02)
    assert found[1] == 3.0


def lint_rows() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A made-up measurement of an H200: its own predictions with 3 % of noise."""
    shapes = [(m, n, k) for m in (1, 8, 64, 512, 4096) for n in (1024, 4096, 8192) for k in (1024, 4096, 16384)]
    columns: dict[str, list[object]] = {"op_name": ["gemm"] * 45, "gemm_dtype": ["bfloat16"] * 45}
    for place, name in enumerate("mnk"):
        columns[name] = [shape[place] for shape in shapes]
    table = read_columns(columns)
    seconds, _ = predict(table, device_model("h200"))
    return dict(table.rows), seconds * np.exp(np.random.default_rng(1).normal(0, 0.03, len(seconds)))


def refused(rows: dict[str, np.ndarray], seconds: np.ndarray, **more: object) -> list[str]:
    profile = load_operator_profile("h200-sxm")
    lane = profile.lane("gemm", "bfloat16")
    found = lint("gemm", "bfloat16", rows, seconds, profile.facts(), lane, **more)  # type: ignore[arg-type]
    return [finding.text for finding in found if finding.severity == "refuse"]


def test_lint_accepts_an_honest_table() -> None:
    assert refused(*lint_rows()) == []


@pytest.mark.parametrize("factor", [1000.0, 0.001, 10.0, 0.1])
def test_lint_refuses_another_unit(factor: float) -> None:
    rows, seconds = lint_rows()
    assert refused(rows, seconds * factor)


def test_lint_refuses_constant_shuffled_and_invalid_columns() -> None:
    rows, seconds = lint_rows()
    assert "constant" in refused(rows, np.full(45, 1e-4))[0]
    assert any("does not follow" in text for text in refused(rows, np.random.default_rng(2).permutation(seconds)))
    seconds[3] = np.nan
    assert refused(rows, seconds) == ["latency must be a positive number"]


def test_lint_refuses_copies_of_another_device_plain_and_scaled() -> None:
    rows, seconds = lint_rows()
    assert "equal those of gb200" in refused(rows, seconds, others={"gb200": (rows, seconds)})[0]
    assert "times 1.300" in refused(rows, seconds * 1.3, others={"gb200": (rows, seconds)})[0]
    noisy = seconds * np.exp(np.random.default_rng(3).normal(0, 0.05, 45))
    assert refused(rows, noisy, others={"gb200": (rows, seconds)}) == []


def test_lint_refuses_message_sizes_in_bytes() -> None:
    profile = load_operator_profile("h100-sxm")
    lane = profile.lane("nccl", "all_reduce/8")
    assert lane is not None
    size = 2.0 ** np.arange(10, 30)
    rows = {"bytes": size, "ranks": np.full(20, 8.0), "kind": np.zeros(20)}
    seconds = lane.seconds(rows, profile.facts())
    assert lint("nccl", lane.name, rows, seconds, profile.facts(), lane) == ()
    doubled = {**rows, "bytes": size * 2}
    found = lint("nccl", lane.name, doubled, seconds, profile.facts(), lane)
    assert any("message_size" in finding.text for finding in found)


def test_a_correction_of_zero_leaves_the_core() -> None:
    profile = load_operator_profile("l40s")
    lane = profile.lane("gemm", "bfloat16")
    assert lane is not None
    rows, facts = read_columns(gemm([16, 1000, 4096])).rows, profile.facts()
    assert lane.seconds(rows, facts, correction=0.0) == pytest.approx(replace(lane, grids=()).seconds(rows, facts))
    assert (lane.seconds(rows, facts) != lane.seconds(rows, facts, correction=0.0)).any()
