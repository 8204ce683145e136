"""Predictions of points: what `capstan estimate` appends to a table's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from planner.estimate.points import Deployment, Point, deployment_of
from planner.estimate.protocol import protocol_of
from planner.estimate.replica import is_mixture, simulate_point
from specs.catalog import load_engine, load_profile
from specs.errors import InputError


@dataclass(frozen=True)
class Prediction:
    """Of one row; times and throughput are None where `note` says why the row cannot be predicted.

    `confidence`: measured (kernels of this device were), borrowed (of a relative), low (the row's layout had to be
    read differently from what it says), or empty.
    """

    ttft_ms: float | None
    tpot_ms: float | None
    output_tokens_per_s: float | None
    confidence: str
    note: str


def predict_rows(
    rows: Iterable[Mapping[str, object]], first_line: int | None, progress: Callable[[int], None] | None = None
) -> Iterator[Prediction]:
    """One prediction per row, in order. Equal rows are simulated once."""
    known: dict[Point, Prediction] = {}
    for index, cells in enumerate(rows):
        try:
            point = Point.read(cells)
        except InputError as error:
            place = f"row {index + 1}" if first_line is None else f"row {index + 1} (line {first_line + index})"
            yield _unpredicted(f"{place}: {error}")
            continue
        if point not in known:
            known[point] = predict_point(point)
        yield known[point]
        if progress is not None:
            progress(index + 1)


def predict_point(point: Point) -> Prediction:
    """Simulate the closed loop of one point."""
    try:
        deployment = deployment_of(point)
        engine = load_engine(deployment.engine).at(deployment.engine_version)
        protocol = protocol_of(point.isl, point.osl, engine.name, is_mixture(deployment.architecture))
        latency = simulate_point(point, deployment, engine, protocol)
    except InputError as error:
        return _unpredicted(str(error))
    return Prediction(
        latency.ttft_s * 1e3,
        latency.tpot_s * 1e3,
        latency.output_tokens_per_s(point.osl, point.concurrency),
        _confidence(deployment),
        "; ".join(deployment.notes),
    )


def _unpredicted(note: str) -> Prediction:
    return Prediction(None, None, None, "", f"not predicted: {note}")


def _confidence(deployment: Deployment) -> str:
    if any(note.startswith("mislabelled") for note in deployment.notes):
        return "low"
    return load_profile(deployment.device.name).confidence
