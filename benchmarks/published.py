"""What the benchmarks on published instances share: reading files, one JSON line an answer, exit codes.

Exit codes: 0 answered, 2 a file is no instance, 3 an instance has no plan; then one message on stderr and no traceback.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from specs.errors import CapstanError, InputError, nearest_names

ANNOTATIONS = frozenset(  # keys that change no answer
    (
        *("name", "source", "status", "unit", "note", "notes", "comment", "description", "license", "licence"),
        *("reference", "url", "version", "best_known", "published", "bound", "upper_bound", "lower_bound", "expected"),
    )
)

LIKE_A_KNOWN_KEY = 0.8  # similarity of a key to a known one from which on it is taken for a misspelling


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; raises `InputError` that names file and line."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", file=str(path)) from None
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg}", file=str(path), line=error.lineno) from None
    if not isinstance(document, dict):
        raise InputError("must be a JSON object", file=str(path))
    return document


def check_keys(document: Any, required: Iterable[str], optional: Iterable[str] = (), *, at: str = "") -> None:
    """All `required` keys are there, and no other one that looks like a known key misspelt.

    Annotations change no answer and may be there; any other key is ignored with a warning on stderr.
    """
    if not isinstance(document, dict):
        raise InputError("must be an object", field=at or None)
    required = list(required)
    known = {*required, *optional, *ANNOTATIONS}
    prefix = f"{at}." if at else ""
    for key in required:
        if key not in document:
            raise InputError("is missing", field=prefix + key)
    for key in document:
        if key in known:
            continue
        nearest = nearest_names(key, known - ANNOTATIONS, count=1)
        if nearest and SequenceMatcher(None, key, nearest[0]).ratio() >= LIKE_A_KNOWN_KEY:
            raise InputError("unknown key", field=prefix + key, nearest=nearest)
        print(f"warning: {prefix}{key}: key is not known and changes nothing", file=sys.stderr)


def number(value: Any, field: str, *, low: float = 0.0) -> float:
    """A finite number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise InputError(f"must be a finite number of at least {low:g}; it is {value!r:.40}", field=field)
    return float(value)


def integer(value: Any, field: str, *, low: int = 0) -> int:
    """A whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InputError(f"must be a whole number of at least {low}; it is {value!r:.40}", field=field)
    return value


def table(value: Any, field: str) -> list[list[float]]:
    """A rectangular table of numbers that are not negative."""
    rows = value if isinstance(value, list) else []
    if not rows or not all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows):
        raise InputError("must be a table of rows of equal length", field=field)
    return [[number(cell, f"{field}[{i}][{j}]") for j, cell in enumerate(row)] for i, row in enumerate(rows)]


def read_all(files: Iterable[Path], parse: Callable[[dict[str, Any]], Any]) -> list[tuple[Path, Any]]:
    """Every file parsed, before anything is solved; an `InputError` is told where it comes from."""
    parsed = []
    for path in files:
        try:
            parsed.append((path, parse(read_json(path))))
        except InputError as error:
            error.file = error.file or str(path)
            raise
    return parsed


def print_timed(solve: Callable[[], dict[str, Any]]) -> None:
    """One JSON line: the answer with the wall and CPU seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = solve()
    answer["seconds"] = round(time.perf_counter() - wall, 4)
    answer["cpu_seconds"] = round(time.process_time() - cpu, 4)
    print(json.dumps(answer), flush=True)


def gap(value: float, bound: float) -> float:
    """Distance between a value and its bound as a share of the larger: what is minimised is above its bound."""
    larger = max(abs(value), abs(bound))
    return abs(value - bound) / larger if larger else 0.0


def run(main: Callable[[], None]) -> None:
    """Ends the process with the exit code of a clear error, if there is one."""
    try:
        main()
    except CapstanError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
