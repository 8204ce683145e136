"""Columns of trace files: text in, checked arrays out. Fast on good files, exact about bad ones.

A whole column is converted at once; only when that fails is it walked row by row to name the first bad one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specs.errors import InputError, nearest_names
from specs.traffic.distributions import MAX_TOKENS

PRIORITIES = {"high": 0, "normal": 1, "low": 2}  # lower is served first
MAX_NAME = 128  # characters of a tenant, session or prefix


@dataclass(frozen=True)
class Table:
    """Fields as text, by column; `lines` are the numbers of the rows in the file."""

    file: str
    columns: dict[str, list[str]]
    lines: list[int]

    def error(self, row: int, field: str, message: str, expected: str) -> InputError:
        return InputError(message, file=self.file, line=self.lines[row], field=field, expected=expected)

    def tokens(self, field: str) -> NDArray[np.int64]:
        return tokens(self.columns[field], self.file, field, self.lines)

    def arrivals(self, field: str) -> NDArray[np.float64]:
        """Seconds, in order."""
        arrival_s = seconds(self.columns[field], self.file, field, self.lines)
        ordered(arrival_s, self.file, field, self.lines)
        return arrival_s

    def words(self, field: str) -> list[str]:
        """Short printable texts; empty ones are allowed."""
        words = [value.strip() for value in self.columns[field]]
        for row, word in enumerate(words):
            if len(word) > MAX_NAME or not word.isprintable():
                raise self.error(row, field, f"is {word[:40]!r}", f"at most {MAX_NAME} printable characters")
        return words

    def priorities(self, field: str) -> NDArray[np.int64]:
        """high, normal (also: empty) or low as 0, 1, 2."""
        words = self.words(field)
        for row, word in enumerate(words):
            if word and word not in PRIORITIES:
                raise self.error(row, field, f"is {word!r}", " | ".join(PRIORITIES))
        return np.array([PRIORITIES[word or "normal"] for word in words], dtype=np.int64)

    def without(self, rows: Sequence[int]) -> Table:
        """The table without these rows."""
        left_out = set(rows)
        kept = [row for row in range(len(self.lines)) if row not in left_out]
        columns = {name: [values[row] for row in kept] for name, values in self.columns.items()}
        return Table(self.file, columns, [self.lines[row] for row in kept])


def numbered(words: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The different words in the order of their first appearance, and the number of each row's."""
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
    return tuple(numbers), index


def numbered_or_own(words: Sequence[str]) -> NDArray[np.int64]:
    """The number of each row's word; an empty one is unlike all others."""
    return numbered([word or f"\0{row}" for row, word in enumerate(words)])[1]


def read_csv(text: str, file: str, names: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Columns `names`, and those of `optional` that are there. Unquoted CSV; blank lines are skipped."""
    rows = text.replace("\r\n", "\n").split("\n")
    header = [name.strip() for name in rows[0].split(",")]
    if not rows[0].strip():
        raise InputError("is empty", file=file, expected=f"a header with {', '.join(names)}")
    wanted = [*names, *(name for name in optional if name in header)]
    for name in wanted:
        if header.count(name) != 1:
            raise InputError(
                f"column {name!r} stands {header.count(name)} times in the header" if name in header else "is missing",
                file=file,
                line=1,
                field=name,
                expected=f"the columns {', '.join(names)}",
                nearest=() if name in header else nearest_names(name, header),
            )
    lines = [number for number, row in enumerate(rows[1:], start=2) if row and not row.isspace()]
    if not lines:
        raise InputError("holds no requests", file=file, expected="at least one row under the header")
    fields = [rows[number - 1].split(",") for number in lines]
    _check_width(fields, header, file, lines)
    positions = [header.index(name) for name in wanted]
    columns = {name: [row[position] for row in fields] for name, position in zip(wanted, positions, strict=True)}
    return Table(file, columns, lines)


def _check_width(fields: list[list[str]], header: list[str], file: str, lines: list[int]) -> None:
    width = len(header)
    for number, row in zip(lines, fields, strict=True):
        if len(row) != width:
            if row == header:
                raise InputError("repeats the header", file=file, line=number, expected="one header, at the top")
            raise InputError(f"has {len(row)} fields", file=file, line=number, expected=f"{width}, as in the header")


def tokens(values: list[Any], file: str, field: str, lines: list[int]) -> NDArray[np.int64]:
    """Whole numbers from 1 on."""
    try:
        tokens = np.array([int(value) for value in values], dtype=np.int64)
        if not any(isinstance(value, float) for value in values) and tokens.min() >= 1 and tokens.max() <= MAX_TOKENS:
            return tokens
    except (ValueError, OverflowError):
        pass  # the walk below names the row
    expected = f"a whole number from 1 to {MAX_TOKENS}"
    for value, line in zip(values, lines, strict=True):
        number = _number(value)
        if number is None or not 1 <= number <= MAX_TOKENS or number != int(number):
            if str(value).strip() == field:
                raise InputError("repeats the header", file=file, line=line, expected="one header, at the top")
            raise InputError(f"is {str(value).strip()!r}", file=file, line=line, field=field, expected=expected)
    return np.array([int(float(value)) for value in values], dtype=np.int64)


def seconds(values: list[Any], file: str, field: str, lines: list[int]) -> NDArray[np.float64]:
    """Finite numbers that are not negative."""
    try:
        seconds = np.array([float(value) for value in values], dtype=np.float64)
        if np.isfinite(seconds).all() and seconds.min() >= 0:
            return seconds
    except (ValueError, OverflowError):
        pass  # the walk below names the row
    for value, line in zip(values, lines, strict=True):
        number = _number(value)
        if number is None or not 0 <= number < math.inf:
            if str(value).strip() == field:
                raise InputError("repeats the header", file=file, line=line, expected="one header, at the top")
            raise InputError(
                f"is {str(value).strip()!r}", file=file, line=line, field=field, expected="a time that is not negative"
            )
    raise AssertionError("unreachable: some value was bad")


def timestamps(values: list[str], file: str, lines: list[int]) -> NDArray[np.float64]:
    """`YYYY-MM-DD HH:MM:SS.fffffff`, with or without +00:00: seconds since the first one, exact to the nanosecond."""
    cleaned = [value.strip().removesuffix("+00:00").removesuffix("Z") for value in values]
    shortest = len("2023-11-16 18:15:46")
    if all(len(value) >= shortest for value in cleaned):  # a number alone would be read as a year
        try:
            return _since_first(np.array(cleaned, dtype="datetime64[ns]"))
        except (ValueError, OverflowError):
            pass  # the walk below names the row
    for value, raw, line in zip(cleaned, values, lines, strict=True):
        try:
            bad = bool(np.isnat(np.datetime64(value, "ns"))) or len(value) < shortest
        except (ValueError, OverflowError):
            bad = True
        if bad:
            if raw.strip() == "TIMESTAMP":
                raise InputError("repeats the header", file=file, line=line, expected="one header, at the top")
            raise InputError(
                f"is {raw.strip()!r}",
                file=file,
                line=line,
                field="TIMESTAMP",
                expected="a time such as 2023-11-16 18:15:46.6805900 (UTC)",
            )
    raise InputError("holds times that cannot be read", file=file, field="TIMESTAMP")


def _since_first(times: NDArray[np.datetime64]) -> NDArray[np.float64]:
    if np.isnat(times).any():
        raise ValueError("not a time")
    seconds: NDArray[np.float64] = (times - times[0]).astype(np.int64) / 1e9
    return seconds


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def ordered(arrival_s: NDArray[np.float64], file: str, field: str, lines: list[int]) -> None:
    earlier = np.flatnonzero(np.diff(arrival_s) < 0)
    if len(earlier):
        raise InputError(
            "comes before the row above it",
            file=file,
            line=lines[int(earlier[0]) + 1],
            field=field,
            expected="rows in order of arrival",
        )
