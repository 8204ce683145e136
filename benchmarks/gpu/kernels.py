"""Checks every kernel against torch on this machine's GPU and measures it.

    python -m benchmarks.gpu.kernels -o kernels.json [--small] [--dtype bf16]

The JSON holds, for each case: error and whether it is allowed, microseconds (median of CUDA-graph replays), GB/s of the
bytes that must move, TFLOP/s, and which way the kernels were launched. Exits 1 where a result is wrong or anything was
compiled by the JIT, 2 without CUDA.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import SMALL, TOLERANCE, Case, Launchers, Maker, Sizes
from codegen.compile import compile_kernels
from codegen.kernels import render
from runtime.launch import CudaContext, LaunchCounts, LaunchError, device_target, make_launchers
from specs.document import DType

REPLAYS = 20
LAUNCHES = 10  # in one graph, so that the time of a replay's start does not count


def launchers_for(cases: list[Case], folder: Path, target: str) -> tuple[Launchers, LaunchCounts]:
    """Compile what the cases need, lay it out as a bundle does, and make launchers from the files."""
    specs = {spec.name: spec for case in cases for spec in case.specs}
    kernels = [render(spec) for spec in specs.values()]
    records = []
    for kernel, compiled in zip(kernels, compile_kernels(kernels), strict=True):
        source, binary = f"kernels/{kernel.name}.py", f"binaries/{target}/{kernel.name}{compiled.suffix}"
        for name, content in ((source, kernel.source.encode()), (binary, compiled.data)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        records.append(compiled.record.model_copy(update={"source_file": source, "binary_file": binary}))
    return make_launchers(records, folder, target=target, context=CudaContext.of_torch(0))


def measured_s(case: Case, kernels: Launchers) -> float:
    """Median seconds of one launch of the case, from replays of a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            case.launch(kernels)
    graph.replay()
    times: list[float] = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / LAUNCHES)
    return sorted(times)[REPLAYS // 2]


def judge(case: Case, kernels: Launchers, dtype: DType) -> dict[str, Any]:
    """One row of the result."""
    case.launch(kernels)
    torch.cuda.synchronize()
    error = case.error()
    seconds = measured_s(case, kernels)
    return {
        "case": case.name,
        "dtype": dtype.value,
        "error": error,
        "right": error <= TOLERANCE[dtype],
        "microseconds": round(seconds * 1e6, 2),
        "gb_per_s": round(case.bytes / seconds / 1e9, 1),
        "tflop_per_s": round(case.flops / seconds / 1e12, 2),
        "kernels": [spec.name for spec in case.specs],
    }


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="sizes of the tests: seconds, correctness only")
    parser.add_argument("--dtype", choices=["fp16", "bf16"], action="append")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu.kernels needs a CUDA device, and torch finds none; nothing was measured", file=sys.stderr)
        return 2
    target, rows = device_target(0), []
    jit: dict[str, int] = {}
    for dtype in map(DType, options.dtype or ["fp16", "bf16"]):
        cases = Maker("cuda", dtype, target, SMALL if options.small else Sizes()).cases()
        with tempfile.TemporaryDirectory() as folder:
            try:
                kernels, counts = launchers_for(cases, Path(folder), target)
            except LaunchError as error:
                print(error, file=sys.stderr)
                return 2
            for case in cases:
                rows.append(judge(case, kernels, dtype))
                print(
                    f"{rows[-1]['case']}: {rows[-1]['microseconds']} us, error {rows[-1]['error']:.2g}", file=sys.stderr
                )
            jit |= counts.jit
    result = {
        "device": torch.cuda.get_device_name(0),
        "target": target,
        "torch": torch.__version__,
        "jit": jit,
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(row["right"] for row in rows) and not jit else 1


if __name__ == "__main__":
    sys.exit(main())
