"""The best placement found in the time allowed, with the bound that proves how far from the optimum it can be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.optimize.layer_placement.bound import ThroughputBound, throughput_bound
from planner.optimize.layer_placement.boundaries import place_on_boundaries
from planner.optimize.layer_placement.instance import LayerInstance, Placement, max_flow
from planner.optimize.layer_placement.link_bound import link_bound
from planner.optimize.layer_placement.named import place_named
from planner.optimize.layer_placement.ranges import search_ranges
from planner.optimize.layer_placement.regions import Machines, groupings, restricted
from planner.optimize.layer_placement.search import LONG, SHORT, Effort, search_stages
from planner.optimize.layer_placement.stages import best_stages
from specs.errors import NoPlanError

QUICK_STEPS, PART_STEPS, STAGE_STEPS, RANGE_STEPS = 60_000, 40_000, 150_000, 60_000  # of annealing
STAGES_SHARE, PROGRAMME_SHARE = 0.3, 0.6  # of the time: by when pipelines, and the exact programme, must be done
PROVEN = 1e-4  # a gap below which nothing more is tried


Programme = Callable[[LayerInstance, float, float], tuple[Placement, float] | None]  # bound, seconds -> both anew


@dataclass(frozen=True)
class LayerPlacement:
    """`tokens_per_s` is the maximum flow of `placement`, computed by networkx; none carries more than `bound`."""

    placement: Placement
    tokens_per_s: float
    bound: float

    @property
    def proven(self) -> bool:
        return self.tokens_per_s >= self.bound * (1 - PROVEN)


def place_layers(instance: LayerInstance, *, time_limit_s: float = 60.0, seed: int = 0) -> LayerPlacement:
    """Bounds first; then, while a gap is left: exact programmes where they are small, and searches, quick ones first.

    Programmes end by nodes of their trees and searches by steps, so that equal instances get equal answers; the time
    limit is there for slow machines. Raises `NoPlanError` where no placement with a flow was found.
    """
    begun = time.monotonic()
    proof = throughput_bound(instance)
    aligned, _ = best_stages(instance, proof.worth, proof.tokens_per_s, begun + STAGES_SHARE * time_limit_s)
    bound = link_bound(instance, proof.tokens_per_s, begun + STAGES_SHARE * time_limit_s)
    if bound <= 0:
        raise NoPlanError(
            "no placement carries anything: links without capacity part the machines",
            mends=("links, source_links or sink_links above 0",),
        )
    task = _Task(instance, proof, aligned, min(aligned, bound) or bound, begun, time_limit_s, seed)
    best = LayerPlacement({}, 0.0, bound)
    for improve in (_exactly_named, _quickly, _exactly_on_boundaries, _thoroughly):
        if not best.proven:
            best = improve(task, best)
    if best.tokens_per_s <= 0:
        raise NoPlanError("no placement was found that carries anything; this does not prove that there is none")
    return best


@dataclass(frozen=True)
class _Task:
    """`unlinked` tokens/s are what stages reach without links; `wanted` are those or the bound, where that is less."""

    instance: LayerInstance
    proof: ThroughputBound
    unlinked: float
    wanted: float
    begun: float
    time_limit_s: float
    seed: int

    @property
    def deadline(self) -> float:
        return self.begun + self.time_limit_s

    def search(self, best: LayerPlacement, steps: int, run: int) -> LayerPlacement:
        """Aligned stages over all machines, in runs of `run` steps."""
        state = search_stages(self.instance, self.wanted, self.proof, Effort(steps, self.deadline), self.seed, run)
        return best if state is None else _better(self.instance, best, state.placement())


def _exactly_named(task: _Task, best: LayerPlacement) -> LayerPlacement:
    return _exactly(place_named, task, best)


def _exactly_on_boundaries(task: _Task, best: LayerPlacement) -> LayerPlacement:
    """The programme knows no links: its bound is no lower than what stages reach without them."""
    if task.unlinked >= best.bound * (1 - PROVEN):
        return best
    return _exactly(place_on_boundaries, task, best)


def _exactly(programme: Programme, task: _Task, best: LayerPlacement) -> LayerPlacement:
    """Placement and bound of an exact programme, where it is small enough and time is left for it."""
    left_s = task.begun + PROGRAMME_SHARE * task.time_limit_s - time.monotonic()
    answer = programme(task.instance, best.bound, left_s)
    if answer is None:
        return best
    return _better(task.instance, replace(best, bound=min(best.bound, answer[1])), answer[0])


def _quickly(task: _Task, best: LayerPlacement) -> LayerPlacement:
    """Aligned stages over all machines, then of groups of regions side by side."""
    best = task.search(best, QUICK_STEPS, SHORT)
    return best if best.proven else _side_by_side(task.instance, best, task.deadline, task.seed)


def _thoroughly(task: _Task, best: LayerPlacement) -> LayerPlacement:
    """Aligned stages with more effort, in short and in long runs, then ranges that need not align."""
    for run in (SHORT, LONG):
        if not best.proven:
            best = task.search(best, STAGE_STEPS, run)
    if best.proven or best.tokens_per_s <= 0:
        return best
    effort = Effort(RANGE_STEPS, task.deadline)
    _, placement = search_ranges(task.instance, best.placement, best.bound, effort, task.seed)
    return _better(task.instance, best, placement)


def _side_by_side(instance: LayerInstance, best: LayerPlacement, deadline: float, seed: int) -> LayerPlacement:
    """Groups of regions as pipelines of their own, if together they carry more than `best`."""
    ways = groupings(instance)
    parts = sorted({machines for groups in ways for machines in groups})
    alone = {machines: _place_alone(instance, machines, deadline, seed) for machines in parts}
    for groups in ways:
        together = {machine: span for machines in groups for machine, span in alone[machines].items()}
        best = _better(instance, best, together)
    return best


def _place_alone(instance: LayerInstance, machines: Machines, deadline: float, seed: int) -> Placement:
    """Aligned stages on these machines only; empty where none were found."""
    part = restricted(instance, machines)
    if part is None:
        return {}
    proof = throughput_bound(part)
    aligned, _ = best_stages(part, proof.worth, proof.tokens_per_s, deadline)
    state = search_stages(part, aligned or proof.tokens_per_s, proof, Effort(PART_STEPS, deadline), seed)
    return {machines[index]: span for index, span in state.placement().items()} if state is not None else {}


def _better(instance: LayerInstance, best: LayerPlacement, placement: Placement) -> LayerPlacement:
    """The placement in the place of the best one, if it carries more."""
    flow = max_flow(instance, placement)
    if flow <= best.tokens_per_s:
        return best
    return LayerPlacement(placement, flow, max(best.bound, flow))
