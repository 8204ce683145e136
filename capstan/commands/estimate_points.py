"""`capstan estimate POINTS.csv -o OUT.csv`: TTFT, TPOT and throughput of every stated deployment, without planning."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from capstan.table_files import Columns, read_table_file
from specs.errors import InputError, nearest_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from planner.estimate import Client, Prediction
    from planner.estimate.explain import Phase

APPENDED = ("predicted_ttft_ms", "predicted_tpot_ms", "predicted_output_tokens_per_s", "confidence", "note")
NEEDED = ("model", "gpu", "engine", "isl", "osl", "concurrency")
MEASURED = {"ttft": "ttft_ms", "tpot": "tpot_ms"}


def run_estimate_points(
    points: Path,
    output: Path,
    json_output: bool = False,
    explain: int | None = None,
    client: str | None = None,
) -> None:
    """Write the table with the predicted columns appended: one row out per row in, in order, other columns untouched.

    A row that cannot be predicted says why in `note`. Where `ttft_ms` and `tpot_ms` are there, the error is reported.
    `explain`: a row (from 1) whose time is shown by operator and phase. `client`: who sends the requests, one of
    `planner.estimate.CLIENTS`; None for the published runs'. Raises `InputError` for a file that is no such
    table; nothing is written then.
    """
    from capstan.console import print_json, progress_line, warn
    from planner.estimate import predict_rows
    from specs.document import write_atomically

    sender = _client(client)
    columns, first_line = read_table_file(points)
    _check_columns(columns, points)
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if not rows:
        raise InputError("holds no rows", file=str(points), expected="one deployment a row")
    if explain is not None and not 1 <= explain <= len(rows):
        raise InputError(f"there is no row {explain}", field="--explain", expected=f"1 to {len(rows)}")
    with progress_line("predicting") as report:
        predictions = list(predict_rows(rows, first_line, lambda done: report(f"predicting row {done}"), sender))
    write_atomically(output, _csv(columns, predictions))
    missing = sum(prediction.ttft_ms is None for prediction in predictions)
    errors = {name: _errors(rows, predictions, name) for name in MEASURED}
    if json_output:
        print_json(
            {
                "rows": len(rows),
                "predicted": len(rows) - missing,
                "output": str(output),
                **{f"{name}_error_{key}": value for name, of in errors.items() for key, value in of.items()},
                **({} if explain is None else {"explained": _explained(rows[explain - 1], sender)}),
            }
        )
        return
    if missing:
        first = next(prediction for prediction in predictions if prediction.ttft_ms is None)
        warn(f"{missing} of {len(rows)} rows are not predicted, the first: {first.note}")
    print(f"wrote {output}: {len(rows) - missing} of {len(rows)} rows predicted")
    for name, of in errors.items():
        if of:
            print(f"{name.upper()}: median error {100 * of['p50']:.1f} %, p90 {100 * of['p90']:.1f} %")
    if explain is not None:
        show_phases(_explained(rows[explain - 1], sender), WAITING)


def _client(name: str | None) -> Client:
    from planner.estimate import CLIENTS

    for client in CLIENTS:
        if name in (None, client):
            return client
    expected = f"one of {', '.join(CLIENTS)}"
    raise InputError(f"is {name!r}", field="--client", expected=expected, nearest=nearest_names(str(name), CLIENTS))


def _check_columns(columns: Columns, points: Path) -> None:
    for name in NEEDED:
        if name not in columns:
            raise InputError(
                f"lacks the column {name!r}",
                file=str(points),
                expected=f"the columns {', '.join(NEEDED)}",
                nearest=nearest_names(name, columns),
            )
    for name in APPENDED[:3]:
        if name in columns:
            raise InputError("is there already", file=str(points), field=name, expected="a table without predictions")


def _csv(columns: Columns, predictions: list[Prediction]) -> str:
    """The table as text; its own `confidence` and `note`, where it has them, stay, and the new ones follow."""
    from capstan.commands.estimate import cell_text

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, *APPENDED])
    cells = zip(*([cell_text(value) for value in values] for values in columns.values()), strict=True)
    for row, prediction in zip(cells, predictions, strict=True):
        numbers = (prediction.ttft_ms, prediction.tpot_ms, prediction.output_tokens_per_s)
        appended = ("" if number is None else repr(float(f"{number:.6g}")) for number in numbers)
        writer.writerow([*row, *appended, prediction.confidence, prediction.note])
    return stream.getvalue()


def _errors(rows: list[dict[str, object]], predictions: list[Prediction], name: str) -> dict[str, float]:
    """Median and p90 of |predicted / measured - 1| over the rows that have both; {} where none has."""
    import numpy as np

    found = []
    for row, prediction in zip(rows, predictions, strict=True):
        predicted = prediction.ttft_ms if name == "ttft" else prediction.tpot_ms
        measured = _positive(row.get(MEASURED[name]))
        if predicted is not None and measured is not None:
            found.append(abs(predicted / measured - 1.0))
    return {"p50": float(np.median(found)), "p90": float(np.quantile(found, 0.9))} if found else {}


def _positive(cell: object) -> float | None:
    try:
        value = float(str(cell))
    except ValueError:
        return None
    return value if 0.0 < value < float("inf") else None


def _explained(row: Mapping[str, object], client: Client) -> list[dict[str, object]]:
    from planner.estimate import Point, deployment_of, explain_point
    from specs.catalog import load_engine

    point = Point.read(row)
    deployment = deployment_of(point)
    engine = load_engine(deployment.engine).at(deployment.engine_version)
    return phases_json(explain_point(point, deployment, engine, client))


def phases_json(phases: Iterable[Phase]) -> list[dict[str, object]]:
    """Plain JSON: milliseconds of every phase, by part."""
    return [
        {
            "phase": phase.name,
            "total_ms": phase.total_s * 1e3,
            "waiting_ms": phase.rest_s * 1e3,
            "parts": [
                {"name": part.name, "kind": part.kind, "count": part.count, "ms": part.seconds * 1e3}
                for part in phase.parts
            ],
        }
        for phase in phases
    ]


WAITING = {
    "first token": "waiting: steps under way, requests before it",
    "further token": "prompts of others in its steps",
}


def show_phases(phases: Iterable[Mapping[str, object]], waiting: Mapping[str, str]) -> None:
    """A table for each phase; `waiting`: what the rest of each is called."""
    from capstan.console import out, table

    for phase in phases:
        total = float(str(phase["total_ms"]))
        shown = table(
            f"{phase['phase']}: {total:.3g} ms", ("part", "kind", "times", "ms", "share"), ("times", "ms", "share")
        )
        parts: list[dict[str, object]] = [*phase["parts"]]  # type: ignore[misc]
        parts.append({"name": waiting[str(phase["phase"])], "kind": "", "count": 0, "ms": phase["waiting_ms"]})
        for part in parts:
            milliseconds = float(str(part["ms"]))
            times = str(part["count"] or "")
            shown.add_row(
                str(part["name"]),
                str(part["kind"]),
                times,
                f"{milliseconds:.3g}",
                f"{100 * milliseconds / total:.1f} %",
            )
        out().print(shown)
