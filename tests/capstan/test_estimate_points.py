"""`capstan estimate POINTS.csv`: one row out per row in, in order; what cannot be predicted says why."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capstan.cli import app

HEADER = [
    *("model", "gpu", "engine", "engine_version", "precision", "tp_size", "pp_size", "attention_dp_size"),
    *("moe_tp_size", "moe_ep_size", "isl", "osl", "concurrency", "ttft_ms", "tpot_ms", "remark"),
]
ROWS = [
    ["Qwen/Qwen3-32B", "h100_sxm", "vllm", "0.12.0", "bf16", "4.0", "1.0", "", "1.0", "1.0", "1024", "512", "16.0"],
    ["no/such-model", "h100_sxm", "vllm", "", "bf16", "1", "1", "", "", "", "1024", "512", "16"],
    ["Qwen/Qwen3-32B", "h100_sxm", "vllm", "0.12.0", "bf16", "8", "1", "", "", "", "1024", "", "16"],
    ["Qwen/Qwen3-32B", "h100_sxm", "sglang", "", "bf16", "4", "", "", "", "", "1024", "512", "16"],
]
MEASURED = [["164", "11.85", 'as "x", y'], ["", "", ""], ["", "", "b"], ["", "", "c"]]
APPENDED = ["predicted_ttft_ms", "predicted_tpot_ms", "predicted_output_tokens_per_s", "confidence", "note"]


def write(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


@pytest.fixture
def points(tmp_path: Path) -> Path:
    return write(tmp_path / "in.csv", HEADER, [row + more for row, more in zip(ROWS, MEASURED, strict=True)])


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["estimate", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_rows_pass_through_in_order(points: Path, tmp_path: Path) -> None:
    code, out, err = run(str(points), "-o", str(tmp_path / "out.csv"))
    assert code == 0
    found = read(tmp_path / "out.csv")
    assert found[0] == HEADER + APPENDED
    assert [row[: len(HEADER)] for row in found[1:]] == read(points)[1:]
    first, unknown, empty, other = (row[len(HEADER) :] for row in found[1:])
    assert float(first[1]) == pytest.approx(11.85, rel=0.15)
    assert first[3] == "measured"
    assert "equal outputs" in first[4]
    assert unknown[:4] == ["", "", "", ""]
    assert "no/such-model" in unknown[4]
    assert "row 3 (line 4)" in empty[4]
    assert "osl: is empty" in empty[4]
    assert float(other[0]) > 0
    assert "2 of 4 rows predicted" in out
    assert "median error" in out
    assert "2 of 4 rows are not predicted" in err


def test_json_is_one_document(points: Path, tmp_path: Path) -> None:
    code, out, _ = run(str(points), "-o", str(tmp_path / "out.csv"), "--json", "--explain", "1")
    document = json.loads(out)
    assert (code, document["rows"], document["predicted"]) == (0, 4, 2)
    assert document["tpot_error_p50"] < 0.15
    first, further = document["explained"]
    whole = sum(part["ms"] for part in further["parts"]) + further["waiting_ms"]
    assert whole == pytest.approx(further["total_ms"])
    assert first["phase"] == "first token"
    assert first["parts"]


def test_explain_shows_operators(points: Path, tmp_path: Path) -> None:
    code, out, _ = run(str(points), "-o", str(tmp_path / "out.csv"), "--explain", "1")
    assert code == 0
    for word in ("first token", "further token", "attention", "all_reduce", "gate_up_proj", "prompts of others"):
        assert word in out


def test_the_client_may_be_chosen(points: Path, tmp_path: Path) -> None:
    """Clients in step wait for each other's prompts; each choice is explained as it was predicted."""
    first_ms = {}
    for client in ("published", "inferencex", "exact"):
        code, out, _ = run(str(points), "-o", str(tmp_path / client), "--client", client, "--json", "--explain", "1")
        assert code == 0
        cells = dict(zip(*read(tmp_path / client)[:2], strict=True))
        first_ms[client] = float(cells["predicted_ttft_ms"])
        assert json.loads(out)["explained"][0]["total_ms"] == pytest.approx(first_ms[client], rel=1e-5)
        assert bool(cells["note"]) is (client == "published")
    assert first_ms["inferencex"] < 0.7 * first_ms["published"]
    assert first_ms["exact"] > first_ms["published"]


def test_one_token_has_no_further_one(tmp_path: Path) -> None:
    cells = [*ROWS[0][:11], "1", *ROWS[0][12:], "164", "11.85", ""]
    code, out, _ = run(
        str(write(tmp_path / "in.csv", HEADER, [cells])), "-o", str(tmp_path / "out.csv"), "--explain", "1"
    )
    assert code == 0
    found = dict(zip(*read(tmp_path / "out.csv"), strict=True))
    assert found["predicted_tpot_ms"] == ""
    assert float(found["predicted_ttft_ms"]) > 0
    assert float(found["predicted_output_tokens_per_s"]) == pytest.approx(
        16 * 1e3 / float(found["predicted_ttft_ms"]), rel=1e-4
    )
    assert "first token" in out
    assert "further token" not in out


def test_same_input_same_bytes(points: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        assert run(str(points), "-o", str(tmp_path / name))[0] == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize(
    ("header", "arguments", "words"),
    [
        ([name.replace("isl", "ils") for name in HEADER], [], ["lacks the column 'isl'", "'ils'"]),
        ([*HEADER[:-1], "predicted_tpot_ms"], [], ["predicted_tpot_ms", "is there already"]),
        (HEADER, ["--explain", "5"], ["--explain", "no row 5", "1 to 4"]),
        (HEADER, ["--device", "h100"], ["--device"]),
        (HEADER, ["--client", "infrencex"], ["--client", "published, inferencex, exact", "'inferencex'"]),
        (HEADER, ["--operators", "x.csv"], ["POINTS"]),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(
    tmp_path: Path, header: list[str], arguments: list[str], words: list[str]
) -> None:
    path = write(tmp_path / "in.csv", header, [row + more for row, more in zip(ROWS, MEASURED, strict=True)])
    code, _, err = run(str(path), "-o", str(tmp_path / "out.csv"), *arguments)
    assert code == 2
    assert all(word in err for word in words), err
    assert not (tmp_path / "out.csv").exists()


def test_no_rows_and_no_table(tmp_path: Path) -> None:
    empty = write(tmp_path / "in.csv", HEADER, [])
    for arguments, word in (([str(empty)], "no rows"), ([], "one table is needed"), (["none.csv"], "no such file")):
        code, _, err = run(*arguments, "-o", str(tmp_path / "out.csv"))
        assert code == 2
        assert word in err
