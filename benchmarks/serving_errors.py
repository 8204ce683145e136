"""The errors of predicted tokens, as the catalogue's engine profiles state them: what plans at a confidence use.

`step_error`: measured / predicted TPOT. `first_token_error`: measured / predicted TTFT, predicted with steps that are
already longer by `step_error` of the same quantile. Both of groups (model, device, engine) that the fit did not see;
all groups count the same.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import yaml

from benchmarks.serving_rows import Floats, Group, Row, measured, simulate
from specs.catalog import engine_names
from specs.catalog.facts import CATALOG
from specs.profile import EngineProfile

QUANTILES = (50, 60, 70, 80, 90, 95)  # per cent; further out, single rows of a dozen groups would decide
JUDGED = 0.9  # the confidence whose coverage is tried on groups that its quantiles have not seen
FIELDS = ("step_error", "first_token_error")
MEASURED = "measured / predicted TPOT, each model and device left out of the fit, docs/accuracy-serving.md"
FIRST_MEASURED = "measured / predicted TTFT with steps longer by step_error, left out as there"
BORROWED = "the largest of the measured engines: not measured itself"

Profiles = Mapping[Group, EngineProfile]  # of each group: fitted without it


@dataclass(frozen=True)
class Errors:
    """Measured / predicted by quantile (`90%`): seconds of steps, and TTFT beside that."""

    steps: dict[str, float]
    first_token: dict[str, float]
    groups: int = 0
    rows: int = 0

    @property
    def sources(self) -> dict[str, str]:
        texts = (MEASURED, FIRST_MEASURED) if self.rows else (BORROWED, BORROWED)
        return dict(zip(FIELDS, texts, strict=True))


@dataclass(frozen=True)
class LeftOut:
    """Rows, each to be predicted by the profile that was fitted without its group."""

    rows: Sequence[Row]
    profiles: Profiles
    _known: dict[float, Floats] = field(default_factory=dict)

    def seconds(self, longer: float = 1.0) -> Floats:
        """(rows, 2): TTFT, TPOT, of steps that take `longer` times what is predicted; NaN where there are none."""
        if longer not in self._known:
            seconds = np.full((len(self.rows), 2), np.nan)
            for group, profile in self.profiles.items():
                inside = [index for index, row in enumerate(self.rows) if row.group == group]
                if inside:
                    seconds[inside] = simulate([self.rows[index] for index in inside], profile, longer)
            self._known[longer] = seconds
        return self._known[longer]

    def of(self, engine: str) -> LeftOut:
        """The rows of an engine that can be judged."""
        own = [index for index, row in enumerate(self.rows) if row.deployment.engine == engine and row.tpot_s > 0]
        return LeftOut([self.rows[index] for index in own], self.profiles, {1.0: self.seconds()[own]})

    @property
    def groups(self) -> list[Group]:
        return sorted({row.group for row, each in zip(self.rows, self.seconds(), strict=True) if not np.isnan(each[0])})

    def weights(self, groups: Sequence[Group]) -> Floats:
        """(rows,): each of `groups` counts the same, others and what is not predicted not at all."""
        predicted = ~np.isnan(self.seconds()[:, 0])
        sizes = Counter(row.group for row, known in zip(self.rows, predicted, strict=True) if known)
        inside = [known and row.group in groups for row, known in zip(self.rows, predicted, strict=True)]
        return np.array([1.0 / sizes[row.group] if may else 0.0 for row, may in zip(self.rows, inside, strict=True)])

    def margins(self, groups: Sequence[Group], share: float) -> tuple[float, float]:
        """(of steps, of first tokens) at a quantile over `groups`."""
        weights, true = self.weights(groups), measured(self.rows)
        steps = _rounded(_quantile_of(true[:, 1] / self.seconds()[:, 1], weights, share))
        return steps, _rounded(_quantile_of(true[:, 0] / self.seconds(steps)[:, 0], weights, share))

    def covered(self, groups: Sequence[Group], steps: float, first: float) -> tuple[float, float]:
        """Shares of (TPOT, TTFT) of `groups` that come no later than planned with these margins."""
        weights, true = self.weights(groups), measured(self.rows)
        tpot = true[:, 1] <= steps * self.seconds()[:, 1] * (1 + 1e-3)
        ttft = true[:, 0] <= max(1.0, first) * self.seconds(steps)[:, 0] * (1 + 1e-3)
        return float(weights @ tpot / weights.sum()), float(weights @ ttft / weights.sum())


def errors_of(left_out: LeftOut) -> dict[str, Errors]:
    """Of every engine of the catalogue; what is not measured borrows the largest of the measured ones."""
    found = {}
    for name in engine_names():
        own = left_out.of(name)
        if own.groups:
            margins = [own.margins(own.groups, per_cent / 100) for per_cent in QUANTILES]
            steps, first = np.maximum.accumulate(np.array(margins), axis=0).T.tolist()
            rows = int((own.weights(own.groups) > 0).sum())
            found[name] = Errors(_named(steps), _named(first), len(own.groups), rows)
    names = [f"{per_cent}%" for per_cent in QUANTILES]
    widest = Errors(
        {name: max(one.steps[name] for one in found.values()) for name in names},
        {name: max(one.first_token[name] for one in found.values()) for name in names},
    )
    return {name: found.get(name, widest) for name in engine_names()}


def _quantile_of(ratios: Floats, weights: Floats, share: float) -> float:
    return quantile(ratios[weights > 0], weights[weights > 0], share)


def quantile(values: Floats, weights: Floats, share: float) -> float:
    """The least of `values` that at least `share` of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share - 1e-12)), len(values) - 1)])


@dataclass(frozen=True)
class Coverage:
    """Shares of an engine's TPOT and TTFT that come no later than planned at `JUDGED`, all groups counting the same.

    `own`: by the engine's quantiles; `unseen`: of every group by the quantiles of the other groups.
    """

    own: tuple[float, float]
    unseen: tuple[float, float]


def coverage_of(own: LeftOut, errors: Errors) -> Coverage:
    """Of the rows of one engine, with what its profile is to state."""
    name, unseen = f"{100 * JUDGED:g}%", []
    for group in own.groups:
        margins = own.margins([other for other in own.groups if other != group], JUDGED)
        unseen.append(own.covered([group], *margins))
    tpot, ttft = np.mean(unseen, axis=0).tolist()
    return Coverage(own.covered(own.groups, errors.steps[name], errors.first_token[name]), (tpot, ttft))


def error_table(errors: Mapping[str, Errors], coverages: Mapping[str, Coverage]) -> str:
    """The markdown tables of the margins by engine, and of what they cover."""
    heads = [f"{per_cent} %" for per_cent in QUANTILES]
    lines = [f"| engine | of | groups | rows | {' | '.join(heads)} |", "|---|---|---" + "|---" * (1 + len(heads)) + "|"]
    for name, one in errors.items():
        counts = [str(one.groups), str(one.rows)] if one.rows else ["-", "-"]
        for what, ratios in (("steps", one.steps), ("first tokens", one.first_token)):
            lines.append(
                "| " + " | ".join([name, what, *counts, *(f"{value:.3f}" for value in ratios.values())]) + " |"
            )
    remarks = [f"{name}: {BORROWED}.\n" for name, one in errors.items() if not one.rows]
    return "\n".join([*lines, "", *remarks, _coverage_table(coverages)])


def _coverage_table(coverages: Mapping[str, Coverage]) -> str:
    lines = [
        f"What of the left-out rows comes no later than planned at {100 * JUDGED:g} % (mean over groups), by the",
        "quantiles above, and of every group by quantiles of the engine's other groups:\n",
        "| engine | TPOT | TTFT | TPOT, unseen | TTFT, unseen |",
        "|---|---|---|---|---|",
    ]
    for name, one in coverages.items():
        lines.append("| " + " | ".join([name, *(f"{100 * share:.0f} %" for share in (*one.own, *one.unseen))]) + " |")
    return "\n".join(lines) + "\n"


def write_errors(errors: Mapping[str, Errors]) -> None:
    """The ratios into the engine profiles of the catalogue; all else in the files stays as it is written."""
    for name, one in errors.items():
        path = CATALOG / "engines" / f"{name}.yaml"
        path.write_text(with_errors(path.read_text(encoding="utf-8"), one), encoding="utf-8")


def with_errors(text: str, errors: Errors) -> str:
    """The YAML of an engine profile, which ends with its sources, with `errors` in the place of what it states."""
    without = re.sub(rf"(?m)^( *)(?:{'|'.join(FIELDS)}):.*\n(?:\1 +.*\n)*", "", text)
    facts, sources = without.split("\nsources:\n")
    known = {name: one for name, one in zip(FIELDS, (errors.steps, errors.first_token), strict=True) if one}
    ratios = yaml.safe_dump(known, sort_keys=False)
    source = yaml.safe_dump({name: errors.sources[name] for name in known}, width=110, sort_keys=False)
    return f"{facts}\n{ratios}sources:\n{sources}{textwrap.indent(source, '  ')}"


def _named(ratios: Sequence[float]) -> dict[str, float]:
    return {f"{per_cent}%": ratio for per_cent, ratio in zip(QUANTILES, ratios, strict=True)}


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.4g}")
