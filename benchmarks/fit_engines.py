"""Fit the engine profiles of the catalogue to measured serving points.

    python -m benchmarks.fit_engines DATA/serving/measured_aggregated.csv [--engine vllm] [--write]

Parameters are those of `PARAMETERS`, all positive, with a prior each (log-normal: middle and width); none belongs to
one model. Method: Gauss-Newton on log(predicted / measured) of TPOT and TTFT with Huber's weights (P. J. Huber, 1964),
since a few published rows are wrong by factors. `left_out` predicts each (model, device, engine) group with the
parameters that the other groups alone give: one more Gauss-Newton step without its rows (or several), of the length
that helps the others most. Same table, same figures.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.serving_rows import Floats, Row, measured, read_rows, simulate
from specs.catalog import load_engine
from specs.catalog.facts import CATALOG
from specs.profile import EngineProfile

TPOT_WIDTH, TTFT_WIDTH = 0.04, 0.25  # of log ratios: what a good prediction is off by
DIFFERENCE = 0.05  # of a parameter's logarithm, for its derivative
FACTOR, GROUPED, OVERHEAD = 0.1, 0.3, 0.5  # widths of priors: kernels, grouped products (no table fits), host times
GROUP_WEIGHT = 0.5  # a (model, device, engine) of n rows counts for this x sqrt(n): its errors are not independent
SETTLED = 0.003  # relative gain of a step below which a fit is done
SAMPLED_ROWS = 40  # of such a group that are simulated for the fit, spread over the table

_KERNELS = {
    "kernels.gemm": (1.0, FACTOR),
    "kernels.attention": (1.0, FACTOR),
    "kernels.prefill_attention": (1.0, FACTOR),
    "kernels.experts": (1.0, GROUPED),
    "kernels.prefill_experts": (1.0, GROUPED),
    "kernels.elementwise": (1.0, FACTOR),
    "kernels.collective": (1.0, FACTOR),
}
_SCAN = {"kernels.scan": (0.1, OVERHEAD)}
PARAMETERS: dict[str, dict[str, tuple[float, float]]] = {
    "vllm": {
        **_KERNELS,
        "step_overhead_s": (8e-4, OVERHEAD),
        "sequence_overhead_s": (5e-6, OVERHEAD),
        "request_overhead_s": (0.015, OVERHEAD),
        "request_serial_s": (1e-3, OVERHEAD),
        "prefill_step_s": (2e-3, OVERHEAD),
        "releases.0.step_overhead_s": (1.3e-3, OVERHEAD),
        "releases.0.sequence_overhead_s": (4e-5, OVERHEAD),
    },
    "sglang": {
        **_KERNELS,
        **_SCAN,
        "step_overhead_s": (6e-4, OVERHEAD),
        "sequence_overhead_s": (5e-6, OVERHEAD),
        "request_overhead_s": (0.1, OVERHEAD),
        "request_serial_s": (1e-3, OVERHEAD),
        "prefill_step_s": (0.03, OVERHEAD),
        "releases.0.step_overhead_s": (9e-4, OVERHEAD),
        "releases.0.sequence_overhead_s": (2.5e-5, OVERHEAD),
        "releases.0.request_overhead_s": (0.06, OVERHEAD),
        "releases.0.prefill_step_s": (0.01, OVERHEAD),
        "releases.0.stream_token_s": (4e-5, OVERHEAD),
    },
    "trtllm": {
        **_KERNELS,
        "kernels.prefill_experts": (1.0, 0.12),  # in the tables; what looked slow was the host
        "step_overhead_s": (6e-4, OVERHEAD),
        "sequence_overhead_s": (5e-6, OVERHEAD),
        "request_overhead_s": (0.03, OVERHEAD),
        "request_serial_s": (1e-3, OVERHEAD),
        "prefill_step_s": (2e-3, OVERHEAD),
        "eager_launch_s": (5e-5, OVERHEAD),
        "releases.0.step_overhead_s": (6e-4, OVERHEAD),
        "releases.0.sequence_overhead_s": (5e-6, OVERHEAD),
        "releases.0.request_overhead_s": (0.03, OVERHEAD),
        "releases.0.request_serial_s": (5e-3, OVERHEAD),
        "releases.0.stream_token_s": (5e-5, OVERHEAD),
    },
}


@dataclass(frozen=True)
class Fit:
    """Logarithms of the parameters, and the linear problem around them: residuals (rows x 2) and their slopes."""

    names: tuple[str, ...]
    values: Floats
    residuals: Floats
    slopes: Floats

    def profile(self, base: EngineProfile) -> EngineProfile:
        return with_values(base, dict(zip(self.names, np.exp(self.values).tolist(), strict=True)))


def with_values(base: EngineProfile, values: dict[str, float]) -> EngineProfile:
    """The profile with values at dotted paths (`kernels.gemm`, `releases.0.step_overhead_s`)."""
    document: dict[str, Any] = base.model_dump()
    for path, value in values.items():
        place: Any = document
        *parents, last = path.split(".")
        for name in parents:
            place = place[int(name)] if name.isdigit() else place[name]
        place[last] = float(f"{value:.4g}")
    return EngineProfile.model_validate(document)


def fit(base: EngineProfile, rows: Sequence[Row], rounds: int = 4) -> Fit:
    """The parameters of `base.name` that explain `rows` best."""
    names, middle, width = _priors(base)
    weights = _weights(rows)
    values, found = middle, _residuals(base, rows, names, middle)
    slopes = _slopes(base, rows, names, values, found)
    for _ in range(rounds):
        before = _cost(found, values, middle, width, weights)
        step = _step(found, slopes, values, middle, width, weights)
        for share in (1.0, 0.5, 0.2):
            moved = values + share * step
            then = _residuals(base, rows, names, moved)
            if _cost(then, moved, middle, width, weights) < before:
                break
        else:
            break
        values, found = moved, then
        slopes = _slopes(base, rows, names, values, found)
        after = _cost(found, values, middle, width, weights)
        print(f"{base.name}: cost {before:.1f} -> {after:.1f}", flush=True)
        if before - after < SETTLED * after:
            break
    return Fit(names, values, found, slopes)


def around(profile: EngineProfile, rows: Sequence[Row]) -> Fit:
    """The linear problem around the parameters that `profile` has."""
    names, _, _ = _priors(profile)
    values = np.log(np.maximum([_value(profile, path) for path in names], 1e-9))
    found = _residuals(profile, rows, names, values)
    return Fit(names, values, found, _slopes(profile, rows, names, values, found))


def _priors(base: EngineProfile) -> tuple[tuple[str, ...], Floats, Floats]:
    """Names of the parameters, middles and widths of their logarithms."""
    priors = PARAMETERS[base.name]
    middle = np.log(np.array([value for value, _ in priors.values()]))
    return tuple(priors), middle, np.array([width for _, width in priors.values()])


def _value(profile: EngineProfile, path: str) -> float:
    place: Any = profile.model_dump()
    for name in path.split("."):
        place = place[int(name)] if name.isdigit() else place[name]
    return float(place)


def _residuals(base: EngineProfile, rows: Sequence[Row], names: tuple[str, ...], at: Floats) -> Floats:
    """(rows, 2) log ratios of TTFT and TPOT in widths; 0 where a row cannot be predicted."""
    profile = with_values(base, dict(zip(names, np.exp(at).tolist(), strict=True)))
    ratio = np.log(simulate(rows, profile) / measured(rows))
    result: Floats = np.nan_to_num(ratio / (TTFT_WIDTH, TPOT_WIDTH))
    return result


def _weights(rows: Sequence[Row]) -> Floats:
    """(rows,): what each counts for."""
    sizes = Counter(row.group for row in rows)
    return np.array([GROUP_WEIGHT / np.sqrt(sizes[row.group]) for row in rows])


def _cost(found: Floats, at: Floats, middle: Floats, width: Floats, weights: Floats) -> float:
    size = np.abs(found)
    huber = weights[:, None] * np.where(size < 1.0, 0.5 * size**2, size - 0.5)
    return float(huber.sum() + 0.5 * (((at - middle) / width) ** 2).sum())


def _slopes(base: EngineProfile, rows: Sequence[Row], names: tuple[str, ...], at: Floats, found: Floats) -> Floats:
    """(rows, 2, parameters): what one unit of a parameter's logarithm adds to the residuals."""
    moved = [_residuals(base, rows, names, at + DIFFERENCE * unit) for unit in np.eye(len(at))]
    result: Floats = (np.stack(moved, axis=-1) - found[..., None]) / DIFFERENCE
    return result


def _step(found: Floats, slopes: Floats, values: Floats, middle: Floats, width: Floats, row_weights: Floats) -> Floats:
    """One Gauss-Newton step of the weighted problem, at most a factor of two in any parameter."""
    r, j = found.reshape(-1), slopes.reshape(-1, len(values))
    weights = np.repeat(row_weights, 2) / np.maximum(1.0, np.abs(r))
    matrix = (j * weights[:, None]).T @ j + np.diag(width**-2)
    gradient = (j * weights[:, None]).T @ r + (values - middle) / width**2
    step: Floats = np.clip(-np.linalg.solve(matrix, gradient), -0.7, 0.7)
    return step


def sample(rows: Sequence[Row]) -> list[Row]:
    """The rows that parameters are fitted to."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [row for of in groups.values() for row in of[:: -(-len(of) // SAMPLED_ROWS)]]


def left_out(base: EngineProfile, rows: Sequence[Row], sampled: Sequence[Row], fitted: Fit, rounds: int = 1) -> Floats:
    """(rows, 2) seconds, each group predicted with parameters that its rows had no part in, after so many steps.

    `fitted`: of `sampled`, which are some of `rows`.
    """
    seconds = np.full((len(rows), 2), np.nan)
    for group in sorted({row.group for row in rows}):
        others = [index for index, row in enumerate(sampled) if row.group != group]
        kept = [sampled[index] for index in others]
        start = replace(fitted, residuals=fitted.residuals[others], slopes=fitted.slopes[others])
        profile = _settled(base, kept, start, rounds).profile(base)
        inside = [index for index, row in enumerate(rows) if row.group == group]
        seconds[inside] = simulate([rows[index] for index in inside], profile)
    return seconds


def _settled(base: EngineProfile, kept: Sequence[Row], start: Fit, rounds: int) -> Fit:
    """`start`, moved by at most `rounds` Gauss-Newton steps on the rows kept, until they gain no more."""
    _, middle, width = _priors(base)
    weights = _weights(kept)
    here = start
    for turn in range(rounds):
        if turn:
            here = replace(here, slopes=_slopes(base, kept, here.names, here.values, here.residuals))
        before = _cost(here.residuals, here.values, middle, width, weights)
        step = _step(here.residuals, here.slopes, here.values, middle, width, weights)
        moves = [here.values + share * step for share in (1.0, 0.5, 0.25)]
        tried = [replace(here, values=values, residuals=_residuals(base, kept, here.names, values)) for values in moves]
        costs = [_cost(one.residuals, one.values, middle, width, weights) for one in tried]
        if turn and min(costs) >= before:
            break
        here = tried[int(np.argmin(costs))]
        if turn and before - min(costs) < SETTLED * min(costs):
            break
    return here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--engine", choices=sorted(PARAMETERS), action="append")
    parser.add_argument("--write", action="store_true", help="write the parameters into the catalogue")
    arguments = parser.parse_args()
    rows, refused = read_rows(arguments.table)
    print(f"{len(rows)} different rows; {len(refused)} cannot be read")
    for name in arguments.engine or sorted(PARAMETERS):
        base, own = load_engine(name), [row for row in rows if row.deployment.engine == name]
        fitted = fit(base, sample(own))
        profile = fitted.profile(base)
        for what, seconds in (
            ("fitted", simulate(own, profile)),
            ("left out", left_out(base, own, sample(own), fitted)),
        ):
            error = np.abs(seconds / measured(own) - 1.0)
            ttft, tpot = np.nanmedian(error, axis=0)
            print(f"{name}, {what}: TTFT {100 * ttft:.1f} %, TPOT {100 * tpot:.1f} % (medians)", flush=True)
        if arguments.write:
            write(profile)


def write(profile: EngineProfile) -> None:
    """The profile as the catalogue holds it."""
    document = profile.model_dump(mode="json", exclude={"kind"}, exclude_none=True, exclude_defaults=True)
    document["collective_bytes"] = dict(profile.collective_bytes)  # JSON would make names of the ranks
    text = yaml.safe_dump(document, sort_keys=False, width=110, allow_unicode=True)
    (CATALOG / "engines" / f"{profile.name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
