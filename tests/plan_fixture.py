"""Plans written by hand, for tests that need one without running the planner. Figures are round, not measured.

`chat_plan()` is the plain case: one model, one group. `fleet_plan()` has two models, three groups, a class split over
two groups, and a pipeline. Build variations with `changed(group, **fields)` and `plan_of(groups, routes)`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from specs.architecture import load_architecture, weight_bytes_per_rank
from specs.catalog import load_profile
from specs.document import DType
from specs.plan import (
    Cache,
    Certificate,
    Check,
    ClassPrediction,
    Cost,
    DeviceSlot,
    GroupPrediction,
    Interval,
    Layout,
    Limits,
    MemoryBudget,
    Plan,
    Predictions,
    ReplicaGroup,
    ReplicaPlacement,
    Route,
    Scheduling,
    SimulatedWindow,
)
from specs.profile import DeviceFacts, EngineProfile

LLAMA_70B: dict[str, Any] = dict(load_architecture("meta-llama/Llama-3.1-70B").config)
QWEN_30B_A3B: dict[str, Any] = dict(load_architecture("Qwen/Qwen3-30B-A3B").config)
GPT_OSS_20B: dict[str, Any] = dict(load_architecture("openai/gpt-oss-20b").config)
DEEPSEEK_V3: dict[str, Any] = dict(load_architecture("deepseek-ai/DeepSeek-V3").config)
CONFIGS = {
    "chat": ("meta-llama/Llama-3.1-70B", LLAMA_70B),
    "code": ("Qwen/Qwen3-30B-A3B", QWEN_30B_A3B),
    "tools": ("openai/gpt-oss-20b", GPT_OSS_20B),
    "deep": ("deepseek-ai/DeepSeek-V3", DEEPSEEK_V3),
}
GIB = 2**30

Model = TypeVar("Model", bound=BaseModel)


def changed(record: Model, **fields: Any) -> Model:
    """The same record with other fields, checked again. A field of a part: `limits__max_num_seqs=8`."""
    data = record.model_dump()
    for path, value in fields.items():
        *parents, last = path.split("__")
        target = data
        for parent in parents:
            target = target[parent]
        target[last] = value
    return type(record).model_validate(data)


def device(name: str = "h100-sxm", **changes: Any) -> DeviceFacts:
    facts: dict[str, Any] = {
        "name": name,
        "vendor": "nvidia",
        "target": "sm_90",
        "memory_bytes": 80 * GIB,
        "hbm_bytes_per_s": 3.35e12,
        "l2_bytes": 50 * 2**20,
        "multiprocessors": 132,
        "flops": {DType.BF16: 989e12, DType.FP8: 1979e12},
        "power_w": 700.0,
        "idle_power_w": 70.0,
        "link_bytes_per_s": 450e9,
        "link": "nvlink",
        "pcie_bytes_per_s": 64e9,
        "nic_bytes_per_s": 50e9,
        "gpus_per_node": 8,
        "fast_domain": 8,
        "weight_dtypes": (DType.BF16, DType.FP16, DType.FP8, DType.FP4),
        "kv_dtypes": (DType.BF16, DType.FP16, DType.FP8),
        "sources": {"all": "round figures for tests"},
    }
    return DeviceFacts(**(facts | changes))


def engine(name: str = "vllm", **changes: Any) -> EngineProfile:
    facts: dict[str, Any] = {
        "name": name,
        "version": "0.24.0",
        "block_size_tokens": 16,
        "memory_fraction": 0.9,
        "context_bytes": GIB // 2,
        "collective_bytes": {1: 0, 2: 2**28, 4: 2**28, 8: 2**28},
        "graph_bytes_per_layer": 2**24,
        "step_overhead_s": 1e-3,
        "sequence_overhead_s": 1e-5,
        "request_overhead_s": 5e-3,
        "default_max_num_seqs": 256,
        "default_max_num_batched_tokens": 8192,
        "prefill_policy": "mixed_chunked",
        "sources": {"all": "round figures for tests"},
    }
    return EngineProfile(**(facts | changes))


def cache_of(
    weights_bytes: int, kv_bytes_per_token: float, kv_dtype: DType = DType.BF16, fraction: float = 0.9
) -> Cache:
    """The KV cache that is left on an 80 GiB device beside the weights and 4 GiB of everything else."""
    available = int(80 * GIB * fraction)
    kv_bytes = available - weights_bytes - 4 * GIB
    return Cache(
        kv_dtype=kv_dtype,
        block_size_tokens=16,
        num_blocks=int(kv_bytes // (16 * kv_bytes_per_token)),
        memory=MemoryBudget(
            device_bytes=80 * GIB,
            available_bytes=available,
            weights_bytes=weights_bytes,
            activation_bytes=2 * GIB,
            context_bytes=GIB // 2,
            collective_bytes=GIB // 2,
            graph_bytes=GIB,
            kv_bytes=kv_bytes,
            kv_bytes_per_token=kv_bytes_per_token,
        ),
    )


def packed(replicas: int, gpus: int, *, first_device: int = 0, gpus_per_node: int = 8) -> tuple[ReplicaPlacement, ...]:
    """Replicas one after another on the devices of a pool, from `first_device` on."""
    placements = []
    for replica in range(replicas):
        first = first_device + replica * gpus
        slots = tuple(
            DeviceSlot(node=place // gpus_per_node, device=place % gpus_per_node)
            for place in range(first, first + gpus)
        )
        placements.append(ReplicaPlacement(slots=slots))
    return tuple(placements)


def chat_group(**changes: Any) -> ReplicaGroup:
    """Llama-3.1-70B in bf16 on four H100, three replicas on two nodes."""
    group = ReplicaGroup(
        id="chat-h100-tp4",
        model="chat",
        pool="h100",
        device="h100-sxm",
        engine="vllm",
        layout=Layout(tensor_parallel=4, pipeline_stages=(80,)),
        weights_dtype=DType.BF16,
        limits=Limits(max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=32768),
        cache=cache_of(35_278_831_616, 80 * 2 * 2 * 128 * 2),
        scheduling=Scheduling(),
        replicas=3,
        placement=packed(3, 4),
    )
    return changed(group, **changes)


def chat_fp8_group(**changes: Any) -> ReplicaGroup:
    """The same model in FP8 with an FP8 KV cache: two pipeline stages of two H100, one replica."""
    group = ReplicaGroup(
        id="chat-h100-fp8",
        model="chat",
        pool="h100",
        device="h100-sxm",
        engine="vllm",
        layout=Layout(tensor_parallel=2, pipeline_stages=(41, 39)),
        weights_dtype=DType.FP8,
        limits=Limits(max_num_seqs=48, max_num_batched_tokens=4096, max_model_len=16384),
        cache=cache_of(18_592_595_968, 41 * 2 * 4 * 128, DType.FP8),
        scheduling=Scheduling(),
        replicas=1,
        placement=packed(1, 4, first_device=12),
    )
    return changed(group, **changes)


def code_group(**changes: Any) -> ReplicaGroup:
    """Qwen3-30B-A3B, one device a replica, four replicas."""
    group = ReplicaGroup(
        id="code-h100-tp1",
        model="code",
        pool="h100",
        device="h100-sxm",
        engine="vllm",
        layout=Layout(tensor_parallel=1, pipeline_stages=(48,)),
        weights_dtype=DType.FP8,
        limits=Limits(max_num_seqs=128, max_num_batched_tokens=8192, max_model_len=40960),
        cache=cache_of(31_167_246_336, 48 * 2 * 4 * 128 * 2),
        scheduling=Scheduling(),
        replicas=4,
        placement=packed(4, 1, first_device=16),
    )
    return changed(group, **changes)


def with_true_weights(group: ReplicaGroup) -> ReplicaGroup:
    """The group with the weights that its model, dtype and layout put on the fullest device."""
    layout, end, stages = group.layout, 0, []
    architecture = load_architecture(CONFIGS[group.model][1])
    for index, layers in enumerate(layout.pipeline_stages):
        end += layers
        stages.append(
            weight_bytes_per_rank(
                architecture,
                group.weights_dtype,
                layout.tensor_parallel,
                layout.expert_parallel,
                range(end - layers, end),
                first=index == 0,
                last=index == layout.pipeline_parallel - 1,
                attention_data_parallel=layout.attention_data_parallel,
            )
        )
    return changed(group, cache__memory__weights_bytes=max(stages))


def tools_group(**changes: Any) -> ReplicaGroup:
    """gpt-oss-20b, whose layers keep unequal KV, as it is published, on four H100."""
    group = chat_group(model="tools", layout__pipeline_stages=(24,), weights_dtype=DType.FP4)
    return with_true_weights(changed(group, **changes))


def deep_group(**changes: Any) -> ReplicaGroup:
    """DeepSeek-V3 as it is published, in FP8, on two nodes of eight H100: latent attention."""
    group = ReplicaGroup(
        id="deep-h100-tp8",
        model="deep",
        pool="h100",
        device="h100-sxm",
        engine="vllm",
        layout=Layout(tensor_parallel=8, pipeline_stages=(31, 30)),
        weights_dtype=DType.FP8,
        limits=Limits(max_num_seqs=128, max_num_batched_tokens=4096, max_model_len=16384),
        cache=cache_of(43_896_187_296, 30 * 576 * 2),
        scheduling=Scheduling(),
        replicas=1,
        placement=packed(1, 16),
    )
    return changed(group, **changes)


def plan_of(groups: tuple[ReplicaGroup, ...], routes: tuple[Route, ...], **changes: Any) -> Plan:
    """A whole plan around the groups; predictions and certificate are placeholders of the right form."""
    models = sorted({group.model for group in groups})
    classes = sorted({route.request_class for route in routes})
    pools = {stage.pool: stage.device for group in groups for stage in group.machines}
    gpus = sum(group.replicas * group.layout.gpus for group in groups)
    plan = Plan(
        name="fixture",
        capstan="0.1.0",
        groups=groups,
        routes=routes,
        predictions=Predictions(
            classes=tuple(
                ClassPrediction(
                    request_class=name,
                    requests=1000,
                    rate_per_s=2.0,
                    ttft_s={"p50": 0.2, "p90": 0.6},
                    tpot_s={"p50": 0.03, "p90": 0.04},
                    e2e_s={"p50": 6.0, "p90": 12.0},
                    attainment=0.97,
                    attainment_interval=Interval(low=0.95, high=0.98),
                )
                for name in classes
            ),
            groups=tuple(
                GroupPrediction(
                    group=group.id,
                    utilisation=0.7,
                    busy=0.8,
                    kv_occupancy_peak=0.5,
                    running_peak=20,
                    preemptions=0,
                    prompt_tokens_per_s=2000.0,
                    output_tokens_per_s=400.0,
                )
                for group in groups
            ),
            confidence="borrowed",
        ),
        cost=Cost(
            usd_per_hour=2.9 * gpus,
            usd_per_million_output_tokens=20.0,
            usd_per_million_tokens=4.0,
            gpus=gpus,
            gpus_rented=-(-gpus // 8) * 8,
            nodes={"h100": -(-gpus // 8)},
            power_w=700.0 * gpus,
        ),
        certificate=Certificate(
            objective="minimise cost",
            value=2.9 * gpus,
            bound=2.5 * gpus,
            gap=0.4 / 2.9,
            priced_bound=2.9 * gpus,
            priced_gap=0.0,
            solver="highs",
            solver_status="optimal",
            columns=10,
            simulations=12,
            checks=(Check(law="devices of pool h100", left=float(gpus), relation="<=", right=24.0, holds=True),),
            windows=tuple(
                SimulatedWindow(
                    request_class=name,
                    source="poisson",
                    sha256=None,
                    start_s=0.0,
                    end_s=600.0,
                    requests=1000,
                    longest_request_tokens=4096,
                    seed=0,
                )
                for name in classes
            ),
        ),
        binding=(),
        discarded=(),
        discarded_counts={},
        spec={
            "models": {model: {"architecture": CONFIGS[model][0]} for model in models},
            "hardware": {"pools": [{"name": pool, "device": name} for pool, name in sorted(pools.items())]},
        },
        traffic_folder=".",
        architectures={model: CONFIGS[model][1] for model in models},
        devices={"h100-sxm": device()}
        | {each.device: device(each.device) for group in groups for each in group.stages},
        profiles={"h100-sxm": load_profile("h100-sxm")},
        engines={"vllm": engine()},
    )
    return changed(plan, **changes) if changes else plan


def chat_plan(**group_changes: Any) -> Plan:
    """One class, one group of three replicas on two nodes."""
    group = chat_group(**group_changes)
    return plan_of((group,), (Route(request_class="conversation", group=group.id, share=1.0),))


def fleet_plan() -> Plan:
    """Three groups; conversation is split over two of them, autocomplete and agents share the third."""
    return plan_of(
        (chat_group(), chat_fp8_group(), code_group()),
        (
            Route(request_class="conversation", group="chat-h100-tp4", share=0.7),
            Route(request_class="conversation", group="chat-h100-fp8", share=0.3),
            Route(request_class="autocomplete", group="code-h100-tp1", share=1.0),
            Route(request_class="agents", group="code-h100-tp1", share=1.0),
        ),
        name="fleet",
    )
