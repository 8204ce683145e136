"""`capstan estimate --operators TABLE --device NAME -o OUT.csv`: predicted latency of every row of a kernel table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from specs.errors import InputError

PREDICTED = "predicted_latency_ms"
UNIT_FACTOR = 100.0  # median distance of measured to predicted beyond which the unit, not the model, is wrong
Columns = dict[str, list[object]]


def run_estimate(operators: Path, device: str, output: Path, json_output: bool = False) -> None:
    """Write the table as CSV, every row and column in order, with `predicted_latency_ms` appended.

    `operators`: parquet or CSV with the columns of gemm, attention, moe, mla, nccl or custom_allreduce tables.
    `device`: catalogue name, alias, or the name of a tables' folder. A blank or absent `latency` column is
    fine; where it is filled, the error is reported. Raises `InputError` for an unknown device, family or
    element type, a wrong schema or unit, and rows that are not positive numbers. Nothing is written then.
    """
    import numpy as np

    from capstan.console import print_json, warn
    from planner.operators import device_model, predict, read_columns
    from specs.document import write_atomically

    model = device_model(device)
    columns, first_line = _read(operators)
    if PREDICTED in columns:
        raise InputError("is there already", file=str(operators), field=PREDICTED, expected="a measured table")
    table = read_columns(columns, str(operators), first_line)
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
                expected="milliseconds",
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


def _read(path: Path) -> tuple[Columns, int | None]:
    """(columns of Python values in order, line of the first row in a text file)."""
    if not path.is_file():
        raise InputError("cannot be read (no such file)", file=str(path), expected="a parquet or CSV kernel table")
    with path.open("rb") as stream:
        magic = stream.read(4)
    return (_read_parquet(path), None) if magic == b"PAR1" else (_read_csv(path), 2)


def _read_parquet(path: Path) -> Columns:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"is not readable as parquet ({str(error).splitlines()[0]})", file=str(path)) from None
    _unique(table.column_names, path)
    return {name: table[name].to_pylist() for name in table.column_names}


def _read_csv(path: Path) -> Columns:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is neither parquet nor UTF-8 text", file=str(path), expected="parquet or CSV") from None
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise InputError(f"is not CSV ({error})", file=str(path)) from None
    if not rows:
        raise InputError("is empty", file=str(path), expected="a kernel table")
    _unique(rows[0], path)
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(rows[0]):
            raise InputError(
                f"row {number} has {len(row)} values", file=str(path), line=number + 1, expected=f"{len(rows[0])}"
            )
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(rows[0])}


def _unique(names: Sequence[str], path: Path) -> None:
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InputError("stands twice", file=str(path), field=name, expected="one column of a name")


def _csv(columns: Columns, predicted: list[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, PREDICTED])
    cells = [[_text(value) for value in values] for values in columns.values()]
    writer.writerows(zip(*cells, predicted, strict=True))
    return stream.getvalue()


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)
