"""Points: deployments under closed-loop load as tables of measurements state them, and what a row means.

Columns are those of published serving measurements; blank layout columns mean 1. A layout that contradicts itself is
read as the one that can have been run, and one that no measured point has is predicted all the same: both are said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from planner.estimate.protocol import INFERENCEX_LENGTHS
from specs.architecture import load_architecture
from specs.architecture.mlps import MixtureOfExperts
from specs.architecture.model import Architecture, Quantisation
from specs.catalog import engine_names, load_device
from specs.document import DType
from specs.errors import InputError, nearest_names
from specs.profile import DeviceFacts

NAMES = ("model", "gpu", "engine", "engine_version", "precision")
SIZES = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
LOADS = ("isl", "osl", "concurrency")
COLUMNS = (*NAMES, *SIZES, *LOADS)
# Mixtures published in 16 bit are served in 8 bit from checkpoints with one scale per block of so many columns.
_SCALE_BLOCK = 128
_MOST_TOKENS = 1_000_000
_MOST_CLIENTS = 16_384
PRECISIONS = {
    "": DType.BF16,
    "bf16": DType.BF16,
    "bfloat16": DType.BF16,
    "fp16": DType.FP16,
    "float16": DType.FP16,
    "fp8": DType.FP8,
    "fp8_block": DType.FP8,
    "int8": DType.INT8,
    "fp4": DType.FP4,
    "nvfp4": DType.FP4,
    "mxfp4": DType.FP4,
    "int4": DType.INT4,
    "w4a16": DType.INT4,
}


@dataclass(frozen=True)
class Point:
    """One row, read but not yet judged: sizes are whole numbers, 1 where the cell was blank.

    0 means 1 too where tables write it for what a deployment does not have: attention dp, moe tp and moe ep.
    """

    model: str
    gpu: str
    engine: str
    engine_version: str
    precision: str
    tp_size: int
    pp_size: int
    attention_dp_size: int
    moe_tp_size: int
    moe_ep_size: int
    isl: int
    osl: int
    concurrency: int

    @classmethod
    def read(cls, cells: Mapping[str, object]) -> Point:
        """From a row's cells by column. `InputError` names the column of an empty, NaN, negative or broken cell."""
        names = {name: str(cells.get(name) or "").strip() for name in NAMES}
        for name in ("model", "gpu", "engine"):
            if not names[name]:
                raise InputError("is empty", field=name, expected="a name")
        sizes = {name: _whole(cells, name, blank=1) for name in SIZES}
        for name in ("tp_size", "pp_size"):
            if not sizes[name]:
                raise InputError("is 0", field=name, expected="a whole number from 1, or nothing (1)")
        loads = {name: _whole(cells, name, blank=None) for name in LOADS}
        for name, value in loads.items():
            most = _MOST_CLIENTS if name == "concurrency" else _MOST_TOKENS
            if not 1 <= value <= most:
                raise InputError(f"is {value}", field=name, expected=f"a whole number from 1 to {most:,}")
        return cls(
            names["model"],
            names["gpu"],
            names["engine"],
            names["engine_version"],
            names["precision"],
            sizes["tp_size"],
            sizes["pp_size"],
            sizes["attention_dp_size"] or 1,
            sizes["moe_tp_size"] or 1,
            sizes["moe_ep_size"] or 1,
            loads["isl"],
            loads["osl"],
            loads["concurrency"],
        )


@dataclass(frozen=True)
class Deployment:
    """What a point runs: names resolved, one consistent layout.

    `doubts`: why a prediction is worth less than those of measured points; `notes`: what else was understood.
    """

    architecture: Architecture
    device: DeviceFacts
    engine: str
    engine_version: str
    weights_dtype: DType
    tensor_parallel: int
    pipeline_parallel: int
    attention_data_parallel: int
    expert_parallel: int
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def devices(self) -> int:
        """All that it takes."""
        return self.tensor_parallel * self.attention_data_parallel * self.pipeline_parallel


def deployment_of(point: Point) -> Deployment:
    """Resolve names and layout. `InputError` names the column, and the nearest names of what is not known."""
    with _column("model", point.model):
        architecture = load_architecture(point.model)
    with _column("gpu", point.gpu):
        device = load_device(point.gpu)
    engine = point.engine.lower()
    if engine not in engine_names():
        names = engine_names()
        raise InputError(
            f"unknown engine {point.engine!r}",
            field="engine",
            expected=f"one of {', '.join(names)}",
            nearest=nearest_names(engine, names),
        )
    weights, notes = _weights(point, architecture, device)
    if weights is DType.FP8 and architecture.quantisation is None and is_mixture(architecture):
        architecture = replace(architecture, quantisation=Quantisation(DType.FP8, _SCALE_BLOCK))
    tensor, data, expert, misread = _spread(architecture, *_layout(point, architecture, device))
    return Deployment(
        architecture,
        device,
        engine,
        point.engine_version,
        weights,
        tensor,
        point.pp_size,
        data,
        expert,
        notes,
        (*misread, *_unmeasured(point, architecture, device, tensor, data)),
    )


def is_mixture(architecture: Architecture) -> bool:
    """Whether any layer is a mixture of experts."""
    return any(isinstance(layer.mlp, MixtureOfExperts) for layer, _ in architecture.distinct_layers)


@contextmanager
def _column(name: str, value: str) -> Iterator[None]:
    """What is wrong inside is wrong with this column."""
    try:
        yield
    except InputError as error:
        message = error.message if value[:200] in error.message else f"{value[:200]!r}: {error.message}"
        raise replace(error, message=message, field=name) from None


def _unmeasured(
    point: Point, architecture: Architecture, device: DeviceFacts, tensor: int, data: int
) -> tuple[str, ...]:
    """In what the deployment is unlike every point that predictions were compared with."""
    found = []
    ranks, node = tensor * data, max(device.gpus_per_node, device.fast_domain)
    if ranks > node:
        found.append(f"tp {tensor} x attention dp {data} is over {node} devices, a node of {device.name}: not measured")
    if data > 1 and not is_mixture(architecture):
        found.append(f"attention dp {data} of a model without experts, on {ranks} devices: engines do not serve it so")
    elif data > 1:
        found.append(f"attention dp {data}: no point with it was measured")
    if point.pp_size > 1:
        found.append(f"pp {point.pp_size}: no point with pipeline stages was measured")
    length, context = point.isl + point.osl, architecture.max_position_embeddings
    if length > context:
        found.append(f"isl + osl is {length:,} tokens, more than the model's context of {context:,}")
    return tuple(found)


def _spread(
    architecture: Architecture, tensor: int, data: int, expert: int, notes: tuple[str, ...]
) -> tuple[int, int, int, tuple[str, ...]]:
    """Experts whose width the ranks cannot cut are spread over them, which is how engines serve such a model."""
    obstacle = architecture.tensor_parallel_obstacle(tensor, expert) if data == 1 else None
    if obstacle is None or architecture.tensor_parallel_obstacle(tensor, tensor) is not None:
        return tensor, data, expert, notes
    return tensor, data, tensor, (*notes, f"mislabelled layout: {obstacle}; read as ep {tensor}")


def _whole(cells: Mapping[str, object], name: str, blank: int | None) -> int:
    cell = cells.get(name)
    text = "" if cell is None else str(cell).strip()
    if not text:
        if blank is None:
            raise InputError("is empty", field=name, expected="a whole number")
        return blank
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"is {text[:40]!r}", field=name, expected="a whole number") from None
    if not math.isfinite(value) or value < 0 or value != int(value):
        raise InputError(f"is {text[:40]}", field=name, expected="a whole number, not negative")
    return int(value)


def _weights(point: Point, architecture: Architecture, device: DeviceFacts) -> tuple[DType, tuple[str, ...]]:
    name = point.precision.lower()
    if name not in PRECISIONS:
        raise InputError(
            f"unknown precision {point.precision!r}",
            field="precision",
            expected=f"one of {', '.join(key for key in PRECISIONS if key)}",
            nearest=nearest_names(name, PRECISIONS),
        )
    stated, native = PRECISIONS[name], architecture.native_weights_dtype
    if native in (DType.FP4, DType.INT4) and stated is not native and native in device.weight_dtypes:
        return native, (f"{architecture.name} is published in {native.value} only: precision {name} taken for that",)
    return stated, ()


def _layout(point: Point, architecture: Architecture, device: DeviceFacts) -> tuple[int, int, int, tuple[str, ...]]:
    """(tensor parallel, attention data parallel, expert parallel, notes)."""
    tensor, data = point.tp_size, point.attention_dp_size
    if not is_mixture(architecture):
        return tensor, data, 1, ()
    inside, spread = point.moe_tp_size, point.moe_ep_size
    stated = f"tp {tensor} x attention dp {data} with moe tp {inside} x ep {spread}"
    if inside > 1 and inside == spread and tensor * data == inside * spread and (data == 1 or tensor == 1):
        beyond = tensor * data > device.fast_domain
        if beyond or (point.isl, point.osl) in INFERENCEX_LENGTHS:
            note = f"mislabelled layout ({stated}): both count the same devices, read as tp {inside}"
            return inside, 1, 1, (note,)
    if inside * spread == tensor * data:
        return tensor, data, spread, ()
    if (tensor * data) % spread == 0 and inside == 1:
        return tensor, data, spread, (f"mislabelled layout ({stated}): moe tp read as {tensor * data // spread}",)
    if inside * spread > tensor * data and data == 1:
        note = f"mislabelled layout ({stated}): read as tp {inside * spread}"
        return inside * spread, 1, spread, (note,)
    expert = math.gcd(spread, tensor * data)
    return tensor, data, expert, (f"mislabelled layout ({stated}): read as ep {expert} on {tensor * data} devices",)
