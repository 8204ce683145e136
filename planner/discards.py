"""Why each configuration is not in the plan, with the figures that decided."""

from __future__ import annotations

import math

from planner.amounts import amount
from planner.candidates.family import Family
from planner.candidates.rungs import Bracket, Rung
from planner.optimize.master import Bought, Decision, Master, alone
from planner.problem import Problem
from specs.plan import Configuration, Discarded, Limits


def discarded_configurations(problem: Problem, master: Master, decision: Decision) -> tuple[Discarded, ...]:
    """Every configuration that is not in the plan, the nearest miss first within each reason.

    Sides of a split (prefill, decode) are listed where the search looked at them.
    """
    chosen = {item.column.family.key for item in decision.bought}
    looked_at = {bracket.family.key for bracket in master.brackets.values()}
    sides = (family for family in problem.role_families if family.key in looked_at)
    every = (family for family in (*problem.families, *sides) if family.key not in chosen)
    order = sorted(
        [*(_why(family, master, decision) for family in every), *problem.dropped],
        key=lambda item: (
            item.reason,
            math.inf if item.margin is None else item.margin,
            item.configuration.model_dump_json(),
        ),
    )
    return tuple(order)


def _why(family: Family, master: Master, decision: Decision) -> Discarded:
    classes = master.classes_of[family.model]
    bracket = master.brackets.get(f"{family.key}|{'+'.join(classes)}")
    if bracket is not None and (bracket.failed >= 0 or bracket.passed is not None):
        return _priced(bracket, master, decision)
    # of a large fleet that would take longer than the search
    hopeless = master.pricer.hopeless(family, classes) if master.pricer.sampled is None else ()
    if hopeless:
        return Discarded(
            configuration=family.configuration(),
            reason="slo",
            detail=f"even without any queue: broken {'; '.join(hopeless)}",
            margin=1.0,
        )
    return _never_priced(family, master, decision)


def _priced(bracket: Bracket, master: Master, decision: Decision) -> Discarded:
    """Of a configuration that was simulated, or shown to be hopeless, with all classes of its model."""
    family = bracket.family
    configuration = family.configuration(_quoted_limits(bracket))
    if bracket.upper == 0:
        return Discarded(configuration=configuration, reason="slo", detail=_failure(bracket), margin=_distance(bracket))
    if family.options.role != "unified":
        detail = f"no split with this {family.options.role} side did better; {_failure(bracket)}"
        return Discarded(configuration=configuration, reason="split", detail=detail)
    if master.template.quantity not in ("cost", "gpus"):
        detail = f"no mix with it did better at what is optimised; {_failure(bracket)}"
        return Discarded(configuration=configuration, reason="objective", detail=detail)
    found = _alone(family, master, bracket.upper)
    if found is None:
        most = bracket.upper * family.most_replicas
        return Discarded(
            configuration=configuration,
            reason="inventory",
            detail=(
                f"all {family.most_replicas} replicas that the pool holds carry at most {most:.0%} of the traffic "
                f"within the SLOs; {_failure(bracket)}"
            ),
            margin=1 - most,
        )
    replicas, value = found
    takes = f"alone it takes at least {_replicas(replicas)}, {_amount(master, value)}"
    return _dear(configuration, value, takes, _failure(bracket), master, decision)


def _never_priced(family: Family, master: Master, decision: Decision) -> Discarded:
    """Of a configuration that the search never wanted: what the utilisation law says of it."""
    configuration = family.configuration()
    load = sum(master.pricer.load(family, name) for name in master.classes_of[family.model])
    if family.options.role != "unified" or master.template.quantity not in ("cost", "gpus"):
        reason = "objective" if family.options.role == "unified" else "split"
        detail = (
            f"even without queueing the traffic keeps {load:.2g} replicas busy; never simulated, as no mix with it "
            "could have done better"
        )
        return Discarded(configuration=configuration, reason=reason, detail=detail)
    found = _alone(family, master, 1 / load if load > 0 else 0.0)
    if found is None:
        return Discarded(
            configuration=configuration,
            reason="inventory",
            detail=(
                f"even without queueing the traffic keeps {load:.1f} replicas busy, and the pool holds "
                f"{family.most_replicas}; no mix with it was cheaper"
            ),
            margin=load / max(1, family.most_replicas) - 1,
        )
    replicas, value = found
    takes = f"even without queueing it takes {_replicas(replicas)} alone, {_amount(master, value)} (predicted)"
    return _dear(configuration, value, takes, "never simulated, as the plan was proven without it", master, decision)


def _dear(
    configuration: Configuration, value: float, takes: str, note: str, master: Master, decision: Decision
) -> Discarded:
    """Of a configuration that `takes` so much alone, beside what the plan pays for its model."""
    paid = _value_of_model(master, decision, configuration.model)
    return Discarded(
        configuration=configuration,
        reason=_against(value, paid),
        detail=f"{takes}, for {_amount(master, paid)}; {note}",
        margin=value / paid - 1 if paid else None,
    )


def _alone(family: Family, master: Master, share: float) -> tuple[int, float] | None:
    return alone(family, master.template.pools, share, master.template.quantity)


def _amount(master: Master, value: float) -> str:
    return amount(master.template.quantity, value)


def _against(amount: float, value: float) -> str:
    """How what a configuration costs alone stands to what the plan pays for the model.

    Cheaper alone is possible where models share nodes, budgets or stock: then no mix with it was cheaper for all.
    """
    if amount > value * (1 + 1e-6):
        return "cost"
    return "tie" if amount > value * (1 - 1e-6) else "mix"


def _devices_of(item: Bought, pool: str) -> int:
    return item.column.family.gpus_in(pool) * item.replicas


def _value_of_model(master: Master, decision: Decision, model: str) -> float:
    """What the plan pays for one model; whole nodes are charged to the models on them by devices."""
    if len(master.classes_of) == 1:
        return decision.value
    total = 0.0
    for pool in master.template.pools:
        weight = (pool.price or 0.0) if master.template.quantity == "cost" else 1.0
        taken = [(item.column.family.model, _devices_of(item, pool.name)) for item in decision.bought]
        everyone = sum(devices for _, devices in taken)
        if not everyone:
            continue
        paid = decision.nodes[pool.name] * pool.node_devices if pool.rent == "node" else everyone
        total += weight * paid * sum(devices for name, devices in taken if name == model) / everyone
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
