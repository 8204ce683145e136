"""The argument list of `vllm serve` for one replica of a plan's group: made once, used by every export that runs vLLM.

Every argument is checked against `vllm_arguments.yaml` (see `codegen.exports.arguments`).
"""

from __future__ import annotations

import json

from codegen.exports.arguments import (
    ArgumentTable,
    EngineArguments,
    Value,
    check_arguments,
    engine_table,
)
from codegen.exports.checkpoint import (
    checkpoint_name,
    compresses_kv,
    keeps_uniform_kv,
    quantises_kv,
)
from codegen.exports.options import option_arguments
from codegen.exports.shared import activation_dtype, drain_s, online_quantization
from specs.document import DType
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup

__all__ = ["EngineArguments", "check_arguments", "drain_s", "memory_fraction", "vllm_arguments", "vllm_table"]

# vLLM 0.24.0's kernels for latent attention (MLA) take blocks of 32 or 64 tokens (FlashInfer), 64 (FlashMLA), 128
# (CUTLASS) or multiples of 16 (FlashAttention on Hopper with a 16-bit cache; Triton, the slowest and the last choice).
LARGEST_LATENT_BLOCK = 128


def vllm_table() -> ArgumentTable:
    """The table of vLLM's arguments that ships with the exports."""
    return engine_table("vllm")


def vllm_arguments(plan: Plan, group: ReplicaGroup) -> EngineArguments:
    """What every replica of `group` is started with: the plan's limits, without address and place in a cluster.

    The plan must have passed `checks.check_plan`. `InputError` where the model names no checkpoint.
    """
    limits, cache_, layout = group.limits, group.cache, group.layout
    notes: list[str] = []
    options: list[tuple[str, Value]] = [
        ("served-model-name", group.model),
        ("dtype", activation_dtype(plan, group)),
        ("tensor-parallel-size", layout.tensor_parallel),
        ("pipeline-parallel-size", layout.pipeline_parallel),
    ]
    quantization = online_quantization(plan, group, notes)
    if quantization:
        options.append(("quantization", quantization))
    if layout.attention_data_parallel > 1:
        options.append(("data-parallel-size", layout.attention_data_parallel))
        notes.append("With attention data parallelism the engine applies each limit to every data-parallel rank.")
    if layout.expert_parallel > 1:
        options.append(("enable-expert-parallel", True))
    options += _experts(group, notes)
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
        *option_arguments(plan, group, notes),
        # The plan was simulated with admission by the first chunk (`specs.service.batch_former`); the engine's default
        # is to wait until the whole prompt has blocks.
        ("scheduler-reserve-full-isl", False),
        ("shutdown-timeout", drain_s(plan, group)),
        *_kv_transfer(group),
    ]
    environment: tuple[tuple[str, str], ...] = ()
    if layout.pipeline_parallel > 1:
        # Without it the engine splits the layers itself, and the fullest device may hold more than the plan counted.
        environment = (("VLLM_PP_LAYER_PARTITION", ",".join(str(layers) for layers in layout.pipeline_stages)),)
    return EngineArguments(checkpoint_name(plan, group.model), tuple(options), environment, tuple(notes))


def _experts(group: ReplicaGroup, notes: list[str]) -> list[tuple[str, Value]]:
    """Experts placed by load: as many copies as planned; where they stand, the engine finds out by what it measures."""
    if group.experts is None:
        return []
    notes.append(
        "The engine places experts by the loads that it measures itself, from an even placement on; the plan's own "
        f"placement, whose fullest rank has {group.experts.skew:.2f} times the mean load, is not handed to it."
    )
    config = json.dumps({"num_redundant_experts": group.layout.redundant_experts}, separators=(",", ":"))
    return [("enable-eplb", True), ("eplb-config", config)]


def _kv_transfer(group: ReplicaGroup) -> list[tuple[str, Value]]:
    """How KV caches are handed over. A failed transfer fails the request: a decode replica never computes a prompt."""
    if group.role == "unified":
        return []
    role = {"prefill": "kv_producer", "decode": "kv_consumer"}[group.role]
    stated = {"kv_connector": "NixlConnector", "kv_role": role, "kv_load_failure_policy": "fail"}
    return [("kv-transfer-config", json.dumps(stated, separators=(",", ":")))]


def memory_fraction(group: ReplicaGroup) -> float:
    """Share of the device's memory that the plan lets the engine take, to four decimals (the bytes are rounded)."""
    memory = group.cache.memory
    return min(1.0, round(memory.available_bytes / memory.device_bytes, 4))


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
    model_dtype = activation_dtype(plan, group)
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
