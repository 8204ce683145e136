"""Laws on replicas whose pipeline stages stand in several pools, re-checked from the document alone."""

from __future__ import annotations

from collections.abc import Iterator

from planner.optimize.laws import check
from specs.architecture import Architecture, load_architecture
from specs.architecture.sharding import weight_bytes_per_rank
from specs.errors import InputError
from specs.plan import Check, Plan, ReplicaGroup


def stages_fit(plan: Plan) -> list[Check]:
    """Every stage holds its weights and its part of all KV blocks in what engines take of its own device."""
    return [row for group in plan.groups if group.stages for row in _of_group(plan, group)]


def _of_group(plan: Plan, group: ReplicaGroup) -> Iterator[Check]:
    engine = plan.engines.get(group.engine)
    try:
        architecture = load_architecture(plan.architectures.get(group.model, {}), name=group.model)
        taken = [_bytes(architecture, group, stage) for stage in range(group.layout.pipeline_parallel)]
    except (InputError, IndexError, ZeroDivisionError):  # what is wrong with config and layout, other laws say
        return
    for index, (needed, machine) in enumerate(zip(taken, group.stages, strict=False)):
        there = memory_of(plan, machine.pool) * (engine.memory_fraction if engine is not None else 1.0)
        yield check(f"{group.id}: stage {index} fits a device of {machine.pool}", needed, "<=", there)


def _bytes(architecture: Architecture, group: ReplicaGroup, stage: int) -> float:
    """Weights of one rank of a stage, and KV of every token that the cache holds."""
    layout, last = group.layout, group.layout.pipeline_parallel - 1
    begin = sum(layout.pipeline_stages[:stage])
    layers = range(begin, begin + layout.pipeline_stages[stage])
    weights = weight_bytes_per_rank(
        architecture,
        group.weights_dtype,
        layout.tensor_parallel,
        layout.expert_parallel,
        layers,
        stage == 0,
        stage == last,
        layout.attention_data_parallel,
    )
    kv = architecture.kv_bytes_per_token(group.cache.kv_dtype, layout.tensor_parallel, layers)
    return weights + kv * group.cache.capacity_tokens


def memory_of(plan: Plan, pool: str) -> int:
    """Bytes of a device in a pool; 0 where the spec has no such pool."""
    names = [item["device"] for item in plan.spec["hardware"]["pools"] if item["name"] == pool]
    return plan.devices[names[0]].memory_bytes if names and names[0] in plan.devices else 0
