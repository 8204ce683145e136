"""Statements of the user that a plan has no room left in, in the user's words."""

from __future__ import annotations

from collections.abc import Iterator

from planner.optimize.decision import Decision
from planner.problem import Problem
from planner.simulate import attainment, requirements
from specs.deployment import SLO, PoolSpec
from specs.plan import Binding, Cost, Predictions

NEAR = 0.05  # a limit with less room than this share of itself binds


def binding_statements(
    problem: Problem, decision: Decision, predictions: Predictions, cost: Cost
) -> tuple[Binding, ...]:
    """What is promised to requests, what the pools hold, then the limits, in the order of the document."""
    return (
        *_promises(problem, decision),
        *_throughputs(problem, predictions),
        *_stock(problem, decision),
        *_limits(problem, decision, predictions, cost),
    )


def _promises(problem: Problem, decision: Decision) -> Iterator[Binding]:
    for position, traffic in enumerate(problem.spec.traffic):
        if traffic.slo is not None and traffic.name in problem.declared.classes:
            yield from _slo(problem, decision, f"traffic[{position}] {traffic.name}: slo", traffic.name, traffic.slo)


def _slo(problem: Problem, decision: Decision, field: str, name: str, slo: SLO) -> Iterator[Binding]:
    places = problem.declared.places[problem.declared.classes.index(name)]
    result, workload = decision.result.at(places), problem.declared.at(places)
    for limit in slo.percentiles:
        reached = result.percentile_s(limit.metric, limit.percentile)
        if reached > limit.limit_s * (1 - NEAR):
            yield Binding(
                statement=f"{field}: p{limit.percentile:g} {limit.metric.upper()}",
                used=f"{reached:.4g} s",
                limit=f"{limit.limit_s:g} s",
            )
    for requirement in requirements(slo) if slo.joint else ():
        share = attainment(result, workload, name, slo).share
        if 1 - share > (1 - requirement.share) * (1 - NEAR):
            yield Binding(
                statement=f"{field}: {requirement.text}", used=f"{share:.2%}", limit=f"{requirement.share:.2%}"
            )


def _throughputs(problem: Problem, predictions: Predictions) -> Iterator[Binding]:
    reached = {item.request_class: item.tokens_per_s for item in predictions.classes}
    for position, traffic in enumerate(problem.spec.traffic):
        tokens_per_s = reached.get(traffic.name)
        if traffic.throughput is None or tokens_per_s is None:
            continue
        least = traffic.throughput.at_least_tokens_per_s
        if tokens_per_s < least * (1 + NEAR):
            yield Binding(
                statement=f"traffic[{position}] {traffic.name}: throughput: at_least",
                used=f"{tokens_per_s:,.0f} tokens/s",
                limit=f"{least:,.0f} tokens/s",
            )


def _stock(problem: Problem, decision: Decision) -> Iterator[Binding]:
    for position, pool in enumerate(problem.spec.hardware.pools):
        taken = _devices(decision, pool)
        if taken == pool.count:
            yield Binding(
                statement=f"hardware.pools[{position}] {pool.name}: count", used=str(taken), limit=str(pool.count)
            )


def _devices(decision: Decision, pool: PoolSpec) -> int:
    """Devices of a pool that are rented: whole nodes where they are billed so."""
    if pool.rent == "node" and pool.name in decision.nodes:
        return decision.nodes[pool.name] * pool.gpus_per_node
    return sum(item.column.family.gpus_in(pool.name) * item.replicas for item in decision.bought)


def _limits(problem: Problem, decision: Decision, predictions: Predictions, cost: Cost) -> Iterator[Binding]:
    limits = problem.spec.limits
    for model, gpus in sorted(limits.gpus.items()):
        used = sum(i.column.family.gpus * i.replicas for i in decision.bought if i.column.family.model == model)
        if used == gpus:
            yield Binding(statement=f"limits.gpus.{model}", used=str(used), limit=str(gpus))
    budget, paid = limits.budget_usd_per_hour, cost.usd_per_hour
    if budget is not None and paid is not None and paid > budget * (1 - NEAR):
        yield Binding(statement="limits.budget", used=f"${paid:.2f}/h", limit=f"${budget:.2f}/h")
    if limits.power_w is not None:
        watts = {pool.name: pool.most_watts for pool in problem.template.pools}
        most = sum(
            item.column.family.gpus_in(name) * item.replicas * most_w
            for item in decision.bought
            for name, most_w in watts.items()
        )
        if most > limits.power_w * (1 - NEAR):
            yield Binding(
                statement="limits.power", used=f"{most / 1000:.4g} kW", limit=f"{limits.power_w / 1000:.4g} kW"
            )
    for group in predictions.groups:
        if limits.utilisation is not None and group.utilisation > limits.utilisation * (1 - NEAR):
            yield Binding(
                statement=f"limits.utilisation ({group.group})",
                used=f"{group.utilisation:.1%}",
                limit=f"{limits.utilisation:.0%}",
            )
