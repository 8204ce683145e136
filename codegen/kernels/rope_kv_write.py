"""(QK-norm,) rotary embedding of queries and keys, keys and values into the paged cache: one pass over the QKV product.

One program handles one token and one KV head with its group of query heads, so a decode step of few tokens still has
Hkv programs a token. Rotary embedding: Su et al., arXiv:2104.09864, half-split layout.
"""

from __future__ import annotations

from codegen.kernels.base import TL_TYPES, GeneratedKernel, generate, next_power_of_two, pointer, scalar, warps_for
from specs.kernels import KernelSpec

TEMPLATE = """HEADS = tl.constexpr({{ heads }})
KV_HEADS = tl.constexpr({{ kv_heads }})
GROUP = tl.constexpr({{ group }})  # query heads that share a KV head
HEAD_DIM = tl.constexpr({{ head_dim }})
HALF = tl.constexpr({{ half }})


{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    columns = tl.arange(0, HALF)
    cosine = tl.load(cosines + token * HALF + columns)
    sine = tl.load(sines + token * HALF + columns)
    row = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM)

    heads = tl.arange(0, GROUP_ROWS)
{% if padded %}
    in_group = (heads < GROUP)[:, None]
{% endif %}
    offsets = (kv_head * GROUP + heads)[:, None] * HEAD_DIM + columns[None, :]
    left = tl.load(row + offsets{{ mask }}).to(tl.float32)
    right = tl.load(row + offsets + HALF{{ mask }}).to(tl.float32)
{% if qk_norm %}
    squares = tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)
    scale = tl.rsqrt(squares / HEAD_DIM + epsilon)[:, None]
    left = left * scale * tl.load(q_norm + columns).to(tl.float32)[None, :]
    right = right * scale * tl.load(q_norm + HALF + columns).to(tl.float32)[None, :]
{% endif %}
    query_row = query_out + token * (HEADS * HEAD_DIM)
    rotated_left = left * cosine[None, :] - right * sine[None, :]
    rotated_right = right * cosine[None, :] + left * sine[None, :]
    tl.store(query_row + offsets, rotated_left.to({{ dtype }}){{ store_mask }})
    tl.store(query_row + offsets + HALF, rotated_right.to({{ dtype }}){{ store_mask }})

    slot = tl.load(slots + token)
    if slot < 0:
        return
    key_row = row + (HEADS + kv_head) * HEAD_DIM
    left_key = tl.load(key_row + columns).to(tl.float32)
    right_key = tl.load(key_row + HALF + columns).to(tl.float32)
{% if qk_norm %}
    key_squares = tl.sum(left_key * left_key, axis=0) + tl.sum(right_key * right_key, axis=0)
    key_scale = tl.rsqrt(key_squares / HEAD_DIM + epsilon)
    left_key = left_key * key_scale * tl.load(k_norm + columns).to(tl.float32)
    right_key = right_key * key_scale * tl.load(k_norm + HALF + columns).to(tl.float32)
{% endif %}
    cached = slot.to(tl.int64) * (KV_HEADS * HEAD_DIM) + kv_head * HEAD_DIM  # a slot is block * block_size + row of it
    tl.store(key_cache + cached + columns, (left_key * cosine - right_key * sine).to({{ kv_dtype }}))
    tl.store(key_cache + cached + HALF + columns, (right_key * cosine + left_key * sine).to({{ kv_dtype }}))
    dims = tl.arange(0, HEAD_DIM)
    value = tl.load(row + (HEADS + KV_HEADS + kv_head) * HEAD_DIM + dims).to(tl.float32)
    tl.store(value_cache + cached + dims, value.to({{ kv_dtype }}))
"""


def build(spec: KernelSpec) -> GeneratedKernel:
    """Shapes: heads, kv_heads, head_dim, block_size; flag: qk_norm."""
    heads, kv_heads, head_dim = (spec.shapes[name] for name in ("heads", "kv_heads", "head_dim"))
    kv_dtype = spec.kv_dtype or spec.dtype
    qk_norm = spec.flags.get("qk_norm", False)
    group = heads // kv_heads
    rows = next_power_of_two(group)
    padded = rows != group
    cache = "[blocks, block_size, kv_heads, head_dim]"
    arguments = [
        pointer("query_out", spec.dtype, "[T, heads * head_dim]"),
        pointer("qkv", spec.dtype, "[T, (heads + 2 * kv_heads) * head_dim]"),
        pointer("key_cache", kv_dtype, cache),
        pointer("value_cache", kv_dtype, cache),
        pointer("slots", "i64", "[T], block * block_size + row; negative: nothing is written"),
        pointer("cosines", "fp32", "[T, head_dim / 2], of each token's position"),
        pointer("sines", "fp32", "[T, head_dim / 2]"),
    ]
    if qk_norm:
        arguments += [
            pointer("q_norm", spec.dtype, "[head_dim]"),
            pointer("k_norm", spec.dtype, "[head_dim]"),
            scalar("epsilon", "fp32", "of both norms"),
        ]
    return generate(
        spec,
        entry="qk_norm_rope_kv_write" if qk_norm else "rope_kv_write",
        title="QK-norm, rotary embedding and write to the paged KV cache."
        if qk_norm
        else "Rotary embedding and write to the paged KV cache.",
        formula="(a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of every query and key head"
        + (", after RMSNorm over the head." if qk_norm else "."),
        template=TEMPLATE,
        arguments=arguments,
        constants={"GROUP_ROWS": rows},
        warps=warps_for(rows * head_dim // 2, spec.target, most=4),
        stages=1,
        grid=f"(num_tokens, {kv_heads})",
        values={
            "heads": heads,
            "kv_heads": kv_heads,
            "group": group,
            "head_dim": head_dim,
            "half": head_dim // 2,
            "qk_norm": qk_norm,
            "padded": padded,
            "mask": ", mask=in_group, other=0.0" if padded else "",
            "store_mask": ", mask=in_group" if padded else "",
            "dtype": TL_TYPES[spec.dtype],
            "kv_dtype": TL_TYPES[kv_dtype],
        },
    )
