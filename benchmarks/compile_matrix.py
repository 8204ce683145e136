"""Compiles the kernels of two plans for every target with an empty cache, and writes the resource table as Markdown.

    python -m benchmarks.compile_matrix -o docs/measurements/kernel-resources.md [--target sm_90 ...]

Llama-3.1-70B at tensor parallel 4 and Qwen3-30B-A3B at 1, bf16. Needs no GPU; about six seconds a target on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from codegen.compile import compile_kernels, resource_rows, triton_version
from codegen.kernels import render
from specs.document import DType
from specs.kernels import TARGETS, KernelSpec


def specs_of(target: str) -> list[KernelSpec]:
    """The kernels of both plans, and each one's window and QK-norm variant."""
    llama = {"heads": 16, "kv_heads": 2, "head_dim": 128, "block_size": 16}
    qwen = {"heads": 32, "kv_heads": 4, "head_dim": 128, "block_size": 16}
    routed = {"experts": 128, "experts_per_token": 8}

    def spec(
        family: str, shapes: dict[str, int], part: str = "", dtype: DType = DType.BF16, **flags: bool
    ) -> KernelSpec:
        fields = {"family": family, "part": part, "target": target, "dtype": dtype, "shapes": shapes, "flags": flags}
        return KernelSpec.model_validate(fields)

    specs = [
        spec("add_rms_norm", {"hidden_size": 8192}),
        spec("add_rms_norm", {"hidden_size": 8192}, residual=True),
        spec("rope_kv_write", llama),
        spec("rope_kv_write", qwen, qk_norm=True),
        spec("swiglu", {"intermediate_size": 7168}),
    ]
    for heads in (llama, qwen):
        chunked = heads | {"chunk_tokens": 256}
        specs += [spec("paged_attention", heads, part) for part in ("prefill", "decode")]
        specs += [spec("paged_attention", chunked, part) for part in ("split", "reduce")]
    specs += [spec("paged_attention", llama | {"window": 4096}, part) for part in ("prefill", "decode")]
    specs += [spec("moe_route", routed, "topk", renormalise=True), spec("moe_route", routed, "count")]
    for rows in (16, 64, 128):
        tile = routed | {"block_rows": rows}
        specs.append(spec("moe_route", tile, "sort"))
        products = {"in_features": 2048, "out_features": 768}
        specs.append(spec("grouped_gemm", tile | products, "gate_up", swiglu=True))
        specs.append(spec("grouped_gemm", tile | {"in_features": 768, "out_features": 2048}, "down"))
    specs.append(spec("grouped_gemm", {"experts_per_token": 8, "out_features": 2048}, "combine"))
    specs.append(spec("sample", {"vocab_size": 128256}, dtype=DType.FP32))
    return specs


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--target", action="append", choices=TARGETS)
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for target in options.target or TARGETS:
            start = time.monotonic()
            compiled = compile_kernels([render(spec) for spec in specs_of(target)], cache=Path(cache) / target)
            seconds[target] = time.monotonic() - start
            rows += resource_rows([one.record for one in compiled])
            print(f"{target}: {len(compiled)} kernels in {seconds[target]:.1f} s", file=sys.stderr)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(rows, seconds))
    return 0


def page(rows: list[dict[str, str | int | float]], seconds: dict[str, float]) -> str:
    """The table: one row a kernel, one column a target: registers / spilled bytes / shared KiB / occupancy."""
    targets = list(seconds)
    by_kernel: dict[str, dict[str, str]] = {}
    for row in rows:
        spilled = f"+{row['spilled_bytes']}" if row["spilled_bytes"] else ""
        shared = -(-int(row["shared_memory_bytes"]) // 1024)
        cell = f"{row['registers']}{spilled}, {shared}K, {float(row['occupancy']):.0%}"
        by_kernel.setdefault(str(row["kernel"]), {})[str(row["target"])] = cell
    timings = ", ".join(f"{target} {value:.1f}" for target, value in seconds.items())
    lines = [
        "# Resources of the generated kernels",
        "",
        f"Written by `python -m benchmarks.compile_matrix` with Triton {triton_version()}; no GPU took part. A cell is",
        "registers of a thread (+ spilled bytes), shared memory of a block in KiB, and occupancy (share of a",
        "multiprocessor's warps that can be resident). Tile sizes are predicted from shapes and limits, not measured.",
        "",
        f"Cold compile of all {len(by_kernel)} kernels on two processes, seconds: {timings}.",
        "",
        "| kernel | " + " | ".join(targets) + " |",
        "|---" * (len(targets) + 1) + "|",
    ]
    lines += [
        "| " + " | ".join([name, *(cells[target] for target in targets)]) + " |" for name, cells in by_kernel.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
