"""What must hold of a plan before a file for another engine is written: a deployment that cannot boot is never written.

Each rule is one function over one group and names itself in the error. They repeat what the planner promises, from
the plan document alone, because a plan may be written by hand; and they add what the engine itself refuses at start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from math import isclose

from codegen.exports.arguments import engine_table
from codegen.exports.checkpoint import (
    attention_heads,
    checkpoint_dtype,
    is_mixture_of_experts,
    layer_count,
    longest_context,
)
from specs.architecture import load_architecture, weight_bytes_per_rank
from specs.document import DType
from specs.engine_rules import capable, rules_not_followed
from specs.errors import InputError, nearest_names
from specs.handoffs import check_handoffs
from specs.plan import Plan, ReplicaGroup

# Relative room for figures that the planner rounded to whole bytes.
_ROUNDING = 1e-6
# Room for weights: other versions of the planner may count a norm or a scale differently.
_WEIGHTS = 0.01


EXPORTED = ("vllm", "sglang")


def check_plan(plan: Plan, file: str | None = None, engines: tuple[str, ...] = EXPORTED) -> tuple[str, ...]:
    """Raise `InputError` naming the first rule that the plan breaks; otherwise return notes worth showing.

    `file` is the plan's path, for the message; `engines` those that are exported to.
    """
    try:
        if not plan.groups:
            raise InputError("has no replica groups, so there is nothing to export", field="groups")
        _unique_ids(plan)
        _router(plan)
        for group in plan.groups:
            _engine(plan, group, engines)
            for rule in GROUP_RULES:
                rule(plan, group)
        check_handoffs(plan)
        _devices_used_once(plan)
        _routes(plan)
    except InputError as error:
        error.file = error.file or file
        raise
    return _version_notes(plan)


def _router(plan: Plan) -> None:
    if plan.router not in ("least_outstanding", "round_robin"):
        raise InputError(
            f"the exported router, nginx, cannot route by {plan.router}",
            field="router",
            expected="least_outstanding or round_robin",
        )


def _broken(rule: str, group: ReplicaGroup, field: str, message: str, expected: str | None = None) -> InputError:
    return InputError(f"{message} (rule: {rule})", field=f"groups.{group.id}.{field}", expected=expected)


def _engine(plan: Plan, group: ReplicaGroup, engines: tuple[str, ...]) -> None:
    if group.engine == "capstan":
        raise _broken("engine", group, "engine", "a group of engine 'capstan' is compiled, not exported")
    if group.engine in engines:
        return
    if group.engine not in EXPORTED:
        message = f"this version exports groups of engine {' and '.join(map(repr, EXPORTED))}, not {group.engine!r}"
        raise _broken("engine", group, "engine", message)
    message = f"the group is planned for {group.engine}, whose limits and times are not those of {engines[0]}"
    if len({other.engine for other in plan.groups}) > 1:
        both = " and ".join(EXPORTED)
        expected = f"`--to kubernetes`, which takes groups of {both} together, or a plan of {engines[0]} groups alone"
    else:
        expected = f"`--to {group.engine}`, or a plan made with `choices: {{engine: {engines[0]}}}`"
    raise _broken("engine", group, "engine", message, expected)


def _role(plan: Plan, group: ReplicaGroup) -> None:
    """Connectors hand over between replicas of one engine, and vLLM's not between pipeline stages."""
    if group.role != "unified" and group.layout.pipeline_parallel > 1:
        message = f"the engine hands no KV caches over between pipeline stages ({group.role} replicas have them)"
        raise _broken("role", group, "layout.pipeline_stages", message, "one stage")
    if group.role != "unified" and group.cache.host_blocks:
        message = f"the engine has one connector for KV caches, and {group.role} replicas hand them over with it"
        raise _broken("role", group, "cache.host_blocks", message, "0")
    other = next((each for each in plan.groups if each.id == group.hands_over_to), None)
    if other is not None and other.engine != group.engine:
        raise _broken("role", group, "hands_over_to", f"{other.id} runs {other.engine}, not {group.engine}")


def _stages(plan: Plan, group: ReplicaGroup) -> None:
    """Stages on unlike machines: of engines whose documents say how they share memory out over them."""
    if group.stages and not capable(group.engine, "unlike_stages"):
        message = f"{group.engine} is not known to run the stages of one replica on unlike machines"
        raise _broken("stages", group, "stages", message, "replicas that stand in one pool each")


def _device(plan: Plan, group: ReplicaGroup) -> None:
    for name in dict.fromkeys(stage.device for stage in group.machines):
        _runs_on(plan, group, name)


def _runs_on(plan: Plan, group: ReplicaGroup, name: str) -> None:
    device = plan.devices.get(name)
    if device is None:
        raise InputError(
            f"{name!r} is not among the plan's devices (rule: device)",
            field=f"groups.{group.id}.device",
            nearest=nearest_names(name, plan.devices),
        )
    if device.vendor not in engine_table(group.engine).images:
        raise _broken(
            "device", group, "device", f"devices of vendor {device.vendor!r} are not exported in this version"
        )
    for field, dtype, allowed in (
        ("weights_dtype", group.weights_dtype, device.weight_dtypes),
        ("cache.kv_dtype", group.cache.kv_dtype, device.kv_dtypes),
    ):
        if dtype not in allowed:
            raise _broken("dtype", group, field, f"{name} does not support {dtype}", ", ".join(str(d) for d in allowed))


def _pool(plan: Plan, group: ReplicaGroup) -> None:
    hardware = plan.spec.get("hardware")
    pools = hardware.get("pools") if isinstance(hardware, Mapping) else None
    devices = {
        pool.get("name"): str(pool.get("device"))
        for pool in (pools if isinstance(pools, list) else ())
        if isinstance(pool, Mapping)
    }
    for stage in dict.fromkeys(group.machines):
        own = devices.get(stage.pool)
        if own is None:
            raise _broken("pool", group, "pool", f"the plan's spec has no pool {stage.pool!r}")
        facts = plan.devices.get(own)
        if stage.device != own and (facts is None or facts.name != stage.device):
            raise _broken("pool", group, "device", f"is {stage.device!r}, and pool {stage.pool!r} holds {own!r}", own)


def _weights(plan: Plan, group: ReplicaGroup) -> None:
    held = checkpoint_dtype(plan, group.model)
    planned = group.weights_dtype
    if held is None and planned not in (DType.BF16, DType.FP16, DType.FP32, DType.FP8):
        raise _broken(
            "weights",
            group,
            "weights_dtype",
            f"the checkpoint is not quantised, and the engine cannot turn it into {planned} while loading",
            f"a checkpoint quantised to {planned}, or fp8, bf16 or fp16",
        )
    if held is not None and held.bytes > planned.bytes:
        raise _broken(
            "weights",
            group,
            "weights_dtype",
            f"the checkpoint holds {held} weights, which need more memory than the planned {planned}",
            str(held),
        )


def _memory(plan: Plan, group: ReplicaGroup) -> None:
    memory = group.cache.memory
    parts = (
        memory.weights_bytes
        + memory.activation_bytes
        + memory.context_bytes
        + memory.collective_bytes
        + memory.graph_bytes
        + memory.state_bytes
        + memory.adapter_bytes
        + memory.draft_bytes
        + memory.kv_bytes
    )
    if parts > memory.available_bytes * (1 + _ROUNDING):
        raise _broken(
            "memory",
            group,
            "cache.memory",
            f"the parts need {parts} bytes, and {memory.available_bytes} are available: the engine would not boot",
        )
    if memory.available_bytes > memory.device_bytes:
        raise _broken(
            "memory",
            group,
            "cache.memory.available_bytes",
            f"{memory.available_bytes} bytes are available on a device of {memory.device_bytes}",
        )
    used = group.cache.capacity_tokens * memory.kv_bytes_per_token
    if used > memory.kv_bytes * (1 + _ROUNDING):
        raise _broken(
            "KV blocks",
            group,
            "cache.num_blocks",
            f"{group.cache.num_blocks} blocks need {used:.0f} bytes, and {memory.kv_bytes} are left for KV",
        )


def _weight_bytes(plan: Plan, group: ReplicaGroup) -> None:
    layout, stated = group.layout, group.cache.memory.weights_bytes
    try:
        architecture = load_architecture(plan.architectures.get(group.model, {}), name=group.model)
    except InputError as error:
        raise InputError(
            f"describes no model that this version knows: {error.field}: {error.message} (rule: weights)",
            field=f"architectures.{group.model}",
            expected=error.expected,
        ) from None
    obstacle = architecture.tensor_parallel_obstacle(layout.tensor_parallel)
    if obstacle is not None:
        raise _broken("tensor parallel", group, "layout.tensor_parallel", obstacle)
    ends = list(accumulate(layout.pipeline_stages))
    if ends[-1] != len(architecture.layers):
        raise _broken(
            "pipeline stages",
            group,
            "layout.pipeline_stages",
            f"the stages hold {ends[-1]} layers, and the model has {len(architecture.layers)}",
        )
    stages = [
        weight_bytes_per_rank(
            architecture,
            group.weights_dtype,
            layout.tensor_parallel,
            layout.expert_parallel,
            range(end - layers, end),
            first=end == layers,
            last=end == ends[-1],
            attention_data_parallel=layout.attention_data_parallel,
        )
        for end, layers in zip(ends, layout.pipeline_stages, strict=True)
    ]
    nearest = min(stages, key=lambda expected: abs(expected - stated))
    if abs(nearest - stated) > _WEIGHTS * nearest:
        raise _broken(
            "weights",
            group,
            "cache.memory.weights_bytes",
            f"is {stated}, and a device holds {nearest} bytes of {group.weights_dtype} weights in this layout",
            "a plan that was made for this layout; plan again instead of editing",
        )


def _length(plan: Plan, group: ReplicaGroup) -> None:
    cache, longest = group.cache, group.limits.max_model_len
    if longest > cache.capacity_tokens:
        raise _broken(
            "longest request",
            group,
            "limits.max_model_len",
            f"{longest} tokens do not fit the KV cache of {cache.capacity_tokens}: the engine would not boot",
            f"at most {cache.capacity_tokens}",
        )
    if cache.num_blocks < 2:
        raise _broken(
            "KV blocks", group, "cache.num_blocks", "the engine keeps one block for itself", "at least 2 blocks"
        )
    positions = longest_context(plan, group.model)
    if positions is not None and longest > positions:
        raise _broken(
            "longest request",
            group,
            "limits.max_model_len",
            f"{longest} tokens are more than the model's {positions} positions: the engine would not boot",
            f"at most {positions}",
        )


def _batch(plan: Plan, group: ReplicaGroup) -> None:
    limits, scheduling = group.limits, group.scheduling
    if limits.max_num_batched_tokens < limits.max_num_seqs:
        raise _broken(
            "token budget",
            group,
            "limits.max_num_batched_tokens",
            f"the engine refuses a token budget ({limits.max_num_batched_tokens}) below max_num_seqs "
            f"({limits.max_num_seqs})",
        )
    if not scheduling.chunked_prefill and limits.max_num_batched_tokens < limits.max_model_len:
        raise _broken(
            "token budget",
            group,
            "limits.max_num_batched_tokens",
            f"without chunked prefill the token budget ({limits.max_num_batched_tokens}) must hold the longest request "
            f"({limits.max_model_len})",
        )
    for field, reason, expected in rules_not_followed(group.engine, scheduling, group.cache):
        raise _broken("scheduling", group, field, reason, expected)


def _layout(plan: Plan, group: ReplicaGroup) -> None:
    layout = group.layout
    heads, layers = attention_heads(plan, group.model), layer_count(plan, group.model)
    if heads is not None and heads % layout.tensor_parallel:
        raise _broken(
            "tensor parallel",
            group,
            "layout.tensor_parallel",
            f"{layout.tensor_parallel} does not divide the model's {heads} attention heads: the engine would not boot",
        )
    if layers is not None and sum(layout.pipeline_stages) != layers:
        raise _broken(
            "pipeline stages",
            group,
            "layout.pipeline_stages",
            f"the stages hold {sum(layout.pipeline_stages)} layers, and the model has {layers}",
        )
    experts = is_mixture_of_experts(plan, group.model)
    if layout.attention_data_parallel > 1 and not experts:
        raise _broken(
            "data parallel",
            group,
            "layout.attention_data_parallel",
            "the engine takes data parallelism inside a replica only for mixtures of experts",
            "1; more replicas do the same",
        )
    ranks = layout.tensor_parallel * layout.attention_data_parallel
    if layout.expert_parallel not in (1, ranks):
        raise _broken(
            "expert parallel",
            group,
            "layout.expert_parallel",
            f"the engine spreads experts over all {ranks} ranks of a stage or over none",
            f"1 or {ranks}",
        )
    if layout.expert_parallel > 1 and not experts:
        raise _broken("expert parallel", group, "layout.expert_parallel", "the model has no experts", "1")


def _placement(plan: Plan, group: ReplicaGroup) -> None:
    if len(group.placement) != group.replicas:
        raise _broken(
            "placement",
            group,
            "placement",
            f"{len(group.placement)} of {group.replicas} replicas are placed",
            f"{group.replicas} placements",
        )
    for index, replica in enumerate(group.placement):
        if len(replica.slots) != group.layout.gpus:
            raise _broken(
                "placement",
                group,
                f"placement.{index}",
                f"has {len(replica.slots)} devices, and the layout needs {group.layout.gpus}",
            )


def _adapters(plan: Plan, group: ReplicaGroup) -> None:
    declared = plan.spec.get("models", {}).get(group.model, {}).get("adapters")
    if declared is not None and group.engine != "vllm":
        raise _broken(
            "adapters", group, "engine", f"adapters are not exported to {group.engine} in this version", "'vllm'"
        )


GROUP_RULES: tuple[Callable[[Plan, ReplicaGroup], None], ...] = (
    _role,
    _stages,
    _device,
    _pool,
    _weights,
    _memory,
    _length,
    _batch,
    _layout,
    _weight_bytes,
    _placement,
    _adapters,
)


def _unique_ids(plan: Plan) -> None:
    seen = set()
    for group in plan.groups:
        if group.id in seen:
            raise InputError(f"two groups have the id {group.id!r} (rule: groups)", field="groups")
        seen.add(group.id)


def _devices_used_once(plan: Plan) -> None:
    users: dict[tuple[str, int, int], str] = {}
    for group in plan.groups:
        for index, replica in enumerate(group.placement):
            for pool, slot in group.places(replica):
                place = (pool, slot.node, slot.device)
                if place in users:
                    raise _broken(
                        "placement",
                        group,
                        f"placement.{index}",
                        f"device {slot.device} of node {slot.node} in pool {pool!r} is taken by {users[place]}",
                    )
                users[place] = f"{group.id} replica {index}"


def _routes(plan: Plan) -> None:
    groups = {group.id: group for group in plan.groups}
    totals: dict[str, float] = {}
    models: dict[str, str] = {}
    for index, route in enumerate(plan.routes):
        if route.group not in groups:
            raise InputError(
                f"refers to no group of the plan: {route.group!r} (rule: routes)",
                field=f"routes.{index}.group",
                nearest=nearest_names(route.group, groups),
            )
        model = groups[route.group].model
        if models.setdefault(route.request_class, model) != model:
            raise InputError(
                f"sends class {route.request_class!r} to groups of two models (rule: routes)", field=f"routes.{index}"
            )
        totals[route.request_class] = totals.get(route.request_class, 0.0) + route.share
    if not totals:
        raise InputError("are empty: no request would reach a replica (rule: routes)", field="routes")
    for request_class, total in totals.items():
        if not isclose(total, 1.0, abs_tol=1e-3):
            raise InputError(
                f"of class {request_class!r} add up to {total:g} (rule: routes)", field="routes", expected="shares of 1"
            )


def _version_notes(plan: Plan) -> tuple[str, ...]:
    notes = []
    for engine in sorted({group.engine for group in plan.groups}):
        table, profile = engine_table(engine), plan.engines.get(engine)
        stated = sorted({group.engine_version for group in plan.groups if group.engine == engine} - {"", table.version})
        if stated:
            notes.append(f"Groups run {engine} {', '.join(stated)}; the arguments and images are of {table.version}.")
        if profile is not None and profile.version.removeprefix("v") != table.version:
            notes.append(
                f"The plan was made with the profile of {engine} {profile.version}; the arguments are those of "
                f"{table.version}."
            )
    return tuple(notes)
