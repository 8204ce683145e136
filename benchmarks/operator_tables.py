"""The published kernel tables as the benchmarks of operator latencies read them: devices, rows kept out, splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from planner.operators import OperatorTable, read_columns
from planner.operators.calibrate import held_out_rows
from planner.operators.lane import KINDS
from planner.operators.tables import NUMBERS, TEXTS

SOURCE = "NVIDIA aiconfigurator-core 0.12.0 kernel tables (Apache-2.0, Copyright NVIDIA CORPORATION & AFFILIATES)"
DEVICES = {"a100-sxm": "a100_sxm", "h100-sxm": "h100_sxm", "h200-sxm": "h200_sxm", "l40s": "l40s"}  # -> folder
SHAPE = {
    "gemm": ("n", "k"),
    "context_attention": ("heads", "kv_heads", "head_dim"),
    "generation_attention": ("heads", "kv_heads", "head_dim"),
    "moe": ("hidden", "inter", "topk", "experts"),
    "nccl": ("bytes",),
    "custom_allreduce": ("bytes",),
    "mla_context_module": ("heads",),
    "mla_generation_module": ("heads",),
    "mla_bmm": ("heads",),
    "moe_a2a": ("hidden", "topk", "experts"),
}
GOLDEN_ROWS = 10
Mask = NDArray[np.bool_]
Table = tuple[OperatorTable, dict[str, list[Any]]]  # checked, and its columns as they stand in the file


def read_tables(data: Path, device: str) -> dict[str, Table]:
    """The tables of a device by family."""
    found = {}
    for family in KINDS:
        paths = sorted((data / DEVICES[device]).glob(f"*/*/*/{family}_perf.parquet"))
        if len(paths) > 1:
            raise SystemExit(f"{data / DEVICES[device]}: expected one {family}_perf.parquet, found {len(paths)}")
        for path in paths:
            table = parquet.read_table(path)
            columns = {name: table[name].to_pylist() for name in table.column_names}
            found[family] = (read_columns(columns, str(path)), columns)
    return found


def golden_rows(family: str, count: int) -> list[int]:
    """Rows of a table that no fit may see."""
    generator = np.random.default_rng(100 + list(KINDS).index(family))
    return sorted(generator.choice(count, GOLDEN_ROWS, replace=False).tolist())


def golden_shape(family: str, columns: dict[str, list[Any]], row: int) -> str:
    names = [*TEXTS[family], *NUMBERS[family], *(["window_size"] if "window_size" in columns else [])]
    return ";".join(f"{column}={columns[column][row]}" for column in names)


def without(table: OperatorTable, rows: list[int]) -> OperatorTable:
    keep = np.ones(len(table.lanes), bool)
    keep[rows] = False
    return subset(table, keep)


def subset(table: OperatorTable, chosen: Mask) -> OperatorTable:
    seconds = None if table.seconds is None else table.seconds[chosen]
    return OperatorTable(
        table.family, {name: values[chosen] for name, values in table.rows.items()}, table.lanes[chosen], seconds
    )


def held_out(split: str, table: OperatorTable) -> Mask:
    """Rows that a fit must not see: a random fifth of the `rows`, or a fifth of the `shapes`, whole."""
    if split == "rows":
        return held_out_rows(len(table.lanes))
    _, index = np.unique(np.stack([table.rows[name] for name in SHAPE[table.family]]), axis=1, return_inverse=True)
    generator = np.random.default_rng(7)
    result: Mask = (generator.random(int(index.max()) + 1) < 0.2)[index.ravel()]
    return result
