"""Why a plan is what it is, from the `Plan` document alone: what binds, why other hardware lost, the nearest misses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.amounts import amount
from planner.cost.margin import margin_note
from planner.layout_words import group_options, layout_words, pools_words, stages_words
from specs.plan import Binding, Certificate, Discarded, Plan

MOST_MISSES = 8
# Of a pool that is not used, the reason that is told: the one that came nearest to using it.
SAID_FIRST = (
    *("tie", "mix", "cost", "objective", "inventory", "slo"),
    *("memory", "dtype", "engine", "heads", "node", "split"),
)


@dataclass(frozen=True)
class PoolVerdict:
    """Why a pool's best configuration is not (or is) in the plan."""

    pool: str
    device: str
    used_gpus: int
    text: str


@dataclass(frozen=True)
class Explanation:
    summary: tuple[str, ...]
    binding: tuple[Binding, ...]
    pools: tuple[PoolVerdict, ...]
    nearest_misses: tuple[Discarded, ...]
    counts: dict[str, int]


REASONS = {
    "cost": "dearer, even at the best load it could carry",
    "tie": "costs the same at best; the plan has more headroom, or was proven first",
    "mix": "cheaper for this model alone, but no mix with it was cheaper for all of them",
    "objective": "no mix with it does better at what is optimised",
    "split": "prefill and decode apart did no better with it",
    "slo": "breaks a latency limit at every load",
    "inventory": "the pool holds too few of them for the traffic",
    "memory": "the weights, or one longest request, do not fit",
    "heads": "the model cannot be cut so",
    "dtype": "the device has no kernels for this type",
    "engine": "the engine cannot run it",
    "node": "the replica does not fit the node",
    "layers": "more stages than layers",
    "pipeline": "the same devices do better without stages",
    "spanning": "replicas over several pools are not planned in fleets this large",
    "dominated": "another type is at least as good in every respect on the same devices",
}


def explain(plan: Plan) -> Explanation:
    """The explanation of a plan."""
    summary = _of_stated(plan) if plan.certificate.is_stated else _of_chosen(plan)
    margin = margin_note(plan.engines, plan.spec["limits"]["confidence"])
    return Explanation(
        summary=(*summary, margin) if margin else tuple(summary),
        binding=plan.binding,
        pools=tuple(_pool(plan, pool) for pool in plan.spec["hardware"]["pools"]),
        nearest_misses=nearest_misses(plan),
        counts=plan.discarded_counts,
    )


def _of_chosen(plan: Plan) -> list[str]:
    certificate, (value, bound, priced), beyond = plan.certificate, _amounts(plan), _beyond(plan)
    return [
        f"{certificate.objective}: {value}; no plan under this cost model is {beyond} {bound} "
        f"(utilisation law, no queueing): gap {certificate.gap:.1%}",
        f"at the loads that simulation allows each configuration, no mix is {beyond} {priced}: "
        f"gap {certificate.priced_gap:.1%}{refuted_words(certificate)} ({certificate.solver}, "
        f"{certificate.solver_status}; {certificate.columns} configurations, {certificate.simulations} simulations)",
        f"{sum(check.holds for check in certificate.checks)} of {len(certificate.checks)} laws hold in the re-check "
        "without the solver",
    ]


def _of_stated(plan: Plan) -> list[str]:
    """Of a deployment as it stands: its value, what is known of that, and every law that it breaks."""
    certificate, (value, bound, _) = plan.certificate, _amounts(plan)
    broken = [check for check in certificate.checks if not check.holds]
    return [
        f"as it stands: {value}; {stated_words(certificate, bound, _beyond(plan))}",
        f"{len(certificate.checks) - len(broken)} of {len(certificate.checks)} laws hold in the re-check",
        *(f"broken: {item.law}: {item.left:.6g} {item.relation} {item.right:.6g} does not hold" for item in broken),
    ]


def stated_words(certificate: Certificate, bound: str, beyond: str) -> str:
    """What is known of the value of a deployment that was stated."""
    if certificate.bound == 0.0:
        return "stated, not searched; of its value nothing is proven"
    return (
        f"stated, not searched; no number of the same configurations is {beyond} {bound} under this cost model, even "
        f"if nothing ever queued (gap {certificate.gap:.1%})"
    )


def _amounts(plan: Plan) -> tuple[str, str, str]:
    """Value, bound and priced bound, each with its unit."""
    certificate, quantity = plan.certificate, plan.spec["objective"]["quantity"]
    figures = (certificate.value, certificate.bound, certificate.priced_bound)
    value, bound, priced = (amount(quantity, figure) for figure in figures)
    return value, bound, priced


def _beyond(plan: Plan) -> str:
    return "above" if plan.spec["objective"]["sense"] == "maximise" else "below"


def refuted_words(certificate: Certificate) -> str:
    """What stands between the plan and the bound of its prices, where whole plans were refuted."""
    if not certificate.refuted:
        return ""
    mixes = "mix" if certificate.refuted == 1 else "mixes"
    return f"; {certificate.refuted} better {mixes} broke a promise when simulated whole"


def nearest_misses(plan: Plan, most: int = MOST_MISSES) -> tuple[Discarded, ...]:
    """The configurations that came closest to being used, best first; one per model, pool and layout."""
    nearest: dict[tuple[str, str, str], Discarded] = {}
    ranked = sorted(
        (
            item
            for item in plan.discarded
            if item.margin is not None and item.reason in ("cost", "tie", "mix", "inventory", "slo")
        ),
        key=lambda item: (item.reason == "slo", item.margin if item.margin is not None else math.inf),
    )
    for item in ranked:
        where = item.configuration
        nearest.setdefault((where.model, pools_words(where), f"{where.role} {layout_words(where)}"), item)
    return tuple(nearest.values())[:most]


def _pool(plan: Plan, pool: dict[str, object]) -> PoolVerdict:
    name, device = str(pool["name"]), str(pool["device"])
    used = sum(group.gpus_by_pool.get(name, 0) * group.replicas for group in plan.groups)
    if used:
        groups = [group for group in plan.groups if name in group.gpus_by_pool]
        text = ("stands: " if plan.certificate.is_stated else "chosen: ") + ", ".join(
            ("" if group.role == "unified" else f"{group.role} ")
            + f"{group.replicas} x {layout_words(group.layout)} {group.weights_dtype}"
            + (f", {stages_words(group)}" if group.stages else "")
            + "".join(f", {option}" for option in group_options(group))
            for group in groups
        )
        return PoolVerdict(name, device, used, text)
    own = [item for item in plan.discarded if name in (item.configuration.pool, *item.configuration.stage_pools)]
    for reason in SAID_FIRST:
        found = [item for item in own if item.reason == reason]
        if found:
            best = min(found, key=lambda item: math.inf if item.margin is None else item.margin)
            layout = best.configuration
            return PoolVerdict(
                name,
                device,
                0,
                f"{REASONS[reason]}; best: {layout_words(layout, always=('TP', 'PP'))} {layout.weights_dtype}"
                f"{f', {stages_words(layout)}' if layout.stage_pools else ''}: "
                f"{best.detail}",
            )
    return PoolVerdict(name, device, 0, "no configuration was allowed here by `choices`")
