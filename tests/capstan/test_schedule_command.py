"""`capstan schedule`: the table by hour, the document, plans as files, and what is refused with nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from capstan.cli import app
from capstan.commands.schedule import clock
from specs.plan import Plan
from specs.schedule import Schedule

SPEC = """\
models: {small: meta-llama/Llama-3.1-8B}
hardware:
  pools: [{name: l40s, device: l40s, count: 8, gpus_per_node: 4, price: $1/h, rent: gpu}]
traffic:
  - name: chat
    arrivals: {rate: 12/s, process: diurnal, peak_to_mean: 1.9, peak_at: 12h}
    prompt_tokens: 500
    output_tokens: 60
    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}
choices: {small: {tensor_parallel: 1, pipeline_parallel: 1}}
schedule: {slot: 6h}
"""


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("schedule")
    (made / "day.yaml").write_text(SPEC)
    return made


def test_a_day_as_a_table_and_as_files_that_other_commands_take(folder: Path) -> None:
    text = run("schedule", folder / "day.yaml", "-o", folder / "schedule.json", "--plans", folder / "plans")
    schedule = Schedule.read(folder / "schedule.json")
    rows = [line for line in text.splitlines() if line[:5] in ("00:00", "03:00", "09:00", "15:00", "21:00")]
    assert len(rows) == len(schedule.slots) == 5
    assert "a day," in text
    assert "the schedule saves" in text
    assert f"{len(schedule.checks)} of {len(schedule.checks)} laws hold" in text
    files = sorted((folder / "plans").glob("*.json"))
    assert [file.stem for file in files] == sorted(schedule.plans)
    assert Plan.read(files[0]).traffic_folder == ".."
    assert schedule.plans[files[0].stem].traffic_folder == "."
    assert json.loads(run("simulate", files[0], "--json"))["verdict"]["holds"]


def test_one_json_document_that_fits_its_schema(folder: Path) -> None:
    document = json.loads(run("schedule", folder / "day.yaml", "-o", folder / "again.json", "--json"))
    assert document == json.loads((folder / "again.json").read_text())
    jsonschema.validate(document, json.loads(run("schema", "schedule")))


def test_plan_on_such_a_spec_points_to_the_schedule(folder: Path) -> None:
    text = " ".join(run("plan", folder / "day.yaml", "-o", folder / "flat.json").split())
    assert "`capstan schedule` plans the day" in text


def test_a_day_without_changes_is_refused_and_nothing_is_written(folder: Path) -> None:
    flat = folder / "flat.yaml"
    flat.write_text(SPEC.replace("{rate: 12/s, process: diurnal, peak_to_mean: 1.9, peak_at: 12h}", "12/s"))
    assert "schedule: no traffic changes over time" in run("schedule", flat, "-o", folder / "none.json", code=2)
    flat.write_text(flat.read_text().replace("schedule: {slot: 6h}\n", ""))
    assert "one plan serves all day" in run("schedule", flat, "-o", folder / "none.json", code=2)
    assert not (folder / "none.json").exists()
    flat.write_text(SPEC.replace("schedule: {slot: 6h}", "schedule: {switching: {cost: 5}}"))
    assert "lacks the '$'" in run("schedule", flat, "-o", folder / "none.json", code=2)


def test_hours_read_as_people_write_them() -> None:
    assert [clock(seconds) for seconds in (0, 3600, 45_000, 86_400, 3661)] == [
        "00:00", "01:00", "12:30", "24:00", "01:01:01",
    ]  # fmt: skip
