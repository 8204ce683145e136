"""`OperatorProfile`: the fitted lanes of one device as a document of the catalogue, and who borrows from whom."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

import specs.catalog
from planner.operators.cores import OperatorFacts, operator_facts
from planner.operators.grid import Grid
from planner.operators.lane import KINDS, Lane, new_lane
from specs.catalog import load_device
from specs.document import Document, Frozen
from specs.errors import InputError

FOLDER = Path(specs.catalog.__file__).parent / "operators"
# Nearest relative of the devices without a fit: same maker, nearest architecture and link
RELATIVES = {
    "a100-pcie": "a100-sxm",
    "a30": "a100-sxm",
    "a10g": "l40s",
    "l4": "l40s",
    "rtx-4090": "l40s",
    "rtx-pro-6000": "l40s",
    "h100-pcie": "h100-sxm",
    "b200": "h200-sxm",
    "b300": "h200-sxm",
    "gb200": "h200-sxm",
}


class HeldOut(Frozen):
    """Relative errors of predictions of rows that the fit did not see."""

    rows: PositiveInt
    p50: NonNegativeFloat
    p90: NonNegativeFloat


class LaneFit(Frozen):
    parameters: dict[str, PositiveFloat]
    correction: tuple[str, ...]  # packed grids, in the order of the family's axes
    rows: PositiveInt  # that the fit used
    held_out: HeldOut | None = None  # of a fit to four fifths of them


class OperatorProfile(Document):
    """The operator latency model of one device, fitted by `python -m benchmarks.fit_operators`."""

    kind: Literal["OperatorProfile"] = "OperatorProfile"
    version: PositiveInt = 1
    device: str
    clock_hz: PositiveFloat
    provenance: str
    clock_source: str
    licence: str
    not_identified: tuple[str, ...]
    lanes: dict[str, dict[str, LaneFit]] = Field(default_factory=dict)  # family -> lane

    def facts(self) -> OperatorFacts:
        return operator_facts(load_device(self.device), self.clock_hz)

    def lane(self, family: str, name: str) -> Lane | None:
        """The fitted lane, or None where the tables hold no such measurements."""
        fit = self.lanes.get(family, {}).get(name)
        if fit is None:
            return None
        kind = KINDS[family]
        expected = tuple(parameter.name for parameter in kind.parameters)
        if tuple(fit.parameters) != expected or len(fit.correction) != len(kind.axes):
            raise InputError(
                f"lane {family} {name} does not fit this version", field="lanes", expected=", ".join(expected)
            )
        made = new_lane(family, name, native_fp8=load_device(self.device).target.startswith("sm_90"))
        grids = tuple(Grid.unpack(axes, text) for axes, text in zip(kind.axes, fit.correction, strict=True))
        return Lane(kind, name, made.core, made.coordinates, np.array(list(fit.parameters.values())), grids)


def fitted_devices() -> tuple[str, ...]:
    """Catalogue names of the devices with an own fit, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def load_operator_profile(device: str) -> OperatorProfile:
    """The fit of a catalogue name; `InputError` names those that have one."""
    path = FOLDER / f"{device}.json"
    if device not in fitted_devices():
        raise InputError(
            f"device {device!r} has no operator latencies", field="device", expected=", ".join(fitted_devices())
        )
    return OperatorProfile.read(path)
