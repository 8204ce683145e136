"""`OperatorProfile`: the fitted lanes of one device, or of those without measurements, as a catalogue document."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

import specs.catalog
from planner.operators.cores import OperatorFacts, operator_facts, without_l2
from planner.operators.grid import Grid
from planner.operators.lane import KINDS, Lane, new_lane
from specs.catalog import load_device
from specs.document import Document, Frozen
from specs.errors import InputError

FOLDER = Path(specs.catalog.__file__).parent / "operators"
DATASHEET = FOLDER / "datasheet"  # by generation: what devices without measurements are predicted with
NOT_IDENTIFIED = (
    "gemm: k_step_s is fixed, fill often ends on a bound",
    "context_attention: step_s is fixed",
    "moe: l2_share and expert_s often end on a bound",
    "fp8_block gemm and mla: start_s holds host time of the measured engine, not device time",
)


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
    sample: str = ""  # measured rows by which copies are known (`fingerprint`)

    @classmethod
    def of(cls, lane: Lane, rows: int, held_out: HeldOut | None) -> LaneFit:
        """A fitted lane as it is stored."""
        names = (parameter.name for parameter in lane.kind.parameters)
        return cls(
            parameters=dict(zip(names, map(float, lane.parameters), strict=True)),
            correction=tuple(grid.pack() for grid in lane.grids),
            rows=rows,
            held_out=held_out,
        )


class OperatorProfile(Document):
    """The operator latency model of one device, fitted by `python -m benchmarks.fit_operators`."""

    kind: Literal["OperatorProfile"] = "OperatorProfile"
    version: PositiveInt = 1
    device: str
    confidence: Literal["measured", "datasheet"] = "measured"
    l2: Literal["warm", "cold"] = "warm"  # whether measured repetitions found operands that fit in the cache there
    provenance: str
    licence: str
    not_identified: tuple[str, ...] = NOT_IDENTIFIED
    lanes: dict[str, dict[str, LaneFit]] = Field(default_factory=dict)  # family -> lane
    left_out: dict[str, dict[str, HeldOut]] = Field(default_factory=dict)  # device that no fit saw -> family

    def facts(self) -> OperatorFacts:
        """What the lanes were fitted under: measured cold, the L2 is as good as none."""
        facts = operator_facts(load_device(self.device))
        return facts if self.l2 == "warm" else without_l2(facts)

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
        made = new_lane(family, name)
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


@cache
def load_datasheet_profile(generation: str) -> OperatorProfile:
    """The joint fit for unmeasured devices of a kernel generation (`OperatorFacts.generation`)."""
    return OperatorProfile.read(DATASHEET / f"{generation}.json")
