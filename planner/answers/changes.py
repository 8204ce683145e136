"""Specs that differ from the user's in one thing: stock, traffic, promises, prices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from planner.plan_simulation.traffic import at_rate
from planner.problem import Problem
from specs.deployment import SLO, DeploymentSpec, Metric, PoolSpec

MORE_TRAFFIC = 1.1
DEARER = 1.2
TIGHTER = (0.8,)  # the next step of every limit of one metric,
LOOSER = (1.25, 1.5, 2.0)  # and the steps that are tried until one changes the plan
METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e")
Kind = Literal["stock", "traffic", "slo", "price"]


@dataclass(frozen=True)
class Change:
    """One question: `text` says what is changed, `steps` are ever larger changes, the first that matters counts."""

    kind: Kind
    text: tuple[str, ...]  # of each step
    steps: tuple[Callable[[], DeploymentSpec], ...]
    keeps: bool = False  # whether what satisfied the spec before still does


def changes(problem: Problem, used_pools: frozenset[str]) -> tuple[Change, ...]:
    """Every question that is asked of a plan, which uses `used_pools`."""
    spec = problem.spec
    found = [_more(spec, index, pool) for index, pool in enumerate(spec.hardware.pools)]
    busier = Change(
        "traffic", (f"{MORE_TRAFFIC - 1:.0%} more traffic",), (lambda: at_rate(spec, problem.base_dir, MORE_TRAFFIC),)
    )
    if spec.objective.quantity != "traffic":  # which asks for just that
        found.append(busier)
    found += _promises(spec)
    if spec.objective.quantity == "cost" or spec.limits.budget_usd_per_hour is not None:
        found += [
            _dearer(spec, index, pool)
            for index, pool in enumerate(spec.hardware.pools)
            if pool.name in used_pools and pool.usd_per_gpu_hour
        ]
    return tuple(found)


def with_pool(spec: DeploymentSpec, index: int, **values: Any) -> DeploymentSpec:
    """The spec with other values in one pool."""
    pools = list(spec.hardware.pools)
    pools[index] = pools[index].model_copy(update=values)
    return spec.model_copy(update={"hardware": spec.hardware.model_copy(update={"pools": tuple(pools)})})


def with_slos(spec: DeploymentSpec, change: Callable[[SLO], SLO]) -> DeploymentSpec:
    """The spec with the SLO of every class changed."""
    classes = tuple(
        traffic if traffic.slo is None else traffic.model_copy(update={"slo": change(traffic.slo)})
        for traffic in spec.traffic
    )
    return spec.model_copy(update={"traffic": classes})


def scaled(slo: SLO, factor: float, metrics: tuple[Metric, ...] = METRICS) -> SLO:
    """The same promises with every limit on these metrics `factor` times as long."""
    percentiles = tuple(
        limit.model_copy(update={"limit_s": limit.limit_s * factor}) if limit.metric in metrics else limit
        for limit in slo.percentiles
    )
    joint = {metric: seconds * factor if metric in metrics else seconds for metric, seconds in slo.joint.items()}
    return slo.model_copy(update={"percentiles": percentiles, "joint": joint})


def stated_metrics(spec: DeploymentSpec) -> tuple[Metric, ...]:
    """The metrics that some class has a limit on."""
    found = {limit.metric for traffic in spec.traffic if traffic.slo for limit in traffic.slo.percentiles}
    found |= {metric for traffic in spec.traffic if traffic.slo for metric in traffic.slo.joint}
    return tuple(metric for metric in METRICS if metric in found)


def _more(spec: DeploymentSpec, index: int, pool: PoolSpec) -> Change:
    unit = pool.gpus_per_node if pool.rent == "node" else 1
    text = f"one more node of {pool.name} ({unit} {pool.device})" if pool.rent == "node" else f"one more {pool.name}"
    return Change("stock", (text,), (lambda: with_pool(spec, index, count=pool.count + unit),), keeps=True)


def _promises(spec: DeploymentSpec) -> Iterator[Change]:
    for metric in stated_metrics(spec):
        for factors in (TIGHTER, LOOSER):
            yield Change(
                "slo",
                tuple(_step_text(spec, metric, factor) for factor in factors),
                tuple(partial(_scaled_spec, spec, metric, factor) for factor in factors),
                keeps=factors is LOOSER,
            )


def _scaled_spec(spec: DeploymentSpec, metric: Metric, factor: float) -> DeploymentSpec:
    return with_slos(spec, lambda slo: scaled(slo, factor, (metric,)))


def _step_text(spec: DeploymentSpec, metric: Metric, factor: float) -> str:
    name = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end"}[metric]
    limits = {limit.limit_s for t in spec.traffic if t.slo for limit in t.slo.percentiles if limit.metric == metric}
    limits |= {t.slo.joint[metric] for t in spec.traffic if t.slo and metric in t.slo.joint}
    if len(limits) == 1:
        return f"{name} within {seconds(limits.pop() * factor)}"
    return f"every limit on {name} times {factor:g}"


def seconds(value: float) -> str:
    """A limit as a person writes it: `800ms`, `1.25s`."""
    return f"{value * 1000:.3g}ms" if value < 1 else f"{value:.3g}s"


def _dearer(spec: DeploymentSpec, index: int, pool: PoolSpec) -> Change:
    price = (pool.usd_per_gpu_hour or 0.0) * DEARER
    text = f"{pool.name} {DEARER - 1:.0%} dearer (${price:,.2f}/h)"
    return Change("price", (text,), (lambda: with_pool(spec, index, usd_per_gpu_hour=price),), keeps=True)
