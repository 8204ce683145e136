"""Measured loads of experts, a row a layer: what a router sent where. From CSV or JSON files beside a spec."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

from specs.errors import InputError

MOST_BYTES = 64 * 2**20
_EXPECTED = "numbers from 0 on: one row for each layer with experts, one column for each expert"


def read_expert_loads(path: Path, layers: int, experts: int) -> tuple[tuple[float, ...], ...]:
    """[layers][experts] loads in any unit. CSV without a header, or a JSON list of lists.

    Raises `InputError` with the row and column of what is no load, or where the shape is not that of the model.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"is larger than {MOST_BYTES // 2**20} MiB", file=str(path), expected=_EXPECTED)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=str(path), expected=_EXPECTED) from None
    rows = _json_rows(text, path) if path.suffix == ".json" else _csv_rows(text)
    if len(rows) != layers:
        raise InputError(f"{len(rows)} rows for {layers} layers with experts", file=str(path), expected=_EXPECTED)
    return tuple(_row(path, index, row, experts) for index, row in enumerate(rows, start=1))


def _csv_rows(text: str) -> list[list[object]]:
    return [list(row) for row in csv.reader(text.splitlines()) if row]


def _json_rows(text: str, path: Path) -> list[list[object]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON: {error}", file=str(path), expected=_EXPECTED) from None
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise InputError("is no list of lists", file=str(path), expected=_EXPECTED)
    return value


def _row(path: Path, number: int, cells: list[object], experts: int) -> tuple[float, ...]:
    if len(cells) != experts:
        raise InputError(
            f"row {number} has {len(cells)} columns for {experts} experts", file=str(path), expected=_EXPECTED
        )
    found = []
    for column, cell in enumerate(cells, start=1):
        try:
            load = float(cell) if isinstance(cell, str | int | float) and not isinstance(cell, bool) else math.nan
        except (ValueError, OverflowError):
            load = math.nan
        if not math.isfinite(load) or load < 0:
            raise InputError(
                f"row {number}, column {column}: {str(cell)[:40]!r} is no load", file=str(path), expected=_EXPECTED
            )
        found.append(load)
    if not any(found):
        raise InputError(f"row {number} has no load at all", file=str(path), expected=_EXPECTED)
    return tuple(found)
