"""The interface between a generated program and the runtime. No torch here: tensors are `Any`.

A bundle holds, for each replica group, a forward program: one Python module whose `forward` computes the logits of a
flattened batch. The runtime builds the batch, owns the KV cache and the weights, and hands collectives in; the program
owns nothing and keeps no state between calls.

    forward(weights, kv_cache, batch, collectives[, kernels]) -> logits [rows, vocab], float32

- `weights`: mapping from slot name (`WeightSlot.name`) to this rank's tensor.
- `kv_cache`: one tensor per layer, [2, num_blocks, block_size, kv_heads, head_dim]; keys at 0, values at 1. KV heads
  are those of this rank. It holds finite numbers from the start (zeros): what is masked is still multiplied, by 0.
  Token `t` of a sequence lives in block `block_tables[s, t // block_size]`, row `t % block_size`.
- `batch`: a `FlatBatch`.
- `collectives`: a `Collectives`; with one rank every call gives its argument back.
- `kernels`: only for programs over Triton kernels: mapping from kernel name to a launcher (see `specs.kernels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from specs.document import Document, DType, Frozen


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """One step's tokens of all sequences, one after another. T tokens, S sequences, R sampled rows, B blocks at most.

    Every sequence has at least one token in the batch. Integer tensors are on the device of the program.
    """

    token_ids: Any  # int64 [T]
    positions: Any  # int64 [T], position of each token in its sequence
    slots: Any  # int64 [T], block id * block_size + row: where the token's key and value go
    query_start: Any  # int32 [S + 1], first token of each sequence, then T
    kv_lengths: Any  # int32 [S], tokens in the cache after this step's are written
    block_tables: Any  # int32 [S, B], padded with 0
    sample_rows: Any  # int64 [R], rows of [0, T) whose logits are wanted
    num_tokens: int  # T
    num_sequences: int  # S
    max_query_tokens: int  # longest piece of one sequence; 1 in a decode-only step
    max_kv_tokens: int  # longest kv_length


class Collectives(Protocol):
    """What ranks of one tensor-parallel group do together."""

    rank: int
    world_size: int

    def all_reduce(self, tensor: Any) -> Any:
        """The sum over ranks; may reuse `tensor`'s memory."""

    def all_gather(self, tensor: Any, dim: int) -> Any:
        """The ranks' tensors joined along `dim`."""


class WeightPart(Frozen):
    """One tensor of the checkpoint inside a slot. `shard_axis` is the axis of that tensor cut over ranks, or None.

    `segments` as in `specs.architecture.weights`: (size, units) pieces of the sharded axis that are cut one by one;
    units fewer than ranks are repeated. Without segments the axis is cut into equal pieces, the last one padded with
    zeros where they do not come out even (the vocabulary).
    """

    checkpoint_name: str
    shape: tuple[int, ...]  # unsharded, as in the checkpoint
    shard_axis: int | None = None
    segments: tuple[tuple[int, int], ...] = ()

    def rank_slices(self, rank: int, ranks: int) -> tuple[tuple[int, int], ...]:
        """What `rank` of `ranks` holds of the sharded axis: (start, stop) pieces in order, padding not listed."""
        if self.shard_axis is None or ranks == 1:
            return ((0, self.shape[0 if self.shard_axis is None else self.shard_axis]),)
        size = self.shape[self.shard_axis]
        if not self.segments:
            piece = -(-size // ranks)
            return ((min(rank * piece, size), min((rank + 1) * piece, size)),)
        slices: list[tuple[int, int]] = []
        offset = 0
        for length, units in self.segments:
            width = length // units
            first = rank * units // ranks  # units fewer than ranks: neighbouring ranks share one
            last = first + max(1, units // ranks)
            slices.append((offset + first * width, offset + last * width))
            offset += length
        return tuple(slices)

    def rank_shape(self, ranks: int) -> tuple[int, ...]:
        """Shape on one rank, padding included; the same on every rank."""
        if self.shard_axis is None or ranks == 1:
            return self.shape
        size = self.shape[self.shard_axis]
        cut = sum(stop - start for start, stop in self.rank_slices(0, ranks)) if self.segments else -(-size // ranks)
        return (*self.shape[: self.shard_axis], cut, *self.shape[self.shard_axis + 1 :])


class WeightSlot(Frozen):
    """One tensor that a program reads, made of checkpoint tensors.

    Every part is cut and padded as `WeightPart` says. pack "one": the part itself. "concat": this rank's parts joined
    along axis 0 (q, k, v; gate, up). "stack": parts in groups of `group` joined along axis 0, the groups stacked
    (experts: gate, up of each expert, group 2).
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]  # of one rank
    pack: Literal["one", "concat", "stack"] = "one"
    group: int = 1
    parts: tuple[WeightPart, ...]


class ProgramManifest(Document):
    """What a runtime must know to call one program."""

    kind: Literal["Program"] = "Program"
    version: Literal[1] = 1
    family: str
    module: str  # file beside the manifest
    backend: Literal["torch", "triton"]
    tensor_parallel: int
    compute_dtype: DType  # of activations
    kv_dtype: DType
    layers: int
    kv_heads: int  # of one rank
    head_dim: int
    block_size_tokens: int
    vocab_size: int
    slots: tuple[WeightSlot, ...]
    kernels: tuple[str, ...] = ()  # names that the program takes from its `kernels` mapping
    sample_kernel: str | None = None  # draws tokens from the program's logits; launched by the runtime, not the program
