"""From kernel tables of a device to its calibrated `DeviceProfile`, operator latencies inside; and back from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from planner.cost.measured_tables import MeasuredTable, l2_of, merged
from planner.cost.table_fit import OCTAVE_ROWS, profile_of_tables, quantiles_of
from planner.operators import OperatorProfile
from planner.operators.calibrate import fit_checked_tables
from planner.operators.cores import operator_facts, without_l2
from planner.operators.lane import KINDS
from specs.catalog import load_device, load_profile
from specs.errors import InputError, nearest_names
from specs.measurements import KernelRow
from specs.profile import DeviceFacts, DeviceProfile

ROWS_PER_OCTAVE_ROW = 200  # of a GEMM table: a designed table of 400 rows needs 2 rows in an octave, a large one 20
LEAST_OCTAVE_ROWS = 2
LEAST_COPY_BYTES = 2**23  # smaller copies are mostly launch
TOO_FAST = 1.1  # of the memory's peak: what timers may be off by


def read_profile(path: Path) -> DeviceProfile:
    """A profile that `capstan calibrate` wrote; `InputError` where it is none, or its operators do not fit."""
    profile = DeviceProfile.read(path)
    try:
        device = load_device(profile.device)
        operators = operators_of(profile)
        if operators is not None and operators.device != device.name:
            raise InputError(f"are of {operators.device!r}", field="operators.device", expected=repr(device.name))
    except InputError as error:
        error.file = str(path)
        raise
    return profile


def operators_of(profile: DeviceProfile) -> OperatorProfile | None:
    """The operator latencies inside a calibrated profile; None where it has none. `InputError` names what is wrong."""
    if profile.operators is None:
        return None
    try:
        operators = OperatorProfile.model_validate(profile.operators)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["operators", *(str(part) for part in first["loc"])])
        raise InputError(first["msg"], field=field) from None
    for family, lanes in operators.lanes.items():
        if family not in KINDS:
            raise InputError(
                f"there is no latency model for the family {family!r}",
                field="operators.lanes",
                expected=f"one of {', '.join(KINDS)}",
                nearest=nearest_names(family, KINDS),
            )
        for name in lanes:
            operators.lane(family, name)  # parameters and grids are those of this version
    return operators


def calibrate(
    tables: Sequence[MeasuredTable],
    device: DeviceFacts,
    source: str,
    licence: str,
    kernels: Sequence[KernelRow] = (),
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> DeviceProfile:
    """Fit checked tables of `device`; same tables, same profile. `kernels`: copies, which no table holds.

    What no table shows stays as in the catalogue; held-out errors are in `error_quantiles` (of the few parameters) and
    in each lane of `operators`. `progress(done, of, what)`: parts fitted, parts in all, the next one. Raises
    `InputError` for tables that are too small, and copies that beat the memory's peak.
    """
    families = merged(tables)
    if not families:
        raise InputError("there are no tables to fit", expected="at least one kernel table")
    base = load_profile(device.name)
    products = families.get("gemm")
    octave_rows = 0 if products is None else len(products.lanes) // ROWS_PER_OCTAVE_ROW
    octave_rows = min(OCTAVE_ROWS, max(LEAST_OCTAVE_ROWS, octave_rows))
    source = f"{source}; L2 {l2_of(tables)}; {', '.join(families)}"
    cold = l2_of(tables) == "cold"
    facts = operator_facts(device)
    operators = fit_checked_tables(
        list(families.values()), without_l2(facts) if cold else facts, source, licence, progress
    ).model_copy(update={"l2": "cold" if cold else "warm"})
    profile, errors = profile_of_tables(families, device, base, octave_rows)
    share = copy_share(kernels, device)
    rest = f"the rest as in the catalogue ({base.confidence})"
    fitted = profile.model_copy(
        update={
            "confidence": "calibrated",
            "relative_of": None,
            "licence": licence,
            "provenance": source + (", copies; " if share else "; ") + rest,
            "error_quantiles": quantiles_of(errors),
            "elementwise_efficiency": share or base.elementwise_efficiency,
            "operators": operators.model_dump(mode="json"),
        }
    )
    return DeviceProfile.model_validate(fitted.model_dump())


def copy_share(kernels: Sequence[KernelRow], device: DeviceFacts) -> float | None:
    """Share of the memory's peak that copies reach which the L2 cannot hold; None without such rows.

    `InputError` for copies that beat the peak: a wrong clock, or an L2 larger than the catalogue's.
    """
    copies = [row for row in kernels if row.family == "elementwise" and row.bytes >= LEAST_COPY_BYTES]
    large = [row for row in copies if row.bytes > 4 * device.l2_bytes] or copies[-1:]
    for row in large:
        rate = row.bytes / row.seconds
        if rate > TOO_FAST * device.hbm_bytes_per_s and row.bytes > 4 * device.l2_bytes:
            raise InputError(
                f"a copy of {row.bytes / 2:.0f} bytes moves {rate / 1e12:.2f} TB/s, {device.name} has "
                f"{device.hbm_bytes_per_s / 1e12:.2f}",
                field="kernels",
                expected=f"measurements of {device.name}",
            )
    if not large:
        return None
    return float(f"{np.median([row.bytes / row.seconds for row in large]) / device.hbm_bytes_per_s:.3g}")
