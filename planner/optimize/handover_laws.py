"""Laws of plans whose prefill groups hand over to decode groups, read off the document."""

from __future__ import annotations

from planner.optimize.laws import check
from specs.plan import Check, Plan, ReplicaGroup


def handovers_fit(plan: Plan) -> list[Check]:
    """Every prefill group has one decode group that takes its requests; arrivals go past decode groups."""
    groups = {group.id: group for group in plan.groups}
    found = []
    for group in plan.groups:
        if group.role == "prefill":
            found += _of_prefill(group, groups.get(group.hands_over_to or ""))
        elif group.role == "decode":
            strays = sum(route.group == group.id for route in plan.routes)
            found.append(check(f"{group.id}: no class arrives at it", strays, "==", 0))
            senders = sum(other.hands_over_to == group.id for other in plan.groups)
            found.append(check(f"{group.id}: some group hands over to it", senders, ">=", 1))
    choice = plan.spec["choices"]["disaggregation"]
    unwanted = {"never": ("prefill", "decode"), "always": ("unified",)}.get(choice, ())
    if unwanted:
        others = sum(group.role in unwanted for group in plan.groups)
        found.append(check(f"choices.disaggregation ({choice}) is kept", others, "==", 0))
    return found


def _of_prefill(group: ReplicaGroup, target: ReplicaGroup | None) -> list[Check]:
    """A missing target breaks the first law; the others are about the one there is."""
    fits = target is not None and target.role == "decode" and target.model == group.model
    found = [check(f"{group.id}: hands over to a decode group of its model", float(fits), "==", 1.0)]
    if target is not None:
        alike = float(target.cache.kv_dtype == group.cache.kv_dtype)
        found.append(check(f"{group.id}: both sides keep one type of KV cache", alike, "==", 1.0))
        found.append(check(f"{group.id}: both sides run one engine", float(target.engine == group.engine), "==", 1.0))
    return found
