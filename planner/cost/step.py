"""`step_times`: the operations of a layout, summed into the tables and slopes of `StepTimes`.

What goes where. `tokens_s[n]`: everything that the number of tokens decides: embedding, norms, projections, MLPs,
experts, collectives, one attention launch per layer (decodes and chunks of a step share it), hand-over between stages,
the engine's CPU time per step. `sampled_s[r]`: head, its collective, sampling. `sequence_s`: CPU time and recurrent
state of a sequence. Attention: slopes per key that decodes read and per pair that prefills compute, those of the
longest contexts and chunks, and tables of what shorter ones take beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from planner.cost.adapters import adapter_operations
from planner.cost.engine_kernels import engine_s
from planner.cost.latency import OperatorLatency, latency_of, seen_pairs
from planner.cost.operations import operations
from planner.cost.pieces import ChunkTable, DecodeTable
from planner.cost.power_cap import PowerCap, under_cap
from planner.cost.roofline import Floats
from planner.cost.step_times import StepTimes
from planner.cost.step_work import Operation, StepShape, beyond_launch_s, measure, padded, step_kernels
from specs.architecture.model import Architecture
from specs.deployment import AdaptersSpec
from specs.document import DType
from specs.errors import InputError
from specs.plan import Layout
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile, KernelFactors

# Knots: every number of tokens to 64, every 8th to 512 (engines pad to such sizes), every 64th to 2048, every 512th
# beyond; linear between them.
_TOKENS = ((1, 64, 1), (64, 512, 8), (512, 2048, 64))
_FAR = (2048, 512)
_LONGEST_KEYS = 2**20
# Tables reach this far, or to the next power of two: what a step takes does not depend on what else is allowed.
_REACH_TOKENS, _REACH_SEQUENCES = 16384, 512
_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_KEYS = (1, 128, 256, 512, 768, 1024, 1536, *(2048 * 2**i for i in range(10)))
_CHUNKS = (1, 16, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192, 16384, 32768)
_CACHED = (0, 512, 2048, 8192, 32768, 131072)


def check_layout(
    architecture: Architecture, layout: Layout, weights_dtype: DType, kv_dtype: DType, device: DeviceFacts
) -> None:
    """`InputError` where the device cannot hold these types or the layout does not fit the model."""
    if weights_dtype not in device.weight_dtypes:
        raise InputError(
            f"{device.name} does not take {weights_dtype.value} weights",
            field="weights",
            expected=f"one of {', '.join(name.value for name in device.weight_dtypes)}",
        )
    if kv_dtype not in device.kv_dtypes:
        raise InputError(
            f"{device.name} does not take a {kv_dtype.value} KV cache",
            field="kv_cache",
            expected=f"one of {', '.join(name.value for name in device.kv_dtypes)}",
        )
    if sum(layout.pipeline_stages) != len(architecture.layers):
        raise InputError(
            f"pipeline stages hold {sum(layout.pipeline_stages)} layers, {architecture.name} has "
            f"{len(architecture.layers)}",
            field="pipeline_stages",
        )
    world = layout.tensor_parallel * layout.attention_data_parallel
    if world % layout.expert_parallel:
        raise InputError(
            f"experts cannot be spread over {layout.expert_parallel} of {world} ranks",
            field="expert_parallel",
            expected=f"a divisor of tensor_parallel x attention_data_parallel = {world}",
        )
    obstacle = architecture.tensor_parallel_obstacle(
        layout.tensor_parallel, layout.expert_parallel, layout.attention_data_parallel
    )
    if obstacle is not None:
        raise InputError(f"tensor_parallel {layout.tensor_parallel}: {obstacle}", field="tensor_parallel")


def step_times(
    architecture: Architecture,
    layout: Layout,
    weights_dtype: DType,
    kv_dtype: DType,
    device: DeviceFacts,
    profile: DeviceProfile,
    engine: EngineProfile,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    latency: OperatorLatency | None = None,
    expert_skew: float | None = None,
    cap: PowerCap | None = None,
    adapters: AdaptersSpec | None = None,
) -> StepTimes:
    """Seconds of every part of a step, for 0..`max_num_batched_tokens` tokens and 0..`max_num_seqs` sampled rows.

    `latency` None: the best source there is for the device. `expert_skew`: load of the fullest rank's experts over the
    mean, where it is known. `cap`: of every device. `adapters`: served beside the
    model. Raises as `check_layout`, and for a cap that stops all work.
    """
    check_layout(architecture, layout, weights_dtype, kv_dtype, device)
    source = latency_of(device, profile) if latency is None else latency
    every = operations(architecture, layout, weights_dtype, kv_dtype, device, profile, source, expert_skew)
    if adapters is not None:
        every += adapter_operations(architecture, layout, adapters, source)
    if cap is not None:
        every = under_cap(every, device, cap)
    shares = tuple(count / len(architecture.layers) for count in layout.pipeline_stages)
    times = times_of(every, architecture, engine, max_num_seqs, max_num_batched_tokens)
    return replace(times, lanes=layout.pipeline_parallel, stage_shares=shares)


def times_of(
    every: tuple[Operation, ...],
    architecture: Architecture,
    engine: EngineProfile,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    engine_share: float = 1.0,
) -> StepTimes:
    """The operations of a step in one lane, summed; `engine_share`: of the engine's own time per step in it."""
    far_tokens = _reach(max_num_batched_tokens, _REACH_TOKENS)
    far_sequences = _reach(max_num_seqs, _REACH_SEQUENCES)
    attention = tuple(operation for operation in every if operation.kind == "attention")
    longest = min(architecture.max_position_embeddings, _LONGEST_KEYS)
    full = tuple(operation for operation in attention if operation.window is None)
    windowed = tuple(operation for operation in attention if operation.window is not None)
    factors = engine.kernels
    decode = _decode(full, factors.attention, far_sequences, longest)
    window = _decode(windowed, factors.attention, far_sequences, architecture.window_tokens or longest)
    prefill = _prefill(full, windowed, factors.prefill_attention, architecture.window_tokens, far_tokens, longest)
    own_s = engine_share * engine.step_overhead_s
    tokens_s = own_s + _tabled(every, factors, far_tokens, sampled=False)[:max_num_batched_tokens]
    return StepTimes(
        tokens_s=(0.0, *tokens_s.tolist()),
        sampled_s=(0.0, *_tabled(every, factors, far_sequences, sampled=True)[:max_num_seqs].tolist()),
        sequence_s=engine_share * engine.sequence_overhead_s + _state_s(every),
        decode_launch_s=0.0,  # decodes share the attention launch that tokens_s counts
        decode_context_token_s=decode.slope_s,
        decode_window_token_s=window.slope_s,
        window_tokens=architecture.window_tokens,
        prefill_launch_s=0.0,
        prefill_pair_s=prefill.pair_s,
        prefill_window_pair_s=prefill.window_pair_s,
        prefill_context_token_s=0.0,
        request_s=engine.request_overhead_s + engine.request_serial_s,
        lanes=1,
        decode_table=decode.table,
        decode_window_table=window.table,
        chunk_table=prefill.table,
        prefill_step_s=engine_share * engine.prefill_step_s,
        eager_s=engine.eager_launch_s * step_kernels(every),
    )


def _reach(most: int, least: int) -> int:
    return max(least, 1 << (most - 1).bit_length())


@cache
def _token_knots(most: int) -> Floats:
    """Tokens from 1 to `most` between which step times are linear."""
    ranges = [range(first, last + 1, step) for first, last, step in _TOKENS]
    every = {tokens for within in (*ranges, range(_FAR[0], most + 1, _FAR[1]), (most,)) for tokens in within}
    return np.array(sorted(tokens for tokens in every if tokens <= most), dtype=np.float64)


def _tabled(every: tuple[Operation, ...], factors: KernelFactors, most: int, *, sampled: bool) -> Floats:
    """Seconds of steps of 1..`most` tokens (or sampled rows) in the operations that these alone decide."""
    knots = _token_knots(most)
    none = np.zeros(1)
    tokens, rows = (none, knots) if sampled else (knots, none)
    shape = StepShape(np.broadcast_to(tokens, knots.shape), np.broadcast_to(rows, knots.shape), *[none] * 6)
    seconds = np.zeros(knots.shape)
    for operation in every:
        seconds = seconds + operation.count * engine_s(factors, operation.kind, knots, operation.measure(shape).seconds)
    return np.interp(np.arange(1, most + 1), knots, padded(seconds))


def _state_s(every: tuple[Operation, ...]) -> float:
    """Seconds that one more sequence costs in the recurrent layers."""
    one, none = np.ones(1), np.zeros(1)
    scans = tuple(operation for operation in every if operation.kind == "scan")
    more = measure(scans, StepShape(one, none, one, one, one, none, none, none)).seconds
    return float((more - measure(scans, StepShape(one, none, *[none] * 6)).seconds)[0])


@dataclass(frozen=True)
class _Decode:
    slope_s: float = 0.0
    table: DecodeTable | None = None


def _decode(attention: tuple[Operation, ...], factor: float, most_sequences: int, most_keys: int) -> _Decode:
    if not attention:
        return _Decode()
    sizes, keys = _knots(_SIZES, most_sequences), _knots(_KEYS, max(2, most_keys))
    b, c = (grid.ravel() for grid in np.meshgrid(sizes, keys, indexing="ij"))
    seconds = factor * beyond_launch_s(attention, StepShape.of(decodes=b, keys=c)).reshape(len(sizes), len(keys))
    seconds = np.maximum.accumulate(seconds, axis=1)  # more keys never take less time: dips are noise of the fit
    total = np.outer(sizes, keys)
    slope = float((seconds[:, -1] / total[:, -1]).min())
    return _Decode(slope, DecodeTable(sizes, keys, np.maximum(seconds - slope * total, 0.0)))


@dataclass(frozen=True)
class _Prefill:
    pair_s: float = 0.0
    window_pair_s: float = 0.0
    table: ChunkTable | None = None


def _prefill(
    full: tuple[Operation, ...],
    windowed: tuple[Operation, ...],
    factor: float,
    window: int | None,
    budget: int,
    longest: int,
) -> _Prefill:
    if not full and not windowed:
        return _Prefill()
    new, cached = _knots(_CHUNKS, budget), _knots(_CACHED, max(1, longest), first=0)
    n, p = (grid.ravel() for grid in np.meshgrid(new, cached, indexing="ij"))
    one = np.ones(1)
    shape = StepShape(n, one * 0, one * 0, one * 0, one * 0, one, n, p)
    slopes, left = [], np.zeros(n.shape)
    for attention, reach in ((full, None), (windowed, window)):
        seconds, pairs = factor * beyond_launch_s(attention, shape).reshape(len(new), -1), seen_pairs(n, p, reach)
        # a longer chunk never takes less, nor one over more keys: dips are noise of the fit
        seconds = np.maximum.accumulate(np.minimum.accumulate(seconds[::-1])[::-1], axis=1).ravel()
        slope = _pair_slope(seconds, pairs, n, p) if attention else 0.0
        slopes.append(slope)
        left += np.maximum(seconds - slope * pairs, 0.0)
    table = ChunkTable(new, cached, left.reshape(len(new), len(cached)))
    return _Prefill(slopes[0], slopes[1], table)


def _pair_slope(seconds: Floats, pairs: Floats, new: Floats, cached: Floats) -> float:
    """Seconds per pair in a fit by 1, new, cached and pairs (relative errors): what is left is nearly bilinear."""
    columns = np.stack([np.ones_like(new), new, cached, pairs], axis=1)
    known = seconds > 0
    fitted = np.linalg.lstsq(columns[known] / seconds[known, None], np.ones(int(known.sum())), rcond=None)[0]
    most = float((seconds / pairs)[new == new.max()].min())
    return min(float(fitted[3]), most) if fitted[3] > 0 else most


def _knots(knots: tuple[int, ...], most: int, first: int = 1) -> Floats:
    """`knots` below `most`, and `most`."""
    return np.array(sorted({first, *(knot for knot in knots if first < knot < most), max(most, first + 1)}), np.float64)
