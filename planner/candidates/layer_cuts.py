"""Where the layers of a replica are cut whose stages stand on unlike machines.

Up to three cuts, of which pricing finds the best: the slowest stage of a decode step is as fast as can be; that of a
step with a full prompt chunk is; the stage that holds the fewest tokens holds as many as can be. Each is exact
(`planner.cost.stages.split_unlike`), and leaves every stage room for its weights and one longest request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        tokens = self.tokens()
        keys = max(1.0, self.least.max_model_len / 2)
        decode = StepShape.of(decodes=DECODING, keys=keys, window=self.architecture.window_tokens)
        prefill = StepShape.of(chunks=1, new=CHUNK_TOKENS)
        ways = [self.seconds(decode), self.seconds(prefill), [1.0 / np.maximum(held, 1.0) for held in tokens]]
        short = [held < self.least.max_model_len for held in tokens]
        found = (
            split_unlike([np.where(lacks, np.inf, cost) for lacks, cost in zip(short, way, strict=True)])
            for way in ways
        )
        kept: list[tuple[int, ...]] = []
        for split in found:
            if split is not None and all(_moved(split, other) > 1 for other in kept):
                kept.append(split)
        return kept

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
