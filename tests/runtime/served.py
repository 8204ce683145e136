"""Engines for tests: over a stub runner that needs no model, or over the program of a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from codegen.program import generate_program
from runtime.config import load_forward
from runtime.engine import Engine
from runtime.loader import load_weights
from runtime.model_runner import ModelRunner
from runtime.request import Output, SamplingParams
from runtime.scheduler import Scheduler
from runtime.tokenizer import BYTE_VOCABULARY, ByteTokenizer
from specs.architecture import load_architecture
from specs.document import DType
from specs.plan import Layout, Limits, Scheduling

CPU = torch.device("cpu")


def limits(seqs: int = 8, budget: int = 32, length: int = 256) -> Limits:
    return Limits(max_num_seqs=seqs, max_num_batched_tokens=budget, max_model_len=length)


class StubRunner:
    """Logits whose largest entry is (last known token + 1) modulo `letters`, so that outputs are known beforehand."""

    def __init__(self, vocabulary: int = BYTE_VOCABULARY, letters: int = 128) -> None:
        self.vocabulary = vocabulary
        self.letters = letters
        self.steps: list[list[tuple[str, int, int, bool]]] = []
        self.fail_at: int | None = None

    def run(self, pieces: Any) -> torch.Tensor:
        self.steps.append([(piece.request.id, piece.start, piece.tokens, piece.samples) for piece in pieces])
        if self.fail_at == len(self.steps):
            raise RuntimeError("the device is gone")
        sampled = [piece for piece in pieces if piece.samples]
        logits = torch.zeros(len(sampled), self.vocabulary)
        for row, piece in enumerate(sampled):
            (last,) = piece.request.tokens(piece.start + piece.tokens - 1, 1)
            logits[row, (last + 1) % self.letters] = 10.0
        return logits


def stub_engine(blocks: int = 64, block_size: int = 4, **more: Any) -> tuple[Engine, StubRunner]:
    runner = StubRunner()
    scheduler = Scheduler(more.pop("limits", limits()), blocks, block_size, Scheduling())
    return Engine(scheduler, runner, ByteTokenizer(), BYTE_VOCABULARY, **more), runner


def checkpoint_engine(
    folder: Path,
    work: Path,
    *,
    blocks: int = 64,
    block_size: int = 4,
    engine_limits: Limits | None = None,
    observer: Any = None,
    policy: str = "mixed_chunked",
) -> Engine:
    """An engine over the generated torch program of a checkpoint, in fp32."""
    architecture = load_architecture(folder)
    program = generate_program(
        architecture,
        Layout(pipeline_stages=(len(architecture.layers),)),
        compute_dtype=DType.FP32,
        kv_dtype=DType.FP32,
        block_size_tokens=block_size,
    )
    work.mkdir(parents=True, exist_ok=True)
    module = work / program.manifest.module
    module.write_text(program.source)
    runner = ModelRunner(
        load_forward(module, module.read_bytes()),
        program.manifest,
        load_weights(folder, program.manifest, CPU),
        blocks,
        CPU,
    )
    scheduler = Scheduler(engine_limits or limits(), blocks, block_size, Scheduling(prefill_policy=policy))  # type: ignore[arg-type]
    return Engine(scheduler, runner, ByteTokenizer(), program.manifest.vocab_size, observer=observer)


def greedy(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **{"ignore_eos": True, **more})


def run_all(engine: Engine, most_steps: int = 10_000) -> int:
    """Step until there is nothing to do; the number of steps."""
    for step in range(most_steps):
        if not engine.step():
            return step
    raise AssertionError(f"still busy after {most_steps} steps")


class Collected(list[Output]):
    """A sink that keeps what came."""

    def __call__(self, output: Output) -> None:
        self.append(output)

    @property
    def ids(self) -> list[int]:
        return [output.sampled.token for output in self if output.sampled is not None]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self)

    @property
    def reason(self) -> str | None:
        ends = [output.finish_reason for output in self if output.finish_reason is not None]
        assert len(ends) <= 1, "a request ends once"
        return str(ends[0]) if ends else None
