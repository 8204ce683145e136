"""Speed of the cost model: 1,000 (batch, context, prefill) points of one model, and the tables of one layout.

    python -m benchmarks.step_speed -o benchmarks/results/cpu/step_speed.json

CPU seconds of this process, the best of several rounds; "first" includes reading and unpacking the device's profile.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from planner.cost.latency import FittedLatency, OperatorLatency, latency_of
from planner.cost.operations import operations
from planner.cost.stages import split_stages
from planner.cost.step import step_times
from planner.cost.step_work import StepShape, measure
from specs.architecture import load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.document import DType, write_atomically
from specs.plan import Layout
from specs.profile import DeviceFacts, DeviceProfile

POINTS, ROUNDS, TARGET_S = 1000, 7, 0.050
CASES = (
    ("meta-llama/Llama-3.1-70B", "h100", 4, DType.FP8),
    ("Qwen/Qwen3-32B", "a100", 2, DType.BF16),
    ("Qwen/Qwen3-235B-A22B", "h200", 8, DType.BF16),
    ("deepseek-ai/DeepSeek-V3", "h200", 8, DType.FP8),
    ("openai/gpt-oss-120b", "l40s", 4, DType.FP4),
)


def points(window: int | None) -> StepShape:
    """Mixed steps: 1 to 256 decodes at up to 16k keys, none to two chunks of up to 4k tokens over up to 8k cached."""
    draw = np.random.default_rng(0)
    return StepShape.of(
        decodes=draw.integers(1, 257, POINTS).astype(float),
        keys=draw.integers(16, 16_384, POINTS).astype(float),
        chunks=draw.integers(0, 3, POINTS).astype(float),
        new=draw.integers(1, 4097, POINTS).astype(float),
        cached=draw.integers(0, 8193, POINTS).astype(float),
        window=window,
    )


def fresh_latency(facts: DeviceFacts, profile: DeviceProfile) -> OperatorLatency:
    source = latency_of(facts, profile)
    return replace(source, kept={}) if isinstance(source, FittedLatency) else source


def cpu_s(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def case(model: str, device: str, ranks: int, weights: DType) -> dict[str, Any]:
    architecture = load_architecture(model)
    facts, profile, engine = load_device(device), load_profile(device), load_engine("vllm")
    layout = Layout(tensor_parallel=ranks, pipeline_stages=split_stages(architecture, 1))
    shape = points(architecture.window_tokens)

    def thousand() -> None:
        latency = fresh_latency(facts, profile)  # nothing kept from the round before
        measure(operations(architecture, layout, weights, DType.BF16, facts, profile, latency), shape)

    def tables() -> None:
        latency = fresh_latency(facts, profile)
        step_times(architecture, layout, weights, DType.BF16, facts, profile, engine, 1024, 8192, latency)

    first = cpu_s(thousand)
    return {
        "model": model,
        "device": facts.name,
        "tensor_parallel": ranks,
        "weights": weights.value,
        "points": POINTS,
        "first_cpu_s": round(first, 4),
        "points_cpu_s": round(min(cpu_s(thousand) for _ in range(ROUNDS)), 4),
        "tables_cpu_s": round(min(cpu_s(tables) for _ in range(ROUNDS)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [case(*chosen) for chosen in CASES]
    for row in rows:
        print(
            f"{row['model']:28} {row['device']:9} {POINTS} points {1e3 * row['points_cpu_s']:6.1f} ms "
            f"(first {1e3 * row['first_cpu_s']:.0f} ms), tables {1e3 * row['tables_cpu_s']:.1f} ms"
        )
    result = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}",
        "target_s": TARGET_S,
        "met": all(row["points_cpu_s"] <= TARGET_S for row in rows),
        "cases": rows,
    }
    write_atomically(arguments.output, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
