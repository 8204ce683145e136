"""Kernel tables as commands read them: parquet or CSV files as columns of Python values, in their order."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from specs.errors import InputError

Columns = dict[str, list[object]]
SUFFIXES = (".csv", ".parquet")


def table_paths(named: Sequence[Path]) -> list[Path]:
    """Every named file, and every parquet and CSV file under the named folders, sorted; no file twice.

    `InputError` for a path that is not there and a folder without tables.
    """
    found: dict[Path, None] = {}
    for path in named:
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
            if not inside:
                raise InputError("holds no parquet or CSV files", file=str(path), expected="kernel tables")
        found |= dict.fromkeys(inside)
    return list(found)


def read_table_file(path: Path) -> tuple[Columns, int | None]:
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
