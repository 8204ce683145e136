"""One simulation in C: passes the problem in, and gathers what comes back as the oracle does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.simulate.conditions import Conditions
from planner.simulate.faults import Fault
from planner.simulate.gather import Outcome, gather
from planner.simulate.links import Link
from planner.simulate.model import FleetGroup, ReplicaModel, Workload
from planner.simulate.native import abi, marshal
from planner.simulate.native.build import compiled
from planner.simulate.native.listener import Listener
from planner.simulate.record import LaneLoad
from planner.simulate.result import FleetResult, LinkLoad
from planner.simulate.routing import class_splits
from specs.deployment import SLO
from specs.plan import Route, RouterName

_LARGEST = 2**31 - 1  # tokens and requests are 32-bit integers inside


def unsupported(groups: Sequence[FleetGroup], workload: Workload, *, router: str = "least_outstanding") -> str | None:
    """Why the oracle has to step this one; None where the compiled simulator can."""
    if compiled() is None:
        return "there is no compiled simulator"
    if router not in abi.ROUTERS:
        return f"the router {router} is not compiled"
    if router in ("round_robin", "sticky") and any(group.weights for group in groups):
        return f"the router {router} is not compiled with weights"
    if len(workload) > _LARGEST:
        return "more than 2^31 requests are not compiled"
    if workload.predicted_tokens is not None and len(workload) and workload.predicted_tokens.max() > _LARGEST:
        return "predictions beyond 2^31 tokens are not compiled"
    unit_tokens = 0 if workload.prefixes is None else workload.prefixes.unit_tokens
    models = {id(model): model for group in groups for model in group.models or (group.model,)}
    return next((why for model in models.values() if (why := _unsupported_model(model, unit_tokens))), None)


def _unsupported_model(model: ReplicaModel, unit_tokens: int) -> str | None:
    """Numbers beyond 32 bits, and what the oracle refuses with a message of its own."""
    limits, scheduling = model.limits, model.scheduling
    tokens = 1 + (0 if scheduling.speculation is None else scheduling.speculation.draft_tokens)
    if max(limits.max_model_len, 2 * limits.max_num_batched_tokens, 2 * model.block_size_tokens) > _LARGEST:
        return "limits beyond 2^31 tokens are not compiled"
    if max(scheduling.mlfq_quantum_tokens, model.num_blocks, model.host_blocks, 2 * unit_tokens) > _LARGEST:
        return "caches and quanta beyond 2^31 are not compiled"
    if model.prefix_caching and unit_tokens % model.block_size_tokens:
        return f"prefix units of {unit_tokens} tokens are no whole blocks"
    if limits.max_num_batched_tokens < tokens * model.lane_seqs(0) or len(model.times.sampled_s) <= tokens * (
        model.lane_seqs(0)
    ):
        return "steps are too small for their drafts"
    return None


def simulate(
    groups: Sequence[FleetGroup],
    routes: Sequence[Route],
    workload: Workload,
    *,
    router: RouterName = "least_outstanding",
    poll_s: float = 0.0,
    faults: Sequence[Fault] = (),
    links: Mapping[str, Link] | None = None,
    seed: int = 0,
    refute: Mapping[str, SLO] | None = None,
    max_events: int,
    progress: Callable[[float], None] | None = None,
    clients: int = 0,
) -> FleetResult:
    """`planner.simulate.fleet.simulate_fleet` in C, bit for bit; only where `unsupported` finds nothing.

    `clients`: so many requests in flight in place of the workload's arrivals: a closed loop.
    """
    conditions = Conditions(router, poll_s, tuple(faults), links or {}, seed)
    pins = abi.Pins()
    problem = _problem(groups, workload, conditions, pins)
    class_splits(groups, routes, workload)  # says what does not fit
    problem.splits = pins.structs(marshal.class_splits(groups, routes, workload, pins), abi.ClassSplit)
    watches, texts = marshal.watches(workload, refute, pins) if refute else ([], [])
    problem.watches, problem.watch_count = pins.structs(watches, abi.Watch), len(watches)
    problem.refuting = bool(refute)
    problem.max_events, problem.clients = max_events, clients
    listener = Listener(progress)
    problem.progress = abi.Progress(listener)
    with listener.hearing_interrupts():
        outcome = _serve(problem, groups, workload, conditions, texts)
    if listener.raised is not None:
        raise listener.raised
    return gather(groups, workload, outcome)


def _problem(groups: Sequence[FleetGroup], workload: Workload, conditions: Conditions, pins: abi.Pins) -> abi.Problem:
    """All but routes and objectives. Raises `ValueError` on handoffs and faults that do not fit the groups."""
    problem = abi.Problem(count=len(workload), horizon_s=workload.horizon_s)
    for name in ("class_index", "prompt_tokens", "output_tokens", "tenant_index", "priority", "predicted_tokens"):
        _set(problem, name, getattr(workload, name), pins.ints)
    for name in ("session", "after"):
        _set(problem, name, getattr(workload, name), pins.ints)
    for name in ("arrival_s", "deadline_s", "gap_s"):
        _set(problem, name, getattr(workload, name), pins.doubles)
    if workload.prefixes is not None:
        problem.prefix_offsets = pins.ints(workload.prefixes.offsets)
        problem.prefix_ids = pins.ints(workload.prefixes.ids)
        problem.prefix_unit_tokens = workload.prefixes.unit_tokens
    problem.tenants = max(1, len(workload.tenants))
    models, places = marshal.models_of(groups, workload, pins)
    problem.models = pins.structs(models, abi.Model)
    specs = marshal.group_specs(groups, places, conditions.links, pins)
    problem.groups, problem.group_count = pins.structs(specs, abi.GroupSpec), len(specs)
    links = [abi.LinkSpec(link.bytes_per_s, link.latency_s) for link in conditions.links.values()]
    problem.links, problem.link_count = pins.structs(links, abi.LinkSpec), len(links)
    faults = marshal.fault_events(conditions.faults, groups)
    problem.faults, problem.fault_count = pins.structs(faults, abi.FaultEvent), len(faults)
    problem.router = abi.ROUTERS.index(conditions.router)
    problem.poll_s, problem.seed = conditions.poll_s, conditions.seed % 2**64
    return problem


def _set(problem: abi.Problem, name: str, values: Any, pin: Callable[[Any], Any]) -> None:
    if values is not None:
        setattr(problem, name, pin(values))


@dataclass(frozen=True)
class _Arrays:
    """What C writes, by request (`lost`: by group); preset to what holds where nothing happens."""

    arrival_s: NDArray[np.float64]
    start_s: NDArray[np.float64]
    first_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    preemptions: NDArray[np.int64]
    cached: NDArray[np.int64]
    group_of: NDArray[np.int64]
    replica_of: NDArray[np.int64]
    decode_group_of: NDArray[np.int64]
    decode_replica_of: NDArray[np.int64]
    refusal: NDArray[np.int64]
    lost: NDArray[np.int64]

    @classmethod
    def of(cls, workload: Workload, groups: int) -> _Arrays:
        count = len(workload)
        never = [np.full(count, math.nan) for _ in range(3)]  # start, first, finish
        nowhere = [np.full(count, -1, np.int64) for _ in range(4)]
        return cls(
            np.array(workload.arrival_s, dtype=np.float64),
            start_s=never[0],
            first_s=never[1],
            finish_s=never[2],
            preemptions=np.zeros(count, np.int64),
            cached=np.zeros(count, np.int64),
            group_of=nowhere[0],
            replica_of=nowhere[1],
            decode_group_of=nowhere[2],
            decode_replica_of=nowhere[3],
            refusal=np.zeros(count, np.int64),
            lost=np.zeros(groups, np.int64),
        )


def _serve(
    problem: abi.Problem,
    groups: Sequence[FleetGroup],
    workload: Workload,
    conditions: Conditions,
    texts: Sequence[str],
) -> Outcome:
    loaded = compiled()
    assert loaded is not None, "`unsupported` was not asked"
    arrays, pins = _Arrays.of(workload, len(groups)), abi.Pins()
    written = abi.Outcome()
    for name, values in vars(arrays).items():
        setattr(written, name, (pins.ints if values.dtype == np.int64 else pins.doubles)(values))
    lanes = sum(model.times.lanes for group in groups for model in _models(group))
    written.loads = loads = (abi.LaneLoad * max(1, lanes))()
    if loaded.capstan_simulate(problem, written) == abi.NO_MEMORY:
        raise MemoryError(f"no memory to simulate {len(workload)} requests on {lanes} lanes")
    return Outcome(
        arrival_s=arrays.arrival_s,
        start_s=arrays.start_s,
        first_s=arrays.first_s,
        finish_s=arrays.finish_s,
        preemptions=arrays.preemptions,
        cached_tokens=arrays.cached,
        refusal=arrays.refusal,
        group_index=arrays.group_of,
        replica_index=arrays.replica_of,
        decode_group_index=arrays.decode_group_of,
        decode_replica_index=arrays.decode_replica_of,
        loads=_loads(loads, groups),
        lost=arrays.lost.tolist(),
        links=_links(problem, conditions.links),
        events=written.events,
        event_bound_hit=bool(written.bound_hit),
        refuted=texts[written.refuted] if written.refuted >= 0 else None,
    )


def _models(group: FleetGroup) -> tuple[ReplicaModel, ...]:
    return group.models or (group.model,) * group.replicas


def _loads(loads: Any, groups: Sequence[FleetGroup]) -> list[list[list[LaneLoad]]]:
    """By group, replica and lane."""
    lanes = iter(loads)
    return [[[_load(next(lanes)) for _ in range(model.times.lanes)] for model in _models(group)] for group in groups]


def _load(load: abi.LaneLoad) -> LaneLoad:
    return LaneLoad(**{name: getattr(load, name) for name, _ in abi.LaneLoad._fields_})


def _links(problem: abi.Problem, links: Mapping[str, Link]) -> tuple[LinkLoad, ...]:
    """By name."""
    carried = [
        LinkLoad(name, load.busy_s, load.transfers, load.moved_bytes)
        for name, load in zip(links, problem.links[: problem.link_count], strict=True)
    ]
    return tuple(sorted(carried, key=lambda load: load.name))
