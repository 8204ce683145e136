"""Which kernels `capstan calibrate` measures on a GPU, in which order: designed to cover shapes in a few minutes.

Each family has the points that a fit cannot do without first (launches, weight streaming, long contexts), then the rest
in a fixed shuffled order, families taking turns by their share of the rows: a measurement that is cut short is coarser
everywhere rather than blind somewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from specs.document import DType

PointFamily = Literal["copy", "gemm", "generation_attention", "context_attention"]
COPY_BYTES = tuple(2**power for power in range(12, 31, 2))
GEMM_TOKENS = (1, 2, 4, 8, 16, 17, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# (n, k): tiny ones for launches, squares for the streaming curve, then projections and MLPs of models of 8 to 405
# billion parameters, whole and cut by tensor parallelism
GEMM_WIDTHS = (
    (64, 64), (128, 256), (256, 256), (512, 512), (1024, 512), (1024, 1024), (2048, 1024), (2048, 2048), (4096, 2048),
    (4096, 4096), (6144, 4096), (4096, 14336), (28672, 4096), (5120, 5120), (10240, 8192), (1280, 8192), (8192, 1024),
    (8192, 8192), (57344, 8192), (8192, 28672), (16384, 16384), (65536, 8192),
)  # fmt: skip
HEADS = ((32, 8), (64, 8), (8, 1), (32, 32), (16, 2))  # query heads, KV heads
HEAD_DIMS = (128, 64)
DECODE_BATCHES = (1, 4, 16, 64, 256)
DECODE_KEYS = (16, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
PREFILL_BATCHES = (1, 4)
PREFILL_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MOST_FLOPS = 4e13  # of one call: about a tenth of a second
SHARES: dict[PointFamily, float] = {"gemm": 0.5, "generation_attention": 0.3, "context_attention": 0.2}  # of the rows
SEED = 20260101


@dataclass(frozen=True)
class Point:
    """One kernel to measure. `dtype`: of the weights of a product, of the cache of attention, of a copy.

    shape: copy `bytes`; gemm `m, n, k`; attention `batch, heads, kv_heads, head_dim` and `keys` or `tokens`.
    """

    family: PointFamily
    dtype: DType
    shape: dict[str, int]

    @property
    def flops(self) -> float:
        size = self.shape
        if self.family == "gemm":
            return 2.0 * size["m"] * size["n"] * size["k"]
        if self.family == "copy":
            return 0.0
        heads = 4.0 * size["batch"] * size["heads"] * size["head_dim"]
        if self.family == "generation_attention":
            return heads * size["keys"]
        return heads * size["tokens"] * (size["tokens"] + 1) / 2

    @property
    def bytes(self) -> float:
        """Read and written once: weights or cache, activations in 16 bit."""
        size = self.shape
        if self.family == "copy":
            return 2.0 * size["bytes"]
        if self.family == "gemm":
            return size["n"] * size["k"] * self.dtype.bytes + 2.0 * size["m"] * (size["n"] + size["k"])
        new, keys = size.get("tokens", 1), size.get("keys", size.get("tokens", 1))
        cache = 2.0 * size["batch"] * keys * size["kv_heads"] * size["head_dim"] * self.dtype.bytes
        return cache + 4.0 * size["batch"] * new * size["heads"] * size["head_dim"]

    @property
    def text(self) -> str:
        shape = " ".join(f"{name}={value}" for name, value in self.shape.items())
        return f"{self.family} {self.dtype.value} {shape}"


def designed_points(weights: Sequence[DType], cache: DType, most_bytes: float) -> list[Point]:
    """All points that fit `most_bytes` of device memory, in the order to measure them.

    `weights`: types of products that the device takes; `cache`: type of attention.
    """
    families: dict[PointFamily, list[Point]] = {
        "copy": [Point("copy", DType.FP32, {"bytes": size}) for size in COPY_BYTES],
        "gemm": _shuffled(_products(weights), first=lambda point: point.shape["m"] <= 4),
        "generation_attention": _shuffled(_decodes(cache), first=lambda point: point.shape["head_dim"] == 128),
        "context_attention": _shuffled(_prefills(cache), first=lambda point: point.shape["head_dim"] == 128),
    }
    fitting = {
        family: [point for point in points if point.bytes <= most_bytes and point.flops <= MOST_FLOPS]
        for family, points in families.items()
    }
    return list(_taking_turns(fitting))


def _products(weights: Sequence[DType]) -> list[Point]:
    return [
        Point("gemm", dtype, {"m": tokens, "n": n, "k": k})
        for dtype, tokens, (n, k) in product(weights, GEMM_TOKENS, GEMM_WIDTHS)
    ]


def _decodes(cache: DType) -> list[Point]:
    return [
        Point("generation_attention", cache, _heads(heads, dim) | {"batch": batch, "keys": keys})
        for heads, dim, batch, keys in product(HEADS, HEAD_DIMS, DECODE_BATCHES, DECODE_KEYS)
    ]


def _prefills(cache: DType) -> list[Point]:
    return [
        Point("context_attention", cache, _heads(heads, dim) | {"batch": batch, "tokens": tokens})
        for heads, dim, batch, tokens in product(HEADS, HEAD_DIMS, PREFILL_BATCHES, PREFILL_TOKENS)
    ]


def _heads(heads: tuple[int, int], dim: int) -> dict[str, int]:
    return {"heads": heads[0], "kv_heads": heads[1], "head_dim": dim}


def _shuffled(points: list[Point], first: Callable[[Point], bool]) -> list[Point]:
    """In a fixed random order, those that `first` names before the others."""
    order = random.Random(SEED).sample(points, len(points))
    return sorted(order, key=lambda point: not first(point))


def _taking_turns(families: dict[PointFamily, list[Point]]) -> Iterator[Point]:
    """Each family in its order, interleaved so that any beginning holds them by their shares; copies come first."""
    rest = {family: iter(points) for family, points in families.items() if family != "copy"}
    yield from families["copy"]
    taken = dict.fromkeys(rest, 0)
    while rest:
        family = min(rest, key=lambda name: (taken[name] / SHARES[name], name))
        point = next(rest[family], None)
        if point is None:
            del rest[family]
            continue
        taken[family] += 1
        yield point
