"""The price of latency: the best plan for every rung of a ladder of limits, what another one dominates left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.answers.changes import METRICS, scaled, with_slos
from planner.answers.resolve import Progress, Solved, changed, solved
from planner.answers.structure import in_words, replicas_of
from planner.answers.what_if import EQUAL, gap
from planner.optimize.master import Decision
from planner.problem import Problem
from specs.deployment import Metric

TIGHTER = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # of the stated limits, until no plan keeps them
LOOSER = (1.2, 1.5, 2.0, 3.0, 5.0)


@dataclass(frozen=True)
class Reached:
    """One limit of a point, and what the plan reaches of it when simulated."""

    request_class: str
    metric: Metric
    percentile: float
    limit_s: float
    reached_s: float


@dataclass(frozen=True)
class Point:
    """The best plan found where the limits are `scale` times the stated ones."""

    scale: float
    value: float
    gap: float
    proven: bool  # no mix of the configurations is better at the loads that simulation allows, and the solver finished
    gpus: int
    replicas: str
    limits: tuple[Reached, ...]


@dataclass(frozen=True)
class Frontier:
    """Points from the tightest limits to the loosest, each better in value than all tighter ones."""

    metrics: tuple[Metric, ...]  # whose limits were moved
    points: tuple[Point, ...]
    dominated: tuple[float, ...]  # scales whose plan is no better than that of tighter limits
    impossible: float | None  # the loosest scale that has no plan; None where every rung has one


def frontier(
    own: Solved,
    metrics: tuple[Metric, ...] = METRICS,
    progress: Progress = lambda text: None,
    at: Callable[[int, int], None] = lambda done, of: None,
) -> Frontier:
    """Solve a decided problem again on every rung of the ladder; `at` is told how many rungs are done."""
    if own.decision is None:
        return Frontier(metrics, (), (), 1.0)
    rungs = {1.0: _point(1.0, own.problem, own.decision)}
    impossible, done, of = None, 0, len(TIGHTER) + len(LOOSER)
    for ladder in (TIGHTER, LOOSER):
        for scale in ladder:
            at(done, of)
            done += 1
            problem, decision = _solve(own, scale, metrics, progress)
            if decision is not None:
                rungs[scale] = _point(scale, problem, decision)
            elif scale < 1:
                impossible, done = scale, len(TIGHTER)
                break
    at(of, of)
    kept, dominated = _undominated(sorted(rungs.values(), key=lambda point: point.scale), _maximises(own.asked))
    return Frontier(metrics, kept, dominated, impossible)


def _solve(
    own: Solved, scale: float, metrics: tuple[Metric, ...], progress: Progress
) -> tuple[Problem, Decision | None]:
    spec = with_slos(own.asked.spec, lambda slo: scaled(slo, scale, metrics))
    label = f"limits times {scale:g}"
    progress(label)
    again = solved(changed(own.asked, spec), lambda step: progress(f"{label}: {step}"), like=own)
    return again.problem, again.decision


def _maximises(problem: Problem) -> bool:
    return problem.spec.objective.sense == "maximise"


def _undominated(points: list[Point], maximises: bool) -> tuple[tuple[Point, ...], tuple[float, ...]]:
    """The points that are better than every one of tighter limits, and the scales of the others."""
    kept: list[Point] = []
    dominated = []
    for point in points:
        best = kept[-1].value if kept else None
        better = best is None or (point.value > best * (1 + EQUAL) if maximises else point.value < best * (1 - EQUAL))
        if better:
            kept.append(point)
        else:
            dominated.append(point.scale)
    return tuple(kept), tuple(dominated)


def _point(scale: float, problem: Problem, decision: Decision) -> Point:
    return Point(
        scale=scale,
        value=decision.value,
        gap=gap(decision),
        proven=decision.status == "optimal" and gap(decision) <= EQUAL,
        gpus=sum(item.column.family.gpus * item.replicas for item in decision.bought),
        replicas=in_words(replicas_of(decision)),
        limits=tuple(_reached(problem, decision)),
    )


def _reached(problem: Problem, decision: Decision) -> list[Reached]:
    found = []
    for traffic in problem.spec.traffic:
        if traffic.slo is None:
            continue
        mask = problem.workload.of_class(traffic.name)
        share = 100.0 * (traffic.slo.attainment if traffic.slo.attainment is not None else 1.0)
        limits = [(limit.metric, limit.percentile, limit.limit_s) for limit in traffic.slo.percentiles]
        limits += [(metric, share, seconds) for metric, seconds in traffic.slo.joint.items()]
        for metric, percentile, limit_s in limits:
            reached = decision.result.percentile_s(metric, percentile, mask)
            found.append(Reached(traffic.name, metric, percentile, limit_s, reached))
    return found
