"""The operators of a step on one rank, each with FLOPs, bytes, element type, shard and seconds.

`operations` lists them once for a layout; `measure` works them out for many steps at a time. Work is that of the rank
that has most of it; collectives carry the bytes of one rank's message. Launches that engines fuse are one operation.

Under attention data parallelism every rank computes the attention of its own part of the tokens; `StepShape` is of the
whole replica and the parts are taken as equal, as engines that route by load keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.cost.latency import (
    AttentionShape,
    ExpertShape,
    LatentShape,
    OperatorLatency,
    RooflineLatency,
    seen_pairs,
)
from planner.cost.moe import expected_experts
from planner.cost.roofline import ACTIVATION_BYTES, Floats, weight_bytes_per_element
from planner.cost.transfer import Phase, expert_all_to_all_s
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
_SCORE_BYTES = 8.0  # of an indexer's score: 32 bits, written and read
_STATE_BYTES = 4.0  # recurrent state is kept in 32 bit
# A scan is a chain of small vector operations; no table covers it. A third of the vector peak is a careful guess.
_SCAN_EFFICIENCY = 1 / 3
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


def _nothing(amount: Floats) -> Cost:
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


def operations(
    architecture: Architecture,
    layout: Layout,
    weights_dtype: DType,
    kv_dtype: DType,
    device: DeviceFacts,
    profile: DeviceProfile,
    latency: OperatorLatency,
    expert_skew: float | None = None,
) -> tuple[Operation, ...]:
    """Everything that a step runs on the way through all stages, in order of first appearance.

    `expert_skew`: load of the fullest rank's experts over the mean; None: what the device's tables assume of a router.
    """
    rank = _Rank(architecture, layout, weights_dtype, kv_dtype, device, profile, latency, expert_skew)
    found = [*rank.embedding()]
    for layer, count in architecture.distinct_layers:
        found += rank.layer(layer, count)
    found += rank.head()
    found += rank.hand_overs()
    return tuple(found)


@dataclass(frozen=True)
class _Rank:
    architecture: Architecture
    layout: Layout
    weights: DType
    kv_dtype: DType
    device: DeviceFacts
    profile: DeviceProfile
    latency: OperatorLatency
    expert_skew: float | None = None

    @property
    def plain(self) -> DType:
        """Type of weights that quantisation leaves alone."""
        if self.weights.bytes >= 2.0:
            return self.weights
        return DType.BF16 if DType.BF16 in self.device.flops else DType.FP16

    @property
    def ranks(self) -> int:
        return self.layout.tensor_parallel

    @property
    def expert_world(self) -> int:
        """Ranks that the routed experts are spread over: those of all attention replicas of a stage."""
        return self.layout.tensor_parallel * self.layout.attention_data_parallel

    def own(self, amount: Floats) -> Floats:
        """The part of the replica's tokens or sequences that one attention replica computes."""
        result: Floats = np.ceil(amount / self.layout.attention_data_parallel)
        return result

    # ------------------------------------------------------------------------------------------------------- layers

    def layer(self, layer: Layer, count: int) -> Iterator[Operation]:
        for launch in launches(layer):
            operator = launch.operators[-1]  # what a launch fuses before it is part of its measured floor
            match operator:
                case Linear():
                    dtype = self.weights if operator.quantised else self.plain
                    yield self.linear(launch.name, operator, dtype, count, lambda shape: self.own(shape.tokens))
                case Elementwise():
                    yield self.elementwise(launch.name, operator, count)
                case AllReduce():
                    yield from self.reduction(operator.elements_per_token, count)
                case Experts():
                    yield from self.routed(operator, count)
                case PagedAttention():
                    yield self.attention(operator, count)
                case LatentPagedAttention():
                    yield self.latent(operator, count)
                case IndexScores():
                    yield self.index_scores(operator, count)
                case RecurrentScan():
                    yield self.scan(operator, count)

    def linear(
        self, name: str, operator: Linear, dtype: DType, count: int, rows: Callable[[StepShape], Floats]
    ) -> Operation:
        inputs, outputs = operator.rank_shape(self.ranks)
        weight_bytes = inputs * outputs * weight_bytes_per_element(dtype)

        def cost(shape: StepShape) -> Cost:
            m = rows(shape)
            if not m.any():
                return _nothing(m)
            moved = np.where(m > 0, weight_bytes, 0.0) + m * (inputs + outputs) * ACTIVATION_BYTES
            seconds = np.where(m > 0, self.latency.gemm(np.maximum(m, 1.0), inputs, outputs, dtype), 0.0)
            return Cost(2.0 * m * inputs * outputs, moved, seconds)

        return Operation(name, "gemm", dtype, operator.shard, count, cost)

    def elementwise(self, name: str, operator: Elementwise, count: int) -> Operation:
        whole = operator.shard != "column"
        cut = self.ranks if not whole or self.layout.sequence_parallel else 1
        elements = operator.elements_per_token / cut
        shard = operator.shard if not whole or cut == 1 else "tokens"
        return self.moving(name, elements, shard, count, lambda shape: self.own(shape.tokens))

    def moving(
        self, name: str, elements: float, shard: str, count: int, rows: Callable[[StepShape], Floats]
    ) -> Operation:
        """A kernel that reads and writes `elements` activations a row."""

        def cost(shape: StepShape) -> Cost:
            moved = rows(shape) * (2.0 * elements * ACTIVATION_BYTES)
            if not moved.any():
                return _nothing(moved)
            return Cost(rows(shape) * elements, moved, np.where(moved > 0, self.latency.elementwise(moved), 0.0))

        return Operation(name, "elementwise", self.plain, shard, count, cost)

    def attention(self, operator: PagedAttention, count: int) -> Operation:
        heads, kv_heads = operator.rank_heads(self.ranks)
        width, reach = operator.mean_dim, operator.reach
        kernel = AttentionShape(heads, kv_heads, width, reach, self.kv_dtype)
        latency = self.latency
        pair_flops = 4.0 * heads * width
        key_bytes = 2.0 * kv_heads * width * self.kv_dtype.bytes

        def decode(sequences: Floats, keys: Floats) -> Floats:
            return latency.decode_attention(sequences, keys, kernel)

        def prefill(new: Floats, cached: Floats) -> Floats:
            return latency.prefill_attention(new, cached, kernel)

        cost = self.attention_cost(decode, prefill, pair_flops, pair_flops, key_bytes, reach)
        return Operation("attention", "attention", self.kv_dtype, "heads", count, cost, reach)

    def latent(self, operator: LatentPagedAttention, count: int) -> Operation:
        absorbed = operator.top_k is not None  # in prefill too
        kernel = LatentShape(
            operator.heads / self.ranks,
            operator.kv_rank,
            operator.rope_dim,
            operator.kv_rank if absorbed else operator.nope_dim,
            operator.kv_rank if absorbed else operator.value_dim,
            self.kv_dtype,
            operator.top_k,
        )
        width = operator.kv_rank + operator.rope_dim
        decode_flops = 2.0 * kernel.heads * (width + operator.kv_rank)
        pair_flops = 2.0 * kernel.heads * (kernel.nope_dim + kernel.rope_dim + kernel.value_dim)
        latency = self.latency

        def decode(sequences: Floats, keys: Floats) -> Floats:
            return latency.latent_decode(sequences, keys, kernel)

        def prefill(new: Floats, cached: Floats) -> Floats:
            return latency.latent_prefill(new, cached, kernel)

        key_bytes, reach = width * self.kv_dtype.bytes, operator.top_k
        cost = self.attention_cost(decode, prefill, decode_flops, pair_flops, key_bytes, reach)
        return Operation("latent_attention", "attention", self.kv_dtype, "heads", count, cost, reach)

    def index_scores(self, operator: IndexScores, count: int) -> Operation:
        """Scores of all keys, whole on every rank; written in 32 bits and read once to choose the best.

        No table measures it. A score takes the FLOPs and bytes of an attention with half its width: queries times
        keys, without the values.
        """
        eight_bit = operator.key_bytes < 2 * operator.head_dim and DType.FP8 in self.device.flops
        dtype = DType.FP8 if eight_bit else self.plain
        kernel = AttentionShape(operator.heads, 1, operator.head_dim / 2, None, dtype)
        roofline = RooflineLatency(self.device, self.profile)
        pair_flops = 2.0 * operator.heads * operator.head_dim

        def decode(sequences: Floats, keys: Floats) -> Floats:
            written = sequences * keys * _SCORE_BYTES
            return roofline.decode_attention(sequences, keys, kernel) + roofline.elementwise(written)

        def prefill(new: Floats, cached: Floats) -> Floats:
            written = seen_pairs(new, cached, None) * _SCORE_BYTES
            return roofline.prefill_attention(new, cached, kernel) + roofline.elementwise(written)

        cost = self.attention_cost(decode, prefill, pair_flops, pair_flops, float(operator.key_bytes), None)
        return Operation("index_scores", "attention", dtype, "replicated", count, cost)

    def attention_cost(
        self,
        decode: Callable[[Floats, Floats], Floats],
        prefill: Callable[[Floats, Floats], Floats],
        decode_flops: float,
        pair_flops: float,
        key_bytes: float,
        window: int | None,
    ) -> Callable[[StepShape], Cost]:
        """Decodes and chunks of a step share one launch: its floor is paid once."""
        one, none = np.ones(1), np.zeros(1)
        floor = float(min(decode(one, one)[0], prefill(one, none)[0]))

        def cost(shape: StepShape) -> Cost:
            sequences, chunks = self.own(shape.decodes), shape.chunks / self.layout.attention_data_parallel
            keys = shape.keys if window is None else shape.window_keys
            read = sequences * keys
            of_decodes = np.where(sequences > 0, decode(np.maximum(sequences, 1.0), np.maximum(keys, 1.0)) - floor, 0.0)
            of_chunk = np.where(shape.new > 0, prefill(np.maximum(shape.new, 1.0), shape.cached) - floor, 0.0)
            pairs = chunks * seen_pairs(shape.new, shape.cached, window)
            seconds = np.maximum(of_decodes, 0.0) + chunks * np.maximum(of_chunk, 0.0)
            reread = chunks * (shape.cached if window is None else np.minimum(shape.cached, float(window)))
            return Cost(
                decode_flops * read + pair_flops * pairs,
                key_bytes * (read + reread + self.own(shape.tokens)),
                np.where(shape.tokens > 0, floor + seconds, 0.0),
            )

        return cost

    def scan(self, operator: RecurrentScan, count: int) -> Operation:
        vector_peak = self.device.flops.get(DType.FP32, self.device.flops[self.plain]) * _SCAN_EFFICIENCY
        state_bytes = 2.0 * operator.state_elements / self.ranks * _STATE_BYTES  # read and written
        bandwidth = self.device.hbm_bytes_per_s * self.profile.elementwise_efficiency

        def cost(shape: StepShape) -> Cost:
            tokens, sequences = self.own(shape.tokens), self.own(shape.decodes + shape.chunks)
            flops, moved = tokens * operator.flops_per_token / self.ranks, sequences * state_bytes
            seconds = self.profile.launch_s + flops / vector_peak + moved / bandwidth
            return Cost(flops, moved, np.where(tokens > 0, seconds, 0.0))

        return Operation("scan", "scan", DType.FP32, "heads", count, cost)

    # ------------------------------------------------------------------------------------------------------ experts

    def routed(self, operator: Experts, count: int) -> Iterator[Operation]:
        """The experts of this rank, and what brings tokens to them and back where attention is replicated."""
        expert_ranks = self.layout.expert_parallel
        tensor_ranks = max(1, self.expert_world // expert_ranks)
        experts, width = operator.rank_shape(tensor_ranks, expert_ranks)
        dtype = self.weights if operator.quantised else self.plain
        kernel = ExpertShape(
            operator.experts,
            operator.experts_per_token,
            operator.hidden_size,
            width,
            operator.gated,
            dtype,
            expert_ranks,
            tensor_ranks,
            dtype is DType.FP8 and self.architecture.quantisation_block > 1,
        )
        matrices = 3 if operator.gated else 2
        expert_elements = float(matrices * operator.hidden_size * width)

        def cost(shape: StepShape) -> Cost:
            tokens = shape.tokens  # of all attention replicas: their experts are shared
            if not tokens.any():
                return _nothing(tokens)
            rows = tokens * operator.experts_per_token / expert_ranks
            touched = np.minimum(
                expected_experts(tokens, operator.experts, operator.experts_per_token) / expert_ranks, experts
            )
            moved = touched * expert_elements * weight_bytes_per_element(dtype)
            moved = moved + rows * (2.0 * operator.hidden_size + matrices * width) * ACTIVATION_BYTES
            fullest = np.maximum(tokens * self.skew_beside_tables(expert_ranks), 1.0)
            seconds = np.where(tokens > 0, self.latency.experts(fullest, kernel), 0.0)
            return Cost(2.0 * rows * expert_elements, moved, seconds)

        if self.layout.attention_data_parallel == 1:
            yield Operation("experts", "experts", dtype, "experts", count, cost)
            return
        exchange = operator.experts_per_token if expert_ranks == self.expert_world else 0
        yield self.exchange("dispatch", operator.hidden_size, exchange, count)
        yield Operation("experts", "experts", dtype, "experts", count, cost)
        yield self.exchange("combine", operator.hidden_size, exchange, count)

    def skew_beside_tables(self, expert_ranks: int) -> float:
        """Tokens of the fullest rank as a multiple of those that the tables' router sends there."""
        if self.expert_skew is None or expert_ranks == 1:
            return 1.0
        return self.expert_skew / self.latency.router_skew(expert_ranks)

    def exchange(self, name: str, hidden_size: int, copies: int, count: int) -> Operation:
        """Tokens of the attention replicas to the experts' ranks (dispatch) or back (combine).

        All tokens gathered by (or scattered from) every rank; where each rank holds whole experts (`copies` of a token
        are wanted), sent to just those, as the router spreads them, if that is faster.
        """
        world, latency, device = self.expert_world, self.latency, self.device
        skew = latency.router_skew(world) if self.expert_skew is None else self.expert_skew
        phase: Phase = "dispatch" if name == "dispatch" else "combine"

        def cost(shape: StepShape) -> Cost:
            everything = shape.tokens * hidden_size * ACTIVATION_BYTES
            gather = latency.all_gather if phase == "dispatch" else latency.reduce_scatter
            moved, seconds = everything, gather(everything, world)
            if copies:
                sent = self.own(shape.tokens) * min(copies, world) * hidden_size * ACTIVATION_BYTES * skew
                direct = expert_all_to_all_s(
                    shape.tokens, copies, hidden_size, ACTIVATION_BYTES, world, device, phase, skew=skew
                )
                moved, seconds = np.where(direct < seconds, sent, moved), np.minimum(direct, seconds)
            return Cost(np.zeros_like(moved), moved, np.where(shape.tokens > 0, seconds, 0.0))

        return Operation(name, "collective", self.plain, "ranks", count, cost)

    # --------------------------------------------------------------------------------------------------- collectives

    def reduction(self, elements: int, count: int) -> Iterator[Operation]:
        """Sum over the tensor-parallel ranks; as two halves around the norms under sequence parallelism."""
        if self.ranks == 1:
            return
        if self.layout.sequence_parallel:
            yield self.collective("reduce_scatter", self.latency.reduce_scatter, elements, count)
            yield self.collective("all_gather", self.latency.all_gather, elements, count)
        else:
            yield self.collective("all_reduce", self.latency.all_reduce, elements, count)

    def collective(
        self,
        name: str,
        seconds_of: Callable[[Floats, int], Floats],
        elements: int,
        count: int,
        rows: Callable[[StepShape], Floats] | None = None,
    ) -> Operation:
        def cost(shape: StepShape) -> Cost:
            m = self.own(shape.tokens) if rows is None else rows(shape)
            if not m.any():
                return _nothing(m)
            message = m * (elements * ACTIVATION_BYTES)
            seconds = np.where(m > 0, seconds_of(np.maximum(message, 1.0), self.ranks), 0.0)
            return Cost(np.zeros_like(message), message, seconds)

        return Operation(name, "collective", self.plain, "ranks", count, cost)

    def hand_overs(self) -> Iterator[Operation]:
        """Hidden states from one pipeline stage to the next: inside nodes, and from node to node.

        Stages stand in order, as many in a node as their ranks fit into it.
        """
        stages, elements = self.layout.pipeline_parallel, self.architecture.hidden_size
        ranks = self.layout.tensor_parallel * self.layout.attention_data_parallel
        between = -(-stages // max(1, self.device.gpus_per_node // ranks)) - 1
        for count, same_node in ((stages - 1 - between, True), (between, False)):
            if count:
                yield self.hand_over(elements, count, same_node)

    def hand_over(self, elements: int, count: int, same_node: bool) -> Operation:
        def cost(shape: StepShape) -> Cost:
            message = self.own(shape.tokens) * elements * ACTIVATION_BYTES
            seconds = np.where(message > 0, self.latency.hand_over(message, same_node), 0.0)
            return Cost(np.zeros_like(message), message, seconds)

        return Operation("hand_over", "collective", self.plain, "ranks", count, cost)

    # ---------------------------------------------------------------------------------------------- outside the layers

    def embedding(self) -> Iterator[Operation]:
        """Table look-up, and, as the vocabulary is cut, one all-reduce."""
        hidden = self.architecture.hidden_size
        yield self.moving("embedding", hidden, "column", 1, lambda shape: self.own(shape.tokens))
        yield from self.reduction(hidden, 1)

    def head(self) -> Iterator[Operation]:
        """Final norm, product with the (cut) vocabulary, gathering of the logits, sampling; of sampled rows only."""
        vocabulary = self.architecture.vocab_size

        def rows(shape: StepShape) -> Floats:
            return self.own(shape.sampled)

        for operator in self.architecture.head_operators():
            if isinstance(operator, Linear):
                yield self.linear(operator.name, operator, self.plain, 1, rows)
            elif isinstance(operator, Elementwise):
                yield self.moving(operator.name, operator.elements_per_token, operator.shard, 1, rows)
        if self.ranks > 1:
            yield self.collective("logits_gather", self.latency.all_gather, vocabulary, 1, rows)
        elements = vocabulary * _LOGIT_BYTES / (2.0 * ACTIVATION_BYTES)  # read once, in 32 bit
        yield self.moving("sampling", elements, "replicated", _SAMPLING_PASSES, rows)
