"""`Architecture`: a whole model as its layers and what stands before and after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from specs.architecture.layer import Layer
from specs.architecture.mixers import Attention
from specs.architecture.operators import Elementwise, Linear, Operator
from specs.architecture.sharding import obstacle
from specs.architecture.weights import WeightTensor, norm_tensors
from specs.document import DType


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of the served model (multi-token-prediction layers are not among them).

    `active` are those that one token's forward pass multiplies: without the experts it does not visit and without the
    input embedding, a table look-up (unless tied, where it is the head). `embedding`: input embedding and head
    together, once if tied, so `total - embedding` is what is published as non-embedding parameters.
    """

    total: int
    active: int
    embedding: int


@dataclass(frozen=True)
class Rope:
    """Rotary embedding. `parameters` are the remaining numbers of the scaling method, by their config names."""

    theta: float
    kind: str = "default"  # default | linear | dynamic | llama3 | yarn | longrope
    partial_rotary_factor: float = 1.0
    parameters: tuple[tuple[str, float | bool | str | tuple[float, ...]], ...] = ()


@dataclass(frozen=True)
class Quantisation:
    """How the checkpoint stores its quantised weights."""

    dtype: DType
    block: int | None = None  # edge of the scale blocks that a shard must not cut
    scale_bytes_per_element: float = 0.0


# Bytes of scales per element where the checkpoint does not say: NVFP4 has one FP8 scale for 16 elements; 4-bit integers
# one 16-bit scale and a 4-bit zero for 128. Scales of 8-bit types are per tensor, channel or 128 x 128 block: nothing.
SCALE_BYTES_PER_ELEMENT = {DType.FP4: 1 / 16, DType.INT4: 2.5 / 128}


@dataclass(frozen=True)
class Architecture:
    """A model family's description filled in from one config. Sizes are of the whole model.

    `activation`, `norm`, `rms_norm_eps` (of LayerNorm too) and `rope` (None: no rotary embedding) are what a runtime
    needs beyond shapes. `compute_dtype` is the config's dtype. `mtp_layers` counts multi-token-prediction layers of
    the checkpoint; they are not served and not counted. `omitted` names the parts of the config (vision and audio
    towers of a multimodal model) that are not described: the text model is, and what it says of memory leaves them
    out. `weight_names` maps roles to names in the checkpoint.
    """

    name: str
    family: str
    config: Mapping[str, Any] = field(compare=False, repr=False)
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    tied_embeddings: bool
    layers: tuple[Layer, ...] = field(repr=False)
    activation: str
    rms_norm_eps: float
    rope: Rope | None
    norm: Literal["rms", "layer"] = "rms"
    learned_positions: int = 0  # rows of a learned position embedding
    compute_dtype: DType = DType.BF16
    quantisation: Quantisation | None = None
    mtp_layers: int = 0
    omitted: tuple[str, ...] = ()
    window_rope: Rope | None = None  # of windowed layers, where it is not `rope`
    weight_names: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __hash__(self) -> int:
        """Of a few sizes only: architectures are keys of caches (2 us; hashing 94 layers takes 56 us)."""
        return hash((self.name, self.family, self.hidden_size, self.vocab_size, len(self.layers)))

    @property
    def native_weights_dtype(self) -> DType:
        """Element type of the checkpoint's quantised weights, else its compute type."""
        return self.compute_dtype if self.quantisation is None else self.quantisation.dtype

    @cached_property
    def distinct_layers(self) -> tuple[tuple[Layer, int], ...]:
        """(layer, how often), in order of first appearance: cost is worked out once for each."""
        return tuple(Counter(self.layers).items())

    def layer_counts(self, layers: range | None = None) -> tuple[tuple[Layer, int], ...]:
        """`distinct_layers` of a stage: the layers whose indices are in `layers` (None = all)."""
        if layers is None or layers == range(len(self.layers)):
            return self.distinct_layers
        kinds = self._layer_kinds
        counts = Counter(kinds[index] for index in layers)
        return tuple((self.distinct_layers[kind][0], count) for kind, count in counts.items())

    @cached_property
    def _layer_kinds(self) -> tuple[int, ...]:
        index = {layer: kind for kind, (layer, _) in enumerate(self.distinct_layers)}
        return tuple(index[layer] for layer in self.layers)

    @property
    def attention_bias(self) -> bool:
        """Whether any attention layer's query, key and value projections have a bias."""
        return any(isinstance(layer.mixer, Attention) and layer.mixer.qkv_bias for layer, _ in self.distinct_layers)

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head."""
        return any(isinstance(layer.mixer, Attention) and layer.mixer.qk_norm for layer, _ in self.distinct_layers)

    @property
    def window_tokens(self) -> int | None:
        """The most keys that a query sees in windowed layers, or in layers that choose their keys; None without any.

        Families with two such numbers are refused. Layers that choose keep all their keys.
        """
        return max((layer.reach for layer, _ in self.distinct_layers if layer.reach is not None), default=None)

    # Operators and weights outside the layers

    def embedding_tensors(self) -> tuple[WeightTensor, ...]:
        """Token embedding, cut by vocabulary; learned positions, whole on every rank."""
        table = WeightTensor("embed_tokens.weight", (self.vocab_size, self.hidden_size), 0, False, stage="embedding")
        if not self.learned_positions:
            return (table,)
        positions = (self.learned_positions, self.hidden_size)
        return table, WeightTensor("embed_positions.weight", positions, None, False, stage="embedding")

    def head_tensors(self) -> tuple[WeightTensor, ...]:
        """Final norm and the head, cut by vocabulary; a tied head is the token embedding and not listed again."""
        norm = tuple(
            replace(tensor, stage="head")
            for tensor in norm_tensors("final_norm", self.hidden_size, self.norm == "layer")
        )
        if self.tied_embeddings:
            return norm
        return *norm, WeightTensor("lm_head.weight", (self.vocab_size, self.hidden_size), 0, False, stage="head")

    def head_operators(self) -> tuple[Operator, ...]:
        """Final norm and the product with the vocabulary, run on sampled rows only."""
        return (
            Elementwise("final_norm", 2 * self.hidden_size, "replicated"),
            Linear("lm_head", self.hidden_size, self.vocab_size, "column", False, False),
        )

    def weights(self) -> tuple[WeightTensor, ...]:
        """All tensors of the served model under the checkpoint's names, in order."""
        tensors = [replace(tensor, name=self._named(tensor.name)) for tensor in self.embedding_tensors()]
        for index, layer in enumerate(self.layers):
            tensors += [
                replace(tensor, name=self._named(tensor.name, index), layer=index) for tensor in layer.tensors()
            ]
        tensors += [replace(tensor, name=self._named(tensor.name)) for tensor in self.head_tensors()]
        return tuple(tensors)

    def _named(self, role: str, layer: int | None = None) -> str:
        base, dot, suffix = role.partition(".")
        name = self.weight_names[base] + dot + suffix
        return name if layer is None else name.replace("{layer}", str(layer))

    def parameter_count(self) -> ParameterCount:
        """Closed form over distinct layers; equal to the sum over `weights()`."""
        total = active = 0
        for layer, count in self.distinct_layers:
            layer_total, layer_active = layer.parameters()
            total, active = total + count * layer_total, active + count * layer_active
        before = sum(tensor.elements for tensor in self.embedding_tensors())
        after = sum(tensor.elements for tensor in self.head_tensors())
        table = self.vocab_size * self.hidden_size
        total += before + after
        # The look-up is no product; the head is one, tied or not.
        active += before + after - (0 if self.tied_embeddings else table)
        return ParameterCount(total, active, table if self.tied_embeddings else 2 * table)

    def weight_bytes_per_element(self, dtype: DType) -> float:
        """Bytes of a quantised weight element stored as `dtype`, its share of the scales included."""
        if self.quantisation is not None and self.quantisation.dtype == dtype:
            return dtype.bytes + self.quantisation.scale_bytes_per_element
        return dtype.bytes + SCALE_BYTES_PER_ELEMENT.get(dtype, 0.0)

    # Tensor parallelism

    def tensor_parallel_obstacle(
        self, tensor_parallel: int, expert_parallel: int | None = None, attention_data_parallel: int = 1
    ) -> str | None:
        """Why the model cannot be split over so many ranks, in one sentence; None where it can.

        `expert_parallel` None: experts may be cut inside or spread, whichever works.
        """
        block = self.quantisation_block
        return obstacle(self.distinct_layers, block, tensor_parallel, expert_parallel, attention_data_parallel)

    @property
    def quantisation_block(self) -> int:
        """Columns that a shard must hold whole because they share a scale; 1 where any cut is fine."""
        return 1 if self.quantisation is None or self.quantisation.block is None else self.quantisation.block

    def valid_tensor_parallel(self, limit: int) -> tuple[int, ...]:
        """All sizes up to `limit` without obstacle, ascending. The vocabulary is padded and never in the way."""
        return tuple(size for size in range(1, limit + 1) if self.tensor_parallel_obstacle(size) is None)

    # What a sequence keeps on one rank

    def kv_bytes_per_token(self, kv_dtype: DType, tensor_parallel: int, layers: range | None = None) -> float:
        """Bytes per token and rank in the layers that attend to the whole context (windowed ones not counted)."""
        return self._kv_bytes(kv_dtype, tensor_parallel, layers, windowed=False)

    def window_kv_bytes_per_token(self, kv_dtype: DType, tensor_parallel: int, layers: range | None = None) -> float:
        """Bytes per token and rank in windowed layers; of a sequence only `window_tokens` tokens need to be kept."""
        return self._kv_bytes(kv_dtype, tensor_parallel, layers, windowed=True)

    def _kv_bytes(self, kv_dtype: DType, tensor_parallel: int, layers: range | None, *, windowed: bool) -> float:
        of_layers = (
            count * layer.kv_bytes_per_token(kv_dtype, tensor_parallel)
            for layer, count in self.layer_counts(layers)
            if (layer.window is not None) is windowed
        )
        return sum(of_layers, 0.0)

    def state_bytes(self, tensor_parallel: int, layers: range | None = None) -> int:
        """Recurrent state of one sequence on one rank, whatever its length."""
        return sum(count * layer.state_bytes(tensor_parallel) for layer, count in self.layer_counts(layers))

    def sequence_bytes(self, tokens: int, kv_dtype: DType, tensor_parallel: int, layers: range | None = None) -> float:
        """Everything that a sequence of `tokens` keeps on one rank: KV, windowed KV, state."""
        kept = tokens if self.window_tokens is None else min(tokens, self.window_tokens)
        return (
            tokens * self.kv_bytes_per_token(kv_dtype, tensor_parallel, layers)
            + kept * self.window_kv_bytes_per_token(kv_dtype, tensor_parallel, layers)
            + self.state_bytes(tensor_parallel, layers)
        )
