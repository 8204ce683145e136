"""What a step holds, and what operations cost in it: FLOPs, bytes and seconds, of many steps at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.cost.roofline import Floats
from specs.document import DType

_KERNELS = {"experts": 8}  # of one operation: routing, sorting, two grouped products with scales, activation, gathering

Kind = Literal["gemm", "attention", "experts", "elementwise", "collective", "scan"]


@dataclass(frozen=True)
class StepShape:
    """Many steps of a replica at once: arrays of one length (or length 1).

    Decoding sequences and prompt chunks of a step are described by their means: exact for equal ones.
    """

    tokens: Floats  # computed in the step: decodes and all chunk tokens
    sampled: Floats  # rows of logits
    decodes: Floats  # sequences that decode
    keys: Floats  # of a decoding sequence, the new token included
    window_keys: Floats  # the same in windowed layers: mean of min(keys, window)
    chunks: Floats
    new: Floats  # tokens of a chunk
    cached: Floats  # tokens before a chunk

    @classmethod
    def of(
        cls,
        *,
        decodes: Floats | float = 0.0,
        keys: Floats | float = 0.0,
        chunks: Floats | float = 0.0,
        new: Floats | float = 0.0,
        cached: Floats | float = 0.0,
        completing: Floats | float | None = None,
        window: int | None = None,
    ) -> StepShape:
        """Steps of `decodes` sequences at `keys` each and `chunks` chunks of `new` tokens over `cached` earlier ones;
        `completing` of the chunks (default all) end their prompts and sample a token."""
        b, k, c, n, p = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(value, np.float64)) for value in (decodes, keys, chunks, new, cached))
        )
        ends = c if completing is None else np.broadcast_to(np.asarray(completing, np.float64), c.shape)
        seen = k if window is None else np.minimum(k, float(window))
        return cls(b + c * n, b + ends, b, k, seen, c, n, p)


@dataclass(frozen=True)
class Cost:
    """Of one operation in each of many steps: arrays of one length."""

    flops: Floats
    bytes: Floats  # read and written in device memory, or sent, of a collective
    seconds: Floats


@dataclass(frozen=True)
class Operation:
    """One launch of one rank, `count` times a step."""

    name: str
    kind: Kind
    dtype: DType
    shard: str  # column | row | replicated | heads | experts | tokens | ranks
    count: int
    measure: Callable[[StepShape], Cost]
    window: int | None = None  # of an attention that does not see everything


def nothing(amount: Floats) -> Cost:
    """What an operation costs in steps that hold nothing of what it works on."""
    none = np.zeros_like(amount)
    return Cost(none, none, none)


def measure(operations: tuple[Operation, ...], shape: StepShape) -> Cost:
    """All operations of the steps together."""
    total = [np.zeros(shape.tokens.shape) for _ in range(3)]
    for operation in operations:
        cost = operation.measure(shape)
        for index, part in enumerate((cost.flops, cost.bytes, cost.seconds)):
            total[index] = total[index] + operation.count * part
    return Cost(*total)


def beyond_launch_s(attention: tuple[Operation, ...], shape: StepShape) -> Floats:
    """Seconds of attention beyond the launches, which any step pays."""
    none = np.zeros(1)
    launches_s = measure(attention, StepShape(np.ones(1), *[none] * 7)).seconds
    seconds: Floats = np.maximum(measure(attention, shape).seconds - launches_s, 0.0)
    return seconds


def step_kernels(every: Iterable[Operation]) -> int:
    """Kernels that one step launches, near enough: engines fuse and split differently."""
    return sum(operation.count * _KERNELS.get(operation.kind, 1) for operation in every)


def padded(seconds: Floats) -> Floats:
    """Seconds by ascending size where a batch may be padded to a size that takes less."""
    least: Floats = np.minimum.accumulate(seconds[::-1])[::-1]
    return least
