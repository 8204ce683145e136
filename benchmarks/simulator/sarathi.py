"""Chunked prefill against prefill first: Sarathi-Serve (Agrawal et al., OSDI 2024), sections 5.1 and 5.2.

Step times are the planner's own, of the models and GPUs that the paper measures. Lengths are lognormals of the medians
and 90th percentiles of its table 2, longer totals dropped as it drops them; arrivals are Poisson. Falcon-180B and
Llama-2-70B ran in pipelines over Ethernet, of which no profile is at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from benchmarks.simulator.capacity import arriving, at_rate, largest_rate, lognormal
from benchmarks.simulator.table import Row
from benchmarks.simulator.token_gaps import serve_with_gaps
from planner.cost.memory import memory_budget
from planner.cost.step import step_times
from planner.simulate import ReplicaModel, Workload
from specs.architecture import load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.document import DType
from specs.plan import Layout, Limits, Scheduling

SEATS = 128  # of vLLM and of Sarathi-Serve (its repository, osdi-experiments/figure-5-6)
DELAY_S = 2.0  # the limit on the median of the delay before a request is scheduled
YI_34B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 7168,
    "intermediate_size": 20480,
    "num_hidden_layers": 60,
    "num_attention_heads": 56,
    "num_key_value_heads": 8,
    "vocab_size": 64000,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Case:
    """A model, its GPUs, its limits on the P99 gap between tokens (table 3) and the ratios that are reported."""

    name: str
    source: str | Mapping[str, Any]
    tensor_parallel: int
    strict_s: float
    relaxed_s: float
    up_to: float
    ratios: Mapping[str, float] = field(default_factory=dict)  # by limit, of sharegpt4 (sections 5.1 and 5.2)


@dataclass(frozen=True)
class Trace:
    """Table 2: median and 90th percentile of prompt and output tokens; requests above `longest` are dropped."""

    name: str
    prompt: tuple[float, float]
    output: tuple[float, float]
    longest: int

    def workload(self, count: int) -> Workload:
        prompts, outputs = lognormal(*self.prompt, 2 * count, 1), np.maximum(2, lognormal(*self.output, 2 * count, 2))
        kept = np.flatnonzero(prompts + outputs <= self.longest)[:count]
        return arriving(prompts[kept], outputs[kept])


CASES = (
    Case("Mistral-7B, one A100", "mistralai/Mistral-7B-v0.3", 1, 0.1, 0.5, 2.6),
    Case("Yi-34B, two A100", YI_34B, 2, 0.2, 1.0, 3.7, {"strict": 3.7, "relaxed": 1.65}),
)
TRACES = (
    Trace("sharegpt4", (1730, 5696), (415, 834), 8192),
    Trace("arxiv", (7059, 12985), (208, 371), 16384),
)


def served(case: Case, policy: Literal["prefill_first", "mixed_chunked"], budget: int) -> ReplicaModel:
    """The case in BF16 under vLLM with the host times of releases before 0.13."""
    source = case.source
    architecture = load_architecture(source) if isinstance(source, str) else load_architecture(source, name=case.name)
    device, profile, engine = load_device("a100-sxm"), load_profile("a100-sxm"), load_engine("vllm").at("0.2")
    layout = Layout(tensor_parallel=case.tensor_parallel, pipeline_stages=(len(architecture.layers),))
    limits = Limits(max_num_seqs=SEATS, max_num_batched_tokens=budget, max_model_len=16384)
    memory = memory_budget(architecture, layout, DType.BF16, DType.BF16, device, engine, limits)
    return ReplicaModel(
        times=step_times(architecture, layout, DType.BF16, DType.BF16, device, profile, engine, SEATS, budget),
        limits=limits,
        num_blocks=int(memory.kv_bytes / memory.kv_bytes_per_token) // engine.block_size_tokens,
        block_size_tokens=engine.block_size_tokens,
        scheduling=Scheduling(prefill_policy=policy),
    )


def holds(model: ReplicaModel, workload: Workload, gap_s: float, rate: float) -> bool:
    """Whether the 99th percentile of the gaps between tokens is met and requests do not queue."""
    arriving_so = at_rate(workload, rate)
    result, gaps_s = serve_with_gaps(model, arriving_so)
    delay_s = result.starts_s(arriving_so) - result.arrivals_s(arriving_so)
    return float(np.percentile(gaps_s, 99)) <= gap_s and float(np.median(delay_s)) <= DELAY_S


def rows(requests: int = 1024) -> list[Row]:
    """Capacity of both policies by model, trace and limit, and the largest ratio of each model."""
    table = []
    for case in CASES:
        ratios = []
        for trace in TRACES:
            workload = trace.workload(requests)
            first = served(case, "prefill_first", trace.longest)
            for name, gap_s, budget in (("strict", case.strict_s, 512), ("relaxed", case.relaxed_s, 2048)):
                chunked = served(case, "mixed_chunked", budget)
                rates = [
                    largest_rate(partial(holds, model, workload, gap_s), 1.0, tolerance=0.03)
                    for model in (first, chunked)
                ]
                ratios.append(rates[1] / rates[0] if rates[0] else float("inf"))
                published = case.ratios.get(name) if trace is TRACES[0] else None
                what = f"Sarathi-Serve, {case.name}, {trace.name}, P99 gap {gap_s:g} s ({name})"
                table.append(Row(f"{what}: prefill-first, requests/s", None, rates[0]))
                table.append(Row(f"{what}: chunks of {budget} over it, times", published, ratios[-1]))
        table.append(Row(f"Sarathi-Serve, {case.name}: up to, times", case.up_to, max(ratios)))
    return table
