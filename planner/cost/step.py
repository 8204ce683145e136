"""`step_times`: the operators of all layers under a layout, summed into the tables and slopes of `StepTimes`.

What goes where. `tokens_s[n]`: embedding, norms, projections, MLPs, experts, all-reduces, one attention launch per
layer (decodes and chunks of a step share it), hand-over between stages, the engine's CPU time per step. `sampled_s[r]`:
head, its collective, sampling. `sequence_s`: CPU time and attention rows of a decoding sequence. Slopes: bytes of KV
read by decodes, pairs computed by prefills. The latter two are linear by construction; real kernels overlap reading
with the launch and are a little faster at small contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.attention import AttentionTimes, latent_attention_times, paged_attention_times
from planner.cost.collectives import all_reduce_s, stage_transfer_s
from planner.cost.moe import experts_s
from planner.cost.roofline import ACTIVATION_BYTES, Floats, elementwise_s, gemm_s
from planner.cost.step_times import StepTimes
from planner.graph import Launch, launches
from specs.architecture.layer import Layer
from specs.architecture.model import Architecture
from specs.architecture.operators import (
    AllReduce,
    Elementwise,
    Experts,
    LatentPagedAttention,
    Linear,
    PagedAttention,
    RecurrentScan,
)
from specs.document import DType
from specs.errors import InputError, NotHonouredError
from specs.plan import Layout
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile

# Sampling reads the logits in 32 bit about three times (scale, maximum or sort, draw) in as many launches.
_SAMPLING_PASSES = 3
_LOGIT_BYTES = 4.0
# A scan is a chain of small vector operations; no table covers it. A third of the vector peak is a careful guess.
_SCAN_EFFICIENCY = 1 / 3


def check_layout(
    architecture: Architecture, layout: Layout, weights_dtype: DType, kv_dtype: DType, device: DeviceFacts
) -> None:
    """`InputError` where the device cannot hold these types or the layout does not fit the model;
    `NotHonouredError` for forms of parallelism that this version has no costs for."""
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
    if layout.attention_data_parallel > 1 or layout.expert_parallel > 1:
        raise NotHonouredError(
            "attention data parallelism and expert parallelism are not honoured in this version",
            field="layout",
            expected="attention_data_parallel: 1 and expert_parallel: 1",
        )
    if sum(layout.pipeline_stages) != len(architecture.layers):
        raise InputError(
            f"pipeline stages hold {sum(layout.pipeline_stages)} layers, {architecture.name} has "
            f"{len(architecture.layers)}",
            field="pipeline_stages",
        )
    obstacle = architecture.tensor_parallel_obstacle(layout.tensor_parallel, 1)
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
) -> StepTimes:
    """Seconds of every part of a step, for 0..`max_num_batched_tokens` tokens and 0..`max_num_seqs` sampled rows.

    Equal layers are worked out once. Raises as `check_layout`.
    """
    check_layout(architecture, layout, weights_dtype, kv_dtype, device)
    rank = _Rank(weights_dtype, kv_dtype, layout.tensor_parallel, device, profile)
    tokens = np.arange(1, max_num_batched_tokens + 1, dtype=np.float64)
    total = _Sum(np.zeros_like(tokens))
    for layer, count in architecture.distinct_layers:
        total.add(rank.layer(layer, tokens), count)
    hidden = architecture.hidden_size
    tokens_s = engine.step_overhead_s + total.tokens_s + rank.embedding_s(hidden, tokens)
    transfers = layout.pipeline_parallel - 1
    if transfers:
        same_node = layout.gpus <= device.gpus_per_node
        tokens_s = tokens_s + transfers * stage_transfer_s(tokens * hidden * ACTIVATION_BYTES, same_node, device)
    rows = np.arange(1, max_num_seqs + 1, dtype=np.float64)
    sampled_s = rank.head_s(architecture, rows)
    return StepTimes(
        tokens_s=(0.0, *tokens_s.tolist()),
        sampled_s=(0.0, *sampled_s.tolist()),
        sequence_s=engine.sequence_overhead_s + total.sequence_s,
        decode_launch_s=0.0,  # decodes share the attention launch that tokens_s counts
        decode_context_token_s=total.decode_context_token_s,
        decode_window_token_s=total.decode_window_token_s,
        window_tokens=architecture.window_tokens,
        prefill_launch_s=total.prefill_launch_s,
        prefill_pair_s=total.prefill_pair_s,
        prefill_window_pair_s=total.prefill_window_pair_s,
        prefill_context_token_s=total.prefill_context_token_s,
        request_s=engine.request_overhead_s,
        lanes=layout.pipeline_parallel,
    )


@dataclass
class _Sum:
    """Seconds of layers added up; the fields are those of `StepTimes`."""

    tokens_s: Floats
    sequence_s: float = 0.0
    decode_context_token_s: float = 0.0
    decode_window_token_s: float = 0.0
    prefill_launch_s: float = 0.0
    prefill_pair_s: float = 0.0
    prefill_window_pair_s: float = 0.0
    prefill_context_token_s: float = 0.0

    def add(self, other: _Sum, count: int) -> None:
        self.tokens_s = self.tokens_s + count * other.tokens_s
        self.sequence_s += count * other.sequence_s
        self.decode_context_token_s += count * other.decode_context_token_s
        self.decode_window_token_s += count * other.decode_window_token_s
        self.prefill_launch_s += count * other.prefill_launch_s
        self.prefill_pair_s += count * other.prefill_pair_s
        self.prefill_window_pair_s += count * other.prefill_window_pair_s
        self.prefill_context_token_s += count * other.prefill_context_token_s

    def add_attention(self, times: AttentionTimes, tokens: Floats, windowed: bool) -> None:
        self.tokens_s = self.tokens_s + times.launch_s + times.query_s * tokens
        self.sequence_s += max(0.0, times.decode_row_s - times.query_s)  # a decoding sequence is one query already
        self.prefill_launch_s += times.prefill_launch_s
        if windowed:  # what a chunk re-reads is at most one window and is not counted
            self.decode_window_token_s += times.decode_token_s
            self.prefill_window_pair_s += times.pair_s
        else:
            self.decode_context_token_s += times.decode_token_s
            self.prefill_pair_s += times.pair_s
            self.prefill_context_token_s += times.reread_s


@dataclass(frozen=True)
class _Rank:
    """One tensor-parallel rank: all times are of its share, collectives included."""

    weights: DType
    kv_dtype: DType
    ranks: int
    device: DeviceFacts
    profile: DeviceProfile

    @property
    def plain(self) -> DType:
        """Type of weights that quantisation leaves alone."""
        if self.weights.bytes >= 2.0:
            return self.weights
        return DType.BF16 if DType.BF16 in self.device.flops else DType.FP16

    def layer(self, layer: Layer, tokens: Floats) -> _Sum:
        result = _Sum(np.zeros_like(tokens))
        for launch in launches(layer):
            self._launch(launch, tokens, result)
        return result

    def _launch(self, launch: Launch, tokens: Floats, result: _Sum) -> None:
        operator = launch.operators[-1]  # what a launch fuses before it is part of its measured floor
        device, profile = self.device, self.profile
        match operator:
            case Linear():
                inputs, outputs = operator.rank_shape(self.ranks)
                dtype = self.weights if operator.quantised else self.plain
                result.tokens_s = result.tokens_s + gemm_s(tokens, inputs, outputs, dtype, device, profile)
            case Elementwise():
                elements = operator.elements_per_token / (self.ranks if operator.shard == "column" else 1)
                moved = tokens * (2.0 * elements * ACTIVATION_BYTES)
                result.tokens_s = result.tokens_s + elementwise_s(moved, device, profile)
            case AllReduce():
                message = tokens * (operator.elements_per_token * ACTIVATION_BYTES)
                result.tokens_s = result.tokens_s + all_reduce_s(message, self.ranks, device, profile)
            case Experts():
                _, width = operator.rank_shape(self.ranks, 1)
                dtype = self.weights if operator.quantised else self.plain
                result.tokens_s = result.tokens_s + experts_s(
                    tokens,
                    operator.experts,
                    operator.experts_per_token,
                    operator.hidden_size,
                    width,
                    operator.gated,
                    dtype,
                    device,
                    profile,
                )
            case PagedAttention():
                heads, kv_heads = operator.rank_heads(self.ranks)
                times = paged_attention_times(heads, kv_heads, operator.head_dim, self.kv_dtype, device, profile)
                result.add_attention(times, tokens, operator.window is not None)
            case LatentPagedAttention():
                times = latent_attention_times(
                    operator.heads / self.ranks,
                    operator.kv_rank,
                    operator.rope_dim,
                    operator.nope_dim,
                    operator.value_dim,
                    self.kv_dtype,
                    device,
                    profile,
                )
                result.add_attention(times, tokens, False)
            case RecurrentScan():
                vector_peak = device.flops.get(DType.FP32, device.flops[self.plain]) * _SCAN_EFFICIENCY
                seconds = profile.launch_s + tokens * (operator.flops_per_token / self.ranks / vector_peak)
                result.tokens_s = result.tokens_s + seconds
                state_bytes = operator.state_elements / self.ranks * 4.0  # kept in 32 bit, read and written
                bandwidth = device.hbm_bytes_per_s * profile.elementwise_efficiency
                result.sequence_s += 2.0 * state_bytes / bandwidth

    def embedding_s(self, hidden_size: int, tokens: Floats) -> Floats:
        """Table look-up (read and write of one row a token) and, as the vocabulary is cut, one all-reduce."""
        message = tokens * (hidden_size * ACTIVATION_BYTES)
        looked_up = elementwise_s(2.0 * message, self.device, self.profile)
        seconds: Floats = looked_up + all_reduce_s(message, self.ranks, self.device, self.profile)
        return seconds

    def head_s(self, architecture: Architecture, rows: Floats) -> Floats:
        """Final norm, product with the (cut) vocabulary, gathering of the logits, sampling."""
        seconds = np.zeros_like(rows)
        for operator in architecture.head_operators():
            if isinstance(operator, Linear):
                inputs, outputs = operator.rank_shape(self.ranks)
                seconds = seconds + gemm_s(rows, inputs, outputs, self.plain, self.device, self.profile)
            elif isinstance(operator, Elementwise):
                moved = rows * (2.0 * operator.elements_per_token * ACTIVATION_BYTES)
                seconds = seconds + elementwise_s(moved, self.device, self.profile)
        logits = rows * architecture.vocab_size
        # an all-gather moves half of what an all-reduce does
        seconds = seconds + all_reduce_s(logits * (ACTIVATION_BYTES / 2.0), self.ranks, self.device, self.profile)
        for _ in range(_SAMPLING_PASSES):
            seconds = seconds + elementwise_s(logits * _LOGIT_BYTES, self.device, self.profile)
        return seconds
