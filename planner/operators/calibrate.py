"""From measured tables to an `OperatorProfile`: check every table against physics, then fit every lane it holds.

The errors stored with a lane are those of a second fit that did not see a random fifth of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.operators.cores import OperatorFacts, operator_facts
from planner.operators.fingerprint import unpack_rows
from planner.operators.fit import fit_lane
from planner.operators.grid import Floats, Rows
from planner.operators.lane import KINDS, Lane, new_lane
from planner.operators.lint import Finding, lint
from planner.operators.predict import reference_lane
from planner.operators.profile import HeldOut, LaneFit, OperatorProfile, fitted_devices, load_operator_profile
from planner.operators.tables import OperatorTable
from specs.catalog import load_device
from specs.errors import InputError

Mask = NDArray[np.bool_]
FEW = 8  # rows below which a lane is not fitted
HELD_OUT_SHARE = 0.2


def check_table(
    table: OperatorTable, facts: OperatorFacts, others: Mapping[str, OperatorTable] | None = None
) -> tuple[Finding, ...]:
    """Findings about the measured latencies of `table` on the device of `facts`; `rows` count from 0 in the table.

    `others`: tables of the same family of other devices, by name, to find copies. Latencies are compared with the
    device's own model where the catalogue has one, else with its datasheet model (then looser).
    Raises `InputError` where the table holds no latencies.
    """
    if table.seconds is None:
        raise InputError(f"the {table.family} table holds no latencies", field="latency", expected="milliseconds")
    findings = []
    names = [str(name) for name in np.unique(table.lanes)]
    for name in names:
        chosen = np.flatnonzero(table.lanes == name)
        reference, own = reference_lane(table.family, name, facts)
        copies = {
            f"{device}'s {name}": _lane_of(other, name)
            for device, other in (others or {}).items()
            if other.family == table.family and other.seconds is not None and (other.lanes == name).any()
        }
        copies = {f"{device}'s {name}": rows for device, rows in _published(table, name, facts).items()} | copies
        copies |= {f"{other} of this table": _lane_of(table, other) for other in names[: names.index(name)]}
        rows, seconds = _lane_of(table, name)
        for finding in lint(table.family, name, rows, seconds, facts, reference, copies, own):
            places = tuple(int(chosen[row]) for row in finding.rows)
            findings.append(Finding(finding.severity, f"{table.family} {name}: {finding.text}", places))
    return tuple(findings)


def fit_device_profile(
    tables: Sequence[OperatorTable],
    device: str,
    provenance: str,
    licence: str = "as the tables'",
    progress: Callable[[int, int, str], None] = lambda done, of, lane: None,
) -> OperatorProfile:
    """The operator latency model of a catalogue device from its measured tables; same tables, same profile.

    Lanes with fewer than `FEW` rows are left out. `progress(done, of, lane)` is called before each lane. Raises
    `InputError` for an unknown device, tables without latencies or two of one family, findings that refuse a table,
    and tables too small for any lane.
    """
    facts = operator_facts(load_device(device))
    for table in tables:
        for finding in check_table(table, facts):
            if finding.severity == "refuse":
                rows = f" (rows {', '.join(str(row + 1) for row in finding.rows)})" if finding.rows else ""
                raise InputError(f"{finding.text}{rows}", field="latency", expected=f"measurements of {device}")
    return fit_checked_tables(tables, facts, provenance, licence, progress)


def fit_checked_tables(
    tables: Sequence[OperatorTable],
    facts: OperatorFacts,
    provenance: str,
    licence: str,
    progress: Callable[[int, int, str], None] = lambda done, of, lane: None,
) -> OperatorProfile:
    """`fit_device_profile` of tables that need no check."""
    lanes: dict[str, dict[str, LaneFit]] = {}
    done, of = 0, sum(len(np.unique(table.lanes)) for table in tables)
    for table in tables:
        if table.family in lanes:
            raise InputError(f"two tables of {table.family}", field="op_name", expected="one table of a family")
        for name in map(str, np.unique(table.lanes)):
            progress(done, of, f"{table.family} {name}")
            done += 1
            if (table.lanes == name).sum() >= FEW:
                lanes.setdefault(table.family, {})[name] = fit_table_lane(table, name, facts)
    if not lanes:
        raise InputError("too few measurements to fit", field="latency", expected=f"{FEW} rows of one element type")
    return OperatorProfile(device=facts.name, provenance=provenance, licence=licence, lanes=lanes)


def fit_table_lane(table: OperatorTable, name: str, facts: OperatorFacts) -> LaneFit:
    """One lane fitted to all of its rows, with the errors of a fit to four fifths of them."""
    of_lane = table.lanes == name
    lane = fit_part(table, name, of_lane, facts)
    out = held_out_rows(len(of_lane))
    error = None
    if (of_lane & ~out).sum() >= FEW and (of_lane & out).any():
        seen = relative_error(fit_part(table, name, of_lane & ~out, facts), table, of_lane & out, facts)
        p50, p90 = (round(float(np.quantile(seen, share)), 4) for share in (0.5, 0.9))
        error = HeldOut(rows=len(seen), p50=p50, p90=p90)
    return LaneFit.of(lane, int(of_lane.sum()), error)


def held_out_rows(count: int) -> Mask:
    """A fixed random fifth of a table's rows."""
    result: Mask = np.random.default_rng(7).random(count) < HELD_OUT_SHARE
    return result


def fit_part(table: OperatorTable, name: str, chosen: Mask, facts: OperatorFacts) -> Lane:
    """The lane `name` fitted to the rows `chosen`."""
    rows, seconds = measured(table, chosen)
    lane = new_lane(table.family, name)
    return fit_lane(lane, rows, seconds, facts, KINDS[table.family].axes)


def relative_error(lane: Lane, table: OperatorTable, chosen: Mask, facts: OperatorFacts) -> Floats:
    """|predicted / measured - 1| of the rows `chosen`."""
    rows, seconds = measured(table, chosen)
    result: Floats = np.abs(lane.seconds(rows, facts) / seconds - 1.0)
    return result


def measured(table: OperatorTable, chosen: Mask) -> tuple[Rows, Floats]:
    """Columns and seconds of the rows `chosen` of a table with latencies."""
    if table.seconds is None:
        raise InputError(f"the {table.family} table holds no latencies", field="latency", expected="milliseconds")
    return {column: values[chosen] for column, values in table.rows.items()}, table.seconds[chosen]


def _published(table: OperatorTable, name: str, facts: OperatorFacts) -> dict[str, tuple[Rows, Floats]]:
    """Rows of the published tables of other devices, by device."""
    fits = {
        device: load_operator_profile(device).lanes.get(table.family, {}).get(name)
        for device in fitted_devices()
        if device != facts.name
    }
    return {device: unpack_rows(fit.sample, list(table.rows)) for device, fit in fits.items() if fit and fit.sample}


def _lane_of(table: OperatorTable, name: str) -> tuple[Rows, Floats]:
    return measured(table, table.lanes == name)
