"""What every kernel computes, in plain torch: the oracle of the tests and of the GPU measurements. Imports torch.

Names and shapes as in `codegen.kernels`. Everything is computed in float32 and returned in it; comparisons round.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x [T, H] -> [T, H]."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight.float()


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(normed, new residual); the residual is rounded to its dtype before the norm."""
    summed = (x.float() + residual.float()).to(residual.dtype)
    return rms_norm(summed, weight, epsilon), summed


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """heads [T, heads, D] turned by the angles [T, D/2] of each token; half-split layout."""
    left, right = heads.float().chunk(2, dim=-1)
    cosines, sines = cosines[:, None], sines[:, None]
    return torch.cat((left * cosines - right * sines, right * cosines + left * sines), dim=-1)


def rope_kv_write(
    qkv: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    cosines: Tensor,
    sines: Tensor,
    *,
    heads: int,
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Queries [T, heads * D], rotated; keys and values go into the caches [blocks, block_size, kv_heads, D] in
    place."""
    kv_heads, head_dim = key_cache.shape[-2:]
    split = torch.split(qkv.reshape(len(qkv), -1, head_dim), [heads, kv_heads, kv_heads], dim=1)
    query, key, value = (part.float() for part in split)
    if norms is not None:
        q_norm, k_norm, epsilon = norms
        query, key = rms_norm(query, q_norm, epsilon), rms_norm(key, k_norm, epsilon)
    kept = slots >= 0
    for cache, new in ((key_cache, rotate(key, cosines, sines)), (value_cache, value)):
        cache.view(-1, kv_heads, head_dim)[slots[kept]] = new[kept].to(cache.dtype)
    return rotate(query, cosines, sines).flatten(1)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    kv_lengths: Tensor,
    *,
    scale: float,
    window: int = 0,
) -> Tensor:
    """query [T, heads * D] -> [T, heads * D], one sequence after another."""
    block_size, kv_heads, head_dim = key_cache.shape[1:]
    outputs = []
    for sequence in range(len(kv_lengths)):
        begin, end, length = int(query_start[sequence]), int(query_start[sequence + 1]), int(kv_lengths[sequence])
        at = torch.arange(length, device=query.device)
        blocks = block_tables[sequence].long()[at // block_size]
        keys, values = (cache[blocks, at % block_size].float() for cache in (key_cache, value_cache))
        rows = query[begin:end].float().reshape(end - begin, kv_heads, -1, head_dim)
        scores = torch.einsum("tkgd,skd->kgts", rows, keys) * scale
        positions = torch.arange(length - (end - begin), length, device=query.device)[:, None]
        hidden = at[None] > positions
        if window:
            hidden |= at[None] <= positions - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("kgts,skd->tkgd", weights, values).flatten(1))
    return torch.cat(outputs)


def swiglu(gate_up: Tensor) -> Tensor:
    """[T, 2 I] -> [T, I]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def moe_topk(logits: Tensor, experts_per_token: int, *, renormalise: bool) -> tuple[Tensor, Tensor]:
    """(weights [T, K], ids [T, K]), the largest first, the lowest expert among equals."""
    weights, ids = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    weights, ids = weights[:, :experts_per_token], ids[:, :experts_per_token]
    return (weights / weights.sum(-1, keepdim=True) if renormalise else weights), ids.int()


def moe_sort(ids: Tensor, experts: int, block_rows: int) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """(assignments by expert, tiles as (expert, start, end))."""
    flat = ids.flatten()
    counts = torch.bincount(flat, minlength=experts).tolist()
    tiles, first = [], 0
    for expert, count in enumerate(counts):
        tiles += [(expert, first + i, first + min(i + block_rows, count)) for i in range(0, count, block_rows)]
        first += count
    return flat.sort(stable=True).indices.int(), tiles


def moe_gate_up(x: Tensor, weight: Tensor, ids: Tensor, *, fused: bool) -> Tensor:
    """x [T, in], weight [E, out, in], ids [T, K] -> one row of each assignment [T * K, out] (out / 2 where fused)."""
    chosen = weight.float()[ids.flatten().long()]
    rows = torch.einsum("aoi,ai->ao", chosen, x.float().repeat_interleave(ids.shape[1], dim=0))
    return swiglu(rows) if fused else rows


def moe_down(x: Tensor, weight: Tensor, routing_weights: Tensor, ids: Tensor) -> Tensor:
    """x [T * K, in], weight [E, out, in] -> weighted rows [T * K, out]."""
    rows = torch.einsum("aoi,ai->ao", weight.float()[ids.flatten().long()], x.float())
    return rows * routing_weights.flatten()[:, None]


def moe_combine(rows: Tensor, experts_per_token: int) -> Tensor:
    """rows [T * K, out] -> [T, out]."""
    return rows.float().reshape(-1, experts_per_token, rows.shape[-1]).sum(1)


def philox_uniform(seed: int, position: int, count: int) -> Tensor:
    """u[0 .. count) of the sampling rule (`codegen/kernels/sample.py`, 5): the first word of Philox-4x32-10, in (0,
    1)."""
    low = 0xFFFFFFFF
    words = [torch.arange(count), torch.full((count,), position & low), *(torch.zeros(count, dtype=torch.long),) * 2]
    keys = [seed & low, (seed >> 32) & low]
    for _ in range(10):
        products = []
        for factor, word in ((0xCD9E8D57, words[2]), (0xD2511F53, words[0])):
            # 32 x 32 bits in halves: int64 has no room for the whole product.
            upper, lower = word * (factor >> 16), word * (factor & 0xFFFF)
            products.append(((upper + (lower >> 16)) >> 16, ((upper << 16) + lower) & low))
        (high_b, low_b), (high_a, low_a) = products
        words = [high_b ^ words[1] ^ keys[0], low_b, high_a ^ words[3] ^ keys[1], low_a]
        keys = [(keys[0] + 0x9E3779B9) & low, (keys[1] + 0xBB67AE85) & low]
    return ((words[0] >> 9).float() + 0.5) * 2.0**-23


def kept_ids(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Mask over one row's ids after top-k and top-p (rules 3 and 4)."""
    logits = logits.float()
    kept = torch.ones_like(logits, dtype=torch.bool)
    if 0 < top_k < len(logits):
        kept = logits >= logits.topk(top_k).values[-1]
    if top_p < 1.0:
        masses = torch.where(kept, ((logits.double() - logits.max().double()) / temperature).exp(), 0.0)
        order = logits.argsort(descending=True, stable=True)
        enough = masses[order].cumsum(0) >= top_p * (1 - 2.0**-17) * masses.sum()
        kept &= logits >= logits[order[int(enough.nonzero()[0])]]
    return kept


def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, seed: int, position: int) -> tuple[int, float]:
    """(token, logprob) of one row [V] by the rule of `codegen/kernels/sample.py`: sorted whole, nothing left out."""
    logits = logits.float()
    logprobs = logits.log_softmax(-1)
    if temperature < 2.0**-16:
        token = int(logits.argmax())
    else:
        noise = -(-philox_uniform(seed, position, len(logits)).log()).log()
        scaled = (logits - logits.max()) * (1.0 / torch.tensor(temperature, dtype=torch.float32))
        token = int(torch.where(kept_ids(logits, temperature, top_k, top_p), scaled + noise, float("-inf")).argmax())
    return token, float(logprobs[token])
