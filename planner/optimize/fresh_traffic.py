"""Traffic that a plan has not seen: drawn classes from other seeds, recorded ones with their minutes in another order.

A recording happened once. Its window is cut into `BLOCKS` stretches of equal length, which follow each other in another
order (a block bootstrap without replacement, after H. Kuensch, 1989): the load and the bursts inside a stretch stay,
what meets what at the seams and between classes changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from planner.simulate import Workload, declared_workload
from planner.simulate.model import FloatArray
from specs.deployment import DeploymentSpec
from specs.errors import InputError

BLOCKS = 20


def fresh_workload(
    spec: DeploymentSpec, base_dir: Path, planned: Workload, seed: int, *, coupled: bool = False
) -> Workload | None:
    """Requests of `seed` in a window as long as that of `planned`, the traffic that planning drew.

    Recorded requests are those of `planned` in another order of time; where every class is recorded, no file is read.
    None where a class has no request in that window.
    """
    recorded = [traffic.name for traffic in spec.traffic if traffic.trace is not None]
    random = np.random.default_rng([seed, len(planned)])
    if len(recorded) == len(spec.traffic):
        return reordered(planned, recorded, random)
    try:
        drawn, _ = declared_workload(spec, base_dir, seconds=planned.horizon_s, seed=seed, coupled=coupled)
    except InputError:  # `planned` was drawn alike, so what is wrong is that nothing came
        return None
    return reordered(drawn, recorded, random)


def reordered(workload: Workload, classes: Iterable[str], random: np.random.Generator) -> Workload:
    """The same requests with the stretches of each of `classes` in an order of its own.

    Requests that wait for others are left where they are, and with them the rest of their class.
    """
    arrival_s = workload.arrival_s.copy()
    for name in classes:
        own = np.flatnonzero(workload.of_class(name))
        order = random.permutation(BLOCKS)
        if len(own) == 0 or (workload.after is not None and (workload.after[own] >= 0).any()):
            continue
        block_s = float(np.nextafter(arrival_s[own].max(), np.inf)) / BLOCKS
        block = np.minimum((arrival_s[own] / block_s).astype(np.int64), BLOCKS - 1)
        arrival_s[own] = np.maximum(0.0, arrival_s[own] + (order[block] - block) * block_s)
    return _at(workload, arrival_s)


def _at(workload: Workload, arrival_s: FloatArray) -> Workload:
    """The requests at other moments, sorted anew; deadlines move along, predecessors keep theirs."""
    order = np.argsort(arrival_s, kind="stable")
    values = {field.name: getattr(workload, field.name) for field in fields(workload)}
    changed: dict[str, Any] = {name: value[order] for name, value in values.items() if isinstance(value, np.ndarray)}
    changed["arrival_s"] = arrival_s[order]
    if workload.deadline_s is not None:
        changed["deadline_s"] = (workload.deadline_s - workload.arrival_s + arrival_s)[order]
    if workload.after is not None:
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        before = workload.after[order]
        changed["after"] = np.where(before >= 0, place[before], -1)
    if workload.prefixes is not None:
        changed["prefixes"] = workload.prefixes.select(order)
    return replace(workload, **changed, window_s=workload.horizon_s)
