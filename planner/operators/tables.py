"""Kernel tables: recognise the family, check every column and row, turn them into the model's columns and lanes.

Column names, units and conventions are those of the published tables: latency in milliseconds (of moe_a2a in
microseconds), message sizes in elements, KV length of decode = isl + step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.operators.grid import Floats, Rows
from planner.operators.lane import KINDS, PASSES
from specs.errors import InputError, nearest_names

Strings = NDArray[np.str_]
Column = Sequence[object]
BYTES = {"half": 2.0, "float16": 2.0, "bfloat16": 2.0, "float32": 4.0, "float": 4.0, "int8": 1.0, "fp8": 1.0}
SAME_DTYPE = {"bf16": "bfloat16", "float16": "bfloat16", "fp16": "bfloat16", "half": "bfloat16"}
_ATTENTION = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim")
_MOE = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
NUMBERS: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "context_attention": _ATTENTION,
    "generation_attention": _ATTENTION,
    "moe": _MOE,
    "nccl": ("num_gpus", "message_size"),
    "custom_allreduce": ("num_gpus", "message_size"),
    "mla_context_module": ("batch_size", "isl", "step", "num_heads"),
    "mla_generation_module": ("batch_size", "isl", "step", "num_heads"),
    "mla_bmm": ("num_tokens", "num_heads"),
    "moe_a2a": ("num_tokens", "hidden_size", "topk", "num_experts", "ep_size", "node_num"),
}
TEXTS: dict[str, tuple[str, ...]] = {
    "gemm": ("gemm_dtype",),
    "context_attention": ("kv_cache_dtype",),
    "generation_attention": ("kv_cache_dtype",),
    "moe": ("moe_dtype", "distribution"),
    "nccl": ("op_name", "nccl_dtype"),
    "custom_allreduce": ("backend", "allreduce_dtype"),
    "mla_context_module": ("gemm_type", "kv_cache_dtype"),
    "mla_generation_module": ("gemm_type", "kv_cache_dtype"),
    "mla_bmm": ("bmm_dtype", "op_name"),
    "moe_a2a": ("comm_backend", "phase"),
}
BMM_OPERATIONS = ("mla_gen_pre", "mla_gen_post")
MAY_BE_ZERO = ("step", "num_key_value_heads", "window_size")
LARGEST = 1e15
LATENCY = "latency"  # milliseconds, but for:
MICROSECONDS = ("moe_a2a",)


@dataclass(frozen=True)
class OperatorTable:
    """A checked table of one family: model columns [rows], the lane of each row, measured seconds where given."""

    family: str
    rows: Rows
    lanes: Strings
    seconds: Floats | None


def read_columns(
    columns: Mapping[str, Column], file: str | None = None, first_line: int | None = None
) -> OperatorTable:
    """Check a table given as columns of Python values (text of a CSV included).

    `first_line`: the line of row 1 in a text file. Raises `InputError` naming column and row.
    """
    checker = _Checker(columns, file, first_line)
    if not columns or checker.count == 0:
        raise InputError("holds no rows", file=file, expected="a kernel table")
    family = _family(checker)
    missing = [name for name in (*TEXTS[family], *NUMBERS[family]) if name not in columns]
    if missing:
        raise InputError(
            f"a {family} table lacks {', '.join(map(repr, missing))}",
            file=file,
            field=missing[0],
            expected=f"columns {', '.join((*TEXTS[family], *NUMBERS[family]))}",
            nearest=nearest_names(missing[0], columns),
        )
    numbers = {name: checker.numbers(name) for name in NUMBERS[family]}
    if "attention" in family and "window_size" in columns:
        numbers["window_size"] = checker.numbers("window_size")
    texts = {name: checker.texts(name) for name in TEXTS[family]}
    rows, lanes = _MAKE[family](numbers, texts, checker)
    return OperatorTable(family, rows, lanes, checker.latency(1e6 if family in MICROSECONDS else 1e3))


class _Checker:
    def __init__(self, columns: Mapping[str, Column], file: str | None, first_line: int | None) -> None:
        self.columns, self.file, self.first_line = columns, file, first_line
        self.count = len(next(iter(columns.values()))) if columns else 0

    def refuse(self, column: str, row: int, message: str, expected: str, nearest: tuple[str, ...] = ()) -> InputError:
        line = None if self.first_line is None else self.first_line + row
        return InputError(
            f"row {row + 1}: {message}", file=self.file, line=line, field=column, expected=expected, nearest=nearest
        )

    def numbers(self, name: str) -> Floats:
        """Whole numbers above zero (or zero, where that means something)."""
        zero = name in MAY_BE_ZERO
        expected = f"a whole number of at least {0 if zero else 1}"
        result = self._floats(name, expected)
        bad = ~np.isfinite(result) | (result < (0 if zero else 1)) | (result > LARGEST) | (result != np.floor(result))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise self.refuse(name, row, f"{self.columns[name][row]!r} is not valid", expected)
        return result

    def texts(self, name: str) -> list[str]:
        result = []
        for row, value in enumerate(self.columns[name]):
            if not isinstance(value, str) or not value.strip():
                raise self.refuse(name, row, f"{value!r} is not a name", "a name")
            result.append(value.strip())
        return result

    def latency(self, per_second: float) -> Floats | None:
        """Measured seconds of a column in units of 1 / `per_second`; None without it, or where every row is blank."""
        unit = "milliseconds" if per_second == 1e3 else "microseconds"
        for name in self.columns:
            if name != LATENCY and name.startswith("latency"):
                raise InputError(
                    "latency in an unknown unit",
                    file=self.file,
                    field=name,
                    expected=f"a column 'latency', {unit}",
                )
        if LATENCY not in self.columns or all(value is None or value == "" for value in self.columns[LATENCY]):
            return None
        result = self._floats(LATENCY, f"{unit} above zero")
        bad = ~np.isfinite(result) | (result <= 0)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise self.refuse(LATENCY, row, f"{self.columns[LATENCY][row]!r} is not valid", f"{unit} above zero")
        seconds: Floats = result / per_second
        return seconds

    def _floats(self, name: str, expected: str) -> Floats:
        result = np.empty(self.count)
        for row, value in enumerate(self.columns[name]):
            try:
                if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                    raise ValueError
                result[row] = float(value)
            except (ValueError, OverflowError):
                raise self.refuse(name, row, f"{value!r} is not a number", expected) from None
        return result


def _family(checker: _Checker) -> str:
    """By columns, and by `op_name` where two families share their columns."""
    columns = checker.columns
    for family, own in (("nccl", "nccl_dtype"), ("custom_allreduce", "allreduce_dtype"), ("mla_bmm", "bmm_dtype")):
        if own in columns:
            return family
    names = sorted({str(value) for value in columns["op_name"]}) if "op_name" in columns else []
    if len(names) > 1:
        raise InputError(
            f"holds several families ({', '.join(names)})", file=checker.file, field="op_name", expected="one family"
        )
    if names and names[0] in KINDS:
        return names[0]
    if not names:
        for family, own in (("gemm", "gemm_dtype"), ("moe", "moe_dtype"), ("moe_a2a", "comm_backend")):
            if own in columns:
                return family
    raise InputError(
        f"there is no latency model for the family {names[0]!r}" if names else "the family cannot be told",
        file=checker.file,
        field="op_name",
        expected=f"one of {', '.join(KINDS)}",
        nearest=nearest_names(names[0], KINDS) if names else (),
    )


Made = tuple[Rows, Strings]
Numbers = Mapping[str, Floats]
Texts = Mapping[str, list[str]]


def _dtypes(values: Sequence[str]) -> Strings:
    return np.array([SAME_DTYPE.get(value, value) for value in values])


def _gemm(numbers: Numbers, texts: Texts, checker: _Checker) -> Made:
    return dict(numbers), _dtypes(texts["gemm_dtype"])


def _attention(numbers: Numbers, texts: Texts, checker: _Checker, decode: bool) -> Made:
    heads, given = numbers["num_heads"], numbers["num_key_value_heads"]
    window = numbers.get("window_size", np.zeros(len(heads)))
    kv_heads = np.where(given == 0, heads, given)
    if (kv_heads > heads).any():
        row = int(np.flatnonzero(kv_heads > heads)[0])
        raise checker.refuse("num_key_value_heads", row, "more KV heads than heads", f"at most {heads[row]:.0f}")
    rows = {
        "batch": numbers["batch_size"],
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": numbers["head_dim"],
        "window": window,
    }
    if decode:
        rows["keys"] = numbers["isl"] + numbers["step"]
    else:
        rows["tokens"], rows["prefix"] = numbers["isl"], numbers["step"]
    return rows, np.char.add(_dtypes(texts["kv_cache_dtype"]), np.where(window > 0, "/window", "/full"))


def _moe(numbers: Numbers, texts: Texts, checker: _Checker) -> Made:
    law = np.array([_law(name, row, checker) for row, name in enumerate(texts["distribution"])])
    names = ("tokens", "hidden", "inter", "topk", "experts", "moe_tp", "moe_ep")
    rows = dict(zip(names, (numbers[name] for name in _MOE), strict=True))
    # widths that are no multiple of 16 elements take other kernels, up to 50 times slower: a lane of their own
    aligned = np.floor(rows["inter"] / rows["moe_tp"]) % 16 == 0
    return {**rows, "law": law}, np.char.add(_dtypes(texts["moe_dtype"]), np.where(aligned, "", "/unaligned"))


def _law(name: str, row: int, checker: _Checker) -> float:
    if name == "balanced":
        return 0.0
    try:
        exponent = float(name.removeprefix("power_law_")) if name.startswith("power_law_") else 0.0
    except ValueError:
        exponent = 0.0
    if not 0.0 < exponent <= 10.0:
        known = ("balanced", "power_law_1.01", "power_law_1.2")
        raise checker.refuse(
            "distribution", row, f"unknown distribution {name!r}", ", ".join(known), nearest_names(name, known)
        )
    return exponent


def _collective(numbers: Numbers, texts: Texts, checker: _Checker, dtype: str, lane: str) -> Made:
    sizes = []
    for row, name in enumerate(texts[dtype]):
        if name not in BYTES:
            raise checker.refuse(dtype, row, f"unknown dtype {name!r}", ", ".join(BYTES), nearest_names(name, BYTES))
        sizes.append(BYTES[name])
    if lane == "op_name":
        for row, name in enumerate(texts[lane]):
            if name not in PASSES:
                raise checker.refuse(
                    lane, row, f"unknown operation {name!r}", ", ".join(PASSES), nearest_names(name, PASSES)
                )
    size, ranks = np.array(sizes), numbers["num_gpus"]
    lanes = np.array([f"{name}/{int(count)}" for name, count in zip(texts[lane], ranks, strict=True)])
    kind = (size == 1.0).astype(np.float64)
    return {"bytes": numbers["message_size"] * size, "ranks": ranks, "kind": kind}, lanes


def _mla(numbers: Numbers, texts: Texts, checker: _Checker, decode: bool) -> Made:
    length = numbers["isl"] + numbers["step"] if decode else numbers["isl"]
    rows = {"batch": numbers["batch_size"], "heads": numbers["num_heads"], "length": length}
    return rows, np.char.add(np.char.add(_dtypes(texts["gemm_type"]), "/"), _dtypes(texts["kv_cache_dtype"]))


def _mla_bmm(numbers: Numbers, texts: Texts, checker: _Checker) -> Made:
    for row, name in enumerate(texts["op_name"]):
        if name not in BMM_OPERATIONS:
            nearest = nearest_names(name, BMM_OPERATIONS)
            raise checker.refuse("op_name", row, f"unknown operation {name!r}", ", ".join(BMM_OPERATIONS), nearest)
    rows = {"tokens": numbers["num_tokens"], "heads": numbers["num_heads"]}
    return rows, np.char.add(np.char.add(_dtypes(texts["bmm_dtype"]), "/"), np.array(texts["op_name"]))


def _moe_a2a(numbers: Numbers, texts: Texts, checker: _Checker) -> Made:
    names = ("tokens", "hidden", "topk", "experts", "ranks", "nodes")
    rows = dict(zip(names, (numbers[name] for name in NUMBERS["moe_a2a"]), strict=True))
    return rows, np.char.add(np.char.add(np.array(texts["comm_backend"]), "/"), np.array(texts["phase"]))


_MAKE: dict[str, Callable[[Numbers, Texts, _Checker], Made]] = {
    "gemm": _gemm,
    "context_attention": lambda numbers, texts, checker: _attention(numbers, texts, checker, decode=False),
    "generation_attention": lambda numbers, texts, checker: _attention(numbers, texts, checker, decode=True),
    "moe": _moe,
    "nccl": lambda numbers, texts, checker: _collective(numbers, texts, checker, "nccl_dtype", "op_name"),
    "custom_allreduce": lambda numbers, texts, checker: _collective(
        numbers, texts, checker, "allreduce_dtype", "backend"
    ),
    "mla_context_module": lambda numbers, texts, checker: _mla(numbers, texts, checker, decode=False),
    "mla_generation_module": lambda numbers, texts, checker: _mla(numbers, texts, checker, decode=True),
    "mla_bmm": _mla_bmm,
    "moe_a2a": _moe_a2a,
}
