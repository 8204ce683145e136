"""What one tensor-parallel rank computes: local sizes, and the refusal by name of what has no program yet."""

from __future__ import annotations

from dataclasses import dataclass

from specs.architecture import Architecture, Attention, DenseMLP, Layer, MixtureOfExperts, Rope
from specs.compilable import obstacle_to_compiling
from specs.document import DType
from specs.errors import NotHonouredError
from specs.plan import Layout

INSTEAD = "what engine capstan compiles; or another engine and `capstan export`"


@dataclass(frozen=True)
class RankLayer:
    """One layer, sizes of one rank."""

    index: int
    heads: int
    kv_heads: int
    window: int | None
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    intermediate_size: int  # of the MLP, or of one expert
    mlp_bias: bool = False
    experts: int = 0  # 0: dense
    experts_per_token: int = 0
    normalise: bool = True  # the chosen experts' scores are divided by their sum

    @property
    def prefix(self) -> str:
        """Of its weight slots."""
        return f"layers.{self.index}."


@dataclass(frozen=True)
class RankModel:
    """A model as one of `tensor_parallel` ranks sees it."""

    architecture: Architecture
    tensor_parallel: int
    compute_dtype: DType
    kv_dtype: DType
    block_size_tokens: int
    head_dim: int
    heads: int
    kv_heads: int
    vocab_shard: int  # rows of the embedding and of the head, padding included
    rope: Rope
    layers: tuple[RankLayer, ...]

    @property
    def windows(self) -> tuple[int, ...]:
        """Distinct windows, ascending."""
        return tuple(sorted({layer.window for layer in self.layers if layer.window is not None}))

    @property
    def any_full(self) -> bool:
        """Whether a layer attends to the whole context."""
        return any(layer.window is None for layer in self.layers)

    @property
    def qk_norm(self) -> bool:
        return any(layer.qk_norm for layer in self.layers)

    @property
    def sparse(self) -> tuple[RankLayer, ...]:
        """The layers with experts."""
        return tuple(layer for layer in self.layers if layer.experts)

    @property
    def dense(self) -> tuple[RankLayer, ...]:
        """The layers with a dense MLP."""
        return tuple(layer for layer in self.layers if not layer.experts)


def rank_model(
    architecture: Architecture,
    layout: Layout,
    *,
    compute_dtype: DType,
    kv_dtype: DType,
    block_size_tokens: int,
    where: str = "engine capstan",
) -> RankModel:
    """The model on one rank of `layout`. `NotHonouredError` names what no program can express in this version.

    `where` stands before the message: the group of the plan.
    """
    obstacle = obstacle_to_compiling(architecture, layout, compute_dtype, kv_dtype)
    rope = architecture.rope
    if obstacle is not None or rope is None:
        raise NotHonouredError(obstacle or "no rotary embedding", field=where, expected=INSTEAD)
    ranks = layout.tensor_parallel
    layers = tuple(_rank_layer(layer, index, ranks) for index, layer in enumerate(architecture.layers))
    return RankModel(
        architecture=architecture,
        tensor_parallel=ranks,
        compute_dtype=compute_dtype,
        kv_dtype=kv_dtype,
        block_size_tokens=block_size_tokens,
        head_dim=_attention(architecture.layers[0]).head_dim,
        heads=layers[0].heads,
        kv_heads=layers[0].kv_heads,
        vocab_shard=-(-architecture.vocab_size // ranks),
        rope=rope,
        layers=layers,
    )


def _attention(layer: Layer) -> Attention:
    if not isinstance(layer.mixer, Attention):
        raise TypeError(f"a program has attention in every layer, not {layer.mixer!r}")
    return layer.mixer


def _rank_layer(layer: Layer, index: int, ranks: int) -> RankLayer:
    mixer, mlp = _attention(layer), layer.mlp
    if mlp is None:
        raise TypeError(f"a program has an MLP in every layer, layer {index} has none")
    sparse = mlp if isinstance(mlp, MixtureOfExperts) else None
    return RankLayer(
        index=index,
        heads=-(-mixer.heads // ranks),
        kv_heads=-(-mixer.kv_heads // ranks),
        window=mixer.window,
        qkv_bias=mixer.qkv_bias,
        output_bias=mixer.output_bias,
        qk_norm=mixer.qk_norm,
        intermediate_size=mlp.intermediate_size // ranks,
        mlp_bias=isinstance(mlp, DenseMLP) and mlp.bias,
        experts=0 if sparse is None else sparse.experts,
        experts_per_token=0 if sparse is None else sparse.experts_per_token,
        normalise=sparse is None or sparse.normalise,
    )
