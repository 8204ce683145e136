"""Where the layers of a replica are cut whose stages stand on unlike machines.

Up to eight cuts, of which pricing finds the best. Three are optima: the slowest stage of a decode step is as fast as
can be; that of a step with a full prompt chunk is; the stage that holds the fewest tokens holds as many as can be. Real
steps hold decodes and prompts at once, so cuts between the first two are tried as well: of two stages, cuts two layers
apart or more; of more stages, the optima of mixed steps. Optima are exact (`planner.cost.stages.split_unlike`), and all
cuts leave each stage room for its weights and one longest request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.memory import collective_bytes, stage_bytes
from planner.cost.operations import Part
from planner.cost.stages import split_unlike
from planner.cost.step_work import StepShape, measure
from planner.cost.unlike_stages import StageDevice, stage_operations
from specs.architecture import Architecture
from specs.architecture.layer import Layer
from specs.document import DType
from specs.plan import Layout, Limits
from specs.profile import EngineProfile

DECODING, CHUNK_TOKENS = 64, 2048  # sequences and tokens of the steps that stages are balanced for
MIXED_CHUNKS = (256, 512, 1024)  # tokens of a prompt chunk beside the decoding sequences
MOST_BETWEEN = 5  # cuts of two stages between those for decode and for prompt steps
MOST_TOKENS = 2.0**31  # of a cache: what needs none holds as many
Array = NDArray[np.float64]


@dataclass(frozen=True)
class LayerCuts:
    """One configuration whose layers are to be cut; `layout` has as many stages as there are `stages`.

    `least`: the limits that leave the most memory to the KV cache.
    """

    architecture: Architecture
    layout: Layout
    weights: DType
    kv_dtype: DType
    stages: tuple[StageDevice, ...]
    engine: EngineProfile
    least: Limits

    def splits(self) -> list[tuple[int, ...]]:
        """Layers of each stage in the ways that the head of this file names; empty where nothing fits.

        Cuts that differ by one layer are as good as one.
        """
        fullest = self._cheapest([1.0 / np.maximum(held, 1.0) for held in self._held])
        decode = self._cheapest(self.seconds(self._step(DECODING, 0)))
        prefill = self._cheapest(self.seconds(self._step(0, CHUNK_TOKENS)))
        if fullest is None or decode is None or prefill is None:  # all or none: the same cuts fit
            return []
        kept: list[tuple[int, ...]] = []
        for split in (decode, prefill, fullest, *self._between(decode, prefill)):
            if all(_moved(split, other) > 1 for other in kept):
                kept.append(split)
        return kept

    def _between(self, decode: tuple[int, ...], prefill: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Cuts between the two: of two stages, what lies between cuts that fit fits as well."""
        if len(self.stages) > 2:
            steps = (self._step(DECODING, chunk) for chunk in MIXED_CHUNKS)
            return [split for step in steps if (split := self._cheapest(self.seconds(step))) is not None]
        inner = min(MOST_BETWEEN, max(0, _moved(decode, prefill) // 2 - 1))
        firsts = np.linspace(decode[0], prefill[0], inner + 2)[1:-1]
        return [(round(first), sum(decode) - round(first)) for first in firsts]

    def _step(self, decoding: int, chunk_tokens: int) -> StepShape:
        """Of so many sequences at half of the longest request, and of a chunk of a fresh prompt."""
        keys = max(1.0, self.least.max_model_len / 2)
        window = self.architecture.window_tokens
        return StepShape.of(decodes=decoding, keys=keys, chunks=min(1, chunk_tokens), new=chunk_tokens, window=window)

    def _cheapest(self, costs: Sequence[Array]) -> tuple[int, ...] | None:
        """The cut whose dearest stage is the cheapest, of those that leave every stage room for one longest request."""
        lacks = [held < self.least.max_model_len for held in self._held]
        return split_unlike([np.where(short, np.inf, cost) for short, cost in zip(lacks, costs, strict=True)])

    @cached_property
    def _held(self) -> list[Array]:
        return self.tokens()

    def tokens(self) -> list[Array]:
        """By stage, [first, end]: tokens of KV cache that layers first..end - 1 leave room for."""
        count = len(self.architecture.layers)
        single = self.layout.model_copy(update={"pipeline_stages": (1,) * count})
        layers = stage_bytes(self.architecture, single, self.weights, self.kv_dtype, self.engine, self.least)
        fixed = _sums([layer.weights_bytes + layer.graph_bytes + layer.kept_bytes for layer in layers])
        kv = _sums([layer.kv_bytes_per_token for layer in layers])
        largest = max(layer.activation_bytes for layer in layers[:-1] or layers)
        peak = np.where(np.arange(count + 1) == count, layers[-1].activation_bytes, largest)
        ranks = self.layout.tensor_parallel * self.layout.attention_data_parallel
        beside = self.engine.context_bytes + collective_bytes(self.engine, ranks)
        found = []
        for stage in self.stages:
            left = int(stage.device.memory_bytes * self.engine.memory_fraction) - beside - fixed - peak
            held = np.divide(left, kv, out=np.where(left > 0, MOST_TOKENS, 0.0), where=kv > 0)
            blocks = np.floor(np.clip(held, 0.0, MOST_TOKENS) / self.engine.block_size_tokens)
            found.append(blocks * self.engine.block_size_tokens)
        return found

    def seconds(self, step: StepShape) -> list[Array]:
        """By stage, [first, end]: seconds of a step in layers first..end - 1, and in what the stage has beside them."""
        found = []
        last = len(self.stages) - 1
        for index, stage in enumerate(self.stages):
            beside = self._part_s(stage, Part(range(0), embedding=index == 0, head=index == last), step)
            found.append(_sums(self._layer_seconds(stage, step)) + beside)
        return found

    def _layer_seconds(self, stage: StageDevice, step: StepShape) -> list[float]:
        known: dict[Layer, float] = {}
        alone = StageDevice(stage.device, stage.profile, stage.cap)
        for index, layer in enumerate(self.architecture.layers):
            if layer not in known:
                known[layer] = self._part_s(alone, Part(range(index, index + 1), embedding=False, head=False), step)
        return [known[layer] for layer in self.architecture.layers]

    def _part_s(self, stage: StageDevice, part: Part, step: StepShape) -> float:
        every = stage_operations(self.architecture, self.layout, self.weights, self.kv_dtype, stage, part)
        return float(measure(every, step).seconds[0])


def _moved(split: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The most layers by which a stage of two splits differs."""
    return max(abs(one - two) for one, two in zip(split, other, strict=True))


def _sums(values: Sequence[float]) -> Array:
    """[first, end]: the sum of the values from first to end - 1."""
    until = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(until[None, :] - until[:, None], dtype=np.float64)
