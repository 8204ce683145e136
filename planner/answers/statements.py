"""What the user wrote, one by one: the spec without it, and the least change to it that mends a conflict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from planner.answers.conflict_search import Search, first_that_holds
from planner.answers.conflict_words import (
    chosen,
    devices,
    digits,
    gpus,
    listed,
    most_watts,
    rented,
    seconds_text,
    two_digits,
)
from planner.optimize.decision import Decision
from specs.deployment import SLO, DeploymentSpec, Metric, Objective, PoolSpec, TrafficClass

PARTS = 8  # steps between two factors, on a scale of ratios
COARSENESS = 1.05  # counts are tried in steps of one, large ones in steps of this ratio
MORE_NODES = 16  # a pool is enlarged up to so many times its size
# An SLO limit and watts are softened by these factors.
SOFTER = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0, 10000.0)
# A limit that would have to be longer than this (or ten times what is stated) is not offered: it promises nothing.
LONGEST_S: dict[Metric, float] = {"ttft": 60.0, "tpot": 1.0, "e2e": 600.0}
LESS_SURE = (0.9, 0.8, 0.7, 0.6, 0.5)  # confidences that are tried
MORE_POWER = (1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


@dataclass(frozen=True)
class Statement:
    """What the user wrote, the spec without its force, and the sentence of its least change.

    `mend` searches for that, given a plan of the relaxed spec on part of the window; `used` reads off a plan what the
    statement would have to say for it (None where a plan does not tell: limits on latency).
    """

    text: str
    relaxed: DeploymentSpec
    mend: Callable[[Decision], str | None]
    used: Callable[[Decision], str] | None = None


def statements(spec: DeploymentSpec, search: Search) -> Iterator[Statement]:
    """Every statement that may be questioned: stock, budget, limits, pins, SLOs. `search` answers their questions."""
    for index, pool in enumerate(spec.hardware.pools):
        yield _pool(spec, search, index, pool)
    if spec.limits.budget_usd_per_hour is not None:
        yield _budget(spec, search, spec.limits.budget_usd_per_hour)
    for model, count in spec.limits.gpus.items():
        yield _model_gpus(spec, search, model, count)
    if spec.limits.power_w is not None:
        yield _power(spec, search, spec.limits.power_w)
    if spec.limits.survive_node_failures:
        yield _failures(spec, search, spec.limits.survive_node_failures)
    if spec.limits.utilisation is not None:
        full = with_section(spec, "limits", utilisation=None)
        text = f"limits.utilisation: {spec.limits.utilisation:.0%}"
        yield _freed(search, text, full, "limits.utilisation: 100% (no headroom)")
    if spec.limits.confidence is not None:
        yield _confidence(spec, search, spec.limits.confidence)
    if spec.choices.disaggregation != "auto":
        free = with_section(spec, "choices", disaggregation="auto")
        text = f"choices.disaggregation: {spec.choices.disaggregation}"
        yield _freed(search, text, free, "choices.disaggregation: auto")
    yield from _pins(spec, search)
    for index, traffic in enumerate(spec.traffic):
        if traffic.slo is not None:
            yield from _slo(spec, search, index, traffic, traffic.slo)


def with_section(spec: DeploymentSpec, section: str, **values: Any) -> DeploymentSpec:
    """The spec with other values in one of its sections."""
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=values)})


def counts(low: int, high: int) -> list[int]:
    """Numbers above `low` and below `high`, one by one at first, in steps of a ratio later."""
    found, count = [], low + 1
    while count < high:
        found.append(count)
        count = max(count + 1, math.floor(count * COARSENESS))
    return found


def scaled(slo: SLO, factor: float) -> SLO:
    """The same objectives with every limit `factor` times as long."""
    percentiles = tuple(limit.model_copy(update={"limit_s": limit.limit_s * factor}) for limit in slo.percentiles)
    joint = {metric: seconds * factor for metric, seconds in slo.joint.items()}
    return slo.model_copy(update={"percentiles": percentiles, "joint": joint})


def _least(search: Search, low: int, high: int, spec_at: Callable[[int], DeploymentSpec]) -> int | None:
    """The least number above `low`, which is too small, that has a plan; a plan is known to use `high` of them.

    None where even `high` has none: smaller pools are priced on other rungs.
    """
    return search.first([*counts(low, high), high], spec_at, last=True) if high > low else None


def _freed(search: Search, text: str, relaxed: DeploymentSpec, mend: str) -> Statement:
    """A statement whose only softer form is not to make it."""

    def judged(decision: Decision) -> str | None:
        return mend if search.plan(relaxed, whole=True) else None

    return Statement(text, relaxed, judged, lambda decision: mend)


def _pool(spec: DeploymentSpec, search: Search, index: int, pool: PoolSpec) -> Statement:
    def with_count(count: int) -> DeploymentSpec:
        pools = list(spec.hardware.pools)
        pools[index] = pool.model_copy(update={"count": count})
        return with_section(spec, "hardware", pools=tuple(pools))

    unit = pool.gpus_per_node if pool.rent == "node" else 1

    name, spare = f"hardware.pools[{index}] {pool.name}: count: ", spec.limits.survive_node_failures

    def mend(decision: Decision) -> str | None:
        held, needed = pool.count // unit, devices(decision, pool) // unit
        most = needed if not spare else pool.count * MORE_NODES // unit  # nodes that stand by are not in a decision
        enough = _least(search, held, most, lambda number: with_count(number * unit))
        return None if enough is None else f"{name}{enough * unit}"

    def used(decision: Decision) -> str:
        return f"{name}{max(pool.count, devices(decision, pool) + spare * pool.gpus_per_node)}"

    return Statement(f"{name}{pool.count}", with_count(pool.count * MORE_NODES), mend, used)


def _budget(spec: DeploymentSpec, search: Search, stated: float) -> Statement:
    cheapest = with_section(spec, "limits", budget_usd_per_hour=None).model_copy(update={"objective": Objective()})

    pools = {pool.name: pool for pool in spec.hardware.pools}

    def used(decision: Decision) -> str:
        paid = {pool.name for item in decision.bought for pool in item.column.family.pools}
        usd = sum(rented(decision, pools[name]) * (pools[name].usd_per_hour or 0.0) for name in paid)
        return f"limits.budget: ${math.ceil(usd * 100 - 1e-6) / 100:.2f}/h"

    def mend(decision: Decision) -> str | None:
        found = search.plan(cheapest, whole=True, best=True) or search.plan(cheapest, whole=True)
        return None if found is None else used(found)

    return Statement(f"limits.budget: ${stated:g}/h", cheapest, mend, used)


def _model_gpus(spec: DeploymentSpec, search: Search, model: str, stated: int) -> Statement:
    limits = spec.limits.gpus

    def with_limit(count: int) -> DeploymentSpec:
        return with_section(spec, "limits", gpus={**limits, model: count})

    def mend(decision: Decision) -> str | None:
        enough = _least(search, stated, gpus(decision, model), with_limit)
        return None if enough is None else f"limits.gpus.{model}: {enough}"

    others = {name: count for name, count in limits.items() if name != model}
    return Statement(
        f"limits.gpus.{model}: {stated}",
        with_section(spec, "limits", gpus=others),
        mend,
        lambda decision: f"limits.gpus.{model}: {gpus(decision, model)}",
    )


def _power(spec: DeploymentSpec, search: Search, stated: float) -> Statement:
    def with_watts(watts: float | None) -> DeploymentSpec:
        return with_section(spec, "limits", power_w=watts)

    def mend(decision: Decision) -> str | None:
        enough = search.first([two_digits(stated * factor) for factor in MORE_POWER], with_watts)
        return None if enough is None else f"limits.power: {enough / 1000:g}kW"

    def used(decision: Decision) -> str:
        return f"limits.power: {two_digits(most_watts(decision, search.problem)) / 1000:g}kW"

    return Statement(f"limits.power: {stated / 1000:g}kW", with_watts(None), mend, used)


def _failures(spec: DeploymentSpec, search: Search, stated: int) -> Statement:
    def with_failures(number: int) -> DeploymentSpec:
        return with_section(spec, "limits", survive_node_failures=number)

    def mend(decision: Decision) -> str | None:
        most = search.first(range(stated - 1, -1, -1), with_failures)
        return None if most is None else f"limits.survive_node_failures: {most}"

    text = "limits.survive_node_failures: "
    return Statement(f"{text}{stated}", with_failures(0), mend, lambda decision: f"{text}0")


def _confidence(spec: DeploymentSpec, search: Search, stated: float) -> Statement:
    none_at_all = "limits.confidence: none (steps as predicted)"

    def with_confidence(confidence: float | None) -> DeploymentSpec:
        return with_section(spec, "limits", confidence=confidence)

    def mend(decision: Decision) -> str | None:
        most = search.first([share for share in LESS_SURE if share < stated], with_confidence)
        if most is not None:
            return f"limits.confidence: {most:.0%}"
        none = search.plan(with_confidence(None), whole=True)
        return None if none is None else none_at_all

    text = f"limits.confidence: {100 * stated:.6g}%"
    return Statement(text, with_confidence(None), mend, lambda decision: none_at_all)


def _pins(spec: DeploymentSpec, search: Search) -> Iterator[Statement]:
    for model, choices in spec.choices.models.items():
        for name, values in choices.model_dump().items():
            if values is None or values == () or name == "stages_over":  # which allows more, not less
                continue
            freed = choices.model_copy(update={name: None})
            relaxed = with_section(spec, "choices", models={**spec.choices.models, model: freed})
            yield _pin(search, model, name, values, relaxed)


def _pin(search: Search, model: str, name: str, values: Any, relaxed: DeploymentSpec) -> Statement:
    def used(decision: Decision) -> str:
        return f"choices.{model}.{name}: {chosen(decision, model, name)}"

    def mend(decision: Decision) -> str | None:
        judged = search.plan(relaxed, whole=True)
        return None if judged is None else used(judged)

    return Statement(f"choices.{model}.{name}: {listed(values)}", relaxed, mend, used)


def _slo(spec: DeploymentSpec, search: Search, index: int, traffic: TrafficClass, slo: SLO) -> Iterator[Statement]:
    field = f"traffic[{index}] {traffic.name}: slo"

    def with_slo(changed: SLO | None) -> DeploymentSpec:
        classes = list(spec.traffic)
        classes[index] = traffic.model_copy(update={"slo": changed})
        return spec.model_copy(update={"traffic": tuple(classes)})

    for position, limit in enumerate(slo.percentiles):

        def softened(factor: float, position: int = position, seconds: float = limit.limit_s) -> DeploymentSpec:
            limits = list(slo.percentiles)
            limits[position] = limits[position].model_copy(update={"limit_s": digits(seconds * factor)})
            return with_slo(slo.model_copy(update={"percentiles": tuple(limits)}))

        head = f"{field}: {{{limit.metric}: {{p{limit.percentile:g}: "
        yield _softer(search, head, "}}", limit.limit_s, factors(limit.metric, limit.limit_s), softened)
    for metric, seconds in slo.joint.items():

        def softened_joint(factor: float, metric: Any = metric, seconds: float = seconds) -> DeploymentSpec:
            return with_slo(slo.model_copy(update={"joint": {**slo.joint, metric: digits(seconds * factor)}}))

        yield _softer(search, f"{field}: {{{metric}: ", "}", seconds, factors(metric, seconds), softened_joint)


def factors(metric: Metric, seconds: float) -> tuple[float, ...]:
    """By what a limit may be softened, tenfold at least."""
    most = max(LONGEST_S[metric], 10.0 * seconds)
    return tuple(factor for factor in SOFTER if seconds * factor <= most)


def _softer(
    search: Search,
    head: str,
    tail: str,
    seconds: float,
    ladder: tuple[float, ...],
    spec_at: Callable[[float], DeploymentSpec],
) -> Statement:
    def has_plan(factor: float) -> bool:
        return search.plan(spec_at(factor)) is not None

    def mend(decision: Decision) -> str | None:
        most = first_that_holds(ladder[:-1], has_plan) or ladder[-1]
        least = max((factor for factor in ladder if factor < most), default=1.0)
        finer = [two_digits(seconds * least * (most / least) ** (part / PARTS)) / seconds for part in range(1, PARTS)]
        between = sorted({factor for factor in finer if least < factor < most})
        finest = first_that_holds(between, has_plan) or most
        factor = search.judged(sorted({finest, *(factor for factor in ladder if factor >= most)}), spec_at)
        return None if factor is None else f"{head}{seconds_text(seconds * factor)}{tail}"

    return Statement(f"{head}{seconds_text(seconds)}{tail}", spec_at(ladder[-1]), mend)
