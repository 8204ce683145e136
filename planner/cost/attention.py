"""Attention over a paged KV cache on one device, as the slopes that `StepTimes` is made of.

Decode reads the keys and values of the whole context once: bytes / (share of the memory bandwidth). Prefill computes
all (query, key) pairs: operations / (share of the 16-bit peak); a short prompt fills its causal tiles badly, which
behaves like `ramp / 2` more pairs per query (half the efficiency at a prompt of `ramp` tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost.roofline import peak_flops
from specs.document import DType
from specs.profile import DeviceFacts, DeviceProfile


@dataclass(frozen=True, slots=True)
class AttentionTimes:
    """Seconds of one attention operator of one layer on one rank."""

    launch_s: float  # one launch, whatever it holds
    prefill_launch_s: float  # more per prefill chunk
    decode_row_s: float  # more per decoding sequence
    decode_token_s: float  # per cached token that a decode reads
    query_s: float  # per query token of a prefill, whatever it sees
    pair_s: float  # per (query, key) pair of a prefill
    reread_s: float  # per cached token that a prefill chunk reads again


def paged_attention_times(
    heads: float, kv_heads: float, head_dim: int, kv_dtype: DType, device: DeviceFacts, profile: DeviceProfile
) -> AttentionTimes:
    """Multi-head or grouped-query attention: `heads` query heads and `kv_heads` KV heads on this rank."""
    token_bytes = 2.0 * kv_heads * head_dim * kv_dtype.bytes
    # decode arithmetic stays far below the peak: a query head reads its keys for one token only
    return _times(token_bytes, 0.0, 4.0 * heads * head_dim, kv_heads, kv_dtype, device, profile)


def latent_attention_times(
    heads: float,
    kv_rank: int,
    rope_dim: int,
    nope_dim: int,
    value_dim: int,
    kv_dtype: DType,
    device: DeviceFacts,
    profile: DeviceProfile,
) -> AttentionTimes:
    """Multi-head latent attention. Decode runs absorbed: all heads read one latent of `kv_rank + rope_dim` per token,
    and score it at full width, so that with many heads arithmetic decides and not bytes; prefill runs expanded."""
    token_bytes = (kv_rank + rope_dim) * kv_dtype.bytes
    decode_flops = 2.0 * heads * (kv_rank + rope_dim + kv_rank)
    prefill_flops = 2.0 * heads * (nope_dim + rope_dim + value_dim)
    return _times(token_bytes, decode_flops, prefill_flops, 1.0, kv_dtype, device, profile)


def _times(
    token_bytes: float,
    decode_flops: float,
    pair_flops: float,
    kv_rows: float,
    kv_dtype: DType,
    device: DeviceFacts,
    profile: DeviceProfile,
) -> AttentionTimes:
    shares = profile.decode_attention_efficiency
    share = shares[kv_dtype] if kv_dtype in shares else min(shares.values())
    read_s = token_bytes / (device.hbm_bytes_per_s * share)
    sixteen_bit = DType.BF16 if DType.BF16 in device.flops else DType.FP16
    rate = peak_flops(sixteen_bit, device) * profile.prefill_attention_efficiency
    pair_s = pair_flops / rate
    return AttentionTimes(
        launch_s=profile.decode_attention_launch_s,
        prefill_launch_s=max(0.0, profile.prefill_attention_launch_s - profile.decode_attention_launch_s),
        decode_row_s=profile.decode_attention_row_s * kv_rows,
        decode_token_s=max(read_s, decode_flops / rate),
        query_s=pair_s * profile.prefill_attention_ramp_tokens / 2.0,
        pair_s=pair_s,
        reread_s=read_s,
    )
