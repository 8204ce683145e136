"""Laws of plans whose groups are stated (`choices.MODEL.groups`), read off the document: they stand as stated."""

from __future__ import annotations

from typing import Any

from planner.optimize.laws import check
from specs.plan import Check, Plan, ReplicaGroup


def is_stated(plan: Plan, group: ReplicaGroup) -> bool:
    """Whether the spec states a group of this name, model and engine."""
    return any(item["name"] == group.id and item["engine"] == group.engine for item in _stated(plan, group.model))


def groups_stand_as_stated(plan: Plan) -> list[Check]:
    """Every stated group is there once, nothing else of its model is, and what it states is so."""
    found = []
    for model in plan.spec["choices"]["models"]:
        stated = _stated(plan, model)
        if not stated:
            continue
        own = {group.id: group for group in plan.groups if group.model == model}
        strays = len(own.keys() ^ {item["name"] for item in stated})
        found.append(check(f"choices.{model}.groups: all of them are in the plan, and no others", strays, "==", 0))
        for item in stated:
            group = own.get(item["name"])
            if group is not None:
                law = f"choices.{model}.groups: {item['name']} stands as it is stated"
                found.append(check(law, _unlike(group, item), "==", 0))
    return found


def _stated(plan: Plan, model: str) -> list[dict[str, Any]]:
    choices = plan.spec["choices"]["models"].get(model, {})
    groups: list[dict[str, Any]] = choices.get("groups") or []
    return groups


def _unlike(group: ReplicaGroup, stated: dict[str, Any]) -> int:
    """Statements that the group does not keep; what is not stated is None, or an empty version."""
    is_so = {
        "pool": group.pool,
        "replicas": group.replicas,
        "engine": group.engine,
        "engine_version": group.engine_version,
        "role": group.role,
        "tensor_parallel": group.layout.tensor_parallel,
        "pipeline_parallel": group.layout.pipeline_parallel,
        "stage_pools": [machine.pool for machine in group.machines],
        "pipeline_stages": list(group.layout.pipeline_stages),
        "attention_data_parallel": group.layout.attention_data_parallel,
        "expert_parallel": group.layout.expert_parallel,
        "weights": group.weights_dtype.value,
        "kv_cache": group.cache.kv_dtype.value,
        "max_num_seqs": group.limits.max_num_seqs,
        "max_num_batched_tokens": group.limits.max_num_batched_tokens,
        "max_context_tokens": group.limits.max_model_len,
        "prefix_caching": group.cache.prefix_caching,
        "order": group.scheduling.order,
    }
    nodes = stated["nodes"]
    elsewhere = sum(slot.node not in nodes for replica in group.placement for slot in replica.slots) if nodes else 0
    return elsewhere + sum(
        bool(stated.get(name) is not None and stated[name] != value) for name, value in is_so.items()
    )
