"""Weight tensors as the checkpoint names them, and how each is cut over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple


class Segment(NamedTuple):
    """A piece of a sharded axis: `size` elements in `units` equal parts that are never cut (heads, groups)."""

    size: int
    units: int


def rank_size(segments: tuple[Segment, ...], size: int, ranks: int) -> int:
    """Elements of an axis on one of `ranks` ranks (the fullest). Without segments any cut is allowed.

    Units fewer than ranks are repeated (one unit on each rank): KV heads under a wider tensor parallelism.
    """
    if not segments:
        return -(-size // ranks)
    return sum(-(-segment.units // ranks) * (segment.size // segment.units) for segment in segments)


@dataclass(frozen=True)
class Divisible:
    """A count that a tensor-parallel size must divide, or may be a multiple of where units can be repeated."""

    what: str
    count: int
    repeatable: bool = False

    def obstacle(self, ranks: int) -> str | None:
        """Why `ranks` cannot cut it, or None."""
        if self.count % ranks == 0 or (self.repeatable and ranks % self.count == 0):
            return None
        return f"{self.count} {self.what} cannot be split evenly over {ranks} ranks"


@dataclass(frozen=True)
class Ranks:
    """Over how many ranks tensors are cut: dense ones, and experts by expert and inside an expert."""

    tensor: int
    expert: int = 1
    expert_tensor: int = 1


@dataclass(frozen=True)
class WeightTensor:
    """One tensor of the checkpoint, or `count` equal ones: the name then holds `{expert}`.

    `expert_axis`: spread over expert-parallel ranks, along `count`, or along axis 0 of one stacked tensor (count 1).
    """

    name: str
    shape: tuple[int, ...]
    shard_axis: int | None
    quantised: bool
    count: int = 1
    stage: Literal["embedding", "layer", "head"] = "layer"
    layer: int | None = None
    expert_axis: bool = False
    segments: tuple[Segment, ...] = ()

    @property
    def elements(self) -> int:
        """Elements of all `count` tensors, unsharded."""
        return prod(self.shape) * self.count

    @property
    def experts(self) -> int:
        """Number of experts the tensor belongs to; 1 where it is not an expert's."""
        if not self.expert_axis:
            return 1
        return self.count if self.count > 1 else self.shape[0]

    def names(self) -> Iterator[str]:
        """The checkpoint's names, one for each of `count`."""
        if "{expert}" not in self.name:
            yield self.name
            return
        for expert in range(self.count):
            yield self.name.replace("{expert}", str(expert))

    def rank_elements(self, ranks: Ranks) -> int:
        """Elements on the fullest rank."""
        elements = self.elements
        if self.expert_axis:
            elements = elements // self.experts * -(-self.experts // ranks.expert)
        if self.shard_axis is not None:
            size = self.shape[self.shard_axis]
            cut = ranks.expert_tensor if self.expert_axis else ranks.tensor
            elements = elements // size * rank_size(self.segments, size, cut)
        return elements


def linear_tensors(
    role: str,
    in_features: int,
    out_features: int,
    *,
    shard: Literal["column", "row", "replicated"],
    quantised: bool,
    bias: bool = False,
    segments: tuple[Segment, ...] = (),
) -> tuple[WeightTensor, ...]:
    """`role.weight` (out, in) and, where there is one, `role.bias` (out). A row-cut layer's bias is not cut."""
    axis = {"column": 0, "row": 1, "replicated": None}[shard]
    weight = WeightTensor(f"{role}.weight", (out_features, in_features), axis, quantised, segments=segments)
    if not bias:
        return (weight,)
    if shard == "column":
        return weight, WeightTensor(f"{role}.bias", (out_features,), 0, False, segments=segments)
    return weight, WeightTensor(f"{role}.bias", (out_features,), None, False)


def norm_tensors(role: str, size: int, bias: bool = False) -> tuple[WeightTensor, ...]:
    """The scale of a norm, and its shift where it has one; both whole on every rank."""
    scale = WeightTensor(f"{role}.weight", (size,), None, False)
    return (scale, WeightTensor(f"{role}.bias", (size,), None, False)) if bias else (scale,)
