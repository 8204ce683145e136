"""What mixes tokens through a state of fixed size: Mamba-2 and the gated delta rule.

Same methods as the mixers of `specs.architecture.mixers`.
"""

from __future__ import annotations

from dataclasses import dataclass

from specs.architecture.operators import AllReduce, Elementwise, Linear, Operator, RecurrentScan
from specs.architecture.weights import Divisible, Segment, WeightTensor, linear_tensors, norm_tensors
from specs.document import DType


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

    def kv_bytes_per_token(self, kv_dtype: DType, tensor_parallel: int) -> float:
        """Nothing grows with the context."""
        return 0.0

    def state_bytes(self, tensor_parallel: int) -> int:
        """Bytes of one sequence on one rank: the state, and the last conv_kernel - 1 inputs of the convolution."""
        heads, groups = -(-self.heads // tensor_parallel), -(-self.groups // tensor_parallel)
        state = heads * self.head_dim * self.state_size
        channels = heads * self.head_dim + 2 * groups * self.state_size
        return state * self.state_element_bytes + channels * (self.conv_kernel - 1) * self.conv_element_bytes

    def divisible(self) -> tuple[Divisible, ...]:
        """Counts that a tensor-parallel size must divide."""
        return Divisible("Mamba heads", self.heads), Divisible("Mamba groups", self.groups, repeatable=True)


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention by the gated delta rule (arXiv:2412.06464): a state of key_dim x value_dim per value head.

    Key heads are shared by value heads as KV heads are by query heads. A causal convolution comes before.
    """

    hidden_size: int
    key_heads: int
    value_heads: int
    key_dim: int  # of one head
    value_dim: int
    conv_kernel: int
    state_element_bytes: int = 4
    conv_element_bytes: int = 2
    quantised: bool = True  # but for the two gates, which are as narrow as the heads are many
    fused: bool = False  # the checkpoint holds q, k, v, z of each key head together, and the gates b, a

    @property
    def window(self) -> None:
        """Not attention."""
        return None

    def _convolved(self) -> tuple[Segment, ...]:
        """q | k | v, the channels that pass the convolution."""
        keys = Segment(self.key_heads * self.key_dim, self.key_heads)
        return keys, keys, self._values()

    def _values(self) -> Segment:
        return Segment(self.value_heads * self.value_dim, self.value_heads)

    def _inputs(self) -> tuple[tuple[tuple[Segment, ...], int], tuple[tuple[Segment, ...], int]]:
        """Segments and width of q | k | v | z and of the gates b | a."""
        gate = Segment(self.value_heads, self.value_heads)
        parts = []
        for segments in ((*self._convolved(), self._values()), (gate, gate)):
            width = sum(segment.size for segment in segments)
            parts.append(((Segment(width, self.key_heads),) if self.fused else segments, width))
        return parts[0], parts[1]

    def operators(self) -> tuple[Operator, ...]:
        """Input projections, convolution, delta rule, gated norm, output projection, all-reduce."""
        values, channels = self._values(), sum(segment.size for segment in self._convolved())
        (projected, width), (gates, gate_width) = self._inputs()
        state = self.value_heads * self.key_dim * self.value_dim
        return (
            Linear("in_proj_qkvz", self.hidden_size, width, "column", self.quantised, False, projected),
            Linear("in_proj_ba", self.hidden_size, gate_width, "column", False, False, gates),
            Elementwise("causal_conv", channels, "column"),
            # per state element and token: decay, multiply-adds to read by the key, to write, to read by the query: 7
            RecurrentScan(state, 7 * state),
            Elementwise("gated_norm", 3 * values.size // 2, "column"),
            Linear("out_proj", values.size, self.hidden_size, "row", self.quantised, False, (values,)),
            AllReduce(self.hidden_size),
        )

    def tensors(self) -> tuple[WeightTensor, ...]:
        """in_proj_qkv, in_proj_z, in_proj_b, in_proj_a (fused: in_proj_qkvz, in_proj_ba), conv1d, A_log, dt_bias,
        gated_norm, out_proj."""
        convolved, values, gate = self._convolved(), self._values(), Segment(self.value_heads, self.value_heads)
        channels = sum(segment.size for segment in convolved)
        tensors: list[WeightTensor] = []
        (projected, _), (gates, _) = self._inputs()
        fused = (("in_proj_qkvz", projected, self.quantised), ("in_proj_ba", gates, False))
        apart = (
            ("in_proj_qkv", convolved, self.quantised),
            ("in_proj_z", (values,), self.quantised),
            ("in_proj_b", (gate,), False),
            ("in_proj_a", (gate,), False),
        )
        for role, segments, quantised in fused if self.fused else apart:
            size = sum(segment.size for segment in segments)
            tensors += linear_tensors(
                role, self.hidden_size, size, shard="column", quantised=quantised, segments=segments
            )
        tensors.append(WeightTensor("conv1d.weight", (channels, 1, self.conv_kernel), 0, False, segments=convolved))
        tensors += [WeightTensor(role, (self.value_heads,), 0, False) for role in ("A_log", "dt_bias")]
        tensors += norm_tensors("gated_norm", self.value_dim)
        tensors += linear_tensors(
            "out_proj", values.size, self.hidden_size, shard="row", quantised=self.quantised, segments=(values,)
        )
        return tuple(tensors)

    def kv_bytes_per_token(self, kv_dtype: DType, tensor_parallel: int) -> float:
        """Nothing grows with the context."""
        return 0.0

    def state_bytes(self, tensor_parallel: int) -> int:
        """Bytes of one sequence on one rank: the state, and the last conv_kernel - 1 inputs of the convolution."""
        keys, values = -(-self.key_heads // tensor_parallel), -(-self.value_heads // tensor_parallel)
        state = values * self.key_dim * self.value_dim
        channels = 2 * keys * self.key_dim + values * self.value_dim
        return state * self.state_element_bytes + channels * (self.conv_kernel - 1) * self.conv_element_bytes

    def divisible(self) -> tuple[Divisible, ...]:
        """Counts that a tensor-parallel size must divide."""
        return (
            Divisible("linear-attention key heads", self.key_heads),
            Divisible("linear-attention value heads", self.value_heads),
        )
