"""The argument list of `vllm serve` for one replica of a plan's group: made once, used by every export that runs vLLM.

Every argument is checked against `vllm_arguments.yaml`, the engine's own arguments in a stated version. An argument
that the table does not know, or a value that it does not allow, is a fault of the export and stops it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Literal

import yaml

from codegen.exports.checkpoint import (
    checkpoint_dtype,
    checkpoint_name,
    compresses_kv,
    keeps_uniform_kv,
    quantises_kv,
)
from specs.document import DType
from specs.errors import CapstanError, InputError
from specs.plan import Plan, ReplicaGroup

Value = str | int | float | bool

# vLLM 0.24.0's kernels for latent attention (MLA) take blocks of 32 or 64 tokens (FlashInfer), 64 (FlashMLA), 128
# (CUTLASS) or multiples of 16 (FlashAttention on Hopper with a 16-bit cache; Triton, the slowest and the last choice).
LARGEST_LATENT_BLOCK = 128

_SIXTEEN_BIT = {DType.FP16: "float16", DType.BF16: "bfloat16", DType.FP32: "float32"}


@dataclass(frozen=True)
class ArgumentSpec:
    """One row of the table of the engine's arguments."""

    name: str
    type: Literal["int", "float", "str", "enum", "flag"]
    source: str
    keeps: str  # what of the plan it keeps, in words
    values: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None  # exclusive lower limit
    maximum: float | None = None
    negatable: bool = False
    default: Value | None = None

    def fault(self, value: Value) -> str | None:
        """What is wrong with `value`, or None."""
        if self.type == "flag":
            if not isinstance(value, bool):
                return "is a flag and takes True or False"
            return None if value or self.negatable else "has no negative form"
        if self.type in ("int", "float"):
            if isinstance(value, bool) or not isinstance(value, int if self.type == "int" else (int, float)):
                return f"must be of type {self.type}"
            if self.minimum is not None and value < self.minimum:
                return f"must be at least {self.minimum:g}"
            if self.above is not None and value <= self.above:
                return f"must be above {self.above:g}"
            if self.maximum is not None and value > self.maximum:
                return f"must be at most {self.maximum:g}"
            return None
        if not isinstance(value, str) or not value:
            return "must be text"
        if self.type == "enum" and value not in self.values:
            return f"must be one of {', '.join(self.values)}"
        return None


@dataclass(frozen=True)
class ArgumentTable:
    """The arguments of one engine in one version, and the container images of that version by device vendor."""

    engine: str
    version: str
    images: Mapping[str, str]
    sources: Mapping[str, str]
    environment: Mapping[str, str]
    arguments: Mapping[str, ArgumentSpec]


@dataclass(frozen=True)
class EngineArguments:
    """`vllm serve MODEL OPTIONS` with its environment. Option names have no dashes in front."""

    model: str
    options: tuple[tuple[str, Value], ...]
    environment: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_arguments(self.options)

    def with_options(self, *options: tuple[str, Value]) -> EngineArguments:
        """The same with `options` added at the end; an option is stated once."""
        return EngineArguments(self.model, (*self.options, *options), self.environment, self.notes)

    def pairs(self) -> list[list[str]]:
        """One list of words per option, as a command line takes them: ["--port", "8000"], ["--headless"]."""
        return [_words(name, value) for name, value in self.options]

    def to_list(self) -> list[str]:
        """The words after `vllm serve`."""
        return [self.model, *(word for words in self.pairs() for word in words)]


def _words(name: str, value: Value) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


@cache
def vllm_table() -> ArgumentTable:
    """The table of vLLM's arguments that ships with the exports."""
    raw: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("vllm_arguments.yaml").read_text(encoding="utf-8"))
    arguments = {}
    for name, row in raw["arguments"].items():
        fields = dict(row) | {"values": tuple(row.get("values", ())), "source": raw["source"][row["source"]]}
        arguments[name] = ArgumentSpec(name=name, **fields)
    return ArgumentTable(raw["engine"], str(raw["version"]), raw["image"], raw["source"], raw["environment"], arguments)


def check_arguments(options: tuple[tuple[str, Value], ...]) -> None:
    """Refuse what the engine's table does not allow: `CapstanError`, for such a list is a fault of the export."""
    table = vllm_table()
    seen = set()
    for name, value in options:
        spec = table.arguments.get(name)
        if spec is None:
            raise CapstanError(f"--{name} is not an argument of {table.engine} {table.version}")
        fault = spec.fault(value)
        if fault:
            raise CapstanError(f"--{name} {value!r}: {fault} ({table.engine} {table.version})")
        if name in seen:
            raise CapstanError(f"--{name} is stated twice")
        seen.add(name)


def vllm_arguments(plan: Plan, group: ReplicaGroup) -> EngineArguments:
    """What every replica of `group` is started with: the plan's limits, without address and place in a cluster.

    The plan must have passed `checks.check_plan`. `InputError` where the model names no checkpoint.
    """
    limits, cache_, layout = group.limits, group.cache, group.layout
    notes: list[str] = []
    options: list[tuple[str, Value]] = [
        ("served-model-name", group.model),
        ("dtype", _SIXTEEN_BIT.get(group.weights_dtype) or _activation_dtype(plan, group)),
        ("tensor-parallel-size", layout.tensor_parallel),
        ("pipeline-parallel-size", layout.pipeline_parallel),
    ]
    quantization = _quantization(plan, group, notes)
    if quantization:
        options.append(("quantization", quantization))
    if layout.attention_data_parallel > 1:
        options.append(("data-parallel-size", layout.attention_data_parallel))
        notes.append("With attention data parallelism the engine applies each limit to every data-parallel rank.")
    if layout.expert_parallel > 1:
        options.append(("enable-expert-parallel", True))
    options += [
        ("max-num-seqs", limits.max_num_seqs),
        ("max-num-batched-tokens", limits.max_num_batched_tokens),
        ("max-model-len", _max_model_len(plan, group, notes)),
        ("gpu-memory-utilization", memory_fraction(group)),
        *_kv_size(plan, group, notes),
        ("kv-cache-dtype", _kv_cache_dtype(plan, group)),
        ("enable-prefix-caching", cache_.prefix_caching),
        ("enable-chunked-prefill", group.scheduling.chunked_prefill),
        ("scheduling-policy", group.scheduling.order),
        # The plan was simulated with admission by the first chunk (`specs.service.batch_former`); the engine's default
        # is to wait until the whole prompt has blocks.
        ("scheduler-reserve-full-isl", False),
        ("shutdown-timeout", drain_s(plan, group)),
    ]
    environment: tuple[tuple[str, str], ...] = ()
    if layout.pipeline_parallel > 1:
        # Without it the engine splits the layers itself, and the fullest device may hold more than the plan counted.
        environment = (("VLLM_PP_LAYER_PARTITION", ",".join(str(layers) for layers in layout.pipeline_stages)),)
    return EngineArguments(checkpoint_name(plan, group.model), tuple(options), environment, tuple(notes))


def memory_fraction(group: ReplicaGroup) -> float:
    """Share of the device's memory that the plan lets the engine take, to four decimals (the bytes are rounded)."""
    memory = group.cache.memory
    return min(1.0, round(memory.available_bytes / memory.device_bytes, 4))


def drain_s(plan: Plan, group: ReplicaGroup) -> int:
    """Seconds that running requests get when a replica is stopped: twice the longest percentile that was simulated of
    the classes that it serves, in whole minutes, from one to sixty."""
    classes = {route.request_class for route in plan.routes if route.group == group.id}
    predicted = (item.e2e_s for item in plan.predictions.classes if item.request_class in classes)
    longest = max((seconds for table in predicted for seconds in table.values()), default=0.0)
    return 60 * min(60, max(1, ceil(2 * longest / 60)))


def _activation_dtype(plan: Plan, group: ReplicaGroup) -> str:
    """Dtype of activations where weights are quantised: the checkpoint's 16-bit type."""
    config = plan.architectures.get(group.model, {})
    stated = str(config.get("torch_dtype") or config.get("dtype") or "")
    return "float16" if stated in ("float16", "half") else "bfloat16"


def _quantization(plan: Plan, group: ReplicaGroup, notes: list[str]) -> str | None:
    """`fp8` where the engine must quantise a 16-bit checkpoint while loading; None where the checkpoint decides."""
    held = checkpoint_dtype(plan, group.model)
    if held is not None:
        if held != group.weights_dtype:
            notes.append(
                f"The checkpoint's own configuration says {held} weights, the plan {group.weights_dtype}: the engine "
                "loads what the checkpoint holds. It fits, but the plan's times are those of the planned dtype."
            )
        return None
    if group.weights_dtype is DType.FP8:
        notes.append("The checkpoint is not quantised: the engine turns its weights into FP8 while loading.")
        return "fp8"
    return None


def _kv_cache_dtype(plan: Plan, group: ReplicaGroup) -> str:
    """`auto` where that means the plan's dtype: the model's own type, and a checkpoint that says nothing of KV."""
    kv_dtype = group.cache.kv_dtype
    names = {DType.FP8: "fp8", DType.FP16: "float16", DType.BF16: "bfloat16", DType.FP4: "nvfp4"}
    if kv_dtype not in names:
        raise InputError(
            f"the export has no KV cache of {kv_dtype}",
            field=f"groups.{group.id}.cache.kv_dtype",
            expected=", ".join(names),
        )
    model_dtype = _SIXTEEN_BIT.get(group.weights_dtype) or _activation_dtype(plan, group)
    if names[kv_dtype] == model_dtype and not quantises_kv(plan, group.model):
        return "auto"
    return names[kv_dtype]


def _max_model_len(plan: Plan, group: ReplicaGroup, notes: list[str]) -> int:
    """The plan's longest request, less where it would need the one block that the engine keeps for itself."""
    block = LARGEST_LATENT_BLOCK if compresses_kv(plan, group.model) else group.cache.block_size_tokens
    usable = (group.cache.capacity_tokens // block - 1) * block
    if group.limits.max_model_len <= usable:
        return group.limits.max_model_len
    if usable < 1:
        raise InputError(
            f"{group.cache.capacity_tokens} tokens of KV cache are no more than the one block that the engine keeps",
            field=f"groups.{group.id}.cache.num_blocks",
            expected=f"more than {2 * block} tokens",
        )
    notes.append(
        f"The engine keeps one KV block for itself, so the longest request is {usable} tokens "
        f"(the plan: {group.limits.max_model_len})."
    )
    return usable


def _kv_size(plan: Plan, group: ReplicaGroup, notes: list[str]) -> list[tuple[str, Value]]:
    """The plan's KV cache: as blocks where the plan's blocks are the engine's, in bytes otherwise.

    A block of the engine holds `block-size` tokens of one group of equal layers. Where windowed or recurrent layers
    stand beside full attention there are several groups, and a count of blocks means something else than in the plan.
    The block size of latent attention (MLA) is the engine's to choose: its fastest kernels take 64 or 128 tokens only,
    and one that cannot take a stated size is passed over in silence for a slower one.
    """
    cache_ = group.cache
    latent = compresses_kv(plan, group.model)
    if keeps_uniform_kv(plan, group.model) and not latent:
        return [("block-size", cache_.block_size_tokens), ("num-gpu-blocks-override", cache_.num_blocks)]
    notes.append(
        "This model's KV cache is given in bytes, and the engine picks the block size that its attention kernel takes."
        if latent
        else "Layers of this model keep unequal KV, so the size of the KV cache is given in bytes: the engine divides "
        "it into blocks in its own way."
    )
    planned = int(cache_.capacity_tokens * cache_.memory.kv_bytes_per_token)
    size = ("kv-cache-memory-bytes", min(planned, cache_.memory.kv_bytes) or cache_.memory.kv_bytes)
    return [size] if latent else [("block-size", cache_.block_size_tokens), size]
