"""Runs generated programs without the runtime: weights, a paged cache, batches, collectives in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file

from specs.program import FlatBatch, ProgramManifest, WeightPart, WeightSlot

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_module(source: str, name: str = "generated") -> ModuleType:
    """The generated source as a module."""
    module = ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def rank_part(tensor: torch.Tensor, part: WeightPart, rank: int, ranks: int) -> torch.Tensor:
    """This rank's part of a checkpoint tensor, padded with zeros where the axis does not divide."""
    assert tuple(tensor.shape) == part.shape
    if part.shard_axis is None:
        return tensor
    pieces = [tensor.narrow(part.shard_axis, start, stop - start) for start, stop in part.rank_slices(rank, ranks)]
    joined = torch.cat(pieces, part.shard_axis)
    whole = torch.zeros(part.rank_shape(ranks), dtype=tensor.dtype)
    whole.narrow(part.shard_axis, 0, joined.shape[part.shard_axis]).copy_(joined)
    return whole


def load_slots(folder: Path, manifest: ProgramManifest, rank: int = 0) -> dict[str, torch.Tensor]:
    """All slots of one rank from a checkpoint folder."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return {slot.name: _slot(tensors, slot, rank, manifest.tensor_parallel) for slot in manifest.slots}


def _slot(tensors: dict[str, torch.Tensor], slot: WeightSlot, rank: int, ranks: int) -> torch.Tensor:
    parts = [rank_part(tensors[part.checkpoint_name], part, rank, ranks) for part in slot.parts]
    if slot.pack == "stack":
        groups = [torch.cat(parts[first : first + slot.group]) for first in range(0, len(parts), slot.group)]
        value = torch.stack(groups)
    else:
        value = torch.cat(parts) if slot.pack == "concat" else parts[0]
    assert tuple(value.shape) == slot.shape, slot.name
    return value.to(DTYPES[slot.dtype.value]).contiguous()


class Alone:
    """Collectives of one rank. A call would be a defect of the program: with one rank there is nothing to join."""

    rank, world_size = 0, 1

    def all_reduce(self, tensor: Any) -> Any:
        return tensor

    def all_gather(self, tensor: Any, dim: int) -> Any:
        return tensor


class Together:
    """Ranks as threads of one process: each puts its tensor on a board and reads the others' behind a barrier."""

    def __init__(self, ranks: int) -> None:
        self.board: list[Any] = [None] * ranks
        self.barrier = threading.Barrier(ranks, timeout=60)

    def of(self, rank: int) -> ThreadCollectives:
        return ThreadCollectives(self, rank, len(self.board))


@dataclass
class ThreadCollectives:
    shared: Together
    rank: int
    world_size: int

    def _exchange(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.shared.board[self.rank] = tensor.clone()
        self.shared.barrier.wait()
        everyone = list(self.shared.board)
        self.shared.barrier.wait()
        return everyone

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._exchange(tensor)).sum(0)

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat(self._exchange(tensor), dim)


@dataclass
class Replica:
    """One replica of a program on CPU: weights and caches of all its ranks, and where each sequence's tokens lie."""

    module: ModuleType
    manifest: ProgramManifest
    folder: Path
    num_blocks: int = 64
    kernels: Any = None
    cached: dict[int, int] = field(default_factory=dict)  # sequence -> tokens in the cache
    tables: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        manifest = self.manifest
        ranks = manifest.tensor_parallel
        self.weights = [load_slots(self.folder, manifest, rank) for rank in range(ranks)]
        shape = (2, self.num_blocks, manifest.block_size_tokens, manifest.kv_heads, manifest.head_dim)
        # Large numbers where nothing was written: a key that should not be seen spoils the result.
        self.caches = [
            [torch.full(shape, 100.0, dtype=DTYPES[manifest.kv_dtype.value]) for _ in range(manifest.layers)]
            for _ in range(ranks)
        ]
        order = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(1))
        self.free = order.tolist()  # scattered, as a cache in use is

    def step(self, work: Sequence[tuple[int, Sequence[int]]]) -> list[torch.Tensor]:
        """Run one step of (sequence, its next tokens); logits [tokens, vocab] of each entry."""
        batch = self.batch(work)
        sizes = [len(tokens) for _, tokens in work]
        ranks = self.manifest.tensor_parallel
        if ranks == 1:
            return list(self._forward(0, batch, Alone()).split(sizes))
        shared = Together(ranks)
        results = in_threads(ranks, lambda rank: self._forward(rank, batch, shared.of(rank)))
        assert all(torch.equal(results[0], other) for other in results[1:])
        return list(results[0].split(sizes))

    def _forward(self, rank: int, batch: FlatBatch, collectives: Any) -> torch.Tensor:
        try:
            return self._called(rank, batch, collectives)
        except BaseException:
            if isinstance(collectives, ThreadCollectives):
                collectives.shared.barrier.abort()  # the other ranks need not wait for this one
            raise

    def _called(self, rank: int, batch: FlatBatch, collectives: Any) -> torch.Tensor:
        more = () if self.kernels is None else (self.kernels,)
        with torch.no_grad():
            logits: torch.Tensor = self.module.forward(self.weights[rank], self.caches[rank], batch, collectives, *more)
        return logits

    def batch(self, work: Sequence[tuple[int, Sequence[int]]]) -> FlatBatch:
        """The batch of `work`, blocks taken as needed; every row is sampled."""
        size = self.manifest.block_size_tokens
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, lengths = [0], []
        for sequence, pieces in work:
            first = self.cached.get(sequence, 0)
            table = self.tables.setdefault(sequence, [])
            for position in range(first, first + len(pieces)):
                if position // size == len(table):
                    table.append(self.free.pop())
                positions.append(position)
                slots.append(table[position // size] * size + position % size)
            tokens += pieces
            self.cached[sequence] = first + len(pieces)
            starts.append(len(tokens))
            lengths.append(self.cached[sequence])
        width = max(len(self.tables[sequence]) for sequence, _ in work) + 1  # one column of padding
        tables = [self.tables[sequence] + [0] * (width - len(self.tables[sequence])) for sequence, _ in work]
        return FlatBatch(
            token_ids=torch.tensor(tokens),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            query_start=torch.tensor(starts, dtype=torch.int32),
            kv_lengths=torch.tensor(lengths, dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            sample_rows=torch.arange(len(tokens)),
            num_tokens=len(tokens),
            num_sequences=len(work),
            max_query_tokens=max(len(pieces) for _, pieces in work),
            max_kv_tokens=max(lengths),
        )


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """`work(0..count-1)`, each in a thread; the first error is raised."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
