"""Attention over the paged cache: prefill, decode and mixed batches in one kernel, and a split-KV variant for decode.

Online softmax (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135) in fp32. The rows of a tile are
BLOCK_Q query tokens times the query heads of one KV head, so that grouped heads share every key that is read. The
program finds its sequence from query_start by bisection: sequence s owns the programs from query_start[s] // BLOCK_Q +
s on, which is enough for its last, partly filled tile; no work list is made on the host.

Split (flash-decoding): chunks of `chunk_tokens` keys are independent programs; `reduce` joins them by their
log-sum-exp. The chunk has a fixed size, so the order of additions in a sequence does not depend on the batch. A chunk
with no key in reach (past the end, or before the window) writes -inf and is skipped by its weight, never subtracted
from another -inf.
"""

from __future__ import annotations

from codegen.kernels.base import TL_TYPES, GeneratedKernel, generate, is_amd, next_power_of_two, pointer, scalar
from specs.document import DType
from specs.kernels import KernelArgument, KernelSpec

CONSTANTS = """HEADS = tl.constexpr({{ heads }})
KV_HEADS = tl.constexpr({{ kv_heads }})
GROUP = tl.constexpr({{ group }})  # query heads that share a KV head
HEAD_DIM = tl.constexpr({{ head_dim }})
BLOCK_SIZE = tl.constexpr({{ block_size }})  # tokens of a cache block
{% if window %}
WINDOW = tl.constexpr({{ window }})  # keys that a query sees, itself included
{% endif %}
{% if chunk_tokens %}
CHUNK_TOKENS = tl.constexpr({{ chunk_tokens }})
{% endif %}
LOG2_E = tl.constexpr(1.4426950408889634)


"""

# One tile of keys against `queries`: shared by both kernels. Reads start, end, positions (of the rows), updates the
# state.
TILE = """        keys_at = start + tile
        reachable = keys_at < end
        blocks = tl.load(table + keys_at // BLOCK_SIZE, mask=reachable, other=0).to(tl.int64)
        cached = (blocks * BLOCK_SIZE + keys_at % BLOCK_SIZE) * (KV_HEADS * HEAD_DIM) + kv_head * HEAD_DIM
        keys = tl.load(key_cache + cached[None, :] + dims[:, None], mask=reachable[None, :], other=0.0){{ cast }}
        scores = tl.dot(queries, keys{{ precision }}) * (scale * LOG2_E)
        visible = {{ visible }}
{% if window %}
        visible &= {{ in_window }}
{% endif %}
        scores = tl.where(visible, scores, -float("inf"))
        new_most = tl.maximum(most, tl.max(scores, axis=1))
        safe_most = tl.where(new_most > -float("inf"), new_most, 0.0)  # no visible key yet: weights are exp2(-inf) = 0
        weights = tl.exp2(scores - safe_most[:, None])
        shrink = tl.exp2(most - safe_most)
        total = total * shrink + tl.sum(weights, axis=1)
        values = tl.load(value_cache + cached[:, None] + dims[None, :], mask=reachable[:, None], other=0.0){{ cast }}
        sums = tl.dot(weights.to(values.dtype), values, sums * shrink[:, None]{{ precision }})
        most = new_most
"""

UNIFIED = (
    CONSTANTS
    + """{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    program = tl.program_id(0)
    kv_head = tl.program_id(1)
    low = 0
    high = num_sequences
    while high - low > 1:  # the last sequence whose first program is not after this one
        middle = (low + high) // 2
        first = tl.load(query_start + middle) // BLOCK_Q + middle
        low = tl.where(first <= program, middle, low)
        high = tl.where(first <= program, high, middle)
    sequence = low
    begin = tl.load(query_start + sequence)
    query_tokens = tl.load(query_start + sequence + 1) - begin
    first_query = (program - begin // BLOCK_Q - sequence) * BLOCK_Q
    if first_query >= query_tokens:
        return

    rows = tl.arange(0, BLOCK_M)
    query = first_query + rows // GROUP
    live = (query < query_tokens) & (rows < BLOCK_Q * GROUP)
    context = tl.load(kv_lengths + sequence) - query_tokens  # keys before this step's
    positions = context + query
    dims = tl.arange(0, HEAD_DIM)
    heads = kv_head * GROUP + rows % GROUP
    offsets = ((begin + query).to(tl.int64) * HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
    queries = tl.load(queries_in + offsets, mask=live[:, None], other=0.0)

    table = block_tables + sequence.to(tl.int64) * width
    end = context + tl.minimum(first_query + BLOCK_Q, query_tokens)  # causal: no key after the tile's last query
{% if window %}
    begin_key = tl.maximum(context + first_query - WINDOW + 1, 0) // TILE * TILE
{% else %}
    begin_key = 0
{% endif %}
    tile = tl.arange(0, TILE)
    most = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start in range(begin_key, end, TILE):
"""
    + TILE
    + """    result = sums / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=live[:, None])
"""
)

SPLIT = (
    CONSTANTS
    + """{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    chunk = tl.program_id(2)
    length = tl.load(kv_lengths + sequence)
    rows = tl.arange(0, BLOCK_M)
    live = rows < GROUP
    heads = kv_head * GROUP + rows
    partial = (sequence.to(tl.int64) * HEADS + heads) * chunks + chunk
    begin_key = chunk * CHUNK_TOKENS
    end = tl.minimum(begin_key + CHUNK_TOKENS, length)
    if {{ empty }}:  # no key of this chunk is in reach
        tl.store(partial_lse + partial, tl.full([BLOCK_M], -float("inf"), tl.float32), mask=live)
        return

    dims = tl.arange(0, HEAD_DIM)
    offsets = (sequence.to(tl.int64) * HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
    queries = tl.load(queries_in + offsets, mask=live[:, None], other=0.0)
    table = block_tables + sequence.to(tl.int64) * width
    tile = tl.arange(0, TILE)
    most = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start in range(begin_key, end, TILE):
"""
    + TILE
    + """    total = tl.where(total > 0.0, total, 1.0)  # rows beyond the group
    tl.store(partial_lse + partial, most + tl.log2(total), mask=live)
    result = sums / total[:, None]
    tl.store(partial_out + partial[:, None] * HEAD_DIM + dims[None, :], result, mask=live[:, None])
"""
)

REDUCE = """HEADS = tl.constexpr({{ heads }})
HEAD_DIM = tl.constexpr({{ head_dim }})
CHUNK_TOKENS = tl.constexpr({{ chunk_tokens }})


{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    sequence = tl.program_id(0)
    row = sequence.to(tl.int64) * HEADS + tl.program_id(1)
    used = tl.minimum((tl.load(kv_lengths + sequence) + CHUNK_TOKENS - 1) // CHUNK_TOKENS, chunks)
    dims = tl.arange(0, HEAD_DIM)
    nearby = tl.arange(0, CHUNKS_AT_ONCE)
    most = -float("inf")
    total = 0.0
    sums = tl.zeros([HEAD_DIM], tl.float32)
    for start in range(0, used, CHUNKS_AT_ONCE):
        there = start + nearby < used
        places = row * chunks + start + nearby
        lse = tl.load(partial_lse + places, mask=there, other=-float("inf"))
        new_most = tl.maximum(most, tl.max(lse, axis=0))
        safe_most = tl.where(new_most > -float("inf"), new_most, 0.0)
        weights = tl.exp2(lse - safe_most)
        shrink = tl.exp2(most - safe_most)
        # An empty chunk wrote no output: its memory is not read.
        full = there & (lse > -float("inf"))
        parts = tl.load(partial_out + places[:, None] * HEAD_DIM + dims[None, :], mask=full[:, None], other=0.0)
        sums = sums * shrink + tl.sum(parts * weights[:, None], axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        most = new_most
    result = sums / tl.where(total > 0.0, total, 1.0)
    tl.store(out + row * HEAD_DIM + dims, result.to(out.dtype.element_ty))
"""


def build(spec: KernelSpec) -> GeneratedKernel:
    """Shapes: heads, kv_heads, head_dim, block_size, optional window; split and reduce: chunk_tokens."""
    shapes = spec.shapes
    heads, kv_heads = shapes["heads"], shapes["kv_heads"]
    group = heads // kv_heads
    kv_dtype = spec.kv_dtype or spec.dtype
    window = shapes.get("window", 0)
    values: dict[str, object] = {
        "heads": heads,
        "kv_heads": kv_heads,
        "group": group,
        "head_dim": shapes["head_dim"],
        "block_size": shapes["block_size"],
        "window": window,
        "chunk_tokens": shapes.get("chunk_tokens", 0),
        "cast": "" if kv_dtype is spec.dtype else f".to({TL_TYPES[spec.dtype]})",
        # Without it fp32 operands would be rounded to TF32.
        "precision": ', input_precision="ieee"' if spec.dtype is DType.FP32 else "",
    }
    if spec.part in ("split", "reduce"):
        return _split_part(spec, values)
    block_m, tile, warps, stages = _tiles(spec, group, prefill=spec.part == "prefill")
    visible = "(keys_at[None, :] <= positions[:, None]) & live[:, None]"
    return generate(
        spec,
        entry=f"paged_attention_{spec.part}",
        title=f"Causal attention over the paged cache; tiles fit for {spec.part}, right for any batch.",
        formula=f"out = softmax(scale * q k^T) v{_seen(window)}; online softmax in fp32.",
        template=UNIFIED,
        arguments=[
            pointer("out", spec.dtype, "[T, heads * head_dim]"),
            pointer("queries_in", spec.dtype, "[T, heads * head_dim]"),
            *_cache(kv_dtype),
            pointer("query_start", "i32", "[S + 1], first token of each sequence, then T"),
            pointer("kv_lengths", "i32", "[S], tokens in the cache, this step's included"),
            scalar("scale", "fp32", "of the products, usually head_dim ** -0.5"),
            scalar("num_sequences", "i32", "S"),
            scalar("width", "i32", "columns of block_tables"),
        ],
        constants={"BLOCK_M": block_m, "BLOCK_Q": block_m // group, "TILE": tile},
        warps=warps,
        stages=stages,
        grid=f'(num_tokens // meta["BLOCK_Q"] + num_sequences, {kv_heads})',
        values={**values, "visible": visible, "in_window": "keys_at[None, :] > positions[:, None] - WINDOW"},
    )


def _split_part(spec: KernelSpec, values: dict[str, object]) -> GeneratedKernel:
    heads, kv_heads = spec.shapes["heads"], spec.shapes["kv_heads"]
    window = spec.shapes.get("window", 0)
    partials = [
        pointer("partial_out", "fp32", "[S, heads, chunks, head_dim]"),
        pointer("partial_lse", "fp32", "[S, heads, chunks], base 2; -inf for an empty chunk"),
    ]
    lengths = pointer("kv_lengths", "i32", "[S], tokens in the cache, this step's included")
    chunks = scalar("chunks", "i32", "chunks of the longest sequence: cdiv(max_kv_tokens, chunk_tokens)")
    if spec.part == "reduce":
        return generate(
            spec,
            entry="paged_attention_reduce",
            title="Joins the chunks of split attention.",
            formula="out = sum_c 2^(lse_c - m) o_c / sum_c 2^(lse_c - m), m the largest lse.",
            template=REDUCE,
            arguments=[pointer("out", spec.dtype, "[S, heads * head_dim]"), *partials, lengths, chunks],
            constants={"CHUNKS_AT_ONCE": 16},
            warps=2 if is_amd(spec.target) else 4,
            stages=1,
            grid=f"(num_sequences, {heads})",
            values=values,
        )
    group = heads // kv_heads
    _, tile, warps, stages = _tiles(spec, group, prefill=False)
    visible = "reachable[None, :] & live[:, None]"
    return generate(
        spec,
        entry="paged_attention_split",
        title="Attention of one query token a sequence over one chunk of its keys.",
        formula=f"o_c = softmax(scale * q k_c^T) v_c{_seen(window)}, lse_c the base 2 log-sum-exp of its scores.",
        template=SPLIT,
        arguments=[
            *partials,
            pointer("queries_in", spec.dtype, "[S, heads * head_dim]"),
            *_cache(spec.kv_dtype or spec.dtype),
            lengths,
            scalar("scale", "fp32", "of the products, usually head_dim ** -0.5"),
            scalar("width", "i32", "columns of block_tables"),
            chunks,
        ],
        constants={"BLOCK_M": max(16, next_power_of_two(group)), "TILE": min(tile, spec.shapes["chunk_tokens"])},
        warps=warps,
        stages=stages,
        grid=f"(num_sequences, {kv_heads}, chunks)",
        values={
            **values,
            "visible": visible,
            "in_window": "(keys_at >= length - WINDOW)[None, :]",
            "empty": "begin_key >= length" + (" or end <= length - WINDOW" if window else ""),
        },
    )


def _cache(kv_dtype: DType) -> list[KernelArgument]:
    shape = "[blocks, block_size, kv_heads, head_dim]"
    return [
        pointer("key_cache", kv_dtype, shape),
        pointer("value_cache", kv_dtype, shape),
        pointer("block_tables", "i32", "[S, width]"),
    ]


def _seen(window: int) -> str:
    return f" over the last {window} keys" if window else ""


def _tiles(spec: KernelSpec, group: int, *, prefill: bool) -> tuple[int, int, int, int]:
    """(BLOCK_M, TILE, warps, stages). Predicted, not measured.

    Decode streams keys: as few rows as `tl.dot` takes (16) and tiles of 64 keys, two in flight. Prefill reuses every
    key over its rows: 128 rows and eight warps where registers and 200 KB of shared memory allow (sm_90 and later
    server parts), 64 and four elsewhere. Operands of two stages must fit in shared memory: wide heads and fp32 halve
    the tile.
    """
    least = max(16, next_power_of_two(group))
    row_bytes = spec.shapes["head_dim"] * int(max(spec.dtype.bytes, (spec.kv_dtype or spec.dtype).bytes))
    tile = 64
    while tile > 16 and 4 * tile * row_bytes > 72 * 1024:  # keys and values, two stages
        tile //= 2
    if is_amd(spec.target):
        return (max(least, 64) if prefill else least), min(tile, 32 if row_bytes > 256 else 64), 4, 1
    if not prefill:
        return least, tile, 4, 2
    large = spec.target in ("sm_90", "sm_100", "sm_103") and row_bytes <= 256
    return max(least, 128 if large else 64), tile, 8 if large else 4, 2
