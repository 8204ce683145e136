"""Measurements of this machine's CPU: copies, matrix products, and steps of the engine on a given service.

Rows say what was seen; the planner fits a profile to them. Every figure is a median over repetitions that fill a small
time budget, so that the whole takes well under half a minute.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from runtime.engine import Engine
from runtime.model_runner import use_threads
from runtime.request import SamplingParams
from runtime.scheduler import Piece
from specs.document import DType
from specs.measurements import Environment, KernelRow, Measurements, StepRow

COPY_BYTES = tuple(2**power for power in (12, 16, 20, 24, 27))
PRODUCT_SIDES = (64, 128, 256, 512, 1024, 2048, 4096)  # square weights: 16 KB to 64 MB in fp32
PRODUCT_ROWS = (1, 4, 16, 64, 256)
PRODUCT_FLOPS = 5e10  # larger ones take too long and say nothing new
ROW_BUDGET_S = 0.03
BATCHES = (1, 4, 16)
PROMPTS = (16, 64, 200)
TYPES = {DType.FP32: torch.float32, DType.BF16: torch.bfloat16}


def measure_machine(device: str, progress: Callable[[str], None] = lambda text: None) -> Measurements:
    """Copy bandwidth and matrix products in fp32 and bf16 over sizes, as kernel rows. About ten seconds."""
    rows: list[KernelRow] = []
    progress("copies")
    rows += [_copy(size) for size in COPY_BYTES]
    for dtype in TYPES:
        progress(f"matrix products in {dtype}")
        rows += _products(dtype)
    return Measurements(source=platform.node() or "this machine", environment=environment(device), kernels=tuple(rows))


def environment(device: str) -> Environment:
    """This machine as a `Measurements` document names it."""
    versions = {"torch": torch.__version__, "python": platform.python_version(), "processor": processor()}
    return Environment(device=device, engine="capstan", versions=versions)


def processor() -> str:
    """Model of the processor and its cores, for people to recognise."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: the architecture's name has to do
    return f"{name}, {os.cpu_count()} cores"


def machine_memory_bytes() -> int:
    """Memory of this machine, bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _copy(size: int) -> KernelRow:
    source = torch.empty(size // 4, dtype=torch.float32).fill_(1.0)
    target = torch.empty_like(source)
    seconds, samples = _median(lambda: target.copy_(source))
    return KernelRow(
        family="elementwise",
        implementation="torch",
        dtype=DType.FP32,
        shapes={"bytes": size},
        seconds=seconds,
        bytes=2.0 * size,  # read and written
        flops=0.0,
        samples=samples,
    )


def _products(dtype: DType) -> Iterator[KernelRow]:
    """y[m, n] = x[m, k] W[n, k]^T. Weights rotate through copies, so that large ones come from memory."""
    generator = torch.Generator().manual_seed(0)
    for side in PRODUCT_SIDES:
        use_threads(8 * side * side * 4)  # a layer has about so many: the choice that the runtime makes for it
        copies = max(1, min(8, 2**26 // (side * side * 4)))
        weights = [torch.randn(side, side, generator=generator).to(TYPES[dtype]) for _ in range(copies)]
        for rows in PRODUCT_ROWS:
            flops = 2.0 * rows * side * side
            if flops > PRODUCT_FLOPS:
                continue
            x = torch.randn(rows, side, generator=generator).to(TYPES[dtype])
            turn = _Turn(x, weights)
            seconds, samples = _median(turn)
            yield KernelRow(
                family="gemm",
                implementation="torch",
                dtype=dtype,
                shapes={"m": rows, "n": side, "k": side},
                seconds=seconds,
                bytes=dtype.bytes * (side * side + 2.0 * rows * side),
                flops=flops,
                samples=samples,
            )


@dataclass
class _Turn:
    x: torch.Tensor
    weights: list[torch.Tensor]
    next: int = 0

    def __call__(self) -> object:
        weight = self.weights[self.next % len(self.weights)]
        self.next += 1
        return torch.nn.functional.linear(self.x, weight)


def _median(call: Callable[[], object], budget_s: float = ROW_BUDGET_S) -> tuple[float, int]:
    """Median seconds of a call and how many were timed; one call first, untimed."""
    with torch.inference_mode():
        call()
        times: list[float] = []
        end = time.perf_counter() + budget_s
        while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
            started = time.perf_counter()
            call()
            times.append(max(time.perf_counter() - started, 1e-9))
    return statistics.median(times), len(times)


def measure_steps(engine: Engine, progress: Callable[[str], None] = lambda text: None) -> tuple[StepRow, ...]:
    """Whole steps of an engine that is not started: prefills of several lengths, decodes at several batch sizes.

    Everything the engine does counts: forming the batch, the program, sampling, text. Equal steps give one row.
    """
    seen: dict[tuple[int, ...], list[float]] = {}
    limits = engine.scheduler.limits
    for batch in BATCHES:
        for prompt in PROMPTS:
            if batch > limits.max_num_seqs or prompt + 40 > limits.max_model_len:
                continue
            progress(f"steps of {batch} sequences over {prompt} tokens")
            _run(engine, batch, prompt, seen)
    rows = []
    for shape, times in sorted(seen.items()):
        tokens, sequences, decodes, context, chunks, pairs = shape
        rows.append(
            StepRow(
                seconds=statistics.median(times),
                tokens=tokens,
                sequences=sequences,
                decodes=decodes,
                decode_context_tokens=context,
                prefill_chunks=chunks,
                prefill_pairs=pairs,
                samples=len(times),
            )
        )
    return tuple(rows)


def _run(engine: Engine, batch: int, prompt: int, seen: dict[tuple[int, ...], list[float]]) -> None:
    """The same batch five times; the first one only warms up. Contexts are rounded to 16 tokens."""
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    for turn in range(5):
        shapes: list[tuple[int, ...]] = []
        with _watched(engine, shapes):
            for index in range(batch):
                text = [(7 * index + 3 * position) % 251 for position in range(prompt)]
                engine.add_request(f"{batch}-{prompt}-{index}", text, params, lambda output: None)
            while True:
                started = time.perf_counter()
                if not engine.step():
                    break
                seconds = time.perf_counter() - started
                if turn:
                    seen.setdefault(shapes[-1], []).append(seconds)


class _watched:  # noqa: N801 - reads as a phrase: `with _watched(engine, shapes)`
    """Notes the shape of every step of the engine while inside, in the cost model's terms."""

    def __init__(self, engine: Engine, shapes: list[tuple[int, ...]]) -> None:
        self._scheduler = engine.scheduler
        self._shapes = shapes

    def __enter__(self) -> None:
        self._pieces = self._scheduler.pieces
        self._scheduler.pieces = self._note  # type: ignore[method-assign]

    def __exit__(self, *unused: object) -> None:
        self._scheduler.pieces = self._pieces  # type: ignore[method-assign]

    def _note(self, step: object) -> list[Piece]:
        pieces = self._pieces(step)  # type: ignore[arg-type]
        decodes = [piece for piece in pieces if piece.start >= len(piece.request.prompt)]
        chunks = [piece for piece in pieces if piece.start < len(piece.request.prompt)]
        context = sum(-(-(piece.start + 1) // 16) * 16 for piece in decodes)
        pairs = sum(piece.tokens * piece.start + piece.tokens * (piece.tokens + 1) // 2 for piece in chunks)
        tokens = sum(piece.tokens for piece in pieces)
        self._shapes.append((tokens, len(pieces), len(decodes), context, len(chunks), pairs))
        return pieces
