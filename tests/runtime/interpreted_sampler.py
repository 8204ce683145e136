"""Draws the same rows on the CPU and through the sampling kernel in Triton's interpreter; prints one JSON document.

Its own process, because the interpreter is chosen when triton is imported. The kernel is laid out and launched as a
runtime without a binary does it: records, `make_launchers`, the JIT launcher, a `ModelRunner` that samples.
"""

import hashlib
import json
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from codegen.kernels import render
from runtime.launch import Kernels, make_launchers
from runtime.model_runner import ModelRunner
from runtime.request import SamplingParams
from runtime.sampler import Draw, sample
from specs.document import DType
from specs.kernels import KernelBinary, KernelFamily, KernelSpec
from specs.program import ProgramManifest


def runner(folder: Path, vocab_size: int) -> tuple[ModelRunner, Kernels]:
    """A runner whose program is never called, over the sampling kernel alone."""
    spec = KernelSpec(family=KernelFamily.SAMPLE, target="sm_90", dtype=DType.FP32, shapes={"vocab_size": vocab_size})
    made = render(spec)
    (folder / f"{made.name}.py").write_text(made.source)
    record = KernelBinary(
        name=made.name, family=spec.family, target="sm_90", entry=made.entry, arguments=made.arguments,
        constants=made.constants, warps=made.warps, stages=made.stages, shared_memory_bytes=0, registers=0,
        spilled_bytes=0, occupancy=0, occupancy_limit="warps", triton="", source_sha256=made.source_sha256,
        binary_sha256=hashlib.sha256(b"").hexdigest(), source_file=f"{made.name}.py",
    )  # fmt: skip
    kernels = Kernels(*make_launchers([record], folder, target="sm_90", context=None))
    manifest = ProgramManifest(
        family="llama", module="program_triton.py", backend="triton", tensor_parallel=1, compute_dtype=DType.FP32,
        kv_dtype=DType.FP32, layers=0, kv_heads=1, head_dim=2, block_size_tokens=1, vocab_size=vocab_size, slots=(),
        sample_kernel=made.name,
    )  # fmt: skip
    return ModelRunner(lambda: torch.empty(0), manifest, {}, 1, torch.device("cpu"), kernels), kernels


def draws(rows: int, vocab_size: int, dice: random.Random) -> list[Draw]:
    """Requests of every kind."""
    return [
        Draw(
            SamplingParams(
                max_tokens=2**20,
                temperature=dice.choice([0.0, 1e-9, 0.1, 0.6, 0.7, 1.0, 1.0, 1.7, 20.0]),
                top_k=dice.choice([0, 0, 1, 2, 20, 50, vocab_size - 1, vocab_size, 2**40]),
                top_p=dice.choice([1.0, 1.0, 0.95, 0.9, 0.5, 0.1, 0.99999, 1e-6, 1 - 1e-12]),
                logprobs=dice.choice([None, 0, 2]),
            ),
            dice.choice([0, -1, -(2**63), 2**64 - 1, 7, dice.getrandbits(64)]),
            dice.choice([0, 1, 5, 2**17, dice.randrange(10**6)]),
            frozenset(dice.sample(range(vocab_size + 3), dice.choice([0, 0, 1, 4]))),
        )
        for _ in range(rows)
    ]


def table(rows: int, vocab_size: int, generator: torch.Generator) -> torch.Tensor:
    """Flat, peaked, coarse (full of ties) and masked rows in turn."""
    logits = torch.randn(rows, vocab_size, generator=generator) * 3
    logits[1::4] *= 5
    logits[2::4] = (logits[2::4] / 2).round()
    logits[3::4][torch.rand(logits[3::4].shape, generator=generator) < 0.7] = -float("inf")
    logits[3::4, 0] = 1.0
    return logits


def main() -> None:
    torch.set_num_threads(1)
    dice, generator = random.Random(5), torch.Generator().manual_seed(5)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for vocab_size, rows in ((5, 24), (264, 40), (1000, 12), (5000, 3)):
            one, kernels = runner(Path(scratch), vocab_size)
            logits, asked = table(rows, vocab_size, generator), draws(rows, vocab_size, dice)
            before = logits.clone()
            on_kernel, on_cpu = one.sample(logits, asked), sample(logits, asked)
            found.append(
                {
                    "vocab_size": vocab_size,
                    "launches": sum(kernels.counts.jit.values()),
                    "kernel": [token.token for token in on_kernel],
                    "cpu": [token.token for token in on_cpu],
                    "greedy": before.argmax(-1).tolist(),
                    "same_logprobs": on_kernel == on_cpu,
                    "untouched": torch.equal(before, logits),
                }
            )
        one, _ = runner(Path(scratch), 5)
        plain = [Draw(SamplingParams(max_tokens=9), 1, 0)]
        errors = []
        for broken in (float("nan"), float("inf")):
            try:
                one.sample(torch.tensor([[0.0, broken, 0.0, 0.0, 0.0]]), plain)
                errors.append("")
            except FloatingPointError as error:
                errors.append(str(error))
        nothing = [Draw(SamplingParams(max_tokens=9), 1, 0, frozenset(range(5)))]
        everything_forbidden = one.sample(torch.zeros(1, 5), nothing)[0].token
    print(json.dumps({"tables": found, "errors": errors, "everything_forbidden": everything_forbidden}))


if __name__ == "__main__":
    main()
