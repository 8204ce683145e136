"""Why each configuration is not in the plan, with the figures that decided."""

from __future__ import annotations

import math

from planner.candidates.family import Family
from planner.candidates.pricing import Bracket, Rung
from planner.optimize.master import Decision, Master, alone
from planner.problem import Problem
from specs.plan import Discarded, Limits


def discarded_configurations(problem: Problem, master: Master, decision: Decision) -> tuple[Discarded, ...]:
    """Every configuration that is not in the plan, the nearest miss first within each reason."""
    chosen = {item.column.family.key for item in decision.bought}
    found = [_why(family, master, decision) for family in problem.families if family.key not in chosen]
    order = sorted(
        [*found, *problem.dropped],
        key=lambda item: (
            item.reason,
            math.inf if item.margin is None else item.margin,
            item.configuration.model_dump_json(),
        ),
    )
    return tuple(order)


def _why(family: Family, master: Master, decision: Decision) -> Discarded:
    quantity = master.template.quantity
    pool = next(pool for pool in master.template.pools if pool.name == family.pool.name)
    classes = master.classes_of[family.model]
    bracket = master.brackets.get(f"{family.key}|{'+'.join(classes)}")
    value = _value_of_model(master, decision, family.model)

    def money(amount: float) -> str:
        return f"${amount:.2f}/h" if quantity == "cost" else f"{amount:g} GPUs"

    if bracket is not None and (bracket.failed >= 0 or bracket.passed is not None):
        limits = _quoted_limits(bracket)
        if bracket.upper == 0:
            return Discarded(
                configuration=family.configuration(limits),
                reason="slo",
                detail=_failure(bracket),
                margin=_distance(bracket),
            )
        found = alone(family, pool, bracket.upper, quantity)
        if found is None:
            most = bracket.upper * family.most_replicas
            return Discarded(
                configuration=family.configuration(limits),
                reason="inventory",
                detail=(
                    f"all {family.most_replicas} replicas that the pool holds carry at most {most:.0%} of the traffic "
                    f"within the SLOs; {_failure(bracket)}"
                ),
                margin=1 - most,
            )
        replicas, amount = found
        return Discarded(
            configuration=family.configuration(limits),
            reason=_against(amount, value),
            detail=(
                f"alone it takes at least {_replicas(replicas)}, {money(amount)}, for {money(value)}; "
                f"{_failure(bracket)}"
            ),
            margin=amount / value - 1 if value else None,
        )
    hopeless = master.pricer.hopeless(family, classes)
    if hopeless:
        return Discarded(
            configuration=family.configuration(),
            reason="slo",
            detail=f"even without any queue: broken {'; '.join(hopeless)}",
            margin=1.0,
        )
    load = sum(master.pricer.load(family, name) for name in classes)
    found = alone(family, pool, 1 / load if load > 0 else 0.0, quantity)
    if found is None:
        return Discarded(
            configuration=family.configuration(),
            reason="inventory",
            detail=(
                f"even without queueing the traffic keeps {load:.1f} replicas busy, and the pool holds "
                f"{family.most_replicas}; no mix with it was cheaper"
            ),
            margin=load / max(1, family.most_replicas) - 1,
        )
    replicas, amount = found
    return Discarded(
        configuration=family.configuration(),
        reason=_against(amount, value),
        detail=(
            f"even without queueing it takes {_replicas(replicas)} alone, {money(amount)} (predicted), for "
            f"{money(value)}; never simulated, as the plan was proven without it"
        ),
        margin=amount / value - 1 if value else None,
    )


def _against(amount: float, value: float) -> str:
    """How what a configuration costs alone stands to what the plan pays for the model.

    Cheaper alone is possible where models share nodes, budgets or stock: then no mix with it was cheaper for all.
    """
    if amount > value * (1 + 1e-6):
        return "cost"
    return "tie" if amount > value * (1 - 1e-6) else "mix"


def _value_of_model(master: Master, decision: Decision, model: str) -> float:
    """What the plan pays for one model; whole nodes are charged to the models on them by devices."""
    if len(master.classes_of) == 1:
        return decision.value
    total = 0.0
    for pool in master.template.pools:
        weight = (pool.price or 0.0) if master.template.quantity == "cost" else 1.0
        used = {
            name: sum(
                item.column.family.gpus * item.replicas
                for item in decision.bought
                if item.column.family.pool.name == pool.name and item.column.family.model == name
            )
            for name in master.classes_of
        }
        everyone = sum(used.values())
        if not everyone:
            continue
        paid = decision.nodes[pool.name] * pool.node_devices if pool.rent == "node" else everyone
        total += weight * paid * used[model] / everyone
    return total


def _quoted_limits(bracket: Bracket) -> Limits | None:
    """The limits that `_failure` speaks of: those of the failed run, which may not be those that passed lower down."""
    if bracket.failure is not None:
        return bracket.failure.variant.limits
    return bracket.variant.limits if bracket.variant is not None else None


def _failure(bracket: Bracket) -> str:
    """What the highest failed rung broke; what passed where nothing failed."""
    failure = bracket.failure
    if failure is None and bracket.passed is not None:
        kept = "every limit kept on the busiest part (simulated)" if bracket.simulated else "no limit is stated"
        return f"{_load_of(bracket.rungs[bracket.passed])}: {kept}"
    if failure is None:
        return "no limits of the engine boot on it"
    broken = "; ".join(failure.broken)
    if not failure.simulated:
        return f"even without any queue: broken {broken}"
    return f"{_load_of(failure.rung)}: broken {broken} on the busiest part (simulated)"


def _load_of(rung: Rung) -> str:
    return f"{_replicas(rung.replicas)} with {rung.share:.0%} of the traffic"


def _replicas(count: int) -> str:
    return f"{count} replica" if count == 1 else f"{count} replicas"


def _distance(bracket: Bracket) -> float:
    """Share of the requests that a refuted run never saw: the later it was refuted, the nearer the miss."""
    return 1.0 - (bracket.failure.seen if bracket.failure is not None else 0.0)
