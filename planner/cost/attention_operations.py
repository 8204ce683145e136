"""What one rank runs over keys and states: attention, latent attention, an indexer's scores, recurrent scans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.cost.latency import AttentionShape, LatentShape, RooflineLatency, seen_pairs
from planner.cost.rank import Rank
from planner.cost.roofline import Floats
from planner.cost.step_work import Cost, Operation, StepShape
from specs.architecture.operators import IndexScores, LatentPagedAttention, PagedAttention, RecurrentScan
from specs.document import DType

_SCORE_BYTES = 8.0  # of an indexer's score: 32 bits, written and read
_STATE_BYTES = 4.0  # recurrent state is kept in 32 bit
# A scan is a chain of small vector operations; no table covers it. A third of the vector peak is a careful guess.
_SCAN_EFFICIENCY = 1 / 3


def attention(rank: Rank, operator: PagedAttention, count: int) -> Operation:
    heads, kv_heads = operator.rank_heads(rank.ranks)
    width, reach = operator.mean_dim, operator.reach
    kernel = AttentionShape(heads, kv_heads, width, reach, rank.kv_dtype)
    latency = rank.latency
    pair_flops = 4.0 * heads * width
    key_bytes = 2.0 * kv_heads * width * rank.kv_dtype.bytes

    def decode(sequences: Floats, keys: Floats) -> Floats:
        return latency.decode_attention(sequences, keys, kernel)

    def prefill(new: Floats, cached: Floats) -> Floats:
        return latency.prefill_attention(new, cached, kernel)

    cost = _attention_cost(rank, decode, prefill, pair_flops, pair_flops, key_bytes, reach)
    return Operation("attention", "attention", rank.kv_dtype, "heads", count, cost, reach)


def latent(rank: Rank, operator: LatentPagedAttention, count: int) -> Operation:
    absorbed = operator.top_k is not None  # in prefill too
    kernel = LatentShape(
        operator.heads / rank.ranks,
        operator.kv_rank,
        operator.rope_dim,
        operator.kv_rank if absorbed else operator.nope_dim,
        operator.kv_rank if absorbed else operator.value_dim,
        rank.kv_dtype,
        operator.top_k,
    )
    width = operator.kv_rank + operator.rope_dim
    decode_flops = 2.0 * kernel.heads * (width + operator.kv_rank)
    pair_flops = 2.0 * kernel.heads * (kernel.nope_dim + kernel.rope_dim + kernel.value_dim)
    latency = rank.latency

    def decode(sequences: Floats, keys: Floats) -> Floats:
        return latency.latent_decode(sequences, keys, kernel)

    def prefill(new: Floats, cached: Floats) -> Floats:
        return latency.latent_prefill(new, cached, kernel)

    key_bytes, reach = width * rank.kv_dtype.bytes, operator.top_k
    cost = _attention_cost(rank, decode, prefill, decode_flops, pair_flops, key_bytes, reach)
    return Operation("latent_attention", "attention", rank.kv_dtype, "heads", count, cost, reach)


def index_scores(rank: Rank, operator: IndexScores, count: int) -> Operation:
    """Scores of all keys, whole on every rank; written in 32 bits and read once to choose the best.

    No table measures it. A score takes the FLOPs and bytes of an attention with half its width: queries times
    keys, without the values.
    """
    eight_bit = operator.key_bytes < 2 * operator.head_dim and DType.FP8 in rank.device.flops
    dtype = DType.FP8 if eight_bit else rank.plain
    kernel = AttentionShape(operator.heads, 1, operator.head_dim / 2, None, dtype)
    roofline = RooflineLatency(rank.device, rank.profile)
    pair_flops = 2.0 * operator.heads * operator.head_dim

    def decode(sequences: Floats, keys: Floats) -> Floats:
        written = sequences * keys * _SCORE_BYTES
        return roofline.decode_attention(sequences, keys, kernel) + roofline.elementwise(written)

    def prefill(new: Floats, cached: Floats) -> Floats:
        written = seen_pairs(new, cached, None) * _SCORE_BYTES
        return roofline.prefill_attention(new, cached, kernel) + roofline.elementwise(written)

    cost = _attention_cost(rank, decode, prefill, pair_flops, pair_flops, float(operator.key_bytes), None)
    return Operation("index_scores", "attention", dtype, "replicated", count, cost)


def _attention_cost(
    rank: Rank,
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
        sequences, chunks = rank.own(shape.decodes), shape.chunks / rank.layout.attention_data_parallel
        keys = shape.keys if window is None else shape.window_keys
        read = sequences * keys
        of_decodes = np.where(sequences > 0, decode(np.maximum(sequences, 1.0), np.maximum(keys, 1.0)) - floor, 0.0)
        of_chunk = np.where(shape.new > 0, prefill(np.maximum(shape.new, 1.0), shape.cached) - floor, 0.0)
        pairs = chunks * seen_pairs(shape.new, shape.cached, window)
        seconds = np.maximum(of_decodes, 0.0) + chunks * np.maximum(of_chunk, 0.0)
        reread = chunks * (shape.cached if window is None else np.minimum(shape.cached, float(window)))
        return Cost(
            decode_flops * read + pair_flops * pairs,
            key_bytes * (read + reread + rank.own(shape.tokens)),
            np.where(shape.tokens > 0, floor + seconds, 0.0),
        )

    return cost


def scan(rank: Rank, operator: RecurrentScan, count: int) -> Operation:
    vector_peak = rank.device.flops.get(DType.FP32, rank.device.flops[rank.plain]) * _SCAN_EFFICIENCY
    state_bytes = 2.0 * operator.state_elements / rank.ranks * _STATE_BYTES  # read and written
    bandwidth = rank.device.hbm_bytes_per_s * rank.profile.elementwise_efficiency

    def cost(shape: StepShape) -> Cost:
        tokens, sequences = rank.own(shape.tokens), rank.own(shape.decodes + shape.chunks)
        flops, moved = tokens * operator.flops_per_token / rank.ranks, sequences * state_bytes
        seconds = rank.profile.launch_s + flops / vector_peak + moved / bandwidth
        return Cost(flops, moved, np.where(tokens > 0, seconds, 0.0))

    return Operation("scan", "scan", DType.FP32, "heads", count, cost)
