"""Runs Triton programs in Triton's interpreter beside the torch programs of the same models; prints one JSON document.

Its own process, because the interpreter is chosen when triton is imported. fp32 and fp16 only: a bf16 product is wrong
in the interpreter. Usage: python interpreted_programs.py VARIANT:DTYPE:RANKS:LAYERS ...
"""

import json
import os
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from program_harness import Replica, load_module  # noqa: E402
from tiny_checkpoints import make_checkpoint  # noqa: E402

from codegen.kernels import render  # noqa: E402
from codegen.program import generate_program, generate_triton_program  # noqa: E402
from specs.architecture import load_architecture  # noqa: E402
from specs.document import DType  # noqa: E402
from specs.kernels import KernelSpec  # noqa: E402
from specs.plan import Layout  # noqa: E402

# A prompt beside a short one; decode beside a chunk; decode alone, over several chunks of 16 keys, and over less
# than one.
STEPS = (
    ((0, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3]), (1, [8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0])),
    ((1, [2, 7, 1]), (0, [8, 4]), (2, [5])),
    ((2, [6]), (0, [2]), (1, [6])),
    ((1, [5]), (2, [3])),
)


class Interpreted:
    """A launcher as the runtime has it, over a kernel's source in the interpreter."""

    def __init__(self, spec: KernelSpec, folder: Path, launched: Counter[str]) -> None:
        self.kernel = render(spec)
        self.launched = launched
        file = folder / f"{spec.name}.py"  # triton reads the source of a kernel from its file
        file.write_text(self.kernel.source)
        scope: dict[str, object] = {"__name__": spec.name}
        exec(compile(file.read_text(), str(file), "exec"), scope)
        self.function = scope[self.kernel.entry]

    def __call__(self, grid: object, *arguments: object) -> None:
        self.launched[self.kernel.name] += 1
        assert len(arguments) == len(self.kernel.arguments), self.kernel.name
        for argument, value in zip(self.kernel.arguments, arguments, strict=True):
            assert argument.is_pointer == isinstance(value, torch.Tensor), f"{self.kernel.name}: {argument.name}"
            if isinstance(value, torch.Tensor):
                assert value.is_contiguous(), f"{self.kernel.name}: {argument.name}"
                assert argument.type[1:] == NAMES[value.dtype], f"{self.kernel.name}: {argument.name} is {value.dtype}"
        size = grid(self.kernel.constants) if callable(grid) else grid
        with ONE_AT_A_TIME:
            self.function[size](*arguments, **self.kernel.constants)


ONE_AT_A_TIME = threading.Lock()  # the interpreter patches triton.language while it runs; ranks are threads
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}


def compare(folder: Path, variant: str, dtype: DType, ranks: int, layers: int) -> dict[str, object]:
    """Largest difference from the torch program, relative to the largest logit; launches of each kernel."""
    changes = {"head_dim": 16, "num_hidden_layers": layers}
    checkpoint = make_checkpoint(folder / f"{variant}-{dtype}-{ranks}", variant, **changes)
    architecture = load_architecture(checkpoint)
    layout = Layout(tensor_parallel=ranks, pipeline_stages=(len(architecture.layers),))
    plain = generate_program(architecture, layout, compute_dtype=dtype, kv_dtype=dtype, block_size_tokens=4)
    fused = generate_triton_program(
        plain.model, target="sm_90", multiprocessors=8, max_num_batched_tokens=30, split_chunk_tokens=16
    )
    launched: Counter[str] = Counter()
    kernels = {spec.name: Interpreted(spec, folder, launched) for spec in fused.kernels.specs}
    oracle = Replica(load_module(plain.source), plain.manifest, checkpoint)
    tested = Replica(load_module(fused.source), fused.manifest, checkpoint, kernels=kernels)
    worst = 0.0
    for step in STEPS:
        for expected, found in zip(oracle.step(step), tested.step(step), strict=True):
            difference = (expected - found).abs().max() / expected.abs().max()
            worst = max(worst, float("inf") if difference.isnan() else difference.item())
    return {"worst": worst, "launched": dict(launched), "unused": sorted(set(fused.manifest.kernels) - set(launched))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in sys.argv[1:]:
            variant, dtype, ranks, layers = case.split(":")
            results[case] = compare(Path(scratch), variant, DType(dtype), int(ranks), int(layers))
    print(json.dumps(results))
