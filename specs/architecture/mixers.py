"""What mixes tokens in a layer: attention (grouped, windowed, sparse) and latent attention; `recurrent` has the rest.

Each mixer gives its operators, its weights (by role; a family maps roles to the checkpoint's names), what it keeps
per token and per sequence, and which counts a tensor-parallel size must divide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from specs.architecture.operators import (
    AllReduce,
    Elementwise,
    IndexScores,
    LatentPagedAttention,
    Linear,
    Operator,
    PagedAttention,
)
from specs.architecture.recurrent import GatedDeltaNet, Recurrent
from specs.architecture.weights import Divisible, Segment, WeightTensor, linear_tensors, norm_tensors
from specs.document import DType

_SIXTEEN_BITS = 2.0  # bytes
_SCALE_BYTES, _SCALE_ELEMENTS = 4, 128
# A norm over heads that are cut over ranks: the sums of squares of queries and of keys, in 32 bits, as 16-bit elements.
_SQUARES_ELEMENTS = 4


@dataclass(frozen=True)
class Indexer:
    """Scores every earlier key with small heads and keeps the best `top_k` for the attention beside it.

    `own` False: the layer takes the choice of the last one before it that scores, and has neither weights nor a cache
    of index keys. `query_rank`: width of what the index queries are projected from; None = the hidden state.
    """

    heads: int
    head_dim: int
    top_k: int  # keys
    query_rank: int | None
    own: bool = True
    weighted: bool = True  # heads are summed with weights that the hidden state gives; else the largest counts
    query_norm: bool = False  # RMSNorm of index queries and keys; else LayerNorm of the keys alone
    eight_bit: bool = True  # keys are cached in 8 bits with one 32-bit scale per 128 elements; else in 16 bits
    quantised: bool = True

    @property
    def cached_bytes(self) -> int:
        """Index key of one token, whatever type the KV cache has."""
        if not self.own:
            return 0
        if not self.eight_bit:
            return int(_SIXTEEN_BITS) * self.head_dim
        return self.head_dim + _SCALE_BYTES * -(-self.head_dim // _SCALE_ELEMENTS)

    def operators(self, hidden_size: int) -> tuple[Operator, ...]:
        """Projections of index queries, keys and weights (whole on every rank), norm and rotary, scores and choice."""
        if not self.own:
            return ()
        queries = self.heads * self.head_dim
        weights = (Linear("index_weights", hidden_size, self.heads, "replicated", False, False),)
        return (
            Linear("index_q_proj", self.query_rank or hidden_size, queries, "replicated", self.quantised, False),
            Linear("index_k_proj", hidden_size, self.head_dim, "replicated", self.quantised, False),
            *(weights if self.weighted else ()),
            Elementwise("index_norm_rope", queries + self.head_dim, "replicated"),
            IndexScores(self.heads, self.head_dim, self.top_k, self.cached_bytes),
        )

    def tensors(self, hidden_size: int) -> tuple[WeightTensor, ...]:
        """index_q_proj, index_k_proj, norms, index_weights."""
        if not self.own:
            return ()
        queries, rank = self.heads * self.head_dim, self.query_rank or hidden_size
        project = partial(linear_tensors, shard="replicated", quantised=self.quantised)
        tensors = [*project("index_q_proj", rank, queries), *project("index_k_proj", hidden_size, self.head_dim)]
        if self.query_norm:
            tensors += norm_tensors("index_q_norm", self.head_dim)
        tensors += norm_tensors("index_k_norm", self.head_dim, bias=not self.query_norm)
        if self.weighted:
            tensors += linear_tensors("index_weights", hidden_size, self.heads, shard="replicated", quantised=False)
        return tuple(tensors)


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
    value_dim: int | None = None  # width of a value head where it is not head_dim
    norm_all_heads: bool = False  # the norm is over all query (or all key) heads at once, a sum over the ranks
    gated: bool = False  # q_proj makes a second row of the queries' width, whose sigmoid scales the output
    values_are_keys: bool = False  # no v_proj: values are the keys before norm and rotary embedding
    indexer: Indexer | None = None  # chooses the keys that a query sees

    def operators(self) -> tuple[Operator, ...]:
        """QKV projection, (choice of keys,) rotary and norm, attention, (gate,) output projection, all-reduce."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        output, cut = self._output(), tuple(segment for _, segment in self._projected())
        width = sum(segment.size for segment in cut)
        operators: list[Operator] = [
            Linear("qkv_proj", self.hidden_size, width, "column", self.quantised, self.qkv_bias, cut)
        ]
        if self.norm_all_heads:
            operators.append(AllReduce(_SQUARES_ELEMENTS))
        if self.rotary or self.qk_norm:
            operators.append(Elementwise("qk_norm_rope", query + keys, "column"))
        if self.indexer is not None:
            operators += self.indexer.operators(self.hidden_size)
        operators.append(
            PagedAttention(
                self.heads,
                self.kv_heads,
                self.head_dim,
                self.window,
                self.sinks,
                self.value_dim,
                None if self.indexer is None else self.indexer.top_k,
            )
        )
        if self.gated:  # reads attention and gate, writes one
            operators.append(Elementwise("output_gate", 3 * output.size // 2, "column"))
        operators += [
            Linear("o_proj", output.size, self.hidden_size, "row", self.quantised, self.output_bias, (output,)),
            AllReduce(self.hidden_size),
        ]
        return tuple(operators)

    def _projected(self) -> tuple[tuple[str, Segment], ...]:
        """What the input projections make: role and columns of each."""
        value_dim = self.head_dim if self.value_dim is None else self.value_dim
        ways = 2 if self.gated else 1
        found = [
            ("q_proj", Segment(ways * self.heads * self.head_dim, self.heads)),
            ("k_proj", Segment(self.kv_heads * self.head_dim, self.kv_heads)),
        ]
        if not self.values_are_keys:
            found.append(("v_proj", Segment(self.kv_heads * value_dim, self.kv_heads)))
        return tuple(found)

    def _output(self) -> Segment:
        """What the output projection reads."""
        return Segment(self.heads * (self.head_dim if self.value_dim is None else self.value_dim), self.heads)

    def tensors(self) -> tuple[WeightTensor, ...]:
        """q_proj, k_proj, v_proj, o_proj; q_norm, k_norm; sinks; the indexer's."""
        output = self._output()
        tensors: list[WeightTensor] = []
        for role, segment in self._projected():
            tensors += linear_tensors(
                role,
                self.hidden_size,
                segment.size,
                shard="column",
                quantised=self.quantised,
                bias=self.qkv_bias,
                segments=(segment,),
            )
        tensors += linear_tensors(
            "o_proj",
            output.size,
            self.hidden_size,
            shard="row",
            quantised=self.quantised,
            bias=self.output_bias,
            segments=(output,),
        )
        if self.norm_all_heads:
            for role, heads in (("q_norm", self.heads), ("k_norm", self.kv_heads)):
                size = heads * self.head_dim
                tensors.append(WeightTensor(f"{role}.weight", (size,), 0, False, segments=(Segment(size, heads),)))
        elif self.qk_norm:
            tensors += [*norm_tensors("q_norm", self.head_dim), *norm_tensors("k_norm", self.head_dim)]
        if self.sinks:
            tensors.append(WeightTensor("sinks", (self.heads,), 0, False))
        if self.indexer is not None:
            tensors += self.indexer.tensors(self.hidden_size)
        return tuple(tensors)

    def kv_bytes_per_token(self, kv_dtype: DType, tensor_parallel: int) -> float:
        """Keys and values of one token on one rank, and the indexer's key."""
        width = self.head_dim + (self.head_dim if self.value_dim is None else self.value_dim)
        index = 0 if self.indexer is None else self.indexer.cached_bytes
        return -(-self.kv_heads // tensor_parallel) * width * kv_dtype.bytes + index

    def state_bytes(self, tensor_parallel: int) -> int:
        """Nothing is kept but the KV cache."""
        return 0

    def divisible(self) -> tuple[Divisible, ...]:
        """Counts that a tensor-parallel size must divide."""
        return Divisible("attention heads", self.heads), Divisible("KV heads", self.kv_heads, repeatable=True)


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values from one small cached vector.

    With an `indexer` a query sees the keys that it chooses (DeepSeek sparse attention, arXiv:2512.02556).
    """

    hidden_size: int
    heads: int
    query_rank: int | None  # None: queries are projected directly
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    bias: bool = False  # of the three projections that read or write the hidden state
    quantised: bool = True
    indexer: Indexer | None = None

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
        chosen = () if self.indexer is None else self.indexer.operators(hidden)
        return (
            *queries,
            *chosen,
            Elementwise("rope", (heads + 1) * self.rope_dim, "column"),
            Linear("kv_b_proj", self.kv_rank, keys_values, "column", quantised, False, (Segment(keys_values, heads),)),
            LatentPagedAttention(
                heads,
                self.kv_rank,
                self.rope_dim,
                self.nope_dim,
                self.value_dim,
                None if self.indexer is None else self.indexer.top_k,
            ),
            Linear("o_proj", output, hidden, "row", quantised, self.bias, (Segment(output, heads),)),
            AllReduce(hidden),
        )

    def tensors(self) -> tuple[WeightTensor, ...]:
        """q_a_proj, q_a_norm, q_b_proj (or q_proj), kv_a_proj_with_mqa, kv_a_norm, kv_b_proj, o_proj; the indexer's."""
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
        if self.indexer is not None:
            tensors += self.indexer.tensors(hidden)
        return tuple(tensors)

    def kv_bytes_per_token(self, kv_dtype: DType, tensor_parallel: int) -> float:
        """The latent vector and the rotary key, and the indexer's key; the same on every rank, whatever their number.

        The kernels of sparse attention read 8-bit latent vectors with one 32-bit scale per 128 elements, and keep the
        rotary key in 16 bits (656 bytes for 512 and 64 elements: FlashMLA's FP8 layout, which vLLM and SGLang use).
        """
        cached = (self.kv_rank + self.rope_dim) * kv_dtype.bytes
        if self.indexer is None:
            return cached
        if kv_dtype.bytes < _SIXTEEN_BITS:
            scales = _SCALE_BYTES * -(-self.kv_rank // _SCALE_ELEMENTS)
            cached += scales + self.rope_dim * (_SIXTEEN_BITS - kv_dtype.bytes)
        return cached + self.indexer.cached_bytes

    def state_bytes(self, tensor_parallel: int) -> int:
        """Nothing is kept but the latent cache."""
        return 0

    def divisible(self) -> tuple[Divisible, ...]:
        """Counts that a tensor-parallel size must divide."""
        return (Divisible("attention heads", self.heads),)


Mixer = Attention | LatentAttention | Recurrent | GatedDeltaNet
