"""Step times, groups, routes and objectives as the arrays that C reads."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from planner.cost import pieces, step_times
from planner.simulate.faults import Fault, FaultSchedule
from planner.simulate.limits import requirements
from planner.simulate.links import Link
from planner.simulate.model import FleetGroup, ReplicaModel, Workload
from planner.simulate.native import abi
from planner.simulate.routing import handoff_targets
from specs.deployment import SLO
from specs.plan import Route


@lru_cache(maxsize=64)
def step_times_of(times: step_times.StepTimes) -> tuple[abi.StepTimes, abi.Pins]:
    """A candidate is simulated again and again: its tables are written out once."""
    pins = abi.Pins()
    struct = abi.StepTimes()
    for name in ("tokens_s", "sampled_s"):
        setattr(struct, name, pins.doubles(getattr(times, name)))
    struct.passed = pins.doubles(list(accumulate(times.stage_shares or (1.0 / times.lanes,) * times.lanes)))
    for name, kind in abi.StepTimes._fields_:
        if kind is ctypes.c_double:
            setattr(struct, name, getattr(times, name))
    struct.window_tokens = -1 if times.window_tokens is None else times.window_tokens
    struct.lanes = times.lanes
    most = len(times.sampled_s) - 1
    struct.decode_table = _decode_table(times.decode_table, most, pins)
    struct.decode_window_table = _decode_table(times.decode_window_table, most, pins)
    struct.chunk_table = _chunk_table(times.chunk_table, pins)
    if times.stages:
        struct.stages = _stages(times.stages, pins)
    return struct, pins


def _stages(stages: tuple[step_times.StepTimes, ...], pins: abi.Pins) -> int:
    """Address of the step times of unlike stages, one after the other."""
    structs = []
    for stage in stages:
        struct, own = step_times_of(stage)
        pins.keep(own)
        structs.append(struct)
    return ctypes.addressof(pins.structs(structs, abi.StepTimes))


def _decode_table(table: pieces.DecodeTable | None, most: int, pins: abi.Pins) -> abi.DecodeTable:
    """Rows for 0 (which nothing reads) up to `most` sequences."""
    if table is None:
        return abi.DecodeTable()
    rows = decode_rows(table, most)
    return abi.DecodeTable(*(pins.doubles(rows[:, :, part]) for part in range(3)), rows.shape[1])


def decode_rows(table: pieces.DecodeTable, most: int) -> pieces.Floats:
    """`DecodeTable.row` of 1..most sequences at once, bit for bit. Shape: (most + 1, pieces, 3); row 0 is row 1."""
    sequences = np.maximum(np.arange(most + 1), 1)
    values = np.array([np.interp(sequences, table.sequences, column) for column in table.seconds.T]).T
    starts = sequences[:, None] * table.keys
    slopes = np.diff(values) / np.diff(starts)
    slopes[:, -1] = np.maximum(slopes[:, -1], 0.0)
    constants = values[:, :-1] - slopes * starts[:, :-1]
    ends = starts[:, 1:].astype(np.float64)
    ends[:, -1] = math.inf
    return np.stack([ends, constants, slopes], axis=2)


def _chunk_table(table: pieces.ChunkTable | None, pins: abi.Pins) -> abi.ChunkTable:
    if table is None:
        return abi.ChunkTable()
    first_s = np.interp(np.arange(int(table.new[-1]) + 1), table.new, table.seconds[:, 0])  # as `ChunkTable._first`
    return abi.ChunkTable(
        pins.doubles(table.new),
        pins.doubles(table.cached),
        pins.doubles(table.seconds),
        pins.doubles(first_s),
        len(table.new),
        len(table.cached),
        len(first_s),
    )


def models_of(groups: Sequence[FleetGroup], workload: Workload, pins: abi.Pins) -> tuple[list[abi.Model], list[Any]]:
    """The models of all groups, one after the other, and by group which of them each replica has."""
    models: list[abi.Model] = []
    places: list[Any] = []
    for group in groups:
        known: dict[int, int] = {}
        for model in group.models or (group.model,):
            if id(model) not in known:
                known[id(model)] = len(models)
                models.append(_model(model, group.role == "prefill", workload, pins))
        own = [known[id(model)] for model in group.models or (group.model,) * group.replicas]
        places.append(pins.ints(own))
    return models, places


def _model(model: ReplicaModel, prefills: bool, workload: Workload, pins: abi.Pins) -> abi.Model:
    """`prefills`: it hands requests over after their first token."""
    times, times_pins = step_times_of(model.times)
    pins.keep(times_pins)
    scheduling, speculation = model.scheduling, model.scheduling.speculation
    output = np.ones_like(workload.output_tokens) if prefills else workload.output_tokens
    caches = model.prefix_caching and workload.prefixes is not None
    return abi.Model(
        times=times,
        holds=pins.bytes(model.can_serve(workload.prompt_tokens, output)),
        output_reserve=scheduling.output_reserve,
        acceptance=0.0 if speculation is None else speculation.acceptance,
        draft_s=0.0 if speculation is None else speculation.draft_s,
        seats=model.limits.max_num_seqs,
        budget=model.limits.max_num_batched_tokens,
        max_model_len=model.limits.max_model_len,
        blocks=model.num_blocks,
        block_tokens=model.block_size_tokens,
        host_blocks=model.host_blocks,
        unit_tokens=workload.prefixes.unit_tokens if caches and workload.prefixes is not None else 0,
        policy=abi.POLICIES.index(scheduling.prefill_policy),
        order=abi.ORDERS.index(scheduling.order),
        swaps=scheduling.preemption == "swap",
        batch_wait_steps=scheduling.batch_wait_steps,
        max_waiting_tokens=-1 if scheduling.max_waiting_tokens is None else scheduling.max_waiting_tokens,
        mlfq_quantum_tokens=scheduling.mlfq_quantum_tokens,
        draft_tokens=0 if speculation is None else speculation.draft_tokens,
    )


def group_specs(
    groups: Sequence[FleetGroup], models: Sequence[Any], links: Mapping[str, Link], pins: abi.Pins
) -> list[abi.GroupSpec]:
    """`models`: by group, which model each replica has. Raises `ValueError` on handoffs that lead nowhere."""
    targets, names = handoff_targets(groups, links), list(links)
    return [
        abi.GroupSpec(
            models=own,
            weights=None if group.weights is None else pins.doubles(group.weights),
            bytes_per_token=0.0 if group.handoff is None else group.handoff.bytes_per_token,
            replicas=group.replicas,
            role=abi.ROLES.index(group.role),
            unlike=len({id(model) for model in group.models or ()}) > 1,
            target=-1 if target is None else target,
            link=-1 if group.handoff is None else names.index(group.handoff.link),
        )
        for group, own, target in zip(groups, models, targets, strict=True)
    ]


def fault_events(faults: Sequence[Fault], groups: Sequence[FleetGroup]) -> list[abi.FaultEvent]:
    """As `FaultSchedule` sorts them. Raises `ValueError` on a group or a replica that does not exist."""
    FaultSchedule(faults, groups)
    names = [group.id for group in groups]
    events = []
    for fault in faults:
        place = (names.index(fault.group), fault.replica)
        events.append((fault.from_s, *place, 1))
        if fault.until_s < math.inf:
            events.append((fault.until_s, *place, -1))
    return [abi.FaultEvent(*event) for event in sorted(events)]


def class_splits(
    groups: Sequence[FleetGroup], routes: Sequence[Route], workload: Workload, pins: abi.Pins
) -> list[abi.ClassSplit]:
    """How each class is split, in the arithmetic of `specs.service.ClassSplit`."""
    names = [group.id for group in groups]
    splits = []
    for name in workload.classes:
        own = [route for route in routes if route.request_class == name]
        total = sum(route.share for route in own)
        splits.append(
            abi.ClassSplit(
                pins.ints([names.index(route.group) for route in own]),
                pins.doubles([route.share / total for route in own]),
                pins.ints(np.zeros(len(own), np.int64)),
                len(own),
                0,
            )
        )
    return splits


def watches(workload: Workload, slos: Mapping[str, SLO], pins: abi.Pins) -> tuple[list[abi.Watch], list[str]]:
    """What `Refuter` watches, in its order, and what it says of each."""
    structs, texts = [], []
    by_class = {}
    for name, slo in slos.items():
        if name not in workload.classes:
            raise ValueError(f"no request class {name!r} in the workload")
        by_class[workload.classes.index(name)] = name, requirements(slo)
    for index, (name, own) in sorted(by_class.items()):
        requests = workload.of_class(name).nonzero()[0]
        for requirement in own:
            limits = dict(requirement.thresholds)
            structs.append(
                abi.Watch(
                    pins.ints(requests),
                    pins.bytes(np.zeros(len(workload), np.uint8)),
                    limits.get("ttft", math.nan),
                    limits.get("e2e", math.nan),
                    limits.get("tpot", math.nan),
                    len(requests),
                    index,
                    requirement.allowed_misses(len(requests)),
                )
            )
            texts.append(f"{name}: {requirement.text}")
    return structs, texts
