"""What differs between two plans, in the order in which a reader asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from planner.amounts import amount
from planner.layout_words import group_options, layout_words, stages_words
from specs.plan import Plan, ReplicaGroup


@dataclass(frozen=True)
class Difference:
    """One figure or statement that is not the same; None where a side does not have it."""

    topic: str  # decision, cost, prediction, certificate, spec
    what: str
    old: str | None
    new: str | None


def diff(old: Plan, new: Plan) -> tuple[Difference, ...]:
    """Differences of decision, cost, predictions, proof and declaration; empty when the plans say the same."""
    return tuple(
        difference
        for topic, describe in (
            ("decision", _decision),
            ("cost", _cost),
            ("prediction", _predictions),
            ("certificate", _certificate),
            ("spec", lambda plan: _flat(plan.spec)),
        )
        for difference in _compare(topic, describe(old), describe(new))
    )


def _compare(topic: str, old: dict[str, str], new: dict[str, str]) -> list[Difference]:
    return [
        Difference(topic, key, old.get(key), new.get(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _name(group: ReplicaGroup) -> str:
    """What stays the same when limits and replica counts move."""
    role = "" if group.role == "unified" else f", {group.role}"
    return (
        f"{group.model}{role} on {stages_words(group) or group.pool}, {group.engine} "
        f"{layout_words(group.layout, always=('TP', 'PP'))} "
        f"{group.weights_dtype} KV {group.cache.kv_dtype}"
    )


def _names(plan: Plan) -> dict[str, str]:
    """What every group is called, by id; groups that are alike in all of that are told apart by their ids."""
    names = {group.id: _name(group) for group in plan.groups}
    alike = Counter(names.values())
    return {group: name if alike[name] == 1 else f"{name} ({group})" for group, name in names.items()}


def _decision(plan: Plan) -> dict[str, str]:
    found: dict[str, str] = {}
    names = _names(plan)
    for group in plan.groups:
        name = names[group.id]
        found[f"{name}: replicas"] = str(group.replicas)
        if group.engine_version:
            found[f"{name}: release"] = group.engine_version
        if group.hands_over_to is not None:
            found[f"{name}: hands over to"] = group.hands_over_to
        found[f"{name}: max sequences"] = str(group.limits.max_num_seqs)
        found[f"{name}: token budget"] = str(group.limits.max_num_batched_tokens)
        found[f"{name}: max length"] = str(group.limits.max_model_len)
        found[f"{name}: KV blocks"] = str(group.cache.num_blocks)
        found[f"{name}: options"] = ", ".join(group_options(group)) or "none"
    for route in plan.routes:
        found[f"route {route.request_class} to {names[route.group]}"] = f"{route.share:.1%}"
    return found


def _cost(plan: Plan) -> dict[str, str]:
    cost = plan.cost
    found = {"GPUs rented": str(cost.gpus_rented), "GPUs working": str(cost.gpus), "power": f"{cost.power_w:.0f} W"}
    if cost.usd_per_hour is not None:
        found["per hour"] = f"${cost.usd_per_hour:.2f}"
    if cost.usd_per_million_tokens is not None:
        found["per million tokens of the mean traffic"] = f"${cost.usd_per_million_tokens:.3f}"
    return found | {f"nodes of {pool}": str(count) for pool, count in cost.nodes.items()}


def _predictions(plan: Plan) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in plan.predictions.classes:
        for metric, table in (("TTFT", item.ttft_s), ("TPOT", item.tpot_s), ("end to end", item.e2e_s)):
            found |= {
                f"{item.request_class}: {rank} {metric}": f"{value * 1000:.1f} ms" for rank, value in table.items()
            }
        found[f"{item.request_class}: attainment"] = f"{item.attainment:.2%}"
    return found


def _certificate(plan: Plan) -> dict[str, str]:
    certificate, quantity = plan.certificate, plan.spec["objective"]["quantity"]
    return {
        "value": amount(quantity, certificate.value),
        "bound": amount(quantity, certificate.bound),
        "gap": f"{certificate.gap:.1%}",
        "solver": certificate.solver,
    }


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Leaves of the resolved spec by their path."""
    if isinstance(value, dict):
        return {
            key: leaf
            for name, part in value.items()
            for key, leaf in _flat(part, f"{path}.{name}" if path else name).items()
        }
    if isinstance(value, list):
        return {key: leaf for index, part in enumerate(value) for key, leaf in _flat(part, f"{path}[{index}]").items()}
    return {path: "null" if value is None else str(value)}
