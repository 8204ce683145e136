"""Seconds that a layout's kernels take, by operator kind, on a few knots: what engines scale and a step adds up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.latency import latency_of
from planner.cost.operations import operations
from planner.cost.roofline import Floats
from planner.cost.step import check_layout
from planner.cost.step_work import Operation, StepShape, beyond_launch_s, padded, step_kernels
from specs.architecture.model import Architecture
from specs.document import DType
from specs.plan import Layout
from specs.profile import DeviceFacts, DeviceProfile

_FEW_TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768)
TOKENS = np.array(
    [*_FEW_TOKENS, 1024, 1280, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768], np.float64
)
ROWS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024], np.float64)
SIZES = np.array([1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024], np.float64)
KEYS = np.array([1, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768, 131072], np.float64)
NEW = np.array([1, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768], np.float64)
CACHED = np.array([0, 512, 2048, 8192, 32768, 131072], np.float64)


@dataclass(frozen=True, eq=False)
class LayoutWork:
    """Seconds on the knots of this module, before any factor of an engine.

    `tokens`: by operator kind, of `TOKENS` tokens; `rows`: by kind, of `ROWS` sampled rows; `decode[i, j]`: attention
    of `SIZES[i]` decoding sequences of `KEYS[j]` keys, `chunk[i, j]`: of a chunk of `NEW[i]` tokens over `CACHED[j]`
    earlier ones, both beyond the launches that `tokens` holds.
    """

    architecture: Architecture
    operations: tuple[Operation, ...]
    tokens: dict[str, Floats]
    rows: dict[str, Floats]
    decode: Floats
    chunk: Floats

    @property
    def kernels(self) -> int:
        """Kernels of one step."""
        return step_kernels(self.operations)


def layout_work(
    architecture: Architecture,
    layout: Layout,
    weights_dtype: DType,
    kv_dtype: DType,
    device: DeviceFacts,
    profile: DeviceProfile,
) -> LayoutWork:
    """Every operation of `layout`, worked out on the knots. Raises `InputError` as `check_layout`."""
    check_layout(architecture, layout, weights_dtype, kv_dtype, device)
    latency = latency_of(device, profile)
    every = operations(architecture, layout, weights_dtype, kv_dtype, device, profile, latency)
    none = np.zeros(1)
    tokens: dict[str, Floats] = {}
    rows: dict[str, Floats] = {}
    for operation in every:
        by_tokens = _seconds(operation, StepShape(TOKENS, *[none] * 7))
        by_rows = _seconds(operation, StepShape(np.zeros_like(ROWS), ROWS, none, none, none, none, none, none))
        tokens[operation.kind] = tokens.get(operation.kind, 0.0) + padded(by_tokens)
        rows[operation.kind] = rows.get(operation.kind, 0.0) + padded(by_rows)
    attention = tuple(operation for operation in every if operation.kind == "attention")
    b, k = (grid.ravel() for grid in np.meshgrid(SIZES, KEYS, indexing="ij"))
    window = architecture.window_tokens
    decode = beyond_launch_s(attention, StepShape.of(decodes=b, keys=k, window=window)).reshape(len(SIZES), len(KEYS))
    n, c = (grid.ravel() for grid in np.meshgrid(NEW, CACHED, indexing="ij"))
    one = np.ones(1)
    chunk = beyond_launch_s(attention, StepShape(n, none, none, none, none, one, n, c)).reshape(len(NEW), len(CACHED))
    return LayoutWork(architecture, every, tokens, rows, np.maximum.accumulate(decode, axis=1), chunk)


def _seconds(operation: Operation, shape: StepShape) -> Floats:
    seconds: Floats = operation.count * np.broadcast_to(operation.measure(shape).seconds, shape.tokens.shape)
    return seconds
