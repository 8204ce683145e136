"""Why there is no plan: the user's statements in conflict, and the least change to each that mends it.

Only what the user wrote is questioned: what the pools hold, the budget, GPU limits, headroom, confidence, pins, each
SLO limit, and the rate. Each question is asked by planning again without the statement, so an answer is as good as a
plan: a statement whose removal alone mends the spec is in every conflict; of the others, a deletion filter keeps those
that are needed.

Most questions ask for any plan, not for the best one, and on the busiest part of the window; what is then offered as a
mend is judged on all of it. How often a question may simulate is limited, so that the same spec gets the same answer on
every machine; one that runs out counts as answered by no.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from planner.candidates.family import Family
from planner.optimize.master import Decision
from planner.optimize.programme import slot_gpus
from planner.problem import Problem, compressed, frame, longest_request, pose
from planner.simulate import LEAST_REQUESTS, Workload, declared_workload
from specs.deployment import SLO, DeploymentSpec, Objective, PoolSpec, TrafficClass
from specs.errors import InputError, NoPlanError
from specs.plan import Discarded, SimulatedWindow

T = TypeVar("T")
Progress = Callable[[str], None]
MOST_REQUESTS, LEAST_S = 15_000, 30.0  # of the part of the window that is searched on
MOST_JUDGED = 200_000  # requests of the window that mends are judged on
# Simulations to find the statements in conflict, how much traffic can be served, and the mends of statements, and those
# of one question; one takes 0.05 to 0.2 s.
TO_FIND, TO_SLOW, TO_MEND, TO_ANSWER = 200, 120, 200, 60
REQUESTS_OF_ONE = 20_000  # of the window of a whole plan, which counts for one more by so many
STRIDES = (0, 1, 3, 7)  # which of ever softer options are judged, until one holds
CUT_SHORT = " (a smaller change may do: the search was cut short)"
PARTS = 8  # steps between two factors, on a scale of ratios
COARSENESS = 1.05  # counts are tried in steps of one, large ones in steps of this ratio
MORE_NODES = 16  # a pool is enlarged up to so many times its size
# An SLO limit is softened by these factors, and a rate is lowered to these shares of itself.
SOFTER = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0, 10000.0)
LESS_SURE = (0.9, 0.8, 0.7, 0.6, 0.5)  # confidences that are tried
FEWER = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


@dataclass(frozen=True)
class Statement:
    """What the user wrote, the spec without its force, and the sentence of its least change."""

    text: str
    relaxed: DeploymentSpec
    mend: Callable[[Decision], str | None]  # given a plan of the relaxed spec, on part of the window


def explain_conflict(problem: Problem, progress: Progress = lambda text: None) -> NoPlanError:
    """The error to raise for a problem that has no plan."""
    homeless = [name for name in problem.spec.models if not any(family.model == name for family in problem.families)]
    search = _Search(problem, progress, TO_FIND)
    single = [
        (statement, decision) for statement in search.statements() if (decision := search.plan(statement.relaxed))
    ]
    conflict = [statement.text for statement, _ in single] or search.filtered()
    mends = []
    for statement, decision in single:
        search.left = max(TO_ANSWER, TO_MEND // len(single))
        if (mend := search.mended(partial(statement.mend, decision))) is not None:
            mends.append(mend)
    if not homeless:
        search.left = TO_SLOW
        slower = search.mended(search.slower)
        if slower is not None:
            conflict.append(_demand(problem.spec))
            mends.append(slower)
        search.left = TO_MEND
        if not mends and (together := search.mended(search.together)) is not None:
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


def first_that_holds(options: Sequence[T], holds: Callable[[T], bool]) -> T | None:
    """The first of `options` that holds, by bisection: where one holds, all later ones do. None where none does."""
    low, high = -1, len(options)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(options[middle]) else (middle, high)
    return options[high] if high < len(options) else None


class _ExhaustedError(Exception):
    """A question has simulated all that it may."""


@dataclass
class _Search:
    problem: Problem
    progress: Progress
    left: int  # simulations that may still be run
    exhausted: bool = False  # whether a question has run out of them
    _workloads: dict[str, tuple[Workload, tuple[SimulatedWindow, ...]]] = field(default_factory=dict)
    _enumerations: dict[str, tuple[Family, ...]] = field(default_factory=dict)

    def plan(self, spec: DeploymentSpec, *, whole: bool = False, best: bool = False) -> Decision | None:
        """A plan of a changed spec (`best`: the cheapest), or None where there is none or the question ran out.

        On the busiest part of the window, out of what is left of the simulations, or on the `whole` of it.
        """
        problem = self._pose(spec, MOST_JUDGED if whole else MOST_REQUESTS)
        if problem is None or not problem.families:
            return None
        allowed = TO_ANSWER if whole else min(TO_ANSWER, self.left)

        def count(step: str) -> None:
            nonlocal allowed
            if not step.startswith("simulating"):
                return
            cost = 1 + ("whole plan" in step) * len(problem.workload) // REQUESTS_OF_ONE
            allowed -= cost
            self.left -= 0 if whole else cost
            if allowed < 0:
                raise _ExhaustedError

        try:
            return problem.master(count).decide(any_plan=not best)
        except NoPlanError:
            return None
        except _ExhaustedError:
            self.exhausted = True
            return None

    def first(self, options: Sequence[T], spec_at: Callable[[T], DeploymentSpec], *, last: bool = False) -> T | None:
        """The first of `options`, ever softer, that has a plan: found on part of the window, judged on all of it.

        `last`: the last one is known to have a plan there, and is judged where the search runs out.
        """
        found = first_that_holds(range(len(options)), lambda index: self.plan(spec_at(options[index])) is not None)
        if found is None:
            return self.judged(options[-1:], spec_at) if last else None
        return self.judged(options[found:], spec_at)

    def judged(self, options: Sequence[T], spec_at: Callable[[T], DeploymentSpec]) -> T | None:
        """The first of `options`, or the next softer ones in growing strides, that has a plan on the whole window."""
        likely = (options[index] for index in STRIDES if index < len(options))
        return next((option for option in likely if self.plan(spec_at(option), whole=True)), None)

    def mended(self, search: Callable[[], str | None]) -> str | None:
        """The mend that `search` finds, with a remark where one of its questions ran out."""
        self.exhausted = False
        mend = search()
        return mend + CUT_SHORT if mend is not None and self.exhausted else mend

    def _pose(self, spec: DeploymentSpec, most_requests: int) -> Problem | None:
        """The problem of a changed spec, None where the change contradicts something else that the user wrote."""
        base = self.problem
        try:
            declared, windows = self._drawn(spec, most_requests)
            families = self._families(spec)
        except InputError:
            return None
        longest = {name: longest_request(windows, classes) for name, classes in base.classes_of.items()}
        if any(longest[family.model] > family.max_model_len for family in families):
            return None  # requests were drawn anew, and one is longer than the configurations were made for
        workload = compressed(declared, spec.limits.utilisation or 1.0)
        return replace(
            base,
            spec=spec,
            declared=declared,
            workload=workload,
            windows=windows,
            families=families,
            template=frame(spec),
        )

    def _drawn(self, spec: DeploymentSpec, most: int) -> tuple[Workload, tuple[SimulatedWindow, ...]]:
        """The busiest part of the window, with about so many requests of the declared traffic at most."""
        base = self.problem
        share = min(1.0, most / len(base.declared))
        key = str((share, [(item.name, item.trace, item.arrivals, item.sessions) for item in spec.traffic]))
        if key not in self._workloads:
            self._workloads[key] = declared_workload(
                spec,
                base.base_dir,
                seconds=max(LEAST_S, base.declared.horizon_s * share),
                seed=base.seed,
                least_requests=LEAST_REQUESTS if share == 1.0 else 0,
                coupled=False,
            )
        return self._workloads[key]

    def _families(self, spec: DeploymentSpec) -> tuple[Family, ...]:
        """The configurations of a changed spec; those that are known already keep their step times."""
        base = self.problem
        if spec.choices != base.spec.choices or spec.limits.confidence != base.spec.limits.confidence:
            return self._enumerated(spec)
        if spec.hardware == base.spec.hardware:
            return base.families
        asked = {pool.name: pool for pool in spec.hardware.pools}
        most = tuple(pool.model_copy(update={"count": pool.count * MORE_NODES}) for pool in base.spec.hardware.pools)
        grown = self._enumerated(_with(base.spec, "hardware", pools=most))
        kept = [family for family in base.families if asked[family.pool.name] == family.pool]
        known = {family.pool.name for family in base.families if asked[family.pool.name] == family.pool}
        resized = [replace(family, pool=asked[family.pool.name]) for family in grown if family.pool.name not in known]
        return tuple(family for family in (*kept, *resized) if family.most_replicas)

    def _enumerated(self, spec: DeploymentSpec) -> tuple[Family, ...]:
        base, key = self.problem, f"{spec.hardware}{spec.choices}{spec.limits.confidence}"
        if key not in self._enumerations:
            posed = pose(spec, base.base_dir, seed=base.seed, machine=base.machine)
            self._enumerations[key] = posed.families
        return self._enumerations[key]

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
                lambda decision: self._budget(cheapest),
            )
        for model, gpus in spec.limits.gpus.items():
            yield self._model_gpus(model, gpus)
        if spec.limits.utilisation is not None:
            full = _with(spec, "limits", utilisation=None)
            yield Statement(
                f"limits.utilisation: {spec.limits.utilisation:.0%}",
                full,
                lambda decision: "limits.utilisation: 100% (no headroom)" if self.plan(full, whole=True) else None,
            )
        if spec.limits.confidence is not None:
            yield self._confidence(spec.limits.confidence)
        yield from self._pins()
        for index, traffic in enumerate(spec.traffic):
            if traffic.slo is not None:
                yield from self._slo(index, traffic, traffic.slo)

    def _confidence(self, stated: float) -> Statement:
        def with_confidence(confidence: float | None) -> DeploymentSpec:
            return _with(self.problem.spec, "limits", confidence=confidence)

        def mend(decision: Decision) -> str | None:
            lower = [share for share in LESS_SURE if share < stated]
            most = self.first(lower, with_confidence)
            if most is not None:
                return f"limits.confidence: {most:.0%}"
            none = self.plan(with_confidence(None), whole=True)
            return None if none is None else "limits.confidence: none (steps as predicted)"

        return Statement(f"limits.confidence: {100 * stated:.6g}%", with_confidence(None), mend)

    def _budget(self, cheapest: DeploymentSpec) -> str | None:
        decision = self.plan(cheapest, whole=True, best=True) or self.plan(cheapest, whole=True)
        return None if decision is None else f"limits.budget: ${math.ceil(decision.value * 100 - 1e-6) / 100:.2f}/h"

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

        None where even `high` has none: smaller pools are priced on other rungs.
        """
        return self.first([*_counts(low, high), high], spec_at, last=True) if high > low else None

    def _pins(self) -> Iterator[Statement]:
        spec = self.problem.spec
        for model, choices in spec.choices.models.items():
            for name, values in choices.model_dump().items():
                if not values:
                    continue
                freed = choices.model_copy(update={name: None})
                relaxed = _with(spec, "choices", models={**spec.choices.models, model: freed})
                yield self._pin(model, name, values, relaxed)

    def _pin(self, model: str, name: str, values: Any, relaxed: DeploymentSpec) -> Statement:
        def mend(decision: Decision) -> str | None:
            judged = self.plan(relaxed, whole=True)
            return None if judged is None else f"choices.{model}.{name}: {_list(_chosen(judged, model, name))}"

        return Statement(f"choices.{model}.{name}: {_list(values)}", relaxed, mend)

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
            most = first_that_holds(SOFTER[:-1], lambda factor: self.plan(spec_at(factor)) is not None) or SOFTER[-1]
            least = max((factor for factor in SOFTER if factor < most), default=1.0)
            finer = [
                _two_digits(seconds * least * (most / least) ** (part / PARTS)) / seconds for part in range(1, PARTS)
            ]
            between = sorted({factor for factor in finer if least < factor < most})
            finest = first_that_holds(between, lambda factor: self.plan(spec_at(factor)) is not None) or most
            factor = self.judged(sorted({finest, *(factor for factor in SOFTER if factor >= most)}), spec_at)
            return None if factor is None else f"{head}{_seconds(seconds * factor)}{tail}"

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

        factor = self.first(SOFTER, softened)
        if factor is None:
            return None
        mend, budget = f"together: every latency limit times {factor:g}", spec.limits.budget_usd_per_hour
        if budget is None or spec.objective.quantity != "cost":
            return mend
        decision = self.plan(softened(factor), whole=True, best=True) or self.plan(softened(factor), whole=True)
        if decision is None or decision.value <= budget:
            return mend
        return f"{mend}, and limits.budget: ${math.ceil(decision.value * 100) / 100:.2f}/h"

    def slower(self) -> str | None:
        """The largest share of the declared traffic that has a plan."""
        self.progress("how much of the traffic can be served")
        share = self.first(FEWER, partial(_at_rate, self.problem))
        if share is None:
            return None
        return f"traffic: {100 * share:g}% of the declared rate ({_demand(_at_rate(self.problem, share))})"

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


def _counts(low: int, high: int) -> list[int]:
    """Numbers above `low` and below `high`, one by one at first, in steps of a ratio later."""
    found, count = [], low + 1
    while count < high:
        found.append(count)
        count = max(count + 1, math.floor(count * COARSENESS))
    return found


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
            rate = traffic.arrivals.rate_per_s * share
            changed = {"arrivals": traffic.arrivals.model_copy(update={"rate_per_s": rate})}
        elif traffic.sessions is not None:
            rate = traffic.sessions.rate_per_s * share
            changed = {"sessions": traffic.sessions.model_copy(update={"rate_per_s": rate})}
        else:
            changed = {}
        classes.append(traffic.model_copy(update=changed))
    return problem.spec.model_copy(update={"traffic": tuple(classes)})


def _demand(spec: DeploymentSpec) -> str:
    parts = []
    for traffic in spec.traffic:
        source = traffic.trace or traffic.arrivals or traffic.sessions
        rate = None if source is None else source.rate_per_s
        what = " sessions" if traffic.sessions is not None else ""
        parts.append(f"{traffic.name} {rate:g}{what}/s" if rate else f"{traffic.name} as recorded")
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
