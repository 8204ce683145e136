"""A fleet under a workload: routes each arrival, lets every replica run until then, and gathers what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.simulate.fast import JumpLane
from planner.simulate.model import FleetGroup, FloatArray, Workload
from planner.simulate.pipeline import PipelinedReplica
from planner.simulate.record import EventBoundError, LaneLoad, Outstanding, Record
from planner.simulate.refute import Refuter
from planner.simulate.result import FleetResult, GroupLoad
from planner.simulate.step import StepLane
from specs.deployment import SLO
from specs.plan import Route
from specs.service import ClassSplit, LeastOutstanding, RoundRobin

MAX_EVENTS = 20_000_000  # about ten CPU minutes of the oracle: a run that needs more is not what was meant
_CHECK_EVERY = 16  # arrivals between two looks at the limits
_DRAIN_S = 2.0  # after the last arrival, look at the limits this often

Lane = StepLane | JumpLane
Replica = Lane | PipelinedReplica


class Group:
    """Lanes of one group and the state that routing needs."""

    def __init__(
        self, group: FleetGroup, workload: Workload, record: Record, clock: list[float], router: str, exact: bool
    ) -> None:
        model = group.model
        lanes = model.times.lanes
        self.group = group
        self.outstanding = Outstanding.of(group.replicas, lanes)
        self.router: LeastOutstanding | RoundRobin = RoundRobin() if router == "round_robin" else LeastOutstanding()
        self.can_serve = model.can_serve(workload.prompt_tokens, workload.output_tokens).tolist()
        kind = StepLane if exact else JumpLane
        self.single: list[Lane] = []
        self.pipelined: list[PipelinedReplica] = []
        for replica in range(group.replicas):
            if lanes == 1:
                self.single.append(kind(model, 0, replica, record, self.outstanding, clock))
            else:
                self.pipelined.append(PipelinedReplica(kind, model, replica, record, self.outstanding, clock))

    @property
    def replicas(self) -> list[Replica]:
        return [*self.single, *self.pipelined]

    @property
    def loads(self) -> list[list[LaneLoad]]:
        """By replica and lane."""
        return [[lane.load] for lane in self.single] + [replica.loads for replica in self.pipelined]

    def send(self, request: int, now_s: float) -> int:
        """Route inside the group: a replica by the router, its emptiest lane; returns the replica."""
        outstanding = self.outstanding
        replica = self.router.choose(outstanding.replicas)
        outstanding.replicas[replica] += 1
        by_lane = outstanding.lanes[replica]
        if self.single:
            by_lane[0] += 1
            self.single[replica].arrive(request, now_s)
            return replica
        lane = by_lane.index(min(by_lane))
        by_lane[lane] += 1
        self.pipelined[replica].arrive(request, now_s, lane)
        return replica


def simulate_fleet(
    groups: Sequence[FleetGroup],
    routes: Sequence[Route],
    workload: Workload,
    *,
    router: Literal["least_outstanding", "round_robin"] = "least_outstanding",
    exact: bool = False,
    refute: Mapping[str, SLO] | None = None,
    max_events: int = MAX_EVENTS,
) -> FleetResult:
    """Serve `workload` on `groups`, from empty replicas until the last request is done.

    A class is split over groups by the shares of `routes` (largest deficit first); inside a group a request goes to the
    replica with the fewest outstanding requests. `exact`: step by step on the rules of `specs.service`; otherwise by
    event jumps, equal to it. `refute`: objectives by class; the run ends as soon as one cannot hold any more. After
    `max_events` steps or jumps the run ends and says so. Raises `ValueError` on routes that do not fit.
    """
    record = Record.of(workload, max_events)
    clock: list[float] = []
    fleet = [Group(group, workload, record, clock, router, exact) for group in groups]
    replicas = [replica for group in fleet for replica in group.replicas]
    splits = _splits(groups, routes, workload)
    refuter = Refuter(workload, refute, record) if refute else None
    group_index = [-1] * len(workload)
    replica_index = [-1] * len(workload)
    rejected = np.zeros(len(workload), dtype=np.bool_)
    refuted: str | None = None
    event_bound_hit = False
    now_s = 0.0
    try:
        class_index = workload.class_index.tolist()
        numbered = tuple(enumerate(replicas))
        for request, now_s in enumerate(workload.arrival_s.tolist()):
            if min(clock) <= now_s:
                for index, replica in numbered:
                    if clock[index] <= now_s:
                        replica.advance(now_s)
            if refuter is not None and request % _CHECK_EVERY == 0 and (refuted := refuter.check(now_s)):
                break
            chosen = splits[class_index[request]].next()
            group_index[request] = chosen
            if fleet[chosen].can_serve[request]:
                replica_index[request] = fleet[chosen].send(request, now_s)
            else:
                rejected[request] = True
                if refuter is not None:
                    refuter.reject(request)
        if refuted is None:
            refuted = _drain(replicas, clock, now_s, refuter)
    except EventBoundError:
        event_bound_hit = True
    return _result(fleet, workload, record, group_index, replica_index, rejected, max_events, event_bound_hit, refuted)


def _splits(groups: Sequence[FleetGroup], routes: Sequence[Route], workload: Workload) -> list[ClassSplit]:
    """How each class is split; every class needs a route, and every route a group."""
    names = [group.id for group in groups]
    unknown = [route.group for route in routes if route.group not in names]
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"routes to {unknown} do not fit the groups {names}")
    splits = []
    for name in workload.classes:
        own = [route for route in routes if route.request_class == name]
        if not own:
            raise ValueError(f"no route for request class {name!r}")
        splits.append(ClassSplit([names.index(route.group) for route in own], [route.share for route in own]))
    return splits


def _drain(replicas: list[Replica], clock: list[float], now_s: float, refuter: Refuter | None) -> str | None:
    """Let everything finish; with a refuter, look at the limits now and then."""
    while (next_s := min(clock, default=math.inf)) < math.inf:
        until_s = max(now_s, next_s) + _DRAIN_S if refuter is not None else math.inf
        for replica in replicas:
            replica.advance(until_s)
        now_s = until_s
        if refuter is not None and (refuted := refuter.check(now_s)):
            return refuted
    return None


def _result(
    fleet: list[Group],
    workload: Workload,
    record: Record,
    group_index: list[int],
    replica_index: list[int],
    rejected: NDArray[np.bool_],
    max_events: int,
    event_bound_hit: bool,
    refuted: str | None,
) -> FleetResult:
    first_s, finish_s = np.array(record.first_s), np.array(record.finish_s)
    group_of = np.array(group_index, dtype=np.int64)
    done = ~np.isnan(finish_s)
    several = done & (workload.output_tokens > 1)
    tpot_s = np.full(len(workload), math.nan)
    tpot_s[several] = (finish_s[several] - first_s[several]) / (workload.output_tokens[several] - 1)
    prompt_in, output_in = _served_in_window(workload, first_s, finish_s)
    loads = []
    for index, group in enumerate(fleet):
        own = done & (group_of == index)
        by_replica = group.loads
        loads.append(
            GroupLoad(
                group=group.group.id,
                busy_s=tuple(sum(load.busy_s for load in replica) / len(replica) for replica in by_replica),
                running_peak=max(sum(load.running_peak for load in replica) for replica in by_replica),
                blocks_peak=max(sum(load.blocks_peak for load in replica) for replica in by_replica),
                num_blocks=group.group.model.num_blocks,
                preemptions=sum(load.preemptions for replica in by_replica for load in replica),
                steps=sum(load.steps for replica in by_replica for load in replica),
                requests=int(own.sum()),
                prompt_tokens=int(workload.prompt_tokens[own].sum()),
                output_tokens=int(workload.output_tokens[own].sum()),
                prompt_tokens_per_s=float(prompt_in[group_of == index].sum()) / (workload.horizon_s or 1.0),
                output_tokens_per_s=float(output_in[group_of == index].sum()) / (workload.horizon_s or 1.0),
            )
        )
    return FleetResult(
        ttft_s=first_s - workload.arrival_s,
        tpot_s=tpot_s,
        e2e_s=finish_s - workload.arrival_s,
        group_index=group_of,
        replica_index=np.array(replica_index, dtype=np.int64),
        preemptions=np.array(record.preemptions, dtype=np.int64),
        rejected=rejected,
        groups=tuple(loads),
        horizon_s=workload.horizon_s,
        end_s=float(finish_s[done].max()) if done.any() else 0.0,
        events=max_events - record.events_left,
        event_bound_hit=event_bound_hit,
        refuted_early=refuted,
        waiting=(
            _waiting(workload, first_s, rejected, 0.1 * workload.horizon_s),
            _waiting(workload, first_s, rejected, workload.horizon_s),
        ),
    )


def _served_in_window(workload: Workload, first_s: FloatArray, finish_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """By request: prompt and output tokens served before the arrival window ends.

    A prompt counts with its first token; the output tokens after it are spread evenly until the last one.
    """
    begun = first_s <= workload.horizon_s  # NaN, never begun, is not
    decode_s = np.maximum(finish_s - first_s, 1e-12)
    share = np.clip((workload.horizon_s - first_s) / decode_s, 0.0, 1.0)
    output = np.where(begun, 1.0 + (workload.output_tokens - 1) * share, 0.0)
    return np.where(begun, workload.prompt_tokens, 0).astype(np.float64), np.nan_to_num(output)


def _waiting(workload: Workload, first_s: FloatArray, rejected: NDArray[np.bool_], at_s: float) -> int:
    """Requests that have arrived by `at_s` and have no first token then; refused ones wait for nothing."""
    return int(((workload.arrival_s <= at_s) & ~(first_s <= at_s) & ~rejected).sum())
