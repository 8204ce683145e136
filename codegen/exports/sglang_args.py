"""The argument list of SGLang's server for one replica of a plan's group, used by every export that runs SGLang.

Every argument is checked against `sglang_arguments.yaml` (see `codegen.exports.arguments`). Under attention data
parallelism SGLang takes limits for all ranks together, where a plan states those of one.
"""

from __future__ import annotations

from math import ceil

from codegen.exports.arguments import EngineArguments, Value
from codegen.exports.checkpoint import checkpoint_name, keeps_uniform_kv, quantises_kv
from codegen.exports.shared import SIXTEEN_BIT, activation_dtype, online_quantization
from specs.document import DType
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup

TRANSFER_BACKEND = "nixl"
_RESERVE = 0.7  # of what running requests may still produce, kept free at a conservativeness of 1
_KV_DTYPES = {DType.FP8: "fp8_e4m3", DType.BF16: "bfloat16"}


def sglang_arguments(plan: Plan, group: ReplicaGroup) -> EngineArguments:
    """What every replica of `group` is started with: the plan's limits, without port and place in a cluster.

    The plan must have passed `checks.check_plan`. `InputError` for what SGLang has no argument for.
    """
    if group.experts is not None:
        raise InputError(
            "places experts by measured loads, which this version does not write for sglang",
            field=f"groups.{group.id}.experts",
            expected="null: a plan without `expert_load` of its model, or engine vllm",
        )
    limits, cache, layout, scheduling = group.limits, group.cache, group.layout, group.scheduling
    ranks = layout.attention_data_parallel
    notes: list[str] = []
    options: list[tuple[str, Value]] = [
        ("served-model-name", group.model),
        ("host", "0.0.0.0"),
        ("dtype", activation_dtype(plan, group)),
        ("tensor-parallel-size", layout.tensor_parallel * ranks),
        ("pipeline-parallel-size", layout.pipeline_parallel),
    ]
    quantization = online_quantization(plan, group, notes)
    if quantization:
        options.append(("quantization", quantization))
    if ranks > 1:
        options += [("data-parallel-size", ranks), ("enable-dp-attention", True)]
    if layout.expert_parallel > 1:
        options.append(("expert-parallel-size", layout.expert_parallel))
    budget = limits.max_num_batched_tokens * ranks
    options += [
        ("max-running-requests", limits.max_num_seqs * ranks),
        ("chunked-prefill-size", budget),
        ("max-prefill-tokens", budget),
        ("context-length", limits.max_model_len),
        ("mem-fraction-static", static_fraction(group)),
        ("max-total-tokens", _total_tokens(plan, group)),
        ("page-size", cache.block_size_tokens),
        ("kv-cache-dtype", _kv_cache_dtype(plan, group)),
        ("schedule-policy", "fcfs"),
        ("schedule-conservativeness", round(scheduling.output_reserve / _RESERVE, 4)),
    ]
    if not cache.prefix_caching:
        options.append(("disable-radix-cache", True))
    if scheduling.prefill_policy == "mixed_chunked":
        options.append(("enable-mixed-chunk", True))
    options += _handover(plan, group)
    environment: tuple[tuple[str, str], ...] = ()
    if layout.pipeline_parallel > 1:
        environment = (("SGLANG_PP_LAYER_PARTITION", ",".join(str(layers) for layers in layout.pipeline_stages)),)
    return EngineArguments(
        checkpoint_name(plan, group.model), tuple(options), environment, tuple(notes), engine="sglang"
    )


def static_fraction(group: ReplicaGroup) -> float:
    """Share of what is free after start-up that weights and caches take, rounded up to four decimals."""
    memory = group.cache.memory
    free = memory.device_bytes - memory.context_bytes - memory.collective_bytes
    return min(0.99, ceil(10_000 * (memory.weights_bytes + memory.state_bytes + memory.kv_bytes) / free) / 10_000)


def _total_tokens(plan: Plan, group: ReplicaGroup) -> int:
    """Tokens of the KV cache of one rank."""
    if not keeps_uniform_kv(plan, group.model):
        raise InputError(
            "keeps unequal KV in its layers, and the export to sglang states the cache in tokens that all layers keep",
            field=f"groups.{group.id}.model",
            expected="a model whose layers all keep every token, or engine vllm",
        )
    return group.cache.capacity_tokens


def _kv_cache_dtype(plan: Plan, group: ReplicaGroup) -> str:
    """`auto` where that means the plan's dtype: the model's own type, and a checkpoint that says nothing of KV."""
    kv_dtype = group.cache.kv_dtype
    if SIXTEEN_BIT.get(kv_dtype) == activation_dtype(plan, group) and not quantises_kv(plan, group.model):
        return "auto"
    if kv_dtype not in _KV_DTYPES:
        raise InputError(
            f"the export has no KV cache of {kv_dtype}",
            field=f"groups.{group.id}.cache.kv_dtype",
            expected=", ".join(dtype.value for dtype in _KV_DTYPES),
        )
    return _KV_DTYPES[kv_dtype]


def _handover(plan: Plan, group: ReplicaGroup) -> list[tuple[str, Value]]:
    if group.role == "unified":
        return []
    options: list[tuple[str, Value]] = [
        ("disaggregation-mode", group.role),
        ("disaggregation-transfer-backend", TRANSFER_BACKEND),
    ]
    if group.role == "prefill" and group.hands_over_to is not None:
        there = plan.group(group.hands_over_to).layout
        options += [
            ("disaggregation-decode-tp", there.tensor_parallel * there.attention_data_parallel),
            ("disaggregation-decode-dp", there.attention_data_parallel),
        ]
    return options
