"""`capstan estimate --operators TABLE --device NAME -o OUT.csv`: predicted latency of every row of a kernel table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from capstan.commands.estimate_spec import is_spec, run_estimate_spec
from capstan.table_files import Columns, read_table_file
from specs.errors import InputError

if TYPE_CHECKING:
    from planner.operators import DeviceModel

PREDICTED = "predicted_latency_ms"
UNIT_FACTOR = 100.0  # median distance of measured to predicted beyond which the unit, not the model, is wrong


def run_estimate_command(
    points: Path | None,
    operators: Path | None,
    device: str | None,
    output: Path | None,
    json_output: bool,
    profile: Path | None,
    explain: int | None,
    client: str | None,
) -> None:
    """The form that the arguments ask for. `InputError` where they ask for both or none, or do not go together."""
    if points is not None and operators is None and is_spec(points):
        _refuse((("--device", device), ("--client", client)), "is not of a spec", "POINTS.csv or --operators with it")
        run_estimate_spec(points, output, json_output, profile, explain)
        return
    if output is None:
        raise InputError("is missing: a table is written", field="--output", expected="-o predicted.csv")
    if (points is None) == (operators is None):
        raise InputError("one table is needed", field="POINTS", expected="POINTS.csv or --operators TABLE")
    if operators is not None:
        _refuse((("--explain", explain), ("--client", client)), "is of points", "POINTS.csv")
        run_estimate(operators, device, output, json_output, profile)
        return
    from capstan.commands.estimate_points import run_estimate_points

    _refuse((("--device", device), ("--profile", profile)), "is of --operators: a point names its GPU")
    assert points is not None
    run_estimate_points(points, output, json_output, explain, client)


def _refuse(options: Iterable[tuple[str, object]], message: str, expected: str | None = None) -> None:
    for name, value in options:
        if value is not None:
            raise InputError(message, field=name, expected=expected)


def run_estimate(
    operators: Path, device: str | None, output: Path, json_output: bool = False, profile: Path | None = None
) -> None:
    """Write the table as CSV, every row and column in order, with `predicted_latency_ms` appended.

    `operators`: parquet or CSV with the columns of gemm, attention, moe, mla, mla_bmm, moe_a2a, nccl or
    custom_allreduce tables.
    `device`: catalogue name, alias, or the name of a tables' folder. `profile`: one that `capstan calibrate` wrote; the
    device is then its own, and a family that it does not hold is the catalogue's, which is said. A blank or absent
    `latency` column is fine; where it is filled, the error is reported. Raises `InputError` for an unknown device,
    family or element type, a wrong schema or unit, and rows that are not positive numbers. Nothing is written then.
    """
    import numpy as np

    from capstan.console import print_json, warn
    from planner.operators import predict, read_columns
    from planner.operators.tables import MICROSECONDS
    from specs.document import write_atomically

    columns, first_line = read_table_file(operators)
    if PREDICTED in columns:
        raise InputError("is there already", file=str(operators), field=PREDICTED, expected="a measured table")
    table = read_columns(columns, str(operators), first_line)
    model = _model(device, profile, table.family)
    seconds, notes = predict(table, model, str(operators))
    document: dict[str, object] = {
        "device": model.device,
        "family": table.family,
        "rows": len(seconds),
        "output": str(output),
        "notes": list(notes),
    }
    if table.seconds is not None:
        middle = float(np.exp(np.median(np.log(table.seconds / seconds))))
        if not 1 / UNIT_FACTOR < middle < UNIT_FACTOR:
            raise InputError(
                f"values are {middle:.3g} times what {model.device} takes: another unit",
                file=str(operators),
                field="latency",
                expected="microseconds" if table.family in MICROSECONDS else "milliseconds",
            )
        error = np.abs(seconds / table.seconds - 1.0)
        document["error_p50"], document["error_p90"] = float(np.median(error)), float(np.quantile(error, 0.9))
    write_atomically(output, _csv(columns, [repr(float(f"{value:.6g}")) for value in seconds * 1e3]))
    if json_output:
        print_json(document)
        return
    for note in notes:
        warn(note)
    text = f"wrote {output}: {len(seconds)} {table.family} rows on {model.device}"
    if table.seconds is not None:
        text += (
            f"; median error {100 * float(np.median(error)):.1f} %, p90 {100 * float(np.quantile(error, 0.9)):.1f} %"
        )
    print(text)


def _model(device: str | None, profile: Path | None, family: str) -> DeviceModel:
    """The model of the profile, where it holds the family; else that of the catalogue."""
    from planner.operators import DeviceModel, device_model
    from specs.catalog import load_device

    if profile is None:
        if device is None:
            raise InputError("is needed", field="--device", expected="a GPU of the catalogue, or --profile FILE")
        return device_model(device)
    from planner.cost.calibration import operators_of, read_profile

    own = read_profile(profile)
    if device is not None and load_device(device).name != own.device:
        raise InputError(
            f"is a profile of {own.device}", file=str(profile), field="device", expected=load_device(device).name
        )
    operators = operators_of(own)
    if operators is not None and family in operators.lanes:
        return DeviceModel(own.device, operators, operators.facts(), 1.0, None)
    model = device_model(own.device)
    note = f"{profile} holds no {family} rows: these are the catalogue's" + (f"; {model.note}" if model.note else "")
    return replace(model, note=note)


def _csv(columns: Columns, predicted: list[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, PREDICTED])
    cells = [[cell_text(value) for value in values] for values in columns.values()]
    writer.writerows(zip(*cells, predicted, strict=True))
    return stream.getvalue()


def cell_text(value: object) -> str:
    """A cell as CSV text; blank where there is nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)
