"""`capstan calibrate`: tables of a made-up device go in, its latencies come out; what is no measurement is refused."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from made_gpu import MadeTimer, kernel_s, made_columns, made_gpu, naming_its_point
from typer.testing import CliRunner

from capstan.cli import app
from capstan.commands.calibrate import run_calibrate
from capstan.commands.estimate import run_estimate
from planner.cost.calibration import operators_of, read_profile
from runtime.calibrate_gpu_points import Point
from specs.catalog import load_device
from specs.document import DType
from specs.errors import InputError
from specs.measurements import Measurements

DEVICE = "l4"  # no fit of its own: what is predicted comes from the tables
Columns = dict[str, list[object]]


def write(path: Path, columns: Columns) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


@pytest.fixture(scope="module")
def columns() -> dict[str, Columns]:
    """Tables of `DEVICE`, by family, about a thousand rows with 2 % of noise."""
    return made_columns(DEVICE, (DType.BF16, DType.FP8), noise=0.02)


@pytest.fixture(scope="module")
def folder(columns, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("tables")
    (made / "attention").mkdir()
    for family, table in columns.items():
        write(made / ("attention" if "attention" in family else ".") / f"{family}_perf.csv", table)
    return made


@pytest.fixture(scope="module")
def profile(folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "l4.json"
    run_calibrate(path, device=DEVICE, tables_from=[folder])
    return path


def test_the_device_of_the_tables_is_found_again(profile, tmp_path, capsys):
    """A second measurement of the same device, other noise: the catalogue is far off, the fit is not."""
    again = made_columns(DEVICE, (DType.BF16, DType.FP8), noise=0.02, seed=1)
    for family, table in again.items():
        path = write(tmp_path / f"{family}.csv", table)
        run_estimate(path, None, tmp_path / "out.csv", True, profile)
        document = json.loads(capsys.readouterr().out)
        assert (document["device"], document["family"], document["notes"]) == (DEVICE, family, [])
        assert document["error_p50"] < 0.04
        run_estimate(path, DEVICE, tmp_path / "out.csv", True)
        assert json.loads(capsys.readouterr().out)["error_p50"] > 0.08


def test_the_file_says_where_it_comes_from_and_what_it_is_worth(profile):
    read = read_profile(profile)
    assert (read.device, read.confidence, read.relative_of) == (DEVICE, "calibrated", None)
    assert "L2 warm" in read.provenance
    assert "(borrowed)" in read.provenance  # what no table shows
    operators = operators_of(read)
    assert set(operators.lanes) == {"gemm", "generation_attention", "context_attention"}
    for lanes in operators.lanes.values():
        for lane in lanes.values():
            assert lane.held_out.rows > 10
            assert lane.held_out.p50 < 0.06


def test_a_family_without_rows_is_the_catalogues_and_that_is_said(profile, tmp_path, capsys):
    path = write(
        tmp_path / "nccl.csv",
        {"op_name": ["all_reduce"], "nccl_dtype": ["half"], "num_gpus": [2], "message_size": [4096]},
    )
    run_estimate(path, None, tmp_path / "out.csv", False, profile)
    assert "holds no nccl rows: these are the catalogue's" in capsys.readouterr().err


def spec(tmp_path: Path, device: str = DEVICE) -> Path:
    path = tmp_path / "spec.yaml"
    pool = {"name": "pool", "device": device, "count": 4}
    traffic = {"name": "all", "arrivals": "0.5/s", "prompt_tokens": 500, "output_tokens": 50,
               "slo": {"ttft": {"p90": "10s"}}}  # fmt: skip
    path.write_text(
        yaml.safe_dump(
            {"models": {"m": {"architecture": "Qwen/Qwen3-1.7B"}}, "hardware": {"pools": [pool]}, "traffic": [traffic]}
        )
    )
    return path


def test_a_plan_is_made_with_the_profile_and_carries_it(profile, tmp_path):
    done = CliRunner().invoke(
        app, ["plan", str(spec(tmp_path)), "--profile", str(profile), "-o", str(tmp_path / "plan.json")]
    )
    assert done.exit_code == 0, done.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["predictions"]["confidence"] == "calibrated"
    assert plan["profiles"][DEVICE] == json.loads(profile.read_text())


def test_steps_of_a_plan_take_products_as_they_were_measured_cold(tmp_path, capsys):
    """Tables of a device without an L2: a step, whose weights are cold, takes what they say and no more."""
    from planner.cost.latency import latency_of

    table = made_columns(DEVICE, (DType.BF16,), noise=0.02, l2=False)["gemm"]
    run_calibrate(tmp_path / "cold.json", device=DEVICE, tables_from=[write(tmp_path / "gemm.csv", table)])
    latency = latency_of(load_device(DEVICE), read_profile(tmp_path / "cold.json"))
    for n, k in ((1024, 1024), (4096, 4096), (8192, 28672)):
        for tokens in (1, 32, 1024):
            point = Point("gemm", DType.BF16, {"m": tokens, "n": n, "k": k})
            found = float(latency.gemm(np.array([float(tokens)]), k, n, DType.BF16)[0])
            assert found == pytest.approx(kernel_s(point, DEVICE, l2=False), rel=0.1)


def test_a_profile_of_another_device_is_refused(profile, tmp_path):
    done = CliRunner().invoke(app, ["plan", str(spec(tmp_path, "l40s")), "--profile", str(profile)])
    assert done.exit_code == 2
    assert "is a profile of l4, which no pool holds; expected one of l40s" in done.stderr
    path = write(tmp_path / "table.csv", {"gemm_dtype": ["fp8"], "m": [1], "n": [1], "k": [1]})
    with pytest.raises(InputError, match="is a profile of l4; expected l40s"):
        run_estimate(path, "l40s", tmp_path / "out.csv", False, profile)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "l40s"}, ["operators.device", "'l4'"]),
        ({"operators": {"device": DEVICE}}, ["operators.provenance"]),
        ({"operators": {"device": DEVICE, "provenance": "", "licence": "", "lanes": {"gem": {}}}}, ["'gemm'"]),
        ({"kind": "Plan"}, ["kind 'Plan'", "'Profile'"]),
    ],
)  # fmt: skip
def test_an_edited_profile_is_refused_by_field(profile, tmp_path, change, words):
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(json.loads(profile.read_text()) | change))
    with pytest.raises(InputError) as caught:
        read_profile(path)
    for word in ["edited.json", *words]:
        assert word in str(caught.value)


def changed(table: Columns, **columns: object) -> Columns:
    """`table` with whole columns replaced (None: dropped), or single rows as {row: value}."""
    result = {name: list(values) for name, values in table.items()}
    for name, value in columns.items():
        if value is None:
            del result[name]
        elif isinstance(value, dict):
            for row, cell in value.items():
                result[name][row] = cell
        else:
            result[name] = value
    return result


def latency(table: Columns) -> np.ndarray:
    return np.array(table["latency"], float)


def scaled(table: Columns, factor: float) -> Columns:
    return changed(table, latency=(latency(table) * factor).tolist())


def copied(table: Columns) -> Columns:
    """fp8 rows with the latencies of the bf16 rows of the same shapes."""
    keys = list(zip(*(table[name] for name in "mnk"), strict=True))
    types, times = table["gemm_dtype"], table["latency"]
    wide = {key: time for key, name, time in zip(keys, types, times, strict=True) if name == "bfloat16"}
    copies = [1.1 * wide[key] if name == "fp8" else time for key, name, time in zip(keys, types, times, strict=True)]
    return changed(table, latency=copies)


REFUSED = [
    ("nan", lambda t: changed(t, latency={4: "nan"}), ["latency", "row 5", "gemm.csv:6"]),
    ("zero", lambda t: changed(t, latency={4: 0}), ["latency", "row 5"]),
    ("negative", lambda t: changed(t, latency={4: -0.1}), ["latency", "row 5"]),
    ("a text", lambda t: changed(t, m={2: "many"}), ["m: row 3", "not a number"]),
    ("no column", lambda t: changed(t, k=None), ["lacks 'k'"]),
    ("no latency", lambda t: changed(t, latency=None), ["holds no measurements", "milliseconds"]),
    ("another unit, said", lambda t: changed(t, latency=None, latency_us=t["latency"]), ["latency_us", "milliseconds"]),
    ("seconds", lambda t: scaled(t, 1e-3), ["latency", "peaks allow", "rows "]),
    ("microseconds", lambda t: scaled(t, 1e3), ["latency", "times what l4 takes", "rows "]),
    ("constant", lambda t: changed(t, latency=[0.5] * len(t["m"])), ["latency is constant", "rows "]),
    ("shuffled", lambda t: changed(t, latency=latency(t)[::-1].tolist()), ["latency", "rows "]),
    ("copied", copied, ["gemm fp8", "are those of", "bfloat16", "rows "]),
    ("unknown type", lambda t: changed(t, gemm_dtype={7: "fp7"}), ["gemm_dtype", "row 8", "'fp7'", "mean 'fp8'"]),
    ("unknown family", lambda t: changed(t, op_name=["gem"] * len(t["m"])), ["op_name", "did you mean 'gemm'"]),
    ("unknown l2", lambda t: changed(t, l2={0: "tepid"}), ["l2", "'tepid'", "cold or warm"]),
    ("another GPU", lambda t: changed(t, device=["NVIDIA H200"] * len(t["m"])), ["device", "h200-sxm", "'l4'"]),
    ("two GPUs", lambda t: changed(t, device={3: "NVIDIA H200"}), ["device", "h200-sxm", "'l4'"]),
    ("too few", lambda t: {name: values[:5] for name, values in t.items()}, ["too few"]),
]  # fmt: skip


@pytest.mark.parametrize(("mend", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_no_measurement_of_the_device_is_refused(columns, tmp_path, mend, words):
    path = write(tmp_path / "gemm.csv", mend(columns["gemm"]))
    with pytest.raises(InputError) as caught:
        run_calibrate(tmp_path / "out.json", device=DEVICE, tables_from=[path])
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_a_type_copied_from_another_file_is_refused(columns, tmp_path):
    """Neither file alone shows it."""
    table = copied(columns["gemm"])
    paths = []
    for name in ("bfloat16", "fp8"):
        rows = [row for row, found in enumerate(table["gemm_dtype"]) if found == name]
        part = {column: [values[row] for row in rows] for column, values in table.items()}
        paths.append(write(tmp_path / f"{name}.csv", part))
    with pytest.raises(InputError, match=r"fp8\.csv: latency: gemm fp8: .* are those of .*bfloat16"):
        run_calibrate(tmp_path / "out.json", device=DEVICE, tables_from=paths)


def test_two_files_with_the_same_shapes_are_refused(columns, tmp_path):
    first, second = (write(tmp_path / name, columns["context_attention"]) for name in ("a.csv", "b.csv"))
    with pytest.raises(InputError, match=r"b\.csv: \d+ of its shapes are in .*a\.csv, too; rows 1, 2"):
        run_calibrate(tmp_path / "out.json", device=DEVICE, tables_from=[first, second])


def test_a_family_in_two_files_is_one_table(columns, tmp_path):
    table = columns["context_attention"]
    parts = [{name: values[start::2] for name, values in table.items()} for start in (0, 1)]
    paths = [write(tmp_path / f"{place}.csv", part) for place, part in enumerate(parts)]
    run_calibrate(tmp_path / "parts.json", device=DEVICE, tables_from=paths)
    lanes = operators_of(read_profile(tmp_path / "parts.json")).lanes["context_attention"]
    assert sum(lane.rows for lane in lanes.values()) == len(table["latency"])


def test_cold_and_warm_rows_together_are_warned_of(columns, tmp_path, capsys):
    mixed = changed(columns["context_attention"], l2={0: "cold"})
    run_calibrate(tmp_path / "out.json", device=DEVICE, tables_from=[write(tmp_path / "mixed.csv", mixed)])
    assert "with a cold L2 and others not" in capsys.readouterr().err
    assert "L2 mixed" in read_profile(tmp_path / "out.json").provenance


def test_tables_that_follow_another_devices_model_are_warned_of(tmp_path, capsys):
    """Rows of an A100 without its name, said to be an L40S: slower by less than a wrong unit."""
    from planner.operators import device_model, predict, read_columns

    table = made_columns("a100-sxm", (DType.BF16,))["gemm"]
    seconds, _ = predict(read_columns(table), device_model("a100-sxm"))
    noise = np.random.default_rng(0).normal(0.0, 0.02, len(seconds))
    table = changed(table, device=None, latency=(1e3 * seconds * np.exp(noise)).tolist())
    # small shapes: nothing there beats the peaks of the other device
    small = [row for row, (n, k) in enumerate(zip(table["n"], table["k"], strict=True)) if n * k < 2**25]
    path = write(tmp_path / "gemm.csv", {name: [values[row] for row in small] for name, values in table.items()})
    run_calibrate(tmp_path / "out.json", device="l40s", tables_from=[path])
    assert "from that of a100-sxm: were they measured there?" in capsys.readouterr().err


def test_the_tables_name_the_device_where_no_one_else_does(columns, folder, tmp_path, capsys):
    run_calibrate(tmp_path / "out.json", tables_from=[folder / "attention"], json_output=True)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out.json").read_text())
    assert read_profile(tmp_path / "out.json").device == DEVICE
    silent = write(tmp_path / "t.csv", changed(columns["context_attention"], device=None))
    with pytest.raises(InputError, match="do not name a device"):
        run_calibrate(tmp_path / "other.json", tables_from=[silent])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "h200-sxn"], ["--device", "did you mean 'h200-sxm'"]),
        (["--from", "{folder}", "--device", "l4x"], ["--device", "did you mean 'l4'"]),
        (["--from", "{folder}", "--device", "cpu"], ["--device", "kernel tables are of GPUs"]),
        (["--from", "nowhere.csv"], ["nowhere.csv", "no such file"]),
        (["--from", "{empty}"], ["holds no parquet or CSV files"]),
        (["--from", "{folder}", "--tables", "t"], ["--tables", "nothing is measured"]),
        (["--from", "{folder}", "-o", "{empty}"], ["is a folder"]),
        (["--l2", "hot"], ["--l2", "cold or warm"]),
        (["--seconds", "0"], ["--seconds"]),
        (["--seconds", "nan"], ["--seconds"]),
    ],
)
def test_wrong_options_end_with_one_message(folder, tmp_path, arguments, words):
    given = [text.format(folder=folder, empty=tmp_path) for text in arguments]
    done = CliRunner().invoke(app, ["calibrate", *given])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


def test_without_a_gpu_one_message_says_what_to_do():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for device in ("cuda", "h200-sxm"):
        done = CliRunner().invoke(app, ["calibrate", "--device", device])
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1
        for word in ("finds no CUDA device", "--device cpu", "--from TABLES --device NAME"):
            assert word in done.stderr


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU is made up: operands on the CPU, times of the cores."""
    pytest.importorskip("torch")
    from runtime import calibrate_gpu, calibrate_gpu_timer

    monkeypatch.setattr(calibrate_gpu, "find_gpu", lambda: made_gpu("NVIDIA L4"))
    monkeypatch.setattr(calibrate_gpu, "call_of", naming_its_point(calibrate_gpu.call_of))
    monkeypatch.setattr(calibrate_gpu_timer, "CudaTimer", lambda l2, l2_bytes: MadeTimer(DEVICE, l2))
    monkeypatch.setattr(calibrate_gpu_timer, "clocks_at_work", calibrate_gpu_timer.Clocks)


def test_a_measured_gpu_gives_a_profile_tables_and_measurements(gpu, tmp_path, capsys):
    seen, tables = tmp_path / "seen.json", tmp_path / "tables"
    run_calibrate(tmp_path / "here.json", seen, device="cuda", tables=tables, seconds=600)
    shown = capsys.readouterr()
    assert "unmeasured: all-reduce" in shown.err
    assert "relative error on rows held out" in shown.out
    assert {row.l2 for row in Measurements.read(seen).kernels if row.family != "launch"} == {"cold"}
    # the written tables give the same latencies (the copies are not in them)
    run_calibrate(tmp_path / "there.json", tables_from=[tables])
    here, there = (operators_of(read_profile(tmp_path / name)) for name in ("here.json", "there.json"))
    assert here.lanes == there.lanes
    assert "L2 cold" in here.provenance


def test_the_gpu_that_is_here_must_be_the_one_that_was_asked_for(gpu, tmp_path):
    with pytest.raises(InputError, match="the GPU here is NVIDIA L4, not h200-sxm"):
        run_calibrate(tmp_path / "out.json", device="h200-sxm")


def test_a_gpu_that_the_catalogue_does_not_know_names_the_nearest(gpu, tmp_path, monkeypatch):
    from runtime import calibrate_gpu

    monkeypatch.setattr(calibrate_gpu, "find_gpu", lambda: made_gpu("NVIDIA GeForce RTX 4091"))
    with pytest.raises(InputError, match=r"unknown device .* did you mean 'rtx-4090'"):
        run_calibrate(tmp_path / "out.json", device="cuda")


def test_measured_tables_that_are_refused_are_kept_to_look_at(gpu, tmp_path, monkeypatch):
    from runtime import calibrate_gpu_timer

    monkeypatch.setattr(calibrate_gpu_timer, "CudaTimer", lambda l2, l2_bytes: MadeTimer(DEVICE, l2, factor=1e3))
    with pytest.raises(InputError, match="times what l4 takes"):
        run_calibrate(tmp_path / "out.json", device="cuda", tables=tmp_path / "tables", seconds=600)
    assert (tmp_path / "tables" / "gemm_perf.csv").exists()
    assert not (tmp_path / "out.json").exists()


def test_help_shows_examples_that_parse():
    command = typer.main.get_command(app).commands["calibrate"]
    examples = re.findall(r"  capstan calibrate(.*)", command.epilog)
    assert len(examples) >= 3
    for example in examples:
        command.make_context("calibrate", shlex.split(example.split("  (")[0]))


def test_the_example_of_the_documentation_works_as_pasted(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "calibrate.md").read_text(encoding="utf-8")
    table = re.search(r"```csv\n(.*?)```", page, re.DOTALL)[1]
    commands = re.search(r"```csv\n.*?```\n\n(.*?)\n\n", page, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    Path("gemm.csv").write_text(table)
    for command in commands.splitlines():
        program, *arguments = shlex.split(command)
        assert program == "capstan"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    assert len(Path("predicted.csv").read_text().splitlines()) == len(table.splitlines())
