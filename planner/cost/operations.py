"""The operators of a step on one rank, each with FLOPs, bytes, element type, shard and seconds.

`operations` lists them once for a layout; `step_work.measure` works them out for many steps at a time. Work is that of
the rank that has most of it; collectives carry the bytes of one rank's message. Launches that engines fuse are one
operation.

Under attention data parallelism every rank computes the attention of its own part of the tokens; `StepShape` is of the
whole replica and the parts are taken as equal, as engines that route by load keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from planner.cost.attention_operations import attention, index_scores, latent, scan
from planner.cost.expert_operations import routed
from planner.cost.latency import OperatorLatency
from planner.cost.rank import Rank
from planner.cost.roofline import ACTIVATION_BYTES, Floats, weight_bytes_per_element
from planner.cost.step_work import Cost, Operation, StepShape, nothing
from planner.graph import launches
from specs.architecture.layer import Layer
from specs.architecture.model import Architecture
from specs.architecture.operators import (
    AllReduce,
    Elementwise,
    Experts,
    IndexScores,
    LatentPagedAttention,
    Linear,
    PagedAttention,
    RecurrentScan,
)
from specs.document import DType
from specs.plan import Layout
from specs.profile import DeviceFacts, DeviceProfile

# Sampling reads the logits in 32 bit about three times (scale, maximum or sort, draw) in as many launches.
_SAMPLING_PASSES = 3
_LOGIT_BYTES = 4.0


@dataclass(frozen=True)
class Part:
    """A stretch of the model, without what is handed over behind it."""

    layers: range
    embedding: bool
    head: bool


def operations(
    architecture: Architecture,
    layout: Layout,
    weights_dtype: DType,
    kv_dtype: DType,
    device: DeviceFacts,
    profile: DeviceProfile,
    latency: OperatorLatency,
    expert_skew: float | None = None,
    part: Part | None = None,
) -> tuple[Operation, ...]:
    """Everything that a step runs on the way through all stages (or in one `part`), in order of first appearance.

    `expert_skew`: load of the fullest rank's experts over the mean; None: what the device's tables assume of a router.
    """
    rank = Rank(architecture, layout, weights_dtype, kv_dtype, device, profile, latency, expert_skew)
    found: list[Operation] = []
    if part is None or part.embedding:
        found += _embedding(rank)
    for layer, count in architecture.layer_counts(None if part is None else part.layers):
        found += _layer(rank, layer, count)
    if part is None or part.head:
        found += _head(rank)
    if part is None:
        found += _hand_overs(rank)
    return tuple(found)


def _layer(rank: Rank, layer: Layer, count: int) -> Iterator[Operation]:
    for launch in launches(layer):
        operator = launch.operators[-1]  # what a launch fuses before it is part of its measured floor
        match operator:
            case Linear():
                dtype = rank.weights if operator.quantised else rank.plain
                yield _linear(rank, launch.name, operator, dtype, count, lambda shape: rank.own(shape.tokens))
            case Elementwise():
                yield _elementwise(rank, launch.name, operator, count)
            case AllReduce():
                yield from _reduction(rank, operator.elements_per_token, count)
            case Experts():
                yield from routed(rank, operator, count)
            case PagedAttention():
                yield attention(rank, operator, count)
            case LatentPagedAttention():
                yield latent(rank, operator, count)
            case IndexScores():
                yield index_scores(rank, operator, count)
            case RecurrentScan():
                yield scan(rank, operator, count)


def _linear(
    rank: Rank, name: str, operator: Linear, dtype: DType, count: int, rows: Callable[[StepShape], Floats]
) -> Operation:
    inputs, outputs = operator.rank_shape(rank.ranks)
    weight_bytes = inputs * outputs * weight_bytes_per_element(dtype)

    def cost(shape: StepShape) -> Cost:
        m = rows(shape)
        if not m.any():
            return nothing(m)
        moved = np.where(m > 0, weight_bytes, 0.0) + m * (inputs + outputs) * ACTIVATION_BYTES
        seconds = np.where(m > 0, rank.latency.gemm(np.maximum(m, 1.0), inputs, outputs, dtype), 0.0)
        return Cost(2.0 * m * inputs * outputs, moved, seconds)

    return Operation(name, "gemm", dtype, operator.shard, count, cost)


def _elementwise(rank: Rank, name: str, operator: Elementwise, count: int) -> Operation:
    whole = operator.shard != "column"
    cut = rank.ranks if not whole or rank.layout.sequence_parallel else 1
    elements = operator.elements_per_token / cut
    shard = operator.shard if not whole or cut == 1 else "tokens"
    return _moving(rank, name, elements, shard, count, lambda shape: rank.own(shape.tokens))


def _moving(
    rank: Rank, name: str, elements: float, shard: str, count: int, rows: Callable[[StepShape], Floats]
) -> Operation:
    """A kernel that reads and writes `elements` activations a row."""

    def cost(shape: StepShape) -> Cost:
        moved = rows(shape) * (2.0 * elements * ACTIVATION_BYTES)
        if not moved.any():
            return nothing(moved)
        return Cost(rows(shape) * elements, moved, np.where(moved > 0, rank.latency.elementwise(moved), 0.0))

    return Operation(name, "elementwise", rank.plain, shard, count, cost)


def _reduction(rank: Rank, elements: int, count: int) -> Iterator[Operation]:
    """Sum over the tensor-parallel ranks; as two halves around the norms under sequence parallelism."""
    if rank.ranks == 1:
        return
    if rank.layout.sequence_parallel:
        yield _collective(rank, "reduce_scatter", rank.latency.reduce_scatter, elements, count)
        yield _collective(rank, "all_gather", rank.latency.all_gather, elements, count)
    else:
        yield _collective(rank, "all_reduce", rank.latency.all_reduce, elements, count)


def _collective(
    rank: Rank,
    name: str,
    seconds_of: Callable[[Floats, int], Floats],
    elements: int,
    count: int,
    rows: Callable[[StepShape], Floats] | None = None,
) -> Operation:
    def cost(shape: StepShape) -> Cost:
        m = rank.own(shape.tokens) if rows is None else rows(shape)
        if not m.any():
            return nothing(m)
        message = m * (elements * ACTIVATION_BYTES)
        seconds = np.where(m > 0, seconds_of(np.maximum(message, 1.0), rank.ranks), 0.0)
        return Cost(np.zeros_like(message), message, seconds)

    return Operation(name, "collective", rank.plain, "ranks", count, cost)


def _hand_overs(rank: Rank) -> Iterator[Operation]:
    """Hidden states from one pipeline stage to the next: inside nodes, and from node to node.

    Stages stand in order, as many in a node as their ranks fit into it.
    """
    stages, elements = rank.layout.pipeline_parallel, rank.architecture.hidden_size
    ranks = rank.layout.tensor_parallel * rank.layout.attention_data_parallel
    between = -(-stages // max(1, rank.device.gpus_per_node // ranks)) - 1
    for count, same_node in ((stages - 1 - between, True), (between, False)):
        if count:
            yield _hand_over(rank, elements, count, same_node)


def _hand_over(rank: Rank, elements: int, count: int, same_node: bool) -> Operation:
    def cost(shape: StepShape) -> Cost:
        message = rank.own(shape.tokens) * elements * ACTIVATION_BYTES
        seconds = np.where(message > 0, rank.latency.hand_over(message, same_node), 0.0)
        return Cost(np.zeros_like(message), message, seconds)

    return Operation("hand_over", "collective", rank.plain, "ranks", count, cost)


def _embedding(rank: Rank) -> Iterator[Operation]:
    """Table look-up, and, as the vocabulary is cut, one all-reduce."""
    hidden = rank.architecture.hidden_size
    yield _moving(rank, "embedding", hidden, "column", 1, lambda shape: rank.own(shape.tokens))
    yield from _reduction(rank, hidden, 1)


def _head(rank: Rank) -> Iterator[Operation]:
    """Final norm, product with the (cut) vocabulary, gathering of the logits, sampling; of sampled rows only."""
    vocabulary = rank.architecture.vocab_size

    def rows(shape: StepShape) -> Floats:
        return rank.own(shape.sampled)

    for operator in rank.architecture.head_operators():
        if isinstance(operator, Linear):
            yield _linear(rank, operator.name, operator, rank.plain, 1, rows)
        elif isinstance(operator, Elementwise):
            yield _moving(rank, operator.name, operator.elements_per_token, operator.shard, 1, rows)
    if rank.ranks > 1:
        yield _collective(rank, "logits_gather", rank.latency.all_gather, vocabulary, 1, rows)
    elements = vocabulary * _LOGIT_BYTES / (2.0 * ACTIVATION_BYTES)  # read once, in 32 bit
    yield _moving(rank, "sampling", elements, "replicated", _SAMPLING_PASSES, rows)
