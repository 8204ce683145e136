"""Measured serving points, simulated: what the fit of the engine profiles and the accuracy page share."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.estimate import Deployment, Point, deployment_of, is_mixture, protocol_of, simulate_point
from specs.errors import InputError
from specs.profile import EngineProfile

Floats = NDArray[np.float64]
Group = tuple[str, str, str]


@dataclass(frozen=True)
class Row:
    """One measured point; `times` repeats of it stand in the table (the same figures under several dates)."""

    point: Point
    deployment: Deployment
    ttft_s: float
    tpot_s: float
    times: int

    @property
    def group(self) -> Group:
        """What is left out together: model, device, engine."""
        return self.deployment.architecture.name, self.deployment.device.name, self.deployment.engine


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """(rows, why others cannot be read)."""
    found: dict[tuple[Point, str, str], Row] = {}
    refused = []
    with path.open(newline="", encoding="utf-8") as stream:
        for cells in csv.DictReader(stream):
            try:
                point = Point.read(cells)
                deployment = deployment_of(point)
            except InputError as error:
                refused.append(str(error))
                continue
            key = (point, cells["ttft_ms"], cells["tpot_ms"])
            before = found[key].times if key in found else 0
            ttft_s, tpot_s = float(cells["ttft_ms"]) / 1e3, float(cells["tpot_ms"]) / 1e3
            found[key] = Row(point, deployment, ttft_s, tpot_s, before + 1)
    return list(found.values()), refused


def simulate(rows: Sequence[Row], profile: EngineProfile, longer: float = 1.0) -> Floats:
    """(rows, 2) seconds: TTFT, TPOT, of steps that take `longer` times what is predicted.

    NaN where a row cannot be predicted. All rows are of the profile's engine.
    """
    seconds = np.full((len(rows), 2), np.nan)
    for index, row in enumerate(rows):
        point = row.point
        mixture = is_mixture(row.deployment.architecture)
        protocol = protocol_of(point.isl, point.osl, profile.name, mixture)
        try:
            latency = simulate_point(point, row.deployment, profile.at(point.engine_version), protocol, longer)
        except InputError:
            continue
        seconds[index] = latency.ttft_s, latency.tpot_s
    return seconds


def measured(rows: Sequence[Row]) -> Floats:
    """(rows, 2) seconds: TTFT, TPOT."""
    return np.array([[row.ttft_s, row.tpot_s] for row in rows])
