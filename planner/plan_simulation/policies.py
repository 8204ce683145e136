"""Other policies for a plan, to try them without writing it anew: each replaces one field of all its groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from planner.simulate import Workload
from planner.simulate.faults import Fault
from specs.errors import InputError, nearest_names
from specs.plan import Limits, Plan, ReplicaGroup, Scheduling, Speculation

MOST = 1_000_000_000  # of any number that a policy states


@dataclass(frozen=True)
class Policies:
    """What replaces the plan's own; None leaves it as it is. Names as in `specs.plan`."""

    order: str | None = None
    prefill_policy: str | None = None
    preemption: str | None = None
    prefix_caching: bool | None = None
    host_blocks: int | None = None
    max_waiting_tokens: int | None = None
    predictor_error: float | None = None
    speculation: Speculation | None = None
    router: str | None = None
    poll_s: float = 0.0  # between two looks of the router at the loads; 0: it always knows them
    faults: tuple[Fault, ...] = ()


PLANNED = Policies()


def with_policies(plan: Plan, policies: Policies) -> Plan:
    """The plan under these policies. `InputError` names the option that is no policy, or that cannot work."""
    scheduling = {
        "order": _known("--order", policies.order, _choices(Scheduling, "order")),
        "prefill_policy": _known("--prefill-policy", policies.prefill_policy, _choices(Scheduling, "prefill_policy")),
        "preemption": _known("--preemption", policies.preemption, _choices(Scheduling, "preemption")),
        "max_waiting_tokens": _within("--max-waiting-tokens", policies.max_waiting_tokens, 1),
        "predictor_error": _within("--predictor-error", policies.predictor_error, 0),
        "speculation": policies.speculation,
    }
    cache = {
        "prefix_caching": policies.prefix_caching,
        "host_blocks": _within("--host-blocks", policies.host_blocks, 0),
    }
    _within("--poll", policies.poll_s, 0)
    groups = tuple(
        group.model_copy(
            update={
                "scheduling": group.scheduling.model_copy(update=_stated(scheduling)),
                "cache": group.cache.model_copy(update=_stated(cache)),
                "limits": _with_drafts(group, policies.speculation),
            }
        )
        for group in plan.groups
    )
    router = _known("--router", policies.router, _choices(Plan, "router"))
    changed = plan.model_copy(update={"groups": groups, **_stated({"router": router})})
    if policies.preemption == "swap" and not any(group.cache.host_blocks for group in groups):
        raise InputError(
            "there are no host blocks to swap to",
            field="--preemption",
            expected="--host-blocks N with it, such as as many as the device has: "
            + ", ".join(f"{group.id} {group.cache.num_blocks:,}" for group in groups),
        )
    _check_faults(plan, policies.faults)
    return changed


def changed_limits(planned: Plan, simulated: Plan) -> list[str]:
    """Sentences on limits that a policy has narrowed."""
    return [
        f"{old.id}: speculation leaves {new.limits.max_num_seqs} of {old.limits.max_num_seqs} sequences at once, as a "
        f"step computes at most {old.limits.max_num_batched_tokens} tokens"
        for old, new in zip(planned.groups, simulated.groups, strict=True)
        if new.limits.max_num_seqs < old.limits.max_num_seqs
    ]


def without_effect(plan: Plan, workload: Workload) -> list[str]:
    """Sentences on policies that this traffic gives nothing to work with."""
    notes = []
    orders = {group.scheduling.order for group in plan.groups}
    if any(group.cache.prefix_caching for group in plan.groups) and workload.prefixes is None:
        notes.append("prefix caching finds nothing: the traffic does not say what its prompts share")
    if _stated_error(plan) and not orders & {"sjf", "srpt"}:
        notes.append("predicted lengths are not looked at: no group serves by sjf or srpt")
    if "priority" in orders and (workload.priority is None or len(set(workload.priority.tolist())) < 2):
        notes.append("order priority is first come, first served here: all requests have one priority")
    if "edf" in orders and (workload.deadline_s is None or not np.isfinite(workload.deadline_s).any()):
        notes.append("order edf is first come, first served here: no class states a limit of TTFT")
    if "vtc" in orders and (workload.tenant_index is None or len(set(workload.tenant_index.tolist())) < 2):
        notes.append("order vtc is first come, first served here: there is one tenant")
    return notes


def _stated_error(plan: Plan) -> bool:
    return any(group.scheduling.predictor_error > 0.0 for group in plan.groups)


def _with_drafts(group: ReplicaGroup, speculation: Speculation | None) -> Limits:
    """Limits under speculation: so many sequences that one step holds all their tokens, drafts included."""
    limits = group.limits
    if speculation is None:
        return limits
    seats = limits.max_num_batched_tokens // (1 + speculation.draft_tokens)
    if seats < 1:
        raise InputError(
            f"{group.id} computes at most {limits.max_num_batched_tokens} tokens a step",
            field="--speculate",
            expected=f"at most {limits.max_num_batched_tokens - 1} draft tokens",
        )
    return limits.model_copy(update={"max_num_seqs": min(limits.max_num_seqs, seats)})


def _choices(document: Any, field: str) -> tuple[str, ...]:
    """The names that a field of a document takes."""
    return get_args(document.model_fields[field].annotation)


def _known(option: str, name: str | None, choices: tuple[str, ...]) -> str | None:
    if name is None or name in choices:
        return name
    raise InputError(
        f"{name!r} is none of them", field=option, expected=" | ".join(choices), nearest=nearest_names(name, choices)
    )


def _within(option: str, value: float | None, least: int) -> float | None:
    if value is None or least <= value <= MOST:
        return value
    raise InputError(f"{value:g} is out of range", field=option, expected=f"{least} to {MOST:,}")


def _stated(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _check_faults(plan: Plan, faults: tuple[Fault, ...]) -> None:
    replicas = {group.id: group.replicas for group in plan.groups}
    for fault in faults:
        if fault.group not in replicas:
            raise InputError(
                f"the plan has no group {fault.group!r}",
                field="--fail",
                expected=" | ".join(replicas),
                nearest=nearest_names(fault.group, replicas),
            )
        if not 0 <= fault.replica < replicas[fault.group]:
            count = replicas[fault.group]
            raise InputError(
                f"{fault.group} has no replica {fault.replica}",
                field="--fail",
                expected="0, its only one" if count == 1 else f"0 to {count - 1}",
            )
