"""Seconds of every row of a table on a device: by its own fit, else by its datasheet and the fits of others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from planner.operators.cores import OperatorFacts, operator_facts
from planner.operators.grid import Floats
from planner.operators.lane import Lane, new_lane
from planner.operators.profile import (
    LaneFit,
    OperatorProfile,
    fitted_devices,
    load_datasheet_profile,
    load_operator_profile,
)
from planner.operators.tables import MICROSECONDS, SAME_DTYPE, TEXTS, OperatorTable
from specs.catalog import load_device
from specs.errors import InputError, nearest_names

LINKED = ("nccl", "custom_allreduce", "moe_a2a")  # families that follow the link, not the processor
# Element types that no table measures: the peak and the bytes are the type's own, all else is the lane's that is named
UNMEASURED_TYPES: dict[str, dict[str, tuple[str, ...]]] = {
    "gemm": {"int8": ("fp8", "bfloat16"), "int8_wo": ("bfloat16",), "int4_wo": ("bfloat16",), "nvfp4": ("fp8",)},
    "moe": {"nvfp4": ("fp8",)},
}
NEEDS_UNITS = {"int8": "int8", "nvfp4": "fp4"}  # of the device


@dataclass(frozen=True)
class DeviceModel:
    """What predictions of a device are made with; `note` where they are not of its own measurements."""

    device: str
    profile: OperatorProfile
    facts: OperatorFacts
    correction: float
    note: str | None


def device_model(name: str) -> DeviceModel:
    """By catalogue name, alias or the tables' folder name. `InputError` where only AMD or a CPU could be meant."""
    device = load_device(name)
    if device.name in fitted_devices():
        profile = load_operator_profile(device.name)
        return DeviceModel(device.name, profile, profile.facts(), 1.0, None)
    if device.vendor != "nvidia":
        raise InputError(
            f"device {device.name!r} has no operator latencies and no relative that has",
            field="device",
            expected=f"a device of NVIDIA, such as {', '.join(fitted_devices())}",
        )
    profile, note = datasheet_profile(device.name)
    return DeviceModel(device.name, profile, operator_facts(device), 1.0, note)


@cache
def datasheet_profile(name: str) -> tuple[OperatorProfile, str]:
    """(lanes for a device without measurements, what they are).

    Measured devices of the same architecture lend their own fits, else the joint fit of the generation is used;
    collectives are those of the same kind of link.
    """
    facts = operator_facts(load_device(name))
    joint = load_datasheet_profile(facts.generation)
    relative = _same_architecture(facts)
    lanes: dict[str, dict[str, LaneFit]] = dict(joint.lanes)
    source = f"a fit to {', '.join(fitted_devices())} together"
    if relative is not None:
        lanes |= load_operator_profile(relative).lanes
        source = f"the fit of {relative}, of the same architecture"
    of_link = load_datasheet_profile("warp" if facts.pcie else "warp_group").lanes
    lanes |= {family: of_link[family] for family in LINKED if family in of_link}
    profile = joint.model_copy(update={"device": facts.name, "lanes": lanes})
    return profile, f"{facts.name} has no measurements: predicted from its datasheet under {source}"


def _same_architecture(facts: OperatorFacts) -> str | None:
    """The measured device of the same target with the nearest memory bandwidth."""
    others = [load_operator_profile(device).facts() for device in fitted_devices()]
    alike = [other for other in others if other.target == facts.target]
    if not alike:
        return None
    return min(alike, key=lambda other: abs(np.log(other.hbm_bytes_per_s / facts.hbm_bytes_per_s))).name


def reference_lane(family: str, name: str, facts: OperatorFacts) -> tuple[Lane | None, bool]:
    """(the lane that measurements of a device are compared with, whether it is the device's own fit)."""
    if not facts.target.startswith("sm_"):
        return None, False
    return device_model(facts.name).profile.lane(family, name), facts.name in fitted_devices()


def predict(table: OperatorTable, model: DeviceModel, file: str | None = None) -> tuple[Floats, tuple[str, ...]]:
    """(seconds [rows], notes). `InputError` for an element type, rank count or backend without measurements."""
    seconds = np.empty(len(table.lanes))
    notes = [note for note in (model.note, _expected_error(model.profile, table.family)) if note]
    for name in np.unique(table.lanes):
        chosen = np.flatnonzero(table.lanes == name)
        lane, note = _lane(table, str(name), model, int(chosen[0]), file)
        if note:
            notes.append(note)
        rows = {column: values[chosen] for column, values in table.rows.items()}
        seconds[chosen] = lane.seconds(rows, model.facts, model.correction)
    if "prefix" in table.rows and (table.rows["prefix"] > 0).any():
        notes.append("prefill over a cached prefix: no table measures it, these rows rest on the physical core")
    if table.family in MICROSECONDS:
        notes.append(f"latencies of {table.family} tables are microseconds, predictions milliseconds")
    return seconds, tuple(notes)


def _expected_error(profile: OperatorProfile, family: str) -> str | None:
    """What the family's error was on measured devices that were left out; None for a profile of measurements."""
    seen = {device: errors[family] for device, errors in profile.left_out.items() if family in errors}
    if profile.confidence == "measured" or not seen:
        return None
    errors = ", ".join(f"{100 * error.p50:.0f} % on {device}" for device, error in seen.items())
    return f"confidence: datasheet; median error of {family} when a measured device was left out: {errors}"


def _unmeasured_type(profile: OperatorProfile, family: str, name: str) -> tuple[Lane, str] | None:
    """(lane of an element type that no table measures, note), where the device has units for it."""
    first, slash, kind = name.partition("/")
    units = NEEDS_UNITS.get(first)
    if units is not None and units not in profile.facts().flops:
        return None
    for source in UNMEASURED_TYPES.get(family, {}).get(first, ()):
        fit = profile.lane(family, source + slash + kind) or profile.lane(family, source)
        if fit is not None:
            made = new_lane(family, name)
            note = f"no table measures {family} {first}: its datasheet peak and bytes under the fit of {fit.name}"
            return replace(made, parameters=fit.parameters, grids=fit.grids), note
    return None


def _lane(table: OperatorTable, name: str, model: DeviceModel, row: int, file: str | None) -> tuple[Lane, str | None]:
    lane = model.profile.lane(table.family, name)
    if lane is not None:
        return lane, None
    first, _, second = name.partition("/")
    plain = {"window": f"{first}/full", "unaligned": first}.get(second)
    lane = model.profile.lane(table.family, plain) if plain else None
    if lane is not None:
        return lane, f"{model.profile.device} has no {table.family} rows like {name}: those of {plain} are used"
    other = _unmeasured_type(model.profile, table.family, name)
    if other is not None:
        return other
    known = sorted(model.profile.lanes.get(table.family, {}))
    joint = load_datasheet_profile(model.facts.generation).lane(table.family, name) if not known else None
    if joint is not None:
        return joint, f"{model.device} has no measurements of {table.family}: confidence: datasheet, by the joint fit"
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
