"""Predictions of points: what `capstan estimate` appends to a table's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from planner.estimate.points import Point, deployment_of, is_mixture
from planner.estimate.protocol import Client, client_note, protocol_of
from planner.estimate.replica import Latency, simulate_point
from specs.catalog import load_engine, load_profile
from specs.errors import InputError

# The column of a table that says what the planner's own names of layouts and types stand for.
_COLUMNS = {
    "tensor_parallel": "tp_size",
    "pipeline_parallel": "pp_size",
    "pipeline_stages": "pp_size",
    "expert_parallel": "moe_ep_size",
    "weights": "precision",
}


@dataclass(frozen=True)
class Prediction:
    """Of one row; times and throughput are None where `note` says why the row cannot be predicted.

    `tpot_ms` is None too where answers have one token: there is no further one.
    `confidence`: measured (kernels of this device were), borrowed (of a relative), low (the row's layout had to be
    read differently from what it says, or no measured point is like it), or empty.
    """

    ttft_ms: float | None
    tpot_ms: float | None
    output_tokens_per_s: float | None
    confidence: str
    note: str


def predict_rows(
    rows: Iterable[Mapping[str, object]],
    first_line: int | None,
    progress: Callable[[int], None] | None = None,
    client: Client = "published",
) -> Iterator[Prediction]:
    """One prediction per row, in order. Equal rows are simulated once."""
    known: dict[Point, Prediction | InputError] = {}
    for index, cells in enumerate(rows):
        try:
            point = Point.read(cells)
            if point not in known:
                known[point] = _attempt(point, client)
            found = known[point]
        except InputError as error:
            found = error
        if isinstance(found, InputError):
            place = f"row {index + 1}" if first_line is None else f"row {index + 1} (line {first_line + index})"
            found = _unpredicted(f"{place}: {found}")
        yield found
        if progress is not None:
            progress(index + 1)


def predict_point(point: Point, client: Client = "published") -> Prediction:
    """Simulate the closed loop of one point."""
    found = _attempt(point, client)
    return _unpredicted(str(found)) if isinstance(found, InputError) else found


def _attempt(point: Point, client: Client) -> Prediction | InputError:
    """The prediction, or why there is none."""
    try:
        deployment = deployment_of(point)
        engine = load_engine(deployment.engine).at(deployment.engine_version)
        mixture = is_mixture(deployment.architecture)
        protocol = protocol_of(point.isl, point.osl, engine.name, mixture, client)
        latency = simulate_point(point, deployment, engine, protocol)
    except InputError as error:
        return replace(error, field=_COLUMNS.get(error.field or "", error.field))
    assumed = client_note(point.isl, point.osl, engine.name, mixture, client)
    notes = (*deployment.notes, *deployment.doubts, _queue(latency), assumed)
    return Prediction(
        latency.ttft_s * 1e3,
        latency.tpot_s * 1e3 if point.osl > 1 else None,
        latency.output_tokens_per_s(point.osl, point.concurrency),
        "low" if deployment.doubts else load_profile(deployment.device.name).confidence,
        "; ".join(note for note in notes if note),
    )


def _queue(latency: Latency) -> str:
    """Said where requests wait for memory: TTFT is then decided by a few per cent of it."""
    if latency.held >= latency.in_flight:
        return ""
    return f"the KV cache holds {latency.held} of {latency.in_flight} requests at full length: the others wait for it"


def _unpredicted(note: str) -> Prediction:
    return Prediction(None, None, None, "", f"not predicted: {note}")
