"""vLLM's arguments for what a replica does beside its layout: speculation, the host tier, priorities."""

from __future__ import annotations

import json
from typing import Any

from codegen.exports.arguments import Value
from codegen.exports.checkpoint import compresses_kv, keeps_uniform_kv
from specs.errors import InputError
from specs.plan import Plan, ReplicaGroup

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM 0.24.0 takes
_GIB = 2**30


def option_arguments(plan: Plan, group: ReplicaGroup, notes: list[str]) -> list[tuple[str, Value]]:
    """Empty for a replica that does nothing of this. `InputError` for what vLLM could not load."""
    if group.scheduling.order == "priority":
        notes.append(
            "Requests are served by priority: clients state it in the request's field `priority`, "
            "0 for high, 1 for normal, 2 for low (the lowest number goes first)."
        )
    return [*_adapters(plan, group, notes), *_speculation(plan, group, notes), *_host_tier(plan, group, notes)]


def _adapters(plan: Plan, group: ReplicaGroup, notes: list[str]) -> list[tuple[str, Value]]:
    declared = declared_of(plan, group.model, "adapters")
    if declared is None:
        return []
    rank = next((size for size in LORA_RANKS if size >= declared["rank"]), None)
    if rank is None:
        raise InputError(
            f"the engine takes adapters up to rank {LORA_RANKS[-1]}, not {declared['rank']}",
            field=f"spec.models.{group.model}.adapters.rank",
        )
    notes.append(
        f"There is room for {declared['count']} adapters of rank {declared['rank']}. The plan does not name them: add "
        "`--lora-modules NAME=PATH ...`."
    )
    return [("enable-lora", True), ("max-loras", declared["count"]), ("max-lora-rank", rank)]


def declared_of(plan: Plan, model: str, field: str) -> dict[str, Any] | None:
    """What the plan's spec says of a model in `field`; None where it says nothing."""
    found: dict[str, Any] | None = plan.spec.get("models", {}).get(model, {}).get(field)
    return found


def _speculation(plan: Plan, group: ReplicaGroup, notes: list[str]) -> list[tuple[str, Value]]:
    speculation = group.scheduling.speculation
    if speculation is None:
        return []
    declared = declared_of(plan, group.model, "speculative")
    if declared is None:
        raise InputError(
            "the plan's spec does not say who drafts",
            field=f"spec.models.{group.model}.speculative",
            expected="method, acceptance and max_draft",
        )
    method, drafter = declared["method"], declared.get("draft_model")
    config: dict[str, Any] = {"method": "draft_model" if method == "draft" else method}
    if method in ("draft", "eagle"):
        if drafter is None:
            raise InputError(
                f"the engine loads a checkpoint for the method {method}, and none is named",
                field=f"spec.models.{group.model}.speculative.draft_model",
                expected="a Hugging Face id or a directory",
            )
        config["model"] = drafter
    config["num_speculative_tokens"] = speculation.draft_tokens
    notes.append(
        f"Speculation pays as planned where {speculation.acceptance:.0%} of the drafted tokens are accepted; the "
        "engine reports how many are."
    )
    return [("speculative-config", json.dumps(config))]


def host_tier_gib(group: ReplicaGroup) -> float:
    """Host memory of one replica's KV blocks."""
    cache = group.cache
    rank_bytes = cache.host_blocks * cache.block_size_tokens * cache.memory.kv_bytes_per_token
    return rank_bytes * group.layout.gpus / _GIB


def _host_tier(plan: Plan, group: ReplicaGroup, notes: list[str]) -> list[tuple[str, Value]]:
    """The tier in GiB of all ranks of a replica together, as the engine counts it."""
    if not group.cache.host_blocks:
        return []
    if compresses_kv(plan, group.model) or not keeps_uniform_kv(plan, group.model):
        raise InputError(
            "the engine keeps KV caches of plain attention only in host memory",
            field=f"groups.{group.id}.cache.host_blocks",
            expected="0",
        )
    gib = round(host_tier_gib(group), 3)
    notes.append(f"Each replica keeps {gib:.0f} GiB of its KV cache in host memory.")
    return [("kv-offloading-size", gib), ("kv-offloading-backend", "native")]
