"""Parsers of trace files: text in, three checked columns out. Fast on good files, exact about bad ones.

A whole column is converted at once; only when that fails is it walked row by row to name the first bad one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specs.errors import InputError, nearest_names
from specs.traffic.distributions import MAX_TOKENS


@dataclass(frozen=True)
class Columns:
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    timed: bool = True
    notes: tuple[str, ...] = ()


def parse_azure(text: str, file: str) -> Columns:
    times, prompts, outputs, lines = _csv(text, file, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    arrival_s = _timestamps(times, file, lines)
    _ordered(arrival_s, file, "TIMESTAMP", lines)
    return Columns(
        arrival_s, _tokens(prompts, file, "ContextTokens", lines), _tokens(outputs, file, "GeneratedTokens", lines)
    )


def parse_csv(text: str, file: str) -> Columns:
    times, prompts, outputs, lines = _csv(text, file, ("arrival_s", "prompt_tokens", "output_tokens"))
    arrival_s = _seconds(times, file, "arrival_s", lines)
    _ordered(arrival_s, file, "arrival_s", lines)
    return Columns(
        arrival_s, _tokens(prompts, file, "prompt_tokens", lines), _tokens(outputs, file, "output_tokens", lines)
    )


def parse_burstgpt(text: str, file: str) -> Columns:
    """Requests that failed have no response tokens, which is an error here: leave them out of the file."""
    times, prompts, outputs, lines = _csv(text, file, ("Timestamp", "Request tokens", "Response tokens"))
    arrival_s = _seconds(times, file, "Timestamp", lines)
    _ordered(arrival_s, file, "Timestamp", lines)
    return Columns(
        arrival_s, _tokens(prompts, file, "Request tokens", lines), _tokens(outputs, file, "Response tokens", lines)
    )


def parse_sharegpt(text: str, file: str) -> Columns:
    prompts, outputs, lines = _csv(text, file, ("num_prefill_tokens", "num_decode_tokens"))
    return Columns(
        np.arange(len(lines), dtype=np.float64),
        _tokens(prompts, file, "num_prefill_tokens", lines),
        _tokens(outputs, file, "num_decode_tokens", lines),
        timed=False,
        notes=("the file holds lengths only: arrival times are drawn",),
    )


def parse_mooncake(text: str, file: str) -> Columns:
    names = ("timestamp", "input_length", "output_length")
    columns: tuple[list[Any], ...] = ([], [], [])
    lines: list[int] = []
    hashes = False
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not JSON ({error})", file=file, line=number, expected="one object a line") from None
        if not isinstance(row, dict):
            raise InputError(f"holds {type(row).__name__}", file=file, line=number, expected="one object a line")
        for name, column in zip(names, columns, strict=True):
            if name not in row:
                raise InputError(
                    "is missing", file=file, line=number, field=name, nearest=nearest_names(name, map(str, row))
                )
            value = row[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"is {value!r}", file=file, line=number, field=name, expected="a number")
            column.append(value)
        hashes = hashes or bool(row.get("hash_ids"))
        lines.append(number)
    if not lines:
        raise InputError("holds no requests", file=file, expected="one JSON object a line")
    arrival_s = _seconds(columns[0], file, "timestamp", lines) / 1000.0
    _ordered(arrival_s, file, "timestamp", lines)
    return Columns(
        arrival_s,
        _tokens(columns[1], file, "input_length", lines),
        _tokens(columns[2], file, "output_length", lines),
        notes=("prefix hashes are not used: every prompt is computed in full",) if hashes else (),
    )


PARSERS: dict[str, Callable[[str, str], Columns]] = {
    "azure": parse_azure,
    "mooncake": parse_mooncake,
    "burstgpt": parse_burstgpt,
    "sharegpt": parse_sharegpt,
    "csv": parse_csv,
}


def _csv(text: str, file: str, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Columns `names` as lists of strings, and the line number of each row. Unquoted CSV; blank lines are skipped."""
    rows = text.replace("\r\n", "\n").split("\n")
    header = [name.strip() for name in rows[0].split(",")]
    if not rows[0].strip():
        raise InputError("is empty", file=file, expected=f"a header with {', '.join(names)}")
    for name in names:
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
    width = len(header)
    fields = [rows[number - 1].split(",") for number in lines]
    for number, row in zip(lines, fields, strict=True):
        if len(row) != width:
            if row == header:
                raise InputError("repeats the header", file=file, line=number, expected="one header, at the top")
            raise InputError(f"has {len(row)} fields", file=file, line=number, expected=f"{width}, as in the header")
    positions = [header.index(name) for name in names]
    return (*([row[position] for row in fields] for position in positions), lines)


def _tokens(values: list[Any], file: str, field: str, lines: list[int]) -> NDArray[np.int64]:
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


def _seconds(values: list[Any], file: str, field: str, lines: list[int]) -> NDArray[np.float64]:
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


def _timestamps(values: list[str], file: str, lines: list[int]) -> NDArray[np.float64]:
    """`YYYY-MM-DD HH:MM:SS.fffffff`, with or without +00:00: seconds since the first one, exact to the nanosecond."""
    cleaned = [value.strip().removesuffix("+00:00").removesuffix("Z") for value in values]
    try:
        return _since_first(np.array(cleaned, dtype="datetime64[ns]"))
    except (ValueError, OverflowError):
        pass  # the walk below names the row
    for value, raw, line in zip(cleaned, values, lines, strict=True):
        try:
            bad = bool(np.isnat(np.datetime64(value, "ns"))) or len(value) < len("2023-11-16 18:15:46")
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


def _ordered(arrival_s: NDArray[np.float64], file: str, field: str, lines: list[int]) -> None:
    earlier = np.flatnonzero(np.diff(arrival_s) < 0)
    if len(earlier):
        raise InputError(
            "comes before the row above it",
            file=file,
            line=lines[int(earlier[0]) + 1],
            field=field,
            expected="rows in order of arrival",
        )
