"""Seconds of every row of a table on a device: its own fit, else its nearest relative's, said in a note."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.operators.cores import OperatorFacts, operator_facts
from planner.operators.grid import Floats
from planner.operators.lane import Lane
from planner.operators.profile import RELATIVES, OperatorProfile, fitted_devices, load_operator_profile
from planner.operators.tables import SAME_DTYPE, TEXTS, OperatorTable
from specs.catalog import load_device
from specs.errors import InputError, nearest_names

BORROWED_CORRECTION = 0.5  # of a relative of another architecture: half of its corrections carries over


@dataclass(frozen=True)
class DeviceModel:
    """What predictions of a device are made with; `note` where it borrows."""

    device: str
    profile: OperatorProfile
    facts: OperatorFacts
    correction: float
    note: str | None


def device_model(name: str) -> DeviceModel:
    """By catalogue name, alias or the tables' folder name. `InputError` names the nearest, or who has a fit."""
    device = load_device(name)
    if device.name in fitted_devices():
        profile = load_operator_profile(device.name)
        return DeviceModel(device.name, profile, profile.facts(), 1.0, None)
    relative = RELATIVES.get(device.name)
    if relative is None:
        raise InputError(
            f"device {device.name!r} has no operator latencies and no relative that has",
            field="device",
            expected=f"one of {', '.join((*fitted_devices(), *RELATIVES))}",
        )
    return borrowed_model(device.name, relative)


def borrowed_model(device: str, relative: str) -> DeviceModel:
    """`device`'s datasheet under `relative`'s cores; all of its corrections on the same architecture, else half.

    The clock is the relative's: the catalogue states none.
    """
    facts, profile = load_device(device), load_operator_profile(relative)
    same = facts.target == load_device(relative).target
    note = f"{device} has no measurements: latencies are borrowed from {relative}"
    share = 1.0 if same else BORROWED_CORRECTION
    return DeviceModel(device, profile, operator_facts(facts, profile.clock_hz), share, note)


def predict(table: OperatorTable, model: DeviceModel, file: str | None = None) -> tuple[Floats, tuple[str, ...]]:
    """(seconds [rows], notes). `InputError` for an element type, rank count or backend without measurements."""
    seconds = np.empty(len(table.lanes))
    notes = [model.note] if model.note else []
    for name in np.unique(table.lanes):
        chosen = np.flatnonzero(table.lanes == name)
        lane, note = _lane(table, str(name), model, int(chosen[0]), file)
        if note:
            notes.append(note)
        rows = {column: values[chosen] for column, values in table.rows.items()}
        seconds[chosen] = lane.seconds(rows, model.facts, model.correction)
    if "prefix" in table.rows and (table.rows["prefix"] > 0).any():
        notes.append("prefill over a cached prefix: no table measures it, these rows rest on the physical core")
    return seconds, tuple(notes)


def _lane(table: OperatorTable, name: str, model: DeviceModel, row: int, file: str | None) -> tuple[Lane, str | None]:
    lane = model.profile.lane(table.family, name)
    if lane is not None:
        return lane, None
    first, _, second = name.partition("/")
    plain = {"window": f"{first}/full", "unaligned": first}.get(second)
    lane = model.profile.lane(table.family, plain) if plain else None
    if lane is not None:
        return lane, f"{model.profile.device} has no {table.family} rows like {name}: those of {plain} are used"
    known = sorted(model.profile.lanes.get(table.family, {}))
    if not known:
        raise InputError(
            f"{model.profile.device} has no measurements of {table.family}",
            file=file,
            field="op_name",
            expected=", ".join(model.profile.lanes),
        )
    firsts = sorted({lane_name.split("/")[0] for lane_name in known})
    column = TEXTS[table.family][0]
    if first in firsts:
        column, expected, nearest = _second_part(table.family, first, known)
        raise InputError(
            f"row {row + 1}: {second!r} is not in {model.profile.device}'s measurements of {table.family} {first}",
            file=file,
            field=column,
            expected=expected,
            nearest=nearest_names(second, nearest),
        )
    raise InputError(
        f"row {row + 1}: {first!r} is not in {model.profile.device}'s measurements of {table.family}",
        file=file,
        field=column,
        expected=f"one of {', '.join(firsts)}",
        nearest=tuple(near for near in nearest_names(first, [*firsts, *SAME_DTYPE]) if near != first),
    )


def _second_part(family: str, first: str, known: list[str]) -> tuple[str, str, list[str]]:
    seconds = [name.split("/")[1] for name in known if name.startswith(f"{first}/")]
    column = "num_gpus" if family in ("nccl", "custom_allreduce") else "kv_cache_dtype"
    return column, f"one of {', '.join(seconds)}", seconds
