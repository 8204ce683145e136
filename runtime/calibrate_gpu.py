"""Measurements of one GPU: copies, matrix products, attention, launches, clocks, as kernel tables and `Measurements`.

What to measure is `calibrate_gpu_points`, what times it `calibrate_gpu_timer` or, in tests, a made-up device. Attention
is torch's own (contiguous cache, no pages); every row says which kernel it is. What is not measured is in the notes.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from runtime.calibrate_gpu_points import Point, PointFamily, designed_points
from runtime.calibrate_gpu_timer import L2, Call, Clocks, Timer
from specs.document import DType
from specs.errors import InputError
from specs.measurements import Environment, KernelRow, Measurements

Progress = Callable[[float, str], None]  # (share done, what is measured)
FP8_CAPABILITY = (8, 9)  # from this compute capability on
MEMORY_SHARE = 0.25  # of the free memory that the operands of one point may take
TABLE_NAMES = {DType.BF16: "bfloat16", DType.FP8: "fp8"}
ROW_FAMILIES = {
    "copy": "elementwise",
    "gemm": "gemm",
    "generation_attention": "decode_attention",
    "context_attention": "prefill_attention",
}
SOURCES: dict[PointFamily, str] = {
    "copy": "torch.Tensor.copy_",
    "gemm": "torch.nn.functional.linear",
    "generation_attention": "torch.nn.functional.scaled_dot_product_attention",
    "context_attention": "torch.nn.functional.scaled_dot_product_attention",
}
FP8_SOURCE = "torch._scaled_mm, activations cast at unit scale"


@dataclass(frozen=True)
class Seen:
    """A measured point."""

    point: Point
    seconds: float
    samples: int


@dataclass(frozen=True)
class Gpu:
    """What there is to measure: torch's device, how it calls itself, and what it takes."""

    device: str  # cuda, or cpu in tests
    name: str
    weights: tuple[DType, ...]
    free_bytes: float
    l2_bytes: int
    count: int


def find_gpu() -> Gpu:
    """The first CUDA device. `InputError` where torch finds none."""
    if not torch.cuda.is_available():
        raise InputError(
            f"torch {torch.__version__} finds no CUDA device",
            field="--device",
            expected="a machine with an NVIDIA GPU, its driver and a CUDA build of torch; or `--device cpu` to measure "
            "the CPU; or `--from TABLES --device NAME` to fit tables that were measured elsewhere",
        )
    properties = torch.cuda.get_device_properties(0)
    takes_fp8 = torch.version.hip is None and torch.cuda.get_device_capability(0) >= FP8_CAPABILITY
    return Gpu(
        "cuda",
        properties.name,
        (DType.BF16, DType.FP8) if takes_fp8 else (DType.BF16,),
        float(torch.cuda.mem_get_info(0)[0]),
        int(properties.L2_cache_size),
        torch.cuda.device_count(),
    )


def measure_gpu(
    gpu: Gpu,
    device: str,
    timer: Timer,
    budget_s: float,
    progress: Progress = lambda share, what: None,
    clocks: Callable[[], Clocks] = Clocks,
    now: Callable[[], float] = time.monotonic,
) -> tuple[Measurements, list[Seen]]:
    """Measure until all designed points are seen or `budget_s` is spent. `device`: the GPU's catalogue name."""
    points = designed_points(gpu.weights, DType.BF16, MEMORY_SHARE * gpu.free_bytes)
    started = now()
    progress(0.0, "launches")
    launches = timer.launches()
    seen: list[Seen] = []
    too_large = 0
    for number, point in enumerate(points):
        spent = now() - started
        if spent > budget_s:
            break
        progress(max(number / len(points), spent / budget_s), point.text)
        try:
            seconds, samples = timer.seconds(call_of(point, gpu.device))
        except torch.OutOfMemoryError:
            too_large += 1
            continue
        seen.append(Seen(point, seconds, samples))
    at_work = clocks()
    notes = _notes(gpu, len(points), len(seen), too_large, at_work)
    versions = {"torch": torch.__version__} | ({"driver": at_work.driver} if at_work.driver else {})
    environment = Environment(
        device=device,
        engine="capstan",
        versions=versions,
        clock_hz=at_work.clock_hz,
        memory_clock_hz=at_work.memory_clock_hz,
        power_cap_w=at_work.power_cap_w,
    )
    kernels = [_launch_row(way, seconds) for way, seconds in launches.items()]
    kernels += [_row(one, timer.l2) for one in seen]
    progress(1.0, "done")
    return Measurements(source=gpu.name, environment=environment, kernels=tuple(kernels), notes=notes), seen


def _notes(gpu: Gpu, designed: int, measured: int, too_large: int, clocks: Clocks) -> tuple[str, ...]:
    notes = [f"{measured} of {designed} designed points measured"]
    if too_large:
        notes.append(f"{too_large} points did not fit the free memory")
    others = "" if gpu.count == 1 else f" (there are {gpu.count} GPUs; one is measured)"
    notes.append(f"unmeasured: all-reduce and other collectives{others}, experts, FP8 caches, windows, cached prefixes")
    notes.append("attention is torch's over a contiguous cache: paged kernels of an engine differ")
    if clocks.clock_hz is None:
        notes.append("unmeasured: clocks (nvidia-smi does not answer)")
    return tuple(notes)


def call_of(point: Point, device: str) -> Call:
    """The torch call of a point, its operands made: random values, as zeros draw less power and clock higher."""
    size = point.shape

    def new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_()

    if point.family == "copy":
        source = new(size["bytes"] // 4, dtype=torch.float32)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    if point.family == "gemm":
        x = new(size["m"], size["k"])
        weight = new(size["n"], size["k"])
        if point.dtype is not DType.FP8:
            return lambda: torch.nn.functional.linear(x, weight)
        fp8 = torch.float8_e4m3fn
        one, eight_bit = torch.ones((), device=device), weight.to(fp8).t()
        del weight
        return lambda: torch._scaled_mm(x.to(fp8), eight_bit, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    prefill = point.family == "context_attention"
    batch, heads, kv_heads, dim = (size[name] for name in ("batch", "heads", "kv_heads", "head_dim"))
    query = new(batch, heads, size["tokens"] if prefill else 1, dim)
    keys, values = (new(batch, kv_heads, size["tokens" if prefill else "keys"], dim) for _ in range(2))
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda: attention(query, keys, values, is_causal=prefill, enable_gqa=heads != kv_heads)


def _row(one: Seen, l2: L2) -> KernelRow:
    return KernelRow(
        family=ROW_FAMILIES[one.point.family],
        implementation=_source(one.point),
        dtype=one.point.dtype,
        shapes=one.point.shape,
        seconds=one.seconds,
        bytes=one.point.bytes,
        flops=one.point.flops,
        samples=one.samples,
        l2=l2,
    )


def _launch_row(way: str, seconds: float) -> KernelRow:
    return KernelRow(
        family="launch",
        implementation=way,
        dtype=DType.FP32,
        shapes={"elements": 1},
        seconds=seconds,
        bytes=8.0,
        flops=1.0,
    )


def _source(point: Point) -> str:
    return FP8_SOURCE if point.family == "gemm" and point.dtype is DType.FP8 else SOURCES[point.family]


def kernel_tables(seen: Sequence[Seen], gpu: str, l2: L2) -> dict[str, dict[str, list[object]]]:
    """Tables in the schema of the published ones, by family, as columns, with `l2` and `samples`; milliseconds.

    Copies and launches are in no published table; they stay in the `Measurements`.
    """
    tables: dict[str, dict[str, list[object]]] = {}
    for one in sorted(seen, key=lambda one: (one.point.family, one.point.dtype.value, sorted(one.point.shape.items()))):
        if one.point.family == "copy":
            continue
        row = {
            "framework": "torch",
            "version": torch.__version__,
            "device": gpu,
            "op_name": one.point.family,
            "kernel_source": _source(one.point),
            **_shape_columns(one.point),
            "l2": l2,
            "samples": one.samples,
            "latency": float(f"{one.seconds * 1e3:.6g}"),
        }
        columns = tables.setdefault(one.point.family, {name: [] for name in row})
        for name, value in row.items():
            columns[name].append(value)
    return tables


def _shape_columns(point: Point) -> dict[str, object]:
    size, dtype = point.shape, TABLE_NAMES[point.dtype]
    if point.family == "gemm":
        return {"gemm_dtype": dtype, **size}
    prefill = point.family == "context_attention"
    return {
        "batch_size": size["batch"],
        "isl": size["tokens"] if prefill else 1,
        "num_heads": size["heads"],
        "num_key_value_heads": size["kv_heads"],
        "head_dim": size["head_dim"],
        "beam_width": 1,
        "attn_dtype": dtype,
        "kv_cache_dtype": dtype,
        "step": 0 if prefill else size["keys"] - 1,
        "window_size": 0,
    }


def csv_text(columns: dict[str, list[object]]) -> str:
    """Columns as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return stream.getvalue()
