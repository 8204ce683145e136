"""A made-up GPU: the times of single kernels by the physical cores at parameters of its own, with noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from planner.operators.cores import operator_facts
from planner.operators.lane import new_lane
from runtime.calibrate_gpu_points import Point, designed_points
from specs.catalog import load_device
from specs.document import DType

TYPES = {DType.BF16: "bfloat16", DType.FP8: "fp8"}
SLOWER = 1.3  # than the cores at their starting parameters: no relative's fit is near


def kernel_s(point: Point, device: str, l2: bool = True) -> float:
    """Seconds of a point on the made-up `device`, with or without an `l2` that holds its operands."""
    facts, size = operator_facts(load_device(device)), point.shape
    if not l2:
        facts = replace(facts, l2_bytes=1.0)
    if point.family == "copy":
        return 3e-6 + point.bytes / (0.85 * facts.hbm_bytes_per_s)
    if point.family == "gemm":
        lane, columns = new_lane("gemm", TYPES[point.dtype]), dict(size)
    else:
        lane = new_lane(point.family, f"{TYPES[point.dtype]}/full")
        columns = {"prefix": 0, "window": 0, **size}
    rows = {name: np.array([float(value)]) for name, value in columns.items()}
    return SLOWER * float(lane.physical(rows, facts)[0])


def made_columns(
    device: str, weights: tuple[DType, ...], noise: float = 0.02, seed: int = 0, l2: bool = True
) -> dict[str, dict[str, list[Any]]]:
    """Kernel tables of a made-up `device`, by family, in the published schema; log-normal `noise`."""
    random = np.random.default_rng(seed)
    tables: dict[str, dict[str, list[Any]]] = {}
    for point in designed_points(weights, DType.BF16, 4e9):
        if point.family == "copy":
            continue
        row = {"device": f"NVIDIA {device.upper()}", "op_name": point.family, **shape_columns(point)}
        row["l2"] = "warm" if l2 else "cold"
        row["latency"] = 1e3 * kernel_s(point, device, l2) * float(np.exp(random.normal(0.0, noise)))
        columns = tables.setdefault(point.family, {name: [] for name in row})
        for name, value in row.items():
            columns[name].append(value)
    return tables


def shape_columns(point: Point) -> dict[str, Any]:
    size = point.shape
    if point.family == "gemm":
        return {"gemm_dtype": TYPES[point.dtype], **size}
    return {
        "batch_size": size["batch"],
        "isl": size.get("tokens", 1),
        "step": 0 if "tokens" in size else size["keys"] - 1,
        "num_heads": size["heads"],
        "num_key_value_heads": size["kv_heads"],
        "head_dim": size["head_dim"],
        "kv_cache_dtype": TYPES[point.dtype],
    }


def made_gpu(name: str) -> Any:
    """What `find_gpu` says of it: operands on the CPU, little memory, so that they are made in no time."""
    from runtime.calibrate_gpu import Gpu

    return Gpu("cpu", name, (DType.BF16,), 8e6, 50_331_648, 1)


def naming_its_point(call_of: Any) -> Any:
    """`call_of` whose calls carry their point, so that `MadeTimer` knows what it times."""

    def named(point: Point, device: str) -> Any:
        call = call_of(point, device)

        def again() -> Any:
            return call()

        again.point = point
        return again

    return named


class MadeTimer:
    """Times by `kernel_s`; the call is made once, to see that it can be."""

    def __init__(self, device: str, l2: str, factor: float = 1.0) -> None:
        self.device, self.l2, self.factor = device, l2, factor
        self._random = np.random.default_rng(0)

    def seconds(self, call: Any) -> tuple[float, int]:
        call()
        noise = float(np.exp(self._random.normal(0.0, 0.02)))
        return self.factor * noise * kernel_s(call.point, self.device), 5

    def launches(self) -> dict[str, float]:
        return {"eager": 5e-6, "graph": 2e-6}
