"""The errors of predicted steps, as the catalogue's engine profiles state them (`step_error`)."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from benchmarks.serving_rows import Floats, Row, measured
from specs.catalog import engine_names
from specs.catalog.facts import CATALOG

QUANTILES = (50, 60, 70, 80, 90, 95)  # per cent; further out, single rows of a dozen groups would decide
MEASURED = "measured / predicted TPOT, each model and device left out of the fit, docs/accuracy-serving.md"
BORROWED = "the largest of the measured engines: not measured itself"


@dataclass(frozen=True)
class StepError:
    """Measured / predicted seconds of an engine's steps by quantile, and what they are of."""

    ratios: dict[str, float]
    source: str
    groups: int = 0
    rows: int = 0


def step_errors(rows: Sequence[Row], without: Floats) -> dict[str, StepError]:
    """Of every engine of the catalogue; `without`: (rows, 2) seconds of rows left out, NaN where there are none."""
    found = {}
    for name in engine_names():
        known = [
            index
            for index, row in enumerate(rows)
            if row.deployment.engine == name and not np.isnan(without[index, 1]) and row.tpot_s > 0
        ]
        if known:
            own = [rows[index] for index in known]
            sizes = Counter(row.group for row in own)
            weights = np.array([1.0 / sizes[row.group] for row in own])
            ratios = measured(own)[:, 1] / without[known, 1]
            values = {f"{per_cent}%": _rounded(quantile(ratios, weights, per_cent / 100)) for per_cent in QUANTILES}
            found[name] = StepError(values, MEASURED, len(sizes), len(own))
    names = [f"{per_cent}%" for per_cent in QUANTILES]
    widest = {name: max(error.ratios[name] for error in found.values()) for name in names}
    borrowed = {name: StepError(widest, BORROWED) for name in engine_names() if name not in found}
    return {name: found.get(name) or borrowed[name] for name in engine_names()}


def quantile(values: Floats, weights: Floats, share: float) -> float:
    """The least of `values` that at least `share` of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share - 1e-12)), len(values) - 1)])


def error_table(errors: Mapping[str, StepError]) -> str:
    """The markdown table of the ratios by engine."""
    heads = [f"{per_cent} %" for per_cent in QUANTILES]
    lines = [f"| engine | groups | rows | {' | '.join(heads)} |", "|---|---" + "|---" * (1 + len(heads)) + "|"]
    for name, error in errors.items():
        counts = [str(error.groups), str(error.rows)] if error.rows else ["-", "-"]
        lines.append("| " + " | ".join([name, *counts, *(f"{ratio:.3f}" for ratio in error.ratios.values())]) + " |")
    borrowed = [name for name, error in errors.items() if error.source == BORROWED]
    remarks = [f"{name}: {BORROWED}.\n" for name in borrowed]
    return "\n".join([*lines, "", *remarks])


def write_step_errors(errors: Mapping[str, StepError]) -> None:
    """The ratios into the engine profiles of the catalogue; all else in the files stays as it is written."""
    for name, error in errors.items():
        path = CATALOG / "engines" / f"{name}.yaml"
        path.write_text(with_step_error(path.read_text(encoding="utf-8"), error), encoding="utf-8")


def with_step_error(text: str, error: StepError) -> str:
    """The YAML of an engine profile, which ends with its sources, with `error` in the place of what it states."""
    without = re.sub(r"(?m)^( *)step_error:.*\n(?:\1 +.*\n)*", "", text)
    facts, sources = without.split("\nsources:\n")
    ratios = yaml.safe_dump({"step_error": error.ratios}, sort_keys=False)
    source = yaml.safe_dump({"step_error": error.source}, width=110)
    return f"{facts}\n{ratios}sources:\n{sources}{textwrap.indent(source, '  ')}"


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.4g}")
