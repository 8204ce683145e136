"""Rows of the tables in `docs/simulation.md`: a law or a published figure, what it expects, what was simulated."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEADER = "| law | expected | simulated | off by |\n|---|---:|---:|---:|"
PUBLISHED_HEADER = "| claim | published | simulated | off by |\n|---|---:|---:|---:|"


@dataclass(frozen=True)
class Row:
    """One line. `expected` is a number, or a bound (`relation` "<=" or ">="), or None where nothing is published."""

    law: str
    expected: float | None
    simulated: float
    relation: str = "="
    source: str = ""
    half_width: float | None = None  # of the 95 % interval of what was simulated

    @property
    def holds(self) -> bool:
        """Whether a bound holds; equalities are judged by `off`."""
        if self.expected is None or self.relation == "=":
            return True
        return self.simulated <= self.expected if self.relation == "<=" else self.simulated >= self.expected

    @property
    def off(self) -> float | None:
        """Relative difference to an expected value."""
        if self.expected is None or self.relation != "=":
            return None
        scale = abs(self.expected)
        return (self.simulated - self.expected) / scale if scale else abs(self.simulated)

    def __str__(self) -> str:
        law = f"{self.law} ({self.source})" if self.source else self.law
        expected = "" if self.expected is None else f"{self.expected:.5g}"
        if self.relation != "=":
            expected = f"{self.relation} {expected}"
        off = ("holds" if self.holds else "**broken**") if self.relation != "=" else ""
        if self.off is not None:
            off = f"{self.off:+.2%}" if abs(self.off) >= 5e-5 else "0"
        error = f" ± {self.half_width:.2g}" if self.half_width else ""
        return f"| {law} | {expected} | {self.simulated:.5g}{error} | {off} |"


def mean_and_half_width(values: NDArray[np.float64], batches: int = 20) -> tuple[float, float]:
    """Mean of correlated values in order, and half of its 95 % interval by batch means (Student's t, 19 degrees)."""
    means = np.array([part.mean() for part in np.array_split(values, batches)])
    return float(values.mean()), float(2.093 * means.std(ddof=1) / batches**0.5)


def markdown(rows: Iterable[Row], header: str = HEADER) -> str:
    """The rows as one Markdown table."""
    return "\n".join([header, *map(str, rows)])


def write_json(rows: Iterable[Row], path: Path, **about: object) -> None:
    """The rows and what was run, for a later comparison."""
    document = {**about, "rows": [{**asdict(row), "off": row.off, "holds": row.holds} for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
