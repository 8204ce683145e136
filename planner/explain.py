"""Why a plan is what it is, from the `Plan` document alone: what binds, why other hardware lost, the nearest misses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.amounts import amount
from planner.cost.margin import margin_note
from planner.layout_words import group_options, layout_words
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
    "dominated": "another type is at least as good in every respect on the same devices",
}


def explain(plan: Plan) -> Explanation:
    """The explanation of a plan."""
    certificate = plan.certificate
    quantity = plan.spec["objective"]["quantity"]
    beyond = "above" if plan.spec["objective"]["sense"] == "maximise" else "below"
    value, bound, priced = (
        amount(quantity, figure) for figure in (certificate.value, certificate.bound, certificate.priced_bound)
    )
    summary = [
        f"{certificate.objective}: {value}; no plan under this cost model is {beyond} {bound} "
        f"(utilisation law, no queueing): gap {certificate.gap:.1%}",
        f"at the loads that simulation allows each configuration, no mix is {beyond} {priced}: "
        f"gap {certificate.priced_gap:.1%}{refuted_words(certificate)} ({certificate.solver}, "
        f"{certificate.solver_status}; {certificate.columns} configurations, {certificate.simulations} simulations)",
        f"{sum(check.holds for check in certificate.checks)} of {len(certificate.checks)} laws hold in the re-check "
        "without the solver",
    ]
    margin = margin_note(plan.engines, plan.spec["limits"]["confidence"])
    return Explanation(
        summary=(*summary, margin) if margin else tuple(summary),
        binding=plan.binding,
        pools=tuple(_pool(plan, pool) for pool in plan.spec["hardware"]["pools"]),
        nearest_misses=nearest_misses(plan),
        counts=plan.discarded_counts,
    )


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
        nearest.setdefault((where.model, where.pool, f"{where.role} {layout_words(where)}"), item)
    return tuple(nearest.values())[:most]


def _pool(plan: Plan, pool: dict[str, object]) -> PoolVerdict:
    name, device = str(pool["name"]), str(pool["device"])
    used = sum(group.layout.gpus * group.replicas for group in plan.groups if group.pool == name)
    if used:
        groups = [group for group in plan.groups if group.pool == name]
        text = "chosen: " + ", ".join(
            ("" if group.role == "unified" else f"{group.role} ")
            + f"{group.replicas} x {layout_words(group.layout)} {group.weights_dtype}"
            + "".join(f", {option}" for option in group_options(group))
            for group in groups
        )
        return PoolVerdict(name, device, used, text)
    own = [item for item in plan.discarded if item.configuration.pool == name]
    for reason in SAID_FIRST:
        found = [item for item in own if item.reason == reason]
        if found:
            best = min(found, key=lambda item: math.inf if item.margin is None else item.margin)
            layout = best.configuration
            return PoolVerdict(
                name,
                device,
                0,
                f"{REASONS[reason]}; best: {layout_words(layout, always=('TP', 'PP'))} {layout.weights_dtype}: "
                f"{best.detail}",
            )
    return PoolVerdict(name, device, 0, "no configuration was allowed here by `choices`")
