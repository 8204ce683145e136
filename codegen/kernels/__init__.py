"""Triton kernels as templates: `render(spec) -> GeneratedKernel`, one family per file. Imports no torch and no triton.

How a program launches one: `kernels[name](grid, *arguments)`, `name` being `KernelSpec.name`. `grid` is a tuple of ints
or a function of `meta`, the mapping of the kernel's constants (tile sizes differ from target to target):
`kernels[name](lambda meta: (cdiv(n, meta["BLOCK"]),), ...)`. Every tensor is contiguous and starts at a multiple of
16 bytes. `X` below is the spec's dtype, `KV` its kv_dtype. Sizes: T tokens, S sequences, R sampled rows, K experts per
token, E experts, Hq / Hkv query and KV heads, D head_dim, `width` = columns of block_tables.

add_rms_norm            shapes hidden_size; flag `residual`
    (out X [T, hidden], x X [T, hidden], weight X [hidden], epsilon fp32)                                    grid (T,)
    with `residual`: (out, x, residual X [T, hidden], weight, epsilon); residual becomes residual + x, rounded to X,
    and out = rms_norm(residual) * weight. `out` may be `x`.

rope_kv_write           shapes heads, kv_heads, head_dim, block_size; flag `qk_norm`
    (query_out X [T, Hq*D], qkv X [T, (Hq+2*Hkv)*D], key_cache KV [blocks, block_size, Hkv, D], value_cache likewise,
     slots i64 [T], cosines fp32 [T, D/2], sines fp32 [T, D/2])                                         grid (T, Hkv)
    with `qk_norm`: then (q_norm X [D], k_norm X [D], epsilon fp32) after `sines`.
    cosines and sines are those of each token's position (computed once a step, with whatever rope scaling). Half-split
    ("neox") layout. key_cache = kv_cache[0], value_cache = kv_cache[1]. A negative slot writes nothing.

paged_attention         shapes heads, kv_heads, head_dim, block_size [, window]
    parts "prefill" and "decode": one kernel with other tiles; each is right for any batch (prefill, decode, mixed).
    (out X [T, Hq*D], query X [T, Hq*D], key_cache KV, value_cache KV, block_tables i32 [S, width],
     query_start i32 [S+1], kv_lengths i32 [S], scale fp32, num_sequences i32, width i32)
                                                         grid (num_tokens // meta["BLOCK_Q"] + num_sequences, Hkv)
    parts "split" then "reduce": decode only (one query token for every sequence), further shape chunk_tokens;
    chunks = cdiv(max_kv_tokens, chunk_tokens):
    split  (partial_out fp32 [S, Hq, chunks, D], partial_lse fp32 [S, Hq, chunks], query X [S, Hq*D], key_cache,
            value_cache, block_tables, kv_lengths, scale fp32, width i32, chunks i32)         grid (S, Hkv, chunks)
    reduce (out X [S, Hq*D], partial_out, partial_lse, kv_lengths, chunks i32)                        grid (S, Hq)
    Results of a sequence do not depend on the others in the batch: chunks have a fixed size.

swiglu                  shapes intermediate_size
    (out X [T, I], gate_up X [T, 2*I]: gate, then up)                         grid (T, cdiv(I, meta["BLOCK"]))

moe_route               shapes experts, experts_per_token; N = T*K assignments, numbered token * K + rank
    part "topk", flag `renormalise`: (weights fp32 [T, K], ids i32 [T, K], logits X [T, E])           grid (T,)
    part "count": (counts i32 [E], ids i32 [N], num_assignments i32)                                  grid (E,)
    part "sort", further shape block_rows: (sorted_rows i32 [N], tile_expert i32 [tiles], tile_start i32 [tiles],
            tile_end i32 [tiles], ids, counts, num_assignments i32, num_tiles i32)                grid (E + 1,)
            tiles = `moe_tiles(N, E, block_rows)`; tile t covers sorted_rows[tile_start[t] : tile_end[t]], all of
            expert tile_expert[t]; unused tiles have expert -1.

grouped_gemm            shapes experts, experts_per_token, in_features, out_features, block_rows
    part "gate_up": (out X [N, out_features], x X [T, in_features], weight X [E, out_features, in_features],
            sorted_rows, tile_expert, tile_start, tile_end)   grid (tiles, cdiv(out_features, meta["BLOCK_N"]))
            flag `swiglu`: weight is [E, 2 * out_features, in_features] (gate rows, then up rows) and
            out = silu(gate) * up.
    part "down": (out X [N, out_features], x X [N, in_features], weight, routing_weights fp32 [N], sorted_rows,
            tile_expert, tile_start, tile_end)                                                    same grid
            out[a] = routing_weights[a] * weight[expert of a] x[a]
    part "combine", shapes experts_per_token, out_features only: (out X [T, out_features], rows X [N, out_features])
            out[t] = sum of its K rows, in order        grid (T, cdiv(out_features, meta["BLOCK"]))
    `moe_block_rows(num_tokens, experts, experts_per_token)` predicts the block_rows of a bucket.

sample                  shapes vocab_size; X is the dtype of the logits (fp32 from a program)
    (tokens i64 [R], logprobs fp32 [R], logits X [R, V], temperatures fp32 [R], top_k i32 [R], top_p fp32 [R],
     seeds i64 [R], positions i64 [R])                                                                grid (R,)

The rule of sampling stands in `codegen/kernels/sample.py`; `codegen/kernels/reference.py` has a torch function for
each.
"""

from __future__ import annotations

from collections.abc import Callable

from codegen.kernels import add_rms_norm, grouped_gemm, moe_route, paged_attention, rope_kv_write, sample, swiglu
from codegen.kernels.base import GeneratedKernel
from codegen.kernels.grouped_gemm import moe_block_rows
from codegen.kernels.moe_route import moe_tiles
from specs.errors import InputError
from specs.kernels import CAPABILITIES, KernelFamily, KernelSpec, reason_against

__all__ = ["GeneratedKernel", "moe_block_rows", "moe_tiles", "parts_of", "render", "render_family"]

_BUILDERS: dict[KernelFamily, Callable[[KernelSpec], GeneratedKernel]] = {
    KernelFamily.ADD_RMS_NORM: add_rms_norm.build,
    KernelFamily.ROPE_KV_WRITE: rope_kv_write.build,
    KernelFamily.PAGED_ATTENTION: paged_attention.build,
    KernelFamily.SWIGLU: swiglu.build,
    KernelFamily.MOE_ROUTE: moe_route.build,
    KernelFamily.GROUPED_GEMM: grouped_gemm.build,
    KernelFamily.SAMPLE: sample.build,
}


def render(spec: KernelSpec) -> GeneratedKernel:
    """The kernel of `spec` as Triton source, with tile sizes for its target. Deterministic.

    Raises `InputError` with the capability table's reason where no family supports the spec.
    """
    reason = reason_against(spec)
    if reason is not None:
        raise InputError(f"no kernel for {spec.name}: {reason}", field="kernels")
    return _BUILDERS[spec.family](spec)


def parts_of(family: KernelFamily) -> tuple[str, ...]:
    """Names of a family's kernels; ("",) for a family of one."""
    return CAPABILITIES[family].parts


def render_family(spec: KernelSpec) -> tuple[GeneratedKernel, ...]:
    """All parts of a family for the shapes of `spec`; shapes and flags that a part does not know are left out of it."""
    capability = CAPABILITIES[spec.family]
    kernels = []
    for part in capability.parts:
        further = {name for names in capability.part_required.values() for name in names}
        mine = set(capability.part_required.get(part, ()))
        shapes = {name: size for name, size in spec.shapes.items() if name not in further or name in mine}
        kernels.append(
            render(spec.model_copy(update={"part": part, "shapes": shapes, "flags": part_flags(spec, part)}))
        )
    return tuple(kernels)


def part_flags(spec: KernelSpec, part: str) -> dict[str, bool]:
    """The flags of `spec` that `part` has a use for."""
    owner = {"renormalise": "topk", "swiglu": "gate_up"}
    return {name: value for name, value in spec.flags.items() if owner.get(name, part) == part}
