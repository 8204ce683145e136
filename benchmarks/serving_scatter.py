"""Scatter plots of predicted against measured serving points: by model for each engine, by device, by concurrency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.operator_scatter import scatter
from benchmarks.serving_rows import Floats, Row, measured
from specs.document import write_atomically

METRICS = (("tpot", "TPOT", 1), ("ttft", "TTFT", 0))  # name of the file, of the plot, column of the seconds
BATCHES = ((1, 4), (5, 16), (17, 64), (65, 16384))


def batch(row: Row) -> str:
    """The bucket of a row's requests in flight."""
    low, high = next(span for span in BATCHES if span[0] <= row.point.concurrency <= span[1])
    return f"{low:3} to {high}" if high < BATCHES[-1][1] else f"{low:3} and more"


def plots(rows: Sequence[Row], predicted: Floats) -> dict[str, str]:
    """SVG text by file name. `predicted`: (rows, 2) seconds, TTFT and TPOT; NaN where there is none."""
    found = {}
    for engine in sorted({row.deployment.engine for row in rows}):
        own = np.array([row.deployment.engine == engine for row in rows])
        found |= _pair(f"serving-{engine}", f"{engine}, by model", rows, predicted, own, _model)
    every = np.ones(len(rows), bool)
    found |= _pair(
        "serving-device", "all engines, by device", rows, predicted, every, lambda r: r.deployment.device.name
    )
    found |= _pair("serving-batch", "all engines, by requests in flight", rows, predicted, every, batch)
    return found


def write_plots(folder: Path, rows: Sequence[Row], predicted: Floats) -> str:
    """Write the plots into `folder`/accuracy; the markdown table that shows them from a page in `folder`."""
    made = plots(rows, predicted)
    for name, text in made.items():
        write_atomically(folder / "accuracy" / name, text)
    lines = ["| points | TPOT | TTFT |", "|---|---|---|"]
    for stem in dict.fromkeys(name.rsplit("-", 1)[0] for name in made):
        shown = [f"![{stem} {metric}](accuracy/{stem}-{metric}.svg)" for metric, _, _ in METRICS]
        lines.append(f"| {stem.removeprefix('serving-')} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _model(row: Row) -> str:
    return row.deployment.architecture.name.rsplit("/", 1)[-1]


def _pair(
    stem: str, title: str, rows: Sequence[Row], predicted: Floats, chosen: np.ndarray, key: Callable[[Row], str]
) -> dict[str, str]:
    """The plots of TPOT and TTFT of the `chosen` rows that were predicted, coloured by `key`."""
    known = np.flatnonzero(chosen & ~np.isnan(predicted).any(axis=1) & (measured(rows) > 0).all(axis=1))
    keys = [key(rows[index]) for index in known]
    groups = {name: known[[one == name for one in keys]] for name in sorted(set(keys))}
    true = measured(rows)
    return {
        f"{stem}-{file}.svg": scatter(
            f"{metric}: {title}, left out",
            {name.strip(): (predicted[own, column], true[own, column]) for name, own in groups.items()},
        )
        for file, metric, column in METRICS
    }
