"""Why there is no plan: the user's statements in conflict, and the least change to each that mends it.

Only what the user wrote is questioned: what the pools hold, the budget, GPU limits, headroom, pins, each SLO limit, and
the rate. Each question is asked by planning again without the statement, so an answer is as good as a plan: a statement
whose removal alone mends the spec is in every conflict; of the others, a deletion filter keeps those that are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from planner.optimize.master import Decision
from planner.optimize.programme import slot_gpus
from planner.problem import BUSIEST_S, Problem, pose
from specs.deployment import SLO, DeploymentSpec, Objective, PoolSpec, TrafficClass
from specs.errors import InputError, NoPlanError
from specs.plan import Discarded

Progress = Callable[[str], None]
MOST_REQUESTS, LEAST_S = 15_000, 30.0  # of one question
REFINEMENTS = 3  # halvings between two factors, on a scale of ratios
MORE_NODES = 16  # a pool is enlarged up to so many times its size
SOFTER = (
    1.1,
    1.25,
    1.5,
    2.0,
    3.0,
    5.0,
    10.0,
    30.0,
    100.0,
    1000.0,
    10000.0,
)  # an SLO limit is softened by these factors
# and a rate is lowered to these shares of itself
FEWER = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


@dataclass(frozen=True)
class Statement:
    """What the user wrote, the spec without its force, and the sentence of its least change."""

    text: str
    relaxed: DeploymentSpec
    mend: Callable[[Decision], str | None]  # given a plan of the relaxed spec


def explain_conflict(problem: Problem, progress: Progress = lambda text: None) -> NoPlanError:
    """The error to raise for a problem that has no plan."""
    homeless = [name for name in problem.spec.models if not any(family.model == name for family in problem.families)]
    search = _Search(problem, progress)
    single = [
        (statement, decision) for statement in search.statements() if (decision := search.plan(statement.relaxed))
    ]
    mends = [mend for statement, decision in single if (mend := statement.mend(decision))]
    conflict = [statement.text for statement, _ in single] or search.filtered()
    if not homeless:
        slower = search.slower()
        if slower is not None:
            conflict.append(_demand(problem.spec))
            mends.append(slower)
        if not mends and (together := search.together()) is not None:
            mends.append(together)
        return NoPlanError("no plan satisfies this spec", tuple(conflict), tuple(mends))
    name = homeless[0]
    nearest = _nearest_miss(problem, name)
    detail = f"; nearest miss: {nearest}" if nearest else ""
    conflict = [f"models.{name}.architecture: {problem.facts.architectures[name].name}", *conflict]
    conflict += [f"hardware.pools: {_stock(pool)}" for pool in problem.spec.hardware.pools]
    return NoPlanError(
        f"models.{name} boots on none of the declared devices{detail}", tuple(dict.fromkeys(conflict)), tuple(mends)
    )


def asked_seconds(problem: Problem) -> float:
    """How much of the busiest window each question is asked on: dozens of plans of heavy traffic would take minutes."""
    share = min(1.0, MOST_REQUESTS / len(problem.declared))
    return max(LEAST_S, BUSIEST_S * share)


@dataclass
class _Search:
    problem: Problem
    progress: Progress

    def plan(self, spec: DeploymentSpec) -> Decision | None:
        """A plan of a changed spec, or None."""
        try:
            problem = self.problem
            changed = pose(
                spec, problem.base_dir, seed=problem.seed, machine=problem.machine, seconds=asked_seconds(problem)
            )
            return changed.master().decide() if changed.families else None
        except (InputError, NoPlanError):
            return None  # the change contradicts something else that the user wrote, or the search for a plan gave up

    def statements(self) -> Iterator[Statement]:
        """Every statement that may be questioned, each announced before it costs time."""
        for statement in self._all():
            self.progress(f"what if not {statement.text}")
            yield statement

    def _all(self) -> Iterator[Statement]:
        spec = self.problem.spec
        for index, pool in enumerate(spec.hardware.pools):
            yield self._pool(index, pool)
        if spec.limits.budget_usd_per_hour is not None:
            cheapest = _with(spec, "limits", budget_usd_per_hour=None).model_copy(update={"objective": Objective()})
            yield Statement(
                f"limits.budget: ${spec.limits.budget_usd_per_hour:g}/h",
                cheapest,
                lambda decision: f"limits.budget: ${math.ceil(decision.value * 100 - 1e-6) / 100:.2f}/h",
            )
        for model, gpus in spec.limits.gpus.items():
            yield self._model_gpus(model, gpus)
        if spec.limits.utilisation is not None:
            yield Statement(
                f"limits.utilisation: {spec.limits.utilisation:.0%}",
                _with(spec, "limits", utilisation=None),
                lambda decision: "limits.utilisation: 100% (no headroom)",
            )
        yield from self._pins()
        for index, traffic in enumerate(spec.traffic):
            if traffic.slo is not None:
                yield from self._slo(index, traffic, traffic.slo)

    def _pool(self, index: int, pool: PoolSpec) -> Statement:
        spec = self.problem.spec

        def with_count(count: int) -> DeploymentSpec:
            pools = list(spec.hardware.pools)
            pools[index] = pool.model_copy(update={"count": count})
            return _with(spec, "hardware", pools=tuple(pools))

        unit = pool.gpus_per_node if pool.rent == "node" else 1

        def mend(decision: Decision) -> str | None:
            enough = self.least(pool.count // unit, _devices(decision, pool) // unit, lambda n: with_count(n * unit))
            return None if enough is None else f"hardware.pools[{index}] {pool.name}: count: {enough * unit}"

        more = with_count(pool.count * MORE_NODES)
        return Statement(f"hardware.pools[{index}] {pool.name}: count: {pool.count}", more, mend)

    def _model_gpus(self, model: str, gpus: int) -> Statement:
        limits = self.problem.spec.limits.gpus

        def with_limit(count: int) -> DeploymentSpec:
            return _with(self.problem.spec, "limits", gpus={**limits, model: count})

        def mend(decision: Decision) -> str | None:
            enough = self.least(gpus, _gpus(decision, model), with_limit)
            return None if enough is None else f"limits.gpus.{model}: {enough}"

        others = {name: count for name, count in limits.items() if name != model}
        return Statement(f"limits.gpus.{model}: {gpus}", _with(self.problem.spec, "limits", gpus=others), mend)

    def least(self, low: int, high: int, spec_at: Callable[[int], DeploymentSpec]) -> int | None:
        """The least number above `low`, which is too small, that has a plan; a plan is known to use `high` of them.

        `high` itself is tried, as smaller pools are priced on other rungs; None where it has no plan.
        """
        if high <= low or self.plan(spec_at(high)) is None:
            return None
        while high - low > 1:  # fewer may do than the cheapest plan takes
            middle = (low + high) // 2
            low, high = (low, middle) if self.plan(spec_at(middle)) else (middle, high)
        return high

    def _pins(self) -> Iterator[Statement]:
        spec = self.problem.spec
        for model, choices in spec.choices.models.items():
            for name, values in choices.model_dump().items():
                if not values:
                    continue
                freed = choices.model_copy(update={name: None})
                relaxed = _with(spec, "choices", models={**spec.choices.models, model: freed})
                yield Statement(
                    f"choices.{model}.{name}: {_list(values)}",
                    relaxed,
                    lambda decision, model=model, name=name: (  # type: ignore[misc]
                        f"choices.{model}.{name}: {_list(_chosen(decision, model, name))}"
                    ),
                )

    def _slo(self, index: int, traffic: TrafficClass, slo: SLO) -> Iterator[Statement]:
        field = f"traffic[{index}] {traffic.name}: slo"

        def with_slo(changed: SLO | None) -> DeploymentSpec:
            classes = list(self.problem.spec.traffic)
            classes[index] = traffic.model_copy(update={"slo": changed})
            return self.problem.spec.model_copy(update={"traffic": tuple(classes)})

        for position, limit in enumerate(slo.percentiles):

            def softened(factor: float, position: int = position, seconds: float = limit.limit_s) -> SLO:
                limits = list(slo.percentiles)
                limits[position] = limits[position].model_copy(update={"limit_s": _digits(seconds * factor)})
                return slo.model_copy(update={"percentiles": tuple(limits)})

            name = f"{field}: {{{limit.metric}: {{p{limit.percentile:g}: "
            yield self._softer(name, "}}", limit.limit_s, lambda factor, soft=softened: with_slo(soft(factor)))  # type: ignore[misc]
        for metric, seconds in slo.joint.items():

            def softened_joint(factor: float, metric: Any = metric, seconds: float = seconds) -> SLO:
                return slo.model_copy(update={"joint": {**slo.joint, metric: _digits(seconds * factor)}})

            yield self._softer(
                f"{field}: {{{metric}: ",
                "}",
                seconds,
                lambda factor, soft=softened_joint: with_slo(soft(factor)),  # type: ignore[misc]
            )

    def _softer(self, head: str, tail: str, seconds: float, spec_at: Callable[[float], DeploymentSpec]) -> Statement:
        def mend(decision: Decision) -> str | None:
            low, high = -1, len(SOFTER) - 1
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self.plan(spec_at(SOFTER[middle])) else (middle, high)
            least, most = SOFTER[low] if low >= 0 else 1.0, SOFTER[high]
            for _ in range(REFINEMENTS):
                factor = _two_digits(seconds * math.sqrt(least * most)) / seconds
                if not least < factor < most:
                    break
                least, most = (least, factor) if self.plan(spec_at(factor)) else (factor, most)
            return f"{head}{_seconds(seconds * most)}{tail}"

        return Statement(f"{head}{_seconds(seconds)}{tail}", spec_at(SOFTER[-1]), mend)

    def together(self) -> str | None:
        """Where no statement alone mends the spec: all latency limits softened alike, and the budget this takes."""
        self.progress("what if every latency limit were softer")
        spec = self.problem.spec

        def softened(factor: float) -> DeploymentSpec:
            classes = tuple(
                traffic if traffic.slo is None else traffic.model_copy(update={"slo": _scaled(traffic.slo, factor)})
                for traffic in spec.traffic
            )
            return _with(spec, "limits", budget_usd_per_hour=None).model_copy(update={"traffic": classes})

        low, high = -1, len(SOFTER)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.plan(softened(SOFTER[middle])) else (middle, high)
        decision = self.plan(softened(SOFTER[high])) if high < len(SOFTER) else None
        if decision is None:
            return None
        budget = spec.limits.budget_usd_per_hour
        dearer = budget is not None and spec.objective.quantity == "cost" and decision.value > budget
        return f"together: every latency limit times {SOFTER[high]:g}" + (
            f", and limits.budget: ${math.ceil(decision.value * 100) / 100:.2f}/h" if dearer else ""
        )

    def slower(self) -> str | None:
        """The largest share of the declared traffic that has a plan."""
        self.progress("how much of the traffic can be served")
        low, high = -1, len(FEWER)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.plan(_at_rate(self.problem, FEWER[middle])) else (middle, high)
        if high == len(FEWER):
            return None
        return f"traffic: {100 * FEWER[high]:g}% of the declared rate ({_demand(_at_rate(self.problem, FEWER[high]))})"

    def filtered(self) -> list[str]:
        """Where no single statement mends the spec: those that cannot be left out of the conflict, one by one.

        All of them where there is no plan even without any.
        """
        kept = list(self._all())
        spec = self.problem.spec
        for statement in list(kept):
            self.progress(f"is {statement.text} part of the conflict")
            merged = _merged(self.problem.spec, spec, statement.relaxed)
            if self.plan(merged) is None:
                kept.remove(statement)
                spec = merged
        return [statement.text for statement in kept or self._all()]


def _with(spec: DeploymentSpec, section: str, **changes: Any) -> DeploymentSpec:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=changes)})


def _merged(stated: DeploymentSpec, base: DeploymentSpec, relaxed: DeploymentSpec) -> DeploymentSpec:
    """`base` with what `relaxed` changed in what the user `stated`; both were made from that, one change at a time."""

    def merge(stated: Any, base: Any, relaxed: Any) -> Any:
        if relaxed == stated:
            return base
        if isinstance(stated, dict) and isinstance(base, dict) and isinstance(relaxed, dict):
            names = [n for n in {**base, **relaxed} if n not in stated or (n in base and n in relaxed)]
            return {
                name: merge(stated.get(name), base.get(name, stated.get(name)), relaxed.get(name, stated.get(name)))
                for name in names
            }
        lists = isinstance(stated, list) and isinstance(base, list) and isinstance(relaxed, list)
        if lists and len(stated) == len(base) == len(relaxed):
            return [merge(*parts) for parts in zip(stated, base, relaxed, strict=True)]
        return relaxed

    merged = merge(*(spec.model_dump(mode="json") for spec in (stated, base, relaxed)))
    return DeploymentSpec.model_validate(merged)


def _at_rate(problem: Problem, share: float) -> DeploymentSpec:
    """The spec with every class at `share` of its rate."""
    classes = []
    rates = {
        name: float(problem.declared.of_class(name).sum()) / problem.declared.horizon_s
        for name in problem.declared.classes
    }
    for traffic in problem.spec.traffic:
        if traffic.trace is not None:
            rate = (traffic.trace.rate_per_s or rates[traffic.name]) * share
            changed: dict[str, Any] = {"trace": traffic.trace.model_copy(update={"rate_per_s": rate})}
        elif traffic.arrivals is not None:
            changed = {
                "arrivals": traffic.arrivals.model_copy(update={"rate_per_s": traffic.arrivals.rate_per_s * share})
            }
        else:
            changed = {}
        classes.append(traffic.model_copy(update=changed))
    return problem.spec.model_copy(update={"traffic": tuple(classes)})


def _demand(spec: DeploymentSpec) -> str:
    parts = []
    for traffic in spec.traffic:
        rate = (traffic.trace.rate_per_s if traffic.trace else None) or (
            traffic.arrivals.rate_per_s if traffic.arrivals else None
        )
        parts.append(f"{traffic.name} {rate:g}/s" if rate else f"{traffic.name} as recorded")
    return "traffic: " + ", ".join(parts)


def _nearest_miss(problem: Problem, model: str) -> str | None:
    misses = [item for item in problem.dropped if item.configuration.model == model and item.reason != "pipeline"]
    if not misses:
        return None

    def distance(item: Discarded) -> tuple[bool, float]:
        return item.margin is None, item.margin or 0.0

    best = min(misses, key=distance)
    where = best.configuration
    return (
        f"{where.pool} with TP {where.tensor_parallel}, PP {where.pipeline_parallel}, {where.weights_dtype} weights, "
        f"{where.kv_dtype} KV: {best.detail}"
    )


def _stock(pool: PoolSpec) -> str:
    return f"{pool.name} with {pool.count} {pool.device}"


def _devices(decision: Decision, pool: PoolSpec) -> int:
    """Devices of a pool that a decision takes, whole nodes where they are rented so."""
    if pool.name in decision.nodes:
        return decision.nodes[pool.name] * pool.gpus_per_node
    own = [item for item in decision.bought if item.column.family.pool.name == pool.name]
    return math.ceil(sum(slot_gpus(i.column.family.gpus, pool.gpus_per_node) * i.replicas for i in own) - 1e-9)


def _gpus(decision: Decision, model: str) -> int:
    return sum(i.column.family.gpus * i.replicas for i in decision.bought if i.column.family.model == model)


def _chosen(decision: Decision, model: str, name: str) -> tuple[Any, ...]:
    own = [item for item in decision.bought if item.column.family.model == model]
    if name == "replicas":
        return (sum(item.replicas for item in own),)
    values: list[Any] = []
    for item in own:
        family, variant = item.column.family, item.column.variant
        values.append(
            {
                "tensor_parallel": family.layout.tensor_parallel,
                "pipeline_parallel": family.layout.pipeline_parallel,
                "pool": family.pool.name,
                "max_num_seqs": variant.limits.max_num_seqs if variant else None,
                "max_num_batched_tokens": variant.limits.max_num_batched_tokens if variant else None,
            }[name]
        )
    return tuple(dict.fromkeys(values))


def _list(values: Any) -> str:
    items = list(values)
    return str(items[0]) if len(items) == 1 else "[" + ", ".join(str(item) for item in items) + "]"


def _digits(seconds: float) -> float:
    """Three digits, as a mend is printed: what is printed is then what was planned."""
    return float(f"{seconds:.3g}")


def _scaled(slo: SLO, factor: float) -> SLO:
    """The same objectives with every limit `factor` times as long."""
    percentiles = tuple(limit.model_copy(update={"limit_s": limit.limit_s * factor}) for limit in slo.percentiles)
    joint = {metric: seconds * factor for metric, seconds in slo.joint.items()}
    return slo.model_copy(update={"percentiles": percentiles, "joint": joint})


def _two_digits(seconds: float) -> float:
    """Rounded up to two significant digits: a value that a person would write."""
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return math.ceil(seconds / unit - 1e-9) * unit


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g}ms" if seconds < 1 else f"{seconds:.3g}s"
