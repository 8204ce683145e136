"""What the memory of the fullest device of a replica is spent on, and how many KV blocks the rest holds.

Counted as engines count at start: weights, the peak of activations in a step that fills the token budget, the CUDA
context, communication buffers, captured graphs; what remains under the engine's memory fraction is KV cache. Leaving
out the activation peak and the context promises about 30 % too many blocks (LLMServingSim, pull request 59).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.cost.roofline import ACTIVATION_BYTES
from specs.architecture.layer import Layer
from specs.architecture.model import Architecture
from specs.architecture.operators import Experts, Linear
from specs.architecture.sharding import expert_slot_bytes, weight_bytes_per_rank
from specs.document import DType
from specs.plan import Layout, Limits, MemoryBudget
from specs.profile import DeviceFacts, EngineProfile

# Logits of every sampled row: in 16 bit as the head writes them, and the 32-bit copy that sampling works on.
_LOGIT_BYTES = 6.0
# Residual stream, its normalised copy and a layer's output live at once.
_HIDDEN_COPIES = 3


@dataclass(frozen=True)
class StageBytes:
    """What one stage keeps on each of its devices."""

    weights_bytes: int
    activation_bytes: int
    graph_bytes: int
    kept_bytes: int  # recurrent state and windowed KV of max_num_seqs sequences
    kv_bytes_per_token: float


def memory_budget(
    architecture: Architecture,
    layout: Layout,
    weights_dtype: DType,
    kv_dtype: DType,
    device: DeviceFacts,
    engine: EngineProfile,
    limits: Limits,
    devices: Sequence[DeviceFacts] = (),
) -> MemoryBudget:
    """Bytes on the device that can hold the fewest tokens (equal stages: the last one, with the head).

    `devices`: of each stage, where they are unlike; else all are `device`.

    Windowed layers beside full-attention ones are bounded: `state_bytes` reserves a window (and one token budget of
    chunks) for each of `max_num_seqs` sequences. A model with windowed layers only is counted as if it kept
    everything, which is careful. Where the parts do not fit, `kv_bytes` is 0 and they add up to more than
    `available_bytes`: the difference is what is missing.
    """
    ranks = layout.tensor_parallel
    together = ranks * layout.attention_data_parallel
    collective = collective_bytes(engine, together) if layout.gpus > 1 else 0

    def available(on: DeviceFacts) -> int:
        return int(on.memory_bytes * engine.memory_fraction)

    def free(stage: StageBytes, on: DeviceFacts) -> int:
        taken = stage.weights_bytes + stage.activation_bytes + stage.graph_bytes + stage.kept_bytes
        return available(on) - engine.context_bytes - collective - taken

    def tokens(placed: tuple[StageBytes, DeviceFacts]) -> tuple[float, int]:
        left, stage = free(*placed), placed[0]
        return (left / stage.kv_bytes_per_token if stage.kv_bytes_per_token else math.inf, left)

    stages = stage_bytes(architecture, layout, weights_dtype, kv_dtype, engine, limits)
    fullest, its_device = min(zip(stages, devices or [device] * len(stages), strict=True), key=tokens)
    return MemoryBudget(
        device_bytes=its_device.memory_bytes,
        available_bytes=available(its_device),
        weights_bytes=fullest.weights_bytes,
        activation_bytes=fullest.activation_bytes,
        context_bytes=engine.context_bytes,
        collective_bytes=collective,
        graph_bytes=fullest.graph_bytes,
        state_bytes=fullest.kept_bytes,
        kv_bytes=max(0, free(fullest, its_device)),
        kv_bytes_per_token=fullest.kv_bytes_per_token,
    )


def num_blocks(budget: MemoryBudget, block_size_tokens: int) -> int:
    """Whole KV blocks of `block_size_tokens` that the budget holds (0: the replica cannot boot).

    A model without any KV cache has no limit from here: 2**31 - 1 blocks, its state is bounded by max_num_seqs.
    """
    if budget.kv_bytes_per_token == 0:
        return 2**31 - 1 if budget.kv_bytes > 0 else 0
    return int(budget.kv_bytes // (budget.kv_bytes_per_token * block_size_tokens))


def stage_bytes(
    architecture: Architecture,
    layout: Layout,
    weights_dtype: DType,
    kv_dtype: DType,
    engine: EngineProfile,
    limits: Limits,
) -> list[StageBytes]:
    """Of every stage, in order; what collectives and the context take is beside it."""
    ranks, found, begin = layout.tensor_parallel, [], 0
    for index, count in enumerate(layout.pipeline_stages):
        layers = range(begin, begin + count)
        begin += count
        first, last = index == 0, index == layout.pipeline_parallel - 1
        full = architecture.kv_bytes_per_token(kv_dtype, ranks, layers)
        windowed = architecture.window_kv_bytes_per_token(kv_dtype, ranks, layers)
        kept = architecture.state_bytes(ranks, layers) * limits.max_num_seqs
        window = architecture.window_tokens
        if window is not None and windowed and full:
            each = min(limits.max_model_len, window + engine.block_size_tokens)
            kept += math.ceil(windowed * (each * limits.max_num_seqs + limits.max_num_batched_tokens))
        found.append(
            StageBytes(
                weights_bytes=weight_bytes_per_rank(
                    architecture,
                    weights_dtype,
                    ranks,
                    layout.expert_parallel,
                    layers,
                    first,
                    last,
                    layout.attention_data_parallel,
                )
                + _redundant_bytes(architecture, layout, weights_dtype, layers),
                activation_bytes=_activation_bytes(architecture, layers, ranks, limits, last),
                graph_bytes=engine.graph_bytes_per_layer * count,
                kept_bytes=kept,
                kv_bytes_per_token=full if full else windowed,
            )
        )
    return found


def _redundant_bytes(architecture: Architecture, layout: Layout, weights_dtype: DType, layers: range) -> int:
    """Copies of experts on one rank, in all layers of a stage."""
    if not layout.redundant_experts:
        return 0
    expert_tensor = layout.tensor_parallel * layout.attention_data_parallel // layout.expert_parallel
    slots = layout.redundant_experts / layout.expert_parallel
    return round(slots * expert_slot_bytes(architecture, weights_dtype, expert_tensor, layers))


def _activation_bytes(architecture: Architecture, layers: range, ranks: int, limits: Limits, last: bool) -> int:
    """Peak of a step of `max_num_batched_tokens` tokens; on the last stage not less than that of the logits."""
    widest = max(_widest(layer, ranks) for layer, _ in architecture.layer_counts(layers))
    per_token = (_HIDDEN_COPIES * architecture.hidden_size + widest) * ACTIVATION_BYTES
    peak = limits.max_num_batched_tokens * per_token
    if last:
        peak += limits.max_num_seqs * architecture.vocab_size * _LOGIT_BYTES
    return math.ceil(peak)


def _widest(layer: Layer, ranks: int) -> float:
    """Elements a token of the largest operator's output together with what the next one makes of it."""
    widest = 0.0
    for operator in layer.operators():
        if isinstance(operator, Linear):
            inputs, outputs = operator.rank_shape(ranks)
            widest = max(widest, float(inputs + outputs) if operator.shard != "replicated" else float(outputs))
        elif isinstance(operator, Experts):
            _, width = operator.rank_shape(ranks, 1)
            inner = (3 if operator.gated else 2) * width  # gate and up, and their product
            widest = max(widest, float(operator.experts_per_token * (inner + operator.hidden_size)))
    return widest


def collective_bytes(engine: EngineProfile, ranks: int) -> int:
    """Buffers for `ranks`: the next larger size that is known, else the largest."""
    larger = [size for size in sorted(engine.collective_bytes) if size >= ranks]
    return engine.collective_bytes[larger[0] if larger else max(engine.collective_bytes)]
