"""Single operators against numbers worked out by hand on a made-up device, and against physical limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.collectives import all_reduce_s, stage_transfer_s
from planner.cost.latency import AttentionShape, LatentShape, RooflineLatency
from planner.cost.moe import expected_experts, experts_s
from planner.cost.roofline import compute_dtype, elementwise_s, gemm_s, stream_weights_s
from specs.catalog import load_device, load_profile
from specs.document import DType
from specs.errors import InputError
from specs.profile import DeviceFacts, DeviceProfile, StreamingPoint

H100 = load_device("h100")
# 100 TFLOP/s, 1 TB/s, and round shares: every expected time below is a division done on paper
DEVICE: DeviceFacts = H100.model_copy(
    update={
        "hbm_bytes_per_s": 1e12,
        "flops": {DType.BF16: 100e12, DType.FP16: 100e12, DType.FP8: 200e12, DType.FP32: 10e12},
        "link_bytes_per_s": 100e9,
        "nic_bytes_per_s": 10e9,
    }
)
PROFILE: DeviceProfile = load_profile("h100").model_copy(
    update={
        "launch_s": 1e-6,
        "weight_streaming": (
            StreamingPoint(bytes=1e6, bytes_per_s=0.25e12),
            StreamingPoint(bytes=1e8, bytes_per_s=0.75e12),
        ),
        "compute_efficiency": dict.fromkeys(DType, 0.5),
        "gemm_ramp_tokens": dict.fromkeys(DType, 20.0),
        "decode_attention_efficiency": {DType.BF16: 0.5, DType.FP8: 0.25},
        "decode_attention_launch_s": 4e-6,
        "decode_attention_row_s": 1e-9,
        "prefill_attention_efficiency": 0.5,
        "prefill_attention_launch_s": 6e-6,
        "prefill_attention_ramp_tokens": 200.0,
        "moe_compute_efficiency": dict.fromkeys(DType, 0.25),
        "moe_memory_efficiency": 0.5,
        "moe_launch_s": 10e-6,
        "allreduce_latency_s": {2: 5e-6, 4: 6e-6, 8: 8e-6},
        "allreduce_efficiency": {2: 0.5, 4: 0.5, 8: 0.25},
        "elementwise_efficiency": 0.5,
    }
)


def one(value: float) -> np.ndarray:
    return np.array([value])


def test_streaming_interpolates_in_the_logarithm_of_the_size() -> None:
    assert stream_weights_s(1e7, PROFILE) == pytest.approx(1e7 / 0.5e12)  # half way between 1e6 and 1e8
    assert stream_weights_s(1e4, PROFILE) == pytest.approx(1e4 / 0.25e12)  # no speed-up beyond the ends
    assert stream_weights_s(1e9, PROFILE) == pytest.approx(1e9 / 0.75e12)
    assert stream_weights_s(0.0, PROFILE) == 0.0


def test_a_small_gemm_streams_its_weights() -> None:
    # 1e4 x 5e3 weights in bf16 = 1e8 bytes at 0.75 TB/s; one row of 15,000 activations at 1 TB/s
    expected = 1e-6 + 1e8 / 0.75e12 + 15_000 * 2 / 1e12
    assert gemm_s(one(1), 1e4, 5e3, DType.BF16, DEVICE, PROFILE)[0] == pytest.approx(expected)


def test_a_large_gemm_computes() -> None:
    # 2 x 1e4 x 5e3 operations a row, 4,000 rows and 20 of ramp, at half of 100 TFLOP/s
    expected = 1e-6 + 2 * 1e4 * 5e3 * 4020 / 50e12
    assert gemm_s(one(4000), 1e4, 5e3, DType.BF16, DEVICE, PROFILE)[0] == pytest.approx(expected)


def test_fp8_computes_twice_as_fast_and_quantises_first() -> None:
    quantise = 1e-6 + 4000 * 1e4 * 3 / 0.5e12
    expected = 1e-6 + 2 * 1e4 * 5e3 * 4020 / 100e12 + quantise
    assert gemm_s(one(4000), 1e4, 5e3, DType.FP8, DEVICE, PROFILE)[0] == pytest.approx(expected)


def test_types_without_units_are_dequantised() -> None:
    a100 = load_device("a100")
    assert compute_dtype(DType.FP8, a100) is DType.BF16
    assert compute_dtype(DType.INT8, a100) is DType.INT8
    assert compute_dtype(DType.INT4, load_device("b200")) is DType.BF16
    assert compute_dtype(DType.FP4, H100) is DType.BF16
    assert compute_dtype(DType.FP4, load_device("b200")) is DType.FP4
    # fewer bytes, the same arithmetic: faster with few rows, not with many
    profile = load_profile("a100")
    few = [float(gemm_s(one(1), 8192, 8192, dtype, a100, profile)[0]) for dtype in (DType.BF16, DType.FP8)]
    many = [float(gemm_s(one(8192), 8192, 8192, dtype, a100, profile)[0]) for dtype in (DType.BF16, DType.FP8)]
    assert few[1] < 0.75 * few[0]
    assert many[1] == pytest.approx(many[0])


def test_elementwise_moves_bytes() -> None:
    assert elementwise_s(one(1e6), DEVICE, PROFILE)[0] == pytest.approx(1e-6 + 1e6 / 0.5e12)


def test_paged_attention_by_hand() -> None:
    latency = RooflineLatency(DEVICE, PROFILE)

    def decode_s(sequences: float, keys: float, dtype: DType = DType.BF16) -> float:
        return float(latency.decode_attention(one(sequences), one(keys), AttentionShape(8, 2, 100, None, dtype))[0])

    def prefill_s(new: float, cached: float) -> float:
        return float(latency.prefill_attention(one(new), one(cached), AttentionShape(8, 2, 100, None, DType.BF16))[0])

    token_s, pair_s = 2 * 2 * 100 * 2 / 0.5e12, 4 * 8 * 100 / 50e12
    assert decode_s(1, 1000) - decode_s(1, 0) == pytest.approx(1000 * token_s)
    assert decode_s(2, 0) - decode_s(1, 0) == pytest.approx(2e-9)
    assert decode_s(0, 0) == 4e-6
    assert prefill_s(0, 0) == pytest.approx(4e-6 + 2e-6)
    assert prefill_s(10, 0) - prefill_s(0, 0) == pytest.approx(pair_s * 55 + 10 * 100 * pair_s)
    assert prefill_s(0, 1000) - prefill_s(0, 0) == pytest.approx(1000 * token_s)
    # half the bytes at half the share of the bandwidth
    assert decode_s(1, 1000, DType.FP8) == pytest.approx(decode_s(1, 1000))


def test_latent_attention_is_bound_by_arithmetic_with_many_heads() -> None:
    latency = RooflineLatency(DEVICE, PROFILE)

    def token_s(heads: int) -> float:
        shape = LatentShape(heads, 512, 64, 128, 128, DType.BF16)
        many, none = (latency.latent_decode(one(1), one(keys), shape)[0] for keys in (1e6, 0))
        return float(many - none) / 1e6

    assert token_s(1) == pytest.approx(576 * 2 / 0.5e12)  # one latent vector, whatever the heads
    assert token_s(128) == pytest.approx(2 * 128 * (576 + 512) / 50e12)


def test_distinct_experts_by_brute_force() -> None:
    """Two of four experts a token: all 6 x 6 choices of two tokens, counted."""
    from itertools import combinations, product

    pairs = list(combinations(range(4), 2))
    mean = np.mean([len(set(first) | set(second)) for first, second in product(pairs, pairs)])
    assert expected_experts(one(2), 4, 2)[0] == pytest.approx(mean)
    assert expected_experts(one(1), 4, 2)[0] == pytest.approx(2)
    assert expected_experts(one(5), 4, 4)[0] == 4


def test_experts_by_hand() -> None:
    # one token, 2 of 4 experts, 3 x 1000 x 1000 weights each in bf16: 12 MB at 0.5 TB/s, and few activations
    moved = 2 * 3e6 * 2 + 2 * (2 * 1000 + 3 * 1000) * 2
    few = experts_s(one(1), 4, 2, 1000, 1000.0, True, DType.BF16, DEVICE, PROFILE)[0]
    assert few == pytest.approx(10e-6 + max(moved / 0.5e12, 2 * 3e6 * (2 + 40) / 25e12))
    many = experts_s(one(10_000), 4, 2, 1000, 1000.0, True, DType.BF16, DEVICE, PROFILE)[0]
    assert many == pytest.approx(10e-6 + 2 * 3e6 * (20_000 + 80) / 25e12, rel=1e-6)
    ungated = experts_s(one(10_000), 4, 2, 1000, 1000.0, False, DType.BF16, DEVICE, PROFILE)[0]
    assert ungated - 10e-6 == pytest.approx((many - 10e-6) * 2 / 3)


def test_all_reduce_by_hand() -> None:
    assert all_reduce_s(one(1e6), 1, DEVICE, PROFILE)[0] == 0.0
    assert all_reduce_s(one(1e6), 2, DEVICE, PROFILE)[0] == pytest.approx(5e-6 + 1e6 / 50e9)
    assert all_reduce_s(one(1e6), 8, DEVICE, PROFILE)[0] == pytest.approx(8e-6 + 1e6 * 2 * 7 / 8 / 25e9)
    with pytest.raises(InputError, match="fast domain of 8"):
        all_reduce_s(one(1e6), 16, DEVICE, PROFILE)


def test_the_network_is_slower_than_the_node() -> None:
    near, far = (float(stage_transfer_s(one(1e6), same_node, DEVICE)[0]) for same_node in (True, False))
    assert far - near == pytest.approx(5e-6 + 1e6 / 10e9 - 1e6 / 100e9)


DEVICES = st.sampled_from(["a100-sxm", "h100-sxm", "h200-sxm", "l40s", "b200", "mi300x", "l4", "a10g", "rtx-4090"])
SIZES = st.sampled_from([128, 512, 1024, 4096, 8192, 28672])


@settings(max_examples=60, deadline=None)
@given(name=DEVICES, inputs=SIZES, outputs=SIZES, dtype=st.sampled_from([DType.BF16, DType.FP8, DType.INT4]))
def test_no_gemm_is_faster_than_physics_and_none_gets_faster_with_more_rows(
    name: str, inputs: int, outputs: int, dtype: DType
) -> None:
    device, profile = load_device(name), load_profile(name)
    rows = np.arange(1.0, 4097.0, 13.0)
    seconds = gemm_s(rows, inputs, outputs, dtype, device, profile)
    arithmetic = 2.0 * inputs * outputs * rows / device.flops[compute_dtype(dtype, device)]
    reading = inputs * outputs * dtype.bytes / device.hbm_bytes_per_s
    assert np.all(seconds > np.maximum(arithmetic, reading))
    assert np.all(np.diff(seconds) >= 0)
