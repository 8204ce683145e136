"""The operators of a layer, unsharded, in the order in which they run.

Sizes are those of the whole model. `rank_*` methods give what one rank of a tensor-parallel group holds; the sum over
ranks is at least the whole, and more where KV heads or state groups are fewer than ranks and therefore repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specs.architecture.weights import Segment, rank_size


@dataclass(frozen=True)
class Linear:
    """y = x W^T (+ b). `segments` cut the sharded axis where it is not one even piece (q | k | v by heads)."""

    name: str
    in_features: int
    out_features: int
    shard: Literal["column", "row", "replicated"]  # column cuts the outputs, row the inputs
    quantised: bool
    bias: bool
    segments: tuple[Segment, ...] = ()  # of the sharded axis; () = one piece that any divisor may cut

    def rank_shape(self, tensor_parallel: int) -> tuple[int, int]:
        """(in_features, out_features) of one rank's matrix."""
        if self.shard == "column":
            return self.in_features, rank_size(self.segments, self.out_features, tensor_parallel)
        if self.shard == "row":
            return rank_size(self.segments, self.in_features, tensor_parallel), self.out_features
        return self.in_features, self.out_features


@dataclass(frozen=True)
class PagedAttention:
    """Softmax attention over a paged KV cache. `window`: keys that a query sees, itself included; None = all."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    sinks: bool = False  # one learned logit per head in the softmax's denominator
    value_dim: int | None = None  # where values are narrower than keys; None = head_dim
    top_k: int | None = None  # keys that a query sees after an `IndexScores` chose them; all of them are kept

    @property
    def reach(self) -> int | None:
        """The most keys that a query sees; None = all."""
        return self.window if self.top_k is None else self.top_k

    @property
    def mean_dim(self) -> float:
        """Mean of the widths of a key and a value: what bytes and FLOPs per key go with."""
        return (self.head_dim + (self.head_dim if self.value_dim is None else self.value_dim)) / 2

    def rank_heads(self, tensor_parallel: int) -> tuple[int, int]:
        """(query heads, KV heads) of one rank; KV heads fewer than ranks are repeated."""
        return -(-self.heads // tensor_parallel), -(-self.kv_heads // tensor_parallel)


@dataclass(frozen=True)
class LatentPagedAttention:
    """Multi-head latent attention: one cached vector of kv_rank + rope_dim per token, shared by all heads.

    Runs absorbed in decode: every head scores against the latent vector itself (kv_rank + rope_dim wide) and sums
    latent vectors (kv_rank wide). In prefill keys are nope_dim + rope_dim and values value_dim wide. The two absorbed
    products cost, per token, exactly what the up-projection `kv_b_proj` costs, and stand as that `Linear`. With
    `top_k` a query sees the keys that an `IndexScores` chose, and prefill runs absorbed as well: every query has keys
    of its own, so that expanded ones would not be shared.
    """

    heads: int
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    top_k: int | None = None


@dataclass(frozen=True)
class IndexScores:
    """A small scorer of every earlier key, and the choice of the best `top_k` (DeepSeek sparse attention).

    Each of `heads` queries of `head_dim` is multiplied with one cached key of `key_bytes` per token; the scores are
    kept in 32 bits. It runs whole on every rank.
    """

    heads: int
    head_dim: int
    top_k: int
    key_bytes: int


@dataclass(frozen=True)
class Experts:
    """The routed experts as grouped matrix products: gate_up (or up alone where not gated) and down."""

    experts: int
    experts_per_token: int
    hidden_size: int  # width of an expert's input: the latent size where experts work on a compressed vector
    intermediate_size: int
    quantised: bool
    gated: bool = True
    bias: bool = False

    def rank_shape(self, expert_tensor_parallel: int, expert_parallel: int) -> tuple[int, int]:
        """(experts, intermediate_size) that one rank holds."""
        return -(-self.experts // expert_parallel), -(-self.intermediate_size // expert_tensor_parallel)


@dataclass(frozen=True)
class Elementwise:
    """Norms, rotary embedding, activations: so many elements a token, each read once and written once."""

    name: str
    elements_per_token: int
    shard: Literal["replicated", "column"]


@dataclass(frozen=True)
class AllReduce:
    """Sum of so many elements a token over the tensor-parallel ranks; nothing where there is one rank."""

    elements_per_token: int


@dataclass(frozen=True)
class RecurrentScan:
    """Update and read of a recurrent state, once per token; the state is cut by heads over the ranks."""

    state_elements: int
    flops_per_token: int


Operator = (
    Linear | PagedAttention | LatentPagedAttention | IndexScores | Experts | Elementwise | AllReduce | RecurrentScan
)
