"""One device's forward pass: builds the flattened batch of a step, owns weights and KV cache, calls the program."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.config import ServedGroup, load_forward, torch_dtype
from runtime.loader import load_weights
from runtime.request import SampledToken
from runtime.sampler import Draw, KernelSampler, sample
from runtime.scheduler import Piece
from specs.errors import InputError
from specs.program import FlatBatch, ProgramManifest

logger = logging.getLogger("capstan.model_runner")
SMALL_LAYER_BYTES = 4 * 2**20
DEFAULT_THREADS = torch.get_num_threads()


class OneRank:
    """`specs.program.Collectives` of a replica on one device: every call gives its argument back."""

    rank = 0
    world_size = 1

    def all_reduce(self, tensor: Any) -> Any:
        return tensor

    def all_gather(self, tensor: Any, dim: int) -> Any:
        return tensor


class ModelRunner:
    """`run(pieces)` computes a step's tokens and returns the logits of its sampled rows; `sample` draws from them."""

    def __init__(
        self,
        forward: Callable[..., torch.Tensor],
        manifest: ProgramManifest,
        weights: Mapping[str, torch.Tensor],
        num_blocks: int,
        device: torch.device,
        kernels: Mapping[str, Any] | None = None,
    ) -> None:
        self.manifest = manifest
        self.device = device
        self._forward = forward
        self._weights = weights
        self._kernels = kernels
        self._collectives = OneRank()
        self._kv_cache = _kv_cache(manifest, num_blocks, device)
        self._sampler = _sampler(manifest, kernels)

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Logits [rows, vocab] float32 of the pieces that sample, in their order; keys and values go to the cache."""
        batch = flat_batch(pieces, self.manifest.block_size_tokens, self.device)
        extra = () if self._kernels is None else (self._kernels,)
        logits: torch.Tensor = self._forward(self._weights, self._kv_cache, batch, self._collectives, *extra)
        return logits

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[SampledToken]:
        """One token for each row of what `run` returned, by the rule in `runtime.sampler`: on the CPU, or by the
        bundle's kernel where the program runs over kernels."""
        return self._sampler(logits, draws)


def _sampler(
    manifest: ProgramManifest, kernels: Mapping[str, Any] | None
) -> Callable[[torch.Tensor, Sequence[Draw]], list[SampledToken]]:
    if kernels is None:
        return sample
    if manifest.sample_kernel is None:
        logger.warning("the bundle has no sampling kernel; tokens are drawn on the CPU. Compile it again")
        return sample
    return KernelSampler(kernels[manifest.sample_kernel])


def flat_batch(pieces: Sequence[Piece], block_size: int, device: torch.device) -> FlatBatch:
    """The step as one flattened batch. Every piece's blocks are granted already."""
    ids: list[int] = []
    positions, slots, starts, lengths = [], [], [0], []
    sample_rows: list[int] = []
    width = max(-(-(piece.start + piece.tokens) // block_size) for piece in pieces)
    tables = np.zeros((len(pieces), width), dtype=np.int32)
    for row, piece in enumerate(pieces):
        end = piece.start + piece.tokens
        used = -(-end // block_size)
        blocks = np.asarray(piece.request.sequence.blocks[:used], dtype=np.int64)
        tables[row, :used] = blocks
        at = np.arange(piece.start, end, dtype=np.int64)
        ids += piece.request.tokens(piece.start, piece.tokens)
        positions.append(at)
        slots.append(blocks[at // block_size] * block_size + at % block_size)
        starts.append(starts[-1] + piece.tokens)
        lengths.append(end)
        if piece.samples:
            sample_rows.append(starts[-1] - 1)

    def put(values: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)

    return FlatBatch(
        token_ids=put(ids, torch.int64),
        positions=put(np.concatenate(positions), torch.int64),
        slots=put(np.concatenate(slots), torch.int64),
        query_start=put(starts, torch.int32),
        kv_lengths=put(lengths, torch.int32),
        block_tables=put(tables, torch.int32),
        sample_rows=put(sample_rows, torch.int64),
        num_tokens=starts[-1],
        num_sequences=len(pieces),
        max_query_tokens=max(piece.tokens for piece in pieces),
        max_kv_tokens=max(lengths),
    )


def choose_device(name: str = "auto") -> torch.device:
    """`cpu`, `cuda`, or `auto`: the GPU where there is one. `InputError` where CUDA is asked for and absent."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"is {name!r}", field="device", expected="auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("no CUDA device is usable here", field="device", expected="cpu, or a machine with a GPU")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def runner_of(served: ServedGroup, model_dir: str | Path, device: torch.device) -> ModelRunner:
    """Load the program and the weights of an open group. Errors as `load_weights`."""
    forward = load_forward(served.program, served.source)
    weights = load_weights(model_dir, served.manifest, device)
    kernels = None
    if served.manifest.backend == "triton":
        from runtime.launch import load_kernels

        kernels = load_kernels(served.folder, served.config, device)
    else:
        use_threads(sum(tensor.nbytes for tensor in weights.values()) // max(1, served.manifest.layers))
    return ModelRunner(forward, served.manifest, weights, served.num_blocks, device, kernels)


def use_threads(layer_bytes: int) -> None:
    """One thread where a layer's weights are small, else torch's own choice.

    A product over a few hundred KB is done before a second thread is awake: a two-layer model of width 128 takes 1.2 ms
    a step on one thread, and 15 ms on two when something else wants a core (two-core server, torch 2.13).
    """
    torch.set_num_threads(1 if layer_bytes < SMALL_LAYER_BYTES else DEFAULT_THREADS)


def _kv_cache(manifest: ProgramManifest, num_blocks: int, device: torch.device) -> list[torch.Tensor]:
    """One tensor per layer, [2, blocks, block size, KV heads, head size]; zeros, so that padding is never NaN."""
    shape = (2, num_blocks, manifest.block_size_tokens, manifest.kv_heads, manifest.head_dim)
    dtype = torch_dtype(manifest.kv_dtype)
    try:
        return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(manifest.layers)]
    except (RuntimeError, MemoryError) as error:
        size = manifest.layers * dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        raise InputError(
            f"the plan's KV cache of {num_blocks} blocks ({size / 1e9:.1f} GB) cannot be allocated here "
            f"({str(error).splitlines()[0]})",
            field="cache.num_blocks",
            expected="a device with the memory that the plan was made for",
        ) from None
