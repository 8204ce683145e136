"""A model of devices that no table measures: cores fitted jointly over the measured devices, each under its datasheet.

Parameters are shares of a device's own peaks and times at a common clock, so they carry over; corrections carry over by
half. Measured devices of another kernel generation (see `OperatorFacts.generation`) weigh less, and collectives are
those of the same kind of link. Attention and experts of an element type that the generation has no table of run the
generation's own 16-bit kernel on smaller elements, as one kernel source serves all element types there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from planner.operators.calibrate import FEW, measured
from planner.operators.cores import OperatorFacts, operator_facts
from planner.operators.fit import SAMPLE, fit_core, fit_residuals
from planner.operators.grid import Floats, Grid, Rows
from planner.operators.lane import new_lane
from planner.operators.profile import LaneFit, OperatorProfile
from planner.operators.tables import OperatorTable
from specs.catalog import load_device

OTHER_GENERATION = 0.3  # weight of a device of another generation (of collectives: of another kind of link)
CARRIED = 0.5  # share of the joint corrections that is applied to a device never measured
COLLECTIVES = ("nccl", "custom_allreduce", "moe_a2a")
ONE_KERNEL = ("context_attention", "generation_attention", "moe")  # families where one source serves all element types
Samples = dict[str, tuple[Rows, Floats]]  # device -> rows in random order, seconds
Tables = Mapping[str, Sequence[OperatorTable]]  # device -> its tables


def fit_datasheet_profile(tables: Tables, like: OperatorFacts, provenance: str, licence: str) -> OperatorProfile:
    """The lanes for an unmeasured device of `like`'s generation and link, from the `tables` of other devices."""
    lanes: dict[str, dict[str, LaneFit]] = {}
    named = {
        (table.family, str(name)): None for of in tables.values() for table in of for name in np.unique(table.lanes)
    }
    fits: dict[tuple[str, str], LaneFit | None] = {}
    for family, name in named:
        source = (family, source_lane(family, name, tables, like))
        if source not in fits:
            fits[source] = _fit(*source, tables, like)
        fit = fits[source]
        if fit is not None:
            lanes.setdefault(family, {})[name] = fit
    return OperatorProfile(
        device=like.name, confidence="datasheet", provenance=provenance, licence=licence, lanes=lanes
    )


def source_lane(family: str, name: str, tables: Tables, like: OperatorFacts) -> str:
    """The lane whose fit `name` takes: itself, or the generation's plain 16-bit lane where it has no own rows."""
    if family not in ONE_KERNEL:
        return name
    own = {
        str(lane)
        for device, of in tables.items()
        if operator_facts(load_device(device)).generation == like.generation
        for table in of
        if table.family == family
        for lane in np.unique(table.lanes)
    }
    _, _, kind = name.partition("/")
    plain = ("bfloat16/full",) if family != "moe" else (f"bfloat16/{kind}", "bfloat16")
    return next((lane for lane in (name, *plain) if lane in own), name)


def _fit(family: str, name: str, tables: Tables, like: OperatorFacts) -> LaneFit | None:
    """One lane fitted jointly, its corrections scaled to what carries over; None without enough rows."""
    samples = {device: found for device, of in tables.items() if (found := _sample(family, name, of)) is not None}
    if not samples:
        return None
    facts = {device: operator_facts(load_device(device)) for device in samples}
    weights = _weights(family, facts, like)
    lane = new_lane(family, name)
    heads = {device: (*_head(sample, SAMPLE), facts[device], weights[device]) for device, sample in samples.items()}
    lane = replace(lane, parameters=fit_core(lane, list(heads.values())))
    top = max(weights.values())
    coordinates: list[Rows] = []
    residuals: list[Floats] = []
    for rows, seconds, of, weight in heads.values():
        part, times = _head((rows, seconds), max(1, int(len(seconds) * weight / top)))
        coordinates.append(lane.coordinates(part, of))
        residuals.append(np.log(times) - np.log(lane.core(part, of, lane.parameters)))
    pooled = {column: np.concatenate([one[column] for one in coordinates]) for column in coordinates[0]}
    grids = fit_residuals(lane.kind.axes, pooled, np.concatenate(residuals))
    carried = tuple(Grid(grid.axes, grid.values * CARRIED) for grid in grids)
    return LaneFit.of(replace(lane, grids=carried), sum(len(seconds) for _, seconds in samples.values()), None)


def _sample(family: str, name: str, tables: Sequence[OperatorTable]) -> tuple[Rows, Floats] | None:
    for table in tables:
        chosen = table.lanes == name
        if table.family == family and chosen.sum() >= FEW:
            rows, seconds = measured(table, chosen)
            order = np.random.default_rng(0).permutation(len(seconds))
            return {column: values[order] for column, values in rows.items()}, seconds[order]
    return None


def _head(sample: tuple[Rows, Floats], count: int) -> tuple[Rows, Floats]:
    rows, seconds = sample
    return {column: values[:count] for column, values in rows.items()}, seconds[:count]


def _weights(family: str, facts: Mapping[str, OperatorFacts], like: OperatorFacts) -> dict[str, float]:
    """By device; devices of one architecture share the weight of one."""
    alike = {
        device: of.pcie == like.pcie if family in COLLECTIVES else of.generation == like.generation
        for device, of in facts.items()
    }
    targets = [of.target for of in facts.values()]
    return {
        device: (1.0 if alike[device] else OTHER_GENERATION) / targets.count(of.target) for device, of in facts.items()
    }
