"""What mixes tokens in a layer: attention (grouped, windowed), latent attention, recurrent (Mamba-2).

Each mixer gives its operators, its weights (by role; a family maps roles to the checkpoint's names), what it keeps
per token and per sequence, and which counts a tensor-parallel size must divide.
"""

from __future__ import annotations

from dataclasses import dataclass

from specs.architecture.operators import (
    AllReduce,
    Elementwise,
    LatentPagedAttention,
    Linear,
    Operator,
    PagedAttention,
    RecurrentScan,
)
from specs.architecture.weights import Segment, WeightTensor, linear_tensors, norm_tensors


@dataclass(frozen=True)
class Divisible:
    """A count that a tensor-parallel size must divide, or may be a multiple of where units can be repeated."""

    what: str
    count: int
    repeatable: bool = False

    def obstacle(self, ranks: int) -> str | None:
        """Why `ranks` cannot cut it, or None."""
        if self.count % ranks == 0 or (self.repeatable and ranks % self.count == 0):
            return None
        return f"{self.count} {self.what} cannot be split evenly over {ranks} ranks"


@dataclass(frozen=True)
class Attention:
    """Softmax attention with grouped KV heads."""

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None  # keys a query sees, itself included; None = all
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False  # RMSNorm over head_dim of every query and key head
    sinks: bool = False
    rotary: bool = True
    quantised: bool = True

    def operators(self) -> tuple[Operator, ...]:
        """QKV projection, rotary and norm, attention, output projection, all-reduce."""
        query, cached = self.heads * self.head_dim, self.kv_heads * self.head_dim
        cut = (Segment(query, self.heads), Segment(cached, self.kv_heads), Segment(cached, self.kv_heads))
        quantised, output = self.quantised, (Segment(query, self.heads),)
        prepare = (Elementwise("qk_norm_rope", query + cached, "column"),) if self.rotary or self.qk_norm else ()
        return (
            Linear("qkv_proj", self.hidden_size, query + 2 * cached, "column", quantised, self.qkv_bias, cut),
            *prepare,
            PagedAttention(self.heads, self.kv_heads, self.head_dim, self.window, self.sinks),
            Linear("o_proj", query, self.hidden_size, "row", quantised, self.output_bias, output),
            AllReduce(self.hidden_size),
        )

    def tensors(self) -> tuple[WeightTensor, ...]:
        """q_proj, k_proj, v_proj, o_proj; q_norm, k_norm; sinks."""
        query, cached = self.heads * self.head_dim, self.kv_heads * self.head_dim
        by_heads, by_kv_heads = (Segment(query, self.heads),), (Segment(cached, self.kv_heads),)
        tensors: list[WeightTensor] = []
        for role, size, segments in (
            ("q_proj", query, by_heads),
            ("k_proj", cached, by_kv_heads),
            ("v_proj", cached, by_kv_heads),
        ):
            tensors += linear_tensors(
                role,
                self.hidden_size,
                size,
                shard="column",
                quantised=self.quantised,
                bias=self.qkv_bias,
                segments=segments,
            )
        tensors += linear_tensors(
            "o_proj",
            query,
            self.hidden_size,
            shard="row",
            quantised=self.quantised,
            bias=self.output_bias,
            segments=by_heads,
        )
        if self.qk_norm:
            tensors += [*norm_tensors("q_norm", self.head_dim), *norm_tensors("k_norm", self.head_dim)]
        if self.sinks:
            tensors.append(WeightTensor("sinks", (self.heads,), 0, False))
        return tuple(tensors)

    def kv_elements_per_token(self, tensor_parallel: int) -> int:
        """Keys and values of one token on one rank."""
        return 2 * -(-self.kv_heads // tensor_parallel) * self.head_dim

    def state_bytes(self, tensor_parallel: int) -> int:
        """Nothing is kept but the KV cache."""
        return 0

    def divisible(self) -> tuple[Divisible, ...]:
        """Counts that a tensor-parallel size must divide."""
        return Divisible("attention heads", self.heads), Divisible("KV heads", self.kv_heads, repeatable=True)


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values from one small cached vector."""

    hidden_size: int
    heads: int
    query_rank: int | None  # None: queries are projected directly
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    bias: bool = False  # of the three projections that read or write the hidden state
    quantised: bool = True

    @property
    def window(self) -> None:
        """Never windowed."""
        return None

    def operators(self) -> tuple[Operator, ...]:
        """Down-projections (whole on every rank), up-projections by heads, latent attention, output, all-reduce."""
        hidden, heads, quantised = self.hidden_size, self.heads, self.quantised
        query, latent = heads * (self.nope_dim + self.rope_dim), self.kv_rank + self.rope_dim
        keys_values, output = heads * (self.nope_dim + self.value_dim), heads * self.value_dim
        if self.query_rank is None:
            queries: tuple[Operator, ...] = (
                Linear("q_proj", hidden, query, "column", quantised, False, (Segment(query, heads),)),
                Linear("kv_a_proj_with_mqa", hidden, latent, "replicated", quantised, self.bias),
                Elementwise("latent_norms", self.kv_rank, "replicated"),
            )
        else:
            # One product in practice: both read the hidden state and are whole on every rank.
            fused = Linear("qkv_a_proj", hidden, self.query_rank + latent, "replicated", quantised, self.bias)
            queries = (
                fused,
                Elementwise("latent_norms", self.query_rank + self.kv_rank, "replicated"),
                Linear("q_b_proj", self.query_rank, query, "column", quantised, False, (Segment(query, heads),)),
            )
        return (
            *queries,
            Elementwise("rope", (heads + 1) * self.rope_dim, "column"),
            Linear("kv_b_proj", self.kv_rank, keys_values, "column", quantised, False, (Segment(keys_values, heads),)),
            LatentPagedAttention(heads, self.kv_rank, self.rope_dim, self.nope_dim, self.value_dim),
            Linear("o_proj", output, hidden, "row", quantised, self.bias, (Segment(output, heads),)),
            AllReduce(hidden),
        )

    def tensors(self) -> tuple[WeightTensor, ...]:
        """q_a_proj, q_a_norm, q_b_proj (or q_proj), kv_a_proj_with_mqa, kv_a_norm, kv_b_proj, o_proj."""
        hidden, heads, quantised = self.hidden_size, self.heads, self.quantised
        query, output = heads * (self.nope_dim + self.rope_dim), heads * self.value_dim
        keys_values = heads * (self.nope_dim + self.value_dim)
        by_heads = (Segment(query, heads),)
        tensors: list[WeightTensor] = []
        if self.query_rank is None:
            tensors += linear_tensors("q_proj", hidden, query, shard="column", quantised=quantised, segments=by_heads)
        else:
            tensors += linear_tensors(
                "q_a_proj", hidden, self.query_rank, shard="replicated", quantised=quantised, bias=self.bias
            )
            tensors += norm_tensors("q_a_norm", self.query_rank)
            tensors += linear_tensors(
                "q_b_proj", self.query_rank, query, shard="column", quantised=quantised, segments=by_heads
            )
        latent = self.kv_rank + self.rope_dim
        tensors += linear_tensors(
            "kv_a_proj_with_mqa", hidden, latent, shard="replicated", quantised=quantised, bias=self.bias
        )
        tensors += norm_tensors("kv_a_norm", self.kv_rank)
        up, down = (Segment(keys_values, heads),), (Segment(output, heads),)
        tensors += linear_tensors(
            "kv_b_proj", self.kv_rank, keys_values, shard="column", quantised=quantised, segments=up
        )
        tensors += linear_tensors(
            "o_proj", output, hidden, shard="row", quantised=quantised, bias=self.bias, segments=down
        )
        return tuple(tensors)

    def kv_elements_per_token(self, tensor_parallel: int) -> int:
        """The latent vector and the rotary key; the same on every rank, whatever their number."""
        return self.kv_rank + self.rope_dim

    def state_bytes(self, tensor_parallel: int) -> int:
        """Nothing is kept but the latent cache."""
        return 0

    def divisible(self) -> tuple[Divisible, ...]:
        """Counts that a tensor-parallel size must divide."""
        return (Divisible("attention heads", self.heads),)


@dataclass(frozen=True)
class Recurrent:
    """Mamba-2 (arXiv:2405.21060): a causal convolution and a state of head_dim x state_size per head."""

    hidden_size: int
    heads: int
    head_dim: int
    groups: int  # of heads that share the input and output vectors of the state
    state_size: int
    conv_kernel: int
    conv_bias: bool = True
    projection_bias: bool = False
    state_element_bytes: int = 4
    conv_element_bytes: int = 2
    quantised: bool = True

    @property
    def window(self) -> None:
        """Not attention."""
        return None

    @property
    def inner_size(self) -> int:
        """Channels of the state's input: heads x head_dim."""
        return self.heads * self.head_dim

    def _convolved(self) -> tuple[Segment, ...]:
        """x | B | C, the channels that pass the convolution."""
        shared = Segment(self.groups * self.state_size, self.groups)
        return Segment(self.inner_size, self.heads), shared, shared

    def _projected(self) -> tuple[Segment, ...]:
        """z | x | B | C | dt, what the input projection makes."""
        return Segment(self.inner_size, self.heads), *self._convolved(), Segment(self.heads, self.heads)

    def operators(self) -> tuple[Operator, ...]:
        """Input projection, convolution, scan, gated norm, output projection, all-reduce."""
        projected, inner = self._projected(), self.inner_size
        width = sum(segment.size for segment in projected)
        channels = sum(segment.size for segment in self._convolved())
        state = inner * self.state_size
        by_heads, bias = (Segment(inner, self.heads),), self.projection_bias
        return (
            Linear("in_proj", self.hidden_size, width, "column", self.quantised, bias, projected),
            Elementwise("causal_conv", channels, "column"),
            # per state element and token: decay, input times dt x, sum, and a multiply-add to read: 6
            RecurrentScan(state, 6 * state),
            Elementwise("gated_norm", 3 * inner // 2, "column"),
            Linear("out_proj", inner, self.hidden_size, "row", self.quantised, bias, by_heads),
            AllReduce(self.hidden_size),
        )

    def tensors(self) -> tuple[WeightTensor, ...]:
        """in_proj, conv1d, A_log, D, dt_bias, gated_norm, out_proj."""
        projected, convolved, inner = self._projected(), self._convolved(), self.inner_size
        width = sum(segment.size for segment in projected)
        channels = sum(segment.size for segment in convolved)
        by_heads, bias = (Segment(inner, self.heads),), self.projection_bias
        tensors = [
            *linear_tensors(
                "in_proj",
                self.hidden_size,
                width,
                shard="column",
                quantised=self.quantised,
                bias=bias,
                segments=projected,
            ),
            WeightTensor("conv1d.weight", (channels, 1, self.conv_kernel), 0, False, segments=convolved),
        ]
        if self.conv_bias:
            tensors.append(WeightTensor("conv1d.bias", (channels,), 0, False, segments=convolved))
        tensors += [WeightTensor(role, (self.heads,), 0, False) for role in ("A_log", "D", "dt_bias")]
        tensors.append(WeightTensor("gated_norm.weight", (inner,), 0, False, segments=by_heads))
        tensors += linear_tensors(
            "out_proj", inner, self.hidden_size, shard="row", quantised=self.quantised, bias=bias, segments=by_heads
        )
        return tuple(tensors)

    def kv_elements_per_token(self, tensor_parallel: int) -> int:
        """Nothing grows with the context."""
        return 0

    def state_bytes(self, tensor_parallel: int) -> int:
        """Bytes of one sequence on one rank: the state, and the last conv_kernel - 1 inputs of the convolution."""
        heads, groups = -(-self.heads // tensor_parallel), -(-self.groups // tensor_parallel)
        state = heads * self.head_dim * self.state_size
        channels = heads * self.head_dim + 2 * groups * self.state_size
        return state * self.state_element_bytes + channels * (self.conv_kernel - 1) * self.conv_element_bytes

    def divisible(self) -> tuple[Divisible, ...]:
        """Counts that a tensor-parallel size must divide."""
        return Divisible("Mamba heads", self.heads), Divisible("Mamba groups", self.groups, repeatable=True)


Mixer = Attention | LatentAttention | Recurrent
