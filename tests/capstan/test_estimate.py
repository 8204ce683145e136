"""`capstan estimate --operators`: rows and columns pass through, predictions are appended, errors name the place."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from capstan.commands.estimate import run_estimate
from specs.errors import InputError

ROWS = [
    ["framework", "op_name", "gemm_dtype", "m", "n", "k", "latency", "note"],
    ["VLLM", "gemm", "fp8", "512", "4096", "4096", "0.022", 'say "x", y'],
    ["VLLM", "gemm", "bfloat16", "1", "4096", "4096", "0.0123456789012", ""],
    ["VLLM", "gemm", "fp8", "513", "4096", "4096", "0.043", "a"],
]


def write(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def test_every_row_and_column_passes_through_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_estimate(write(tmp_path / "in.csv", ROWS), "h200_sxm", tmp_path / "out.csv", False)
    found = read(tmp_path / "out.csv")
    assert [row[:-1] for row in found] == ROWS
    assert found[0][-1] == "predicted_latency_ms"
    # published with the tables: 22 us at m = 512 and 43 us at 513, where m is no multiple of 16
    assert float(found[1][-1]) == pytest.approx(0.022, rel=0.25)
    assert float(found[3][-1]) == pytest.approx(0.043, rel=0.25)
    assert "3 gemm rows on h200-sxm" in capsys.readouterr().out


def test_parquet_and_csv_give_the_same_and_json_is_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    columns = {name: [row[place] for row in ROWS[1:]] for place, name in enumerate(ROWS[0])}
    typed: dict[str, list[object]] = dict(columns)  # type: ignore[arg-type]
    for name in "mnk":
        typed[name] = [int(value) for value in columns[name]]
    typed["latency"] = [float(value) for value in columns["latency"]]
    parquet.write_table(pyarrow.table(typed), tmp_path / "in.parquet")
    run_estimate(write(tmp_path / "in.csv", ROWS), "h100", tmp_path / "a.csv", False)
    capsys.readouterr()
    run_estimate(tmp_path / "in.parquet", "h100", tmp_path / "b.csv", True)
    assert read(tmp_path / "a.csv") == read(tmp_path / "b.csv")
    document = json.loads(capsys.readouterr().out)
    assert (document["rows"], document["family"], document["notes"]) == (3, "gemm", [])


def test_latency_may_be_absent_or_blank(tmp_path: Path) -> None:
    without = [[*row[:6], row[7]] for row in ROWS]
    blank = [ROWS[0], *([*row[:6], "", row[7]] for row in ROWS[1:])]
    run_estimate(write(tmp_path / "a.csv", without), "l40s", tmp_path / "a.out", False)
    run_estimate(write(tmp_path / "b.csv", blank), "l40s", tmp_path / "b.out", False)
    assert [row[-1] for row in read(tmp_path / "a.out")] == [row[-1] for row in read(tmp_path / "b.out")]


def test_prediction_from_a_datasheet_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_estimate(write(tmp_path / "in.csv", ROWS), "b200", tmp_path / "out.csv", False)
    assert "predicted from its datasheet" in capsys.readouterr().err


def changed(row: int, column: str, value: str) -> list[list[str]]:
    rows = [list(cells) for cells in ROWS]
    rows[row][rows[0].index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "device", "words"),
    [
        (ROWS, "h20_sxm", ["unknown device", "h200-sxm"]),
        (ROWS, "cpu", ["no operator latencies", "a100-sxm"]),
        (changed(2, "latency", "nan"), "h200", ["in.csv:3", "latency", "row 2"]),
        (changed(2, "m", "0"), "h200", ["in.csv:3", "m: ", "row 2"]),
        (changed(2, "m", "x"), "h200", ["row 2", "not a number"]),
        (changed(1, "gemm_dtype", "fp7"), "h200", ["gemm_dtype", "'fp8'"]),
        (changed(1, "gemm_dtype", "fp8"), "a100", ["gemm_dtype", "bfloat16"]),
        (changed(0, "k", "kk"), "h200", ["lacks 'k'", "'kk'"]),
        ([ROWS[0], *([*r[:6], str(float(r[6]) * 1e3), r[7]] for r in ROWS[1:])], "h200", ["latency", "milliseconds"]),
        ([ROWS[0]], "h200", ["no rows"]),
        ([ROWS[0], ROWS[1][:4]], "h200", ["row 1 has 4 values"]),
    ],
)
def test_bad_input_names_itself_and_nothing_is_written(
    tmp_path: Path, rows: list[list[str]], device: str, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        run_estimate(write(tmp_path / "in.csv", rows), device, tmp_path / "out.csv", False)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00\x80")
    for name, words in [("cut.parquet", "not readable"), ("noise", "neither parquet"), ("none.csv", "no such file")]:
        with pytest.raises(InputError, match=words):
            run_estimate(tmp_path / name, "h200", tmp_path / "out.csv", False)
