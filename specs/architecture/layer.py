"""One layer: norm, mixer, norm, MLP, with residual connections. Equal layers are equal values."""

from __future__ import annotations

from dataclasses import dataclass

from specs.architecture.mixers import Mixer
from specs.architecture.mlps import MLP, MixtureOfExperts
from specs.architecture.operators import Elementwise, Operator
from specs.architecture.weights import Ranks, WeightTensor, norm_tensors
from specs.document import DType


@dataclass(frozen=True)
class Layer:
    """`mixer` or `mlp` may be absent (hybrid families count each as a layer of its own), never both."""

    hidden_size: int
    mixer: Mixer | None
    mlp: MLP | None
    norm_bias: bool = False  # LayerNorm with a shift, instead of RMSNorm
    more_norms: tuple[str, ...] = ()  # roles of norms beside the one before each block
    scalars: tuple[str, ...] = ()  # roles of single numbers that scale what the layer makes

    @property
    def window(self) -> int | None:
        """Tokens of KV that are ever read, where attention is windowed."""
        return None if self.mixer is None else self.mixer.window

    @property
    def reach(self) -> int | None:
        """The most keys that a query sees: the window, or how many an indexer chooses; None = all."""
        indexer = getattr(self.mixer, "indexer", None)
        return self.window if indexer is None else indexer.top_k

    def operators(self) -> tuple[Operator, ...]:
        """All operators in order, unsharded. A norm adds the residual: two rows read, two written."""
        operators: list[Operator] = []
        if self.mixer is not None:
            operators += [Elementwise("mixer_norm", 2 * self.hidden_size, "replicated"), *self.mixer.operators()]
        if self.mlp is not None:
            operators += [Elementwise("mlp_norm", 2 * self.hidden_size, "replicated"), *self.mlp.operators()]
        operators += [Elementwise(role, 2 * self.hidden_size, "replicated") for role in self.more_norms]
        return tuple(operators)

    def tensors(self) -> tuple[WeightTensor, ...]:
        """Weights by role; the family's names are put in by `Architecture.weights`."""
        tensors: list[WeightTensor] = []
        if self.mixer is not None:
            tensors += [*norm_tensors("mixer_norm", self.hidden_size, self.norm_bias), *self.mixer.tensors()]
        if self.mlp is not None:
            tensors += [*norm_tensors("mlp_norm", self.hidden_size, self.norm_bias), *self.mlp.tensors()]
        for role in self.more_norms:
            tensors += norm_tensors(role, self.hidden_size, self.norm_bias)
        tensors += [WeightTensor(role, (1,), None, False) for role in self.scalars]
        return tuple(tensors)

    def parameters(self) -> tuple[int, int]:
        """(all, active for one token): a token passes `experts_per_token` of the routed experts."""
        total = active = 0
        for tensor in self.tensors():
            total += tensor.elements
            if tensor.expert_axis and isinstance(self.mlp, MixtureOfExperts):
                active += tensor.elements // self.mlp.experts * self.mlp.experts_per_token
            else:
                active += tensor.elements
        return total, active

    def rank_elements(self, ranks: Ranks) -> tuple[int, int]:
        """(quantised, other) weight elements on the fullest rank."""
        quantised = other = 0
        for tensor in self.tensors():
            if tensor.quantised:
                quantised += tensor.rank_elements(ranks)
            else:
                other += tensor.rank_elements(ranks)
        return quantised, other

    def kv_bytes_per_token(self, kv_dtype: DType, tensor_parallel: int) -> float:
        """KV cache of one token on one rank; 0 for recurrent mixers."""
        return 0.0 if self.mixer is None else self.mixer.kv_bytes_per_token(kv_dtype, tensor_parallel)

    def state_bytes(self, tensor_parallel: int) -> int:
        """Recurrent state of one sequence on one rank; 0 for attention."""
        return 0 if self.mixer is None else self.mixer.state_bytes(tensor_parallel)
