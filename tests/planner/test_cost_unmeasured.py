"""Costs of what no table measures: experts of other element types, prefixes in the cache, attention replicas."""

from __future__ import annotations

from itertools import pairwise

import pytest

from planner.cost.latency import latency_of
from planner.cost.operations import operations
from planner.cost.step import step_times
from planner.cost.step_work import StepShape
from specs.architecture import load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.document import DType
from specs.plan import Layout

EIGHT, MOE = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-235B-A22B"


def total(kind: str, what: str, shape: StepShape, weights: DType = DType.BF16, **layout: int) -> float:
    """Of all operations of `kind` in one step of the mixture on A100."""
    architecture, device, profile = load_architecture(MOE), load_device("a100"), load_profile("a100")
    chosen = Layout(pipeline_stages=(len(architecture.layers),), **layout)
    found = operations(architecture, chosen, weights, DType.BF16, device, profile, latency_of(device, profile))
    return float(sum(o.count * getattr(o.measure(shape), what) for o in found if o.kind == kind)[0])


@pytest.mark.parametrize("weights", [DType.FP8, DType.INT4])
def test_experts_of_a_type_that_no_table_has_follow_their_bytes(weights: DType) -> None:
    """A100 has tables of 16-bit experts alone: smaller weights are read faster and computed in 16 bit."""

    def ratio(tokens: float) -> float:
        shape = StepShape.of(decodes=tokens, keys=100.0)
        small = total("experts", "seconds", shape, weights, tensor_parallel=8)
        return small / total("experts", "seconds", shape, tensor_parallel=8)

    assert weights.bytes / 2.0 < ratio(64.0) < 0.85  # bound by weights
    assert ratio(16_384.0) == pytest.approx(1.0, abs=0.05)  # bound by arithmetic


def test_attention_replicas_share_the_keys_that_are_written() -> None:
    shape = StepShape.of(chunks=8.0, new=512.0)
    spread = total("attention", "bytes", shape, attention_data_parallel=8, expert_parallel=8)
    assert spread == total("attention", "bytes", shape) / 8


def test_attention_replicas_without_tensor_parallelism_are_a_layout() -> None:
    """Experts spread over all ranks: large steps are shorter than where every rank reads all the KV, small ones not."""
    architecture, device, profile = (
        load_architecture("deepseek-ai/DeepSeek-V3"),
        load_device("h200"),
        load_profile("h200"),
    )

    def decode_s(sequences: int, **layout: int) -> float:
        chosen = Layout(pipeline_stages=(61,), expert_parallel=8, **layout)
        engine = load_engine("sglang")
        times = step_times(architecture, chosen, DType.FP8, DType.BF16, device, profile, engine, 256, 4096)
        return times.step_s(sequences, sequences, sequences, sequences, sequences * 8000, 0, [])

    assert decode_s(256, attention_data_parallel=8) < decode_s(256, tensor_parallel=8)
    assert decode_s(1, attention_data_parallel=8) > decode_s(1, tensor_parallel=8)


@pytest.mark.parametrize("device", ["a100", "rtx-4090"])
def test_a_longer_chunk_over_a_cached_prefix_never_takes_less(device: str) -> None:
    architecture, facts, profile = load_architecture(EIGHT), load_device(device), load_profile(device)
    layout = Layout(pipeline_stages=(32,))
    engine = load_engine("vllm")
    times = step_times(architecture, layout, DType.BF16, DType.BF16, facts, profile, engine, 256, 4096)
    for cached in (0, 512, 8192, 32_768, 131_072):
        seconds = [times.chunk_s(new, cached) for new in (1, 16, 64, 128, 256, 512, 1024, 2048, 4096)]
        assert all(later >= earlier * (1 - 1e-9) for earlier, later in pairwise(seconds))
    for new in (1, 64, 1024, 4096):
        seconds = [times.chunk_s(new, cached) for cached in (0, 512, 2048, 8192, 32_768, 131_072)]
        assert all(later >= earlier * (1 - 1e-9) for earlier, later in pairwise(seconds))
