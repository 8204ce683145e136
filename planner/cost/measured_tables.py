"""Kernel tables as a user measured them, before a fit: what cannot be this device's measurements is refused by rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.operators import (
    Finding,
    OperatorTable,
    check_table,
    device_model,
    fitted_devices,
    predict,
    read_columns,
)
from planner.operators.cores import KV_BYTES, MOE_BYTES, WEIGHT_BYTES, OperatorFacts, operator_facts
from planner.operators.lane import new_lane
from planner.operators.tables import TEXTS
from specs.catalog import load_device
from specs.errors import InputError, nearest_names
from specs.profile import DeviceFacts

L2 = Literal["cold", "warm", "mixed", "unknown"]
DUPLICATE_SHARE = 0.1  # of a file's shapes that may stand in another file of the same family
ALIKE = 3.0  # a table this many times nearer to another device's model than to its own is worth a warning ...
ALIKE_DISTANCE = 0.1  # ... if it is this far from its own, in log(seconds)
ALIKE_ROWS = 20
SHOWN_ROWS = 10


@dataclass(frozen=True)
class MeasuredTable:
    """A checked table with latencies, and where it comes from."""

    file: str
    first_line: int | None  # of row 1 in a text file
    table: OperatorTable
    devices: tuple[str, ...]  # catalogue names of those that a column of the table names
    l2: L2


def measured_table(columns: Mapping[str, Sequence[object]], file: str, first_line: int | None = None) -> MeasuredTable:
    """Columns of a file as a table to fit. `InputError` names file, column and row."""
    table = read_columns(columns, file, first_line)
    if table.seconds is None:
        raise InputError(
            "holds no measurements", file=file, field="latency", expected="a column of milliseconds above zero"
        )
    stated = {str(value) for value in columns.get("l2", ())}
    unknown = sorted(stated - {"cold", "warm"})
    if unknown:
        raise InputError(f"{unknown[0]!r} is not known", file=file, field="l2", expected="cold or warm")
    return MeasuredTable(file, first_line, table, _devices_of(columns), _l2(stated))


def _l2(stated: set[str]) -> L2:
    if stated == {"cold"}:
        return "cold"
    if stated == {"warm"}:
        return "warm"
    return "mixed" if stated else "unknown"


def _devices_of(columns: Mapping[str, Sequence[object]]) -> tuple[str, ...]:
    found = set()
    for name in set(map(str, columns.get("device", ()))):
        try:
            found.add(load_device(name).name)
        except InputError:
            continue  # a name that the catalogue does not know says nothing
    return tuple(sorted(found))


def device_of_tables(tables: Sequence[MeasuredTable]) -> str:
    """The device that the tables themselves name. `InputError` where they name none, or several."""
    named = sorted({name for table in tables for name in table.devices})
    if len(named) == 1:
        return named[0]
    text = f"the tables are of {' and '.join(named)}" if named else "the tables do not name a device of the catalogue"
    raise InputError(text, field="--device", expected="the catalogue name of the device that was measured")


def check_tables(tables: Sequence[MeasuredTable], device: DeviceFacts) -> tuple[str, ...]:
    """Warnings about tables of `device`. `InputError` for tables that cannot be its measurements, with their rows."""
    if device.vendor == "cpu":
        raise InputError(
            "kernel tables are of GPUs", field="--device", expected="a GPU; `capstan calibrate` measures a CPU"
        )
    facts, warnings = operator_facts(device), []
    for number, one in enumerate(tables):
        others = [name for name in one.devices if name != device.name]
        if others:
            raise InputError(f"holds rows of {others[0]}", file=one.file, field="device", expected=repr(device.name))
        _refuse_unknown_types(one)
        warnings += _findings(one, facts)
        for other in tables[:number]:
            _refuse_duplicates(one, other)
        warnings += _like_another_device(one, device)
    for family, table in merged(tables).items():
        files = [one.file for one in tables if one.table.family == family]
        if len(files) > 1:  # together they may show what none shows alone: one lane copied from another
            _findings(MeasuredTable(" and ".join(files), None, table, (), "unknown"), facts)
    if l2_of(tables) == "mixed":
        warnings.append("some rows were measured with a cold L2 and others not: errors of small shapes grow")
    return tuple(warnings)


def _findings(one: MeasuredTable, facts: OperatorFacts) -> list[str]:
    """Warnings; `InputError` for what refuses the table."""
    warnings = []
    for finding in check_table(one.table, facts):
        text = finding.text + _rows_text(finding, one.first_line)
        if finding.severity == "refuse":
            raise InputError(text, file=one.file, field="latency", expected=f"measurements of {facts.name} in ms")
        warnings.append(f"{one.file}: {text}")
    return warnings


def _refuse_unknown_types(one: MeasuredTable) -> None:
    """`InputError` for the first element type that the family's model does not know."""
    family = one.table.family
    for name in map(str, np.unique(one.table.lanes)):
        try:
            new_lane(family, name)
        except KeyError as error:
            unknown, row = str(error.args[0]), int(np.flatnonzero(one.table.lanes == name)[0])
            known = MOE_BYTES if family == "moe" else KV_BYTES if "attention" in family else WEIGHT_BYTES
            raise InputError(
                f"row {row + 1}: {unknown!r} is not known",
                file=one.file,
                line=None if one.first_line is None else one.first_line + row,
                field=TEXTS[family][0],
                expected=f"one of {', '.join(known)}",
                nearest=nearest_names(unknown, known),
            ) from None


def _rows_text(finding: Finding, first_line: int | None) -> str:
    """Rows count from 1, as in the messages about single values; lines where the file is text."""
    if not finding.rows:
        return ""
    shown = sorted(finding.rows)[:SHOWN_ROWS]
    text = f"; rows {', '.join(str(row + 1) for row in shown)}" + (" ..." if len(shown) == SHOWN_ROWS else "")
    return text + (f" (row 1 is line {first_line})" if first_line is not None else "")


def _refuse_duplicates(one: MeasuredTable, other: MeasuredTable) -> None:
    if one.table.family != other.table.family:
        return
    seen = set(_keys(other.table))
    both = [row for row, key in enumerate(_keys(one.table)) if key in seen]
    if len(both) > DUPLICATE_SHARE * len(one.table.lanes):
        finding = Finding("refuse", f"{len(both)} of its shapes are in {other.file}, too", tuple(both[:SHOWN_ROWS]))
        text = finding.text + _rows_text(finding, one.first_line)
        raise InputError(text, file=one.file, expected="one measurement of a shape: give only one of these files")


def _keys(table: OperatorTable) -> list[tuple[object, ...]]:
    columns = [table.rows[name].tolist() for name in sorted(table.rows)]
    return list(zip(table.lanes.tolist(), *columns, strict=True))


def _like_another_device(one: MeasuredTable, device: DeviceFacts) -> list[str]:
    """A warning where the latencies follow the shipped model of another device far better than this one's."""
    if device.name not in fitted_devices() or len(one.table.lanes) < ALIKE_ROWS:
        return []
    own = _distance(one.table, device.name)
    others = {name: _distance(one.table, name) for name in fitted_devices() if name != device.name}
    known = {name: distance for name, distance in others.items() if distance is not None}
    if own is None or not known:
        return []
    nearest = min(known, key=known.__getitem__)
    if own < ALIKE * known[nearest] or own < ALIKE_DISTANCE:
        return []
    return [
        f"{one.file}: latencies are {100 * np.expm1(own):.0f} % from the model of {device.name} and "
        f"{100 * np.expm1(known[nearest]):.0f} % from that of {nearest}: were they measured there?"
    ]


def _distance(table: OperatorTable, device: str) -> float | None:
    """Median |log(measured / model of a fitted device)|; None where the device lacks a lane of the table."""
    model = device_model(device)
    lanes = model.profile.lanes.get(table.family, {})
    if table.seconds is None or not set(table.lanes.tolist()) <= set(lanes):
        return None
    seconds, _ = predict(table, model)
    return float(np.median(np.abs(np.log(table.seconds / seconds))))


def merged(tables: Sequence[MeasuredTable]) -> dict[str, OperatorTable]:
    """One table of each family, the files' rows in their order."""
    families: dict[str, list[OperatorTable]] = {}
    for one in tables:
        families.setdefault(one.table.family, []).append(one.table)
    return {family: _concatenated(parts) for family, parts in sorted(families.items())}


def _concatenated(parts: Sequence[OperatorTable]) -> OperatorTable:
    first = parts[0]
    if len(parts) == 1:
        return first
    rows = {name: np.concatenate([part.rows[name] for part in parts]) for name in first.rows}
    seconds = np.concatenate([part.seconds for part in parts if part.seconds is not None])
    return OperatorTable(first.family, rows, np.concatenate([part.lanes for part in parts]), seconds)


def l2_of(tables: Sequence[MeasuredTable]) -> L2:
    """How all of the tables were measured."""
    states = {one.l2 for one in tables}
    return states.pop() if len(states) == 1 else "mixed"
