"""Fit the engine profiles of the catalogue to measured serving points.

    python -m benchmarks.fit_engines DATA/serving/measured_aggregated.csv [--engine vllm] [--write]

Parameters are those of `PARAMETERS`, all positive, with a prior each (log-normal: middle and width); none belongs to
one model. What is small is log(predicted / measured) of TPOT and TTFT, squared for small ones and linear for outliers
(P. J. Huber, 1964), since a few published rows are wrong by factors.

A (model, device, engine) group is off as a whole: its rows share the same kernels, flags and clients, and forty rows of
one model are no forty witnesses. Each group therefore has an offset of its own in either figure (a random effect, of
the widths `OWN_TTFT` and `OWN_TPOT`), which no prediction uses. Parameters are moved by what differs inside groups and
by what most of them have in common, not by the level of one that has many rows.

Method: Gauss-Newton from the middle of the priors; slopes by differences, kept for a few steps, until they gain no
more. `left_out` predicts each group by the very same fit of the other groups' rows. Same table, same figures.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.serving_rows import Floats, Group, Row, measured, read_rows, simulate
from specs.catalog import load_engine
from specs.catalog.facts import CATALOG
from specs.profile import EngineProfile

TPOT_WIDTH, TTFT_WIDTH = 0.04, 0.25  # of log ratios: what a good prediction is off by
OWN_TPOT, OWN_TTFT = 0.2, 0.3  # of log ratios: what a group is off by as a whole
DIFFERENCE = 0.05  # of a parameter's logarithm, for its derivative
FACTOR, EXPERTS, PROMPT_EXPERTS = 0.05, 0.15, 0.3  # widths of priors on factors of kernels that the tables have
OVERHEAD = 0.7  # on host times, which no table has
SHARES = (1.0, 0.4, 0.12)  # of a step that are tried
ROUNDS, KEPT = 16, 3  # steps at most; with the same slopes
SETTLED = 0.003  # relative gain of a step below which a fit is done
WEIGHTINGS = 20  # of outliers, in a step
SAMPLED_ROWS = 40  # of a group that are simulated for the fit, spread over the table
PROCESSES = 2

_KERNELS = {
    "kernels.gemm": (1.0, FACTOR),
    "kernels.attention": (1.0, FACTOR),
    "kernels.prefill_attention": (1.0, FACTOR),
    "kernels.experts": (1.0, EXPERTS),
    "kernels.prefill_experts": (1.0, PROMPT_EXPERTS),
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
        "prefill_step_s": (0.03, 0.2),  # few rows tell it from request_overhead_s
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


@dataclass(frozen=True)
class Problem:
    """Rows of one engine, and what is asked of the logarithms of its parameters."""

    base: EngineProfile
    rows: tuple[Row, ...]
    names: tuple[str, ...]
    middle: Floats  # of the priors
    width: Floats
    weights: Floats  # (rows,): what each counts for
    groups: NDArray[np.int64]  # (rows,): index of each one's group

    @classmethod
    def of(cls, base: EngineProfile, rows: Sequence[Row]) -> Problem:
        """The fit of `base.name` to `rows`; a group of n rows counts for the root of n."""
        priors = PARAMETERS[base.name]
        sizes = Counter(row.group for row in rows)
        places = {group: index for index, group in enumerate(sorted(sizes))}
        return cls(
            base,
            tuple(rows),
            tuple(priors),
            np.log(np.array([value for value, _ in priors.values()])),
            np.array([width for _, width in priors.values()]),
            np.array([1.0 / np.sqrt(sizes[row.group]) for row in rows]),
            np.array([places[row.group] for row in rows]),
        )

    def profile(self, at: Floats) -> EngineProfile:
        return with_values(self.base, dict(zip(self.names, np.exp(at).tolist(), strict=True)))

    def residuals(self, at: Floats) -> Floats:
        """(rows, 2) log ratios of TTFT and TPOT in widths; 0 where a row cannot be predicted."""
        ratio = np.log(simulate(self.rows, self.profile(at)) / measured(self.rows))
        result: Floats = np.nan_to_num(ratio / (TTFT_WIDTH, TPOT_WIDTH))
        return result

    def slopes(self, at: Floats, found: Floats) -> Floats:
        """(rows, 2, parameters): what one unit of a parameter's logarithm adds to the residuals."""
        moved = [self.residuals(at + DIFFERENCE * unit) for unit in np.eye(len(at))]
        result: Floats = (np.stack(moved, axis=-1) - found[..., None]) / DIFFERENCE
        return result

    def cost(self, found: Floats, at: Floats) -> float:
        """Of residuals and parameters, with the offsets of groups that suit the residuals best."""
        columns, prior = self._offsets()
        own, huber = _least(found.reshape(-1), columns, np.repeat(self.weights, 2), prior, np.zeros(len(prior)))
        from_prior = ((at - self.middle) / self.width) ** 2
        return huber + 0.5 * float(from_prior.sum() + (prior * own**2).sum())

    def step(self, found: Floats, slopes: Floats, at: Floats) -> Floats:
        """To the least cost of the linear problem, at most a factor of two in any parameter."""
        offsets, prior = self._offsets()
        count = len(at)
        columns = np.hstack([slopes.reshape(-1, count), offsets])
        precision = np.concatenate([self.width**-2, prior])
        pull = np.concatenate([(at - self.middle) / self.width**2, np.zeros(len(prior))])
        moves, _ = _least(found.reshape(-1), columns, np.repeat(self.weights, 2), precision, pull)
        result: Floats = np.clip(moves[:count], -0.7, 0.7)
        return result

    def _offsets(self) -> tuple[Floats, Floats]:
        """(rows x 2, groups x 2) columns of the groups' own offsets, in their widths; their precisions."""
        groups = int(self.groups.max()) + 1
        columns = np.zeros((len(self.groups), 2, groups, 2))
        index = np.arange(len(self.groups))
        columns[index, 0, self.groups, 0] = OWN_TTFT / TTFT_WIDTH
        columns[index, 1, self.groups, 1] = OWN_TPOT / TPOT_WIDTH
        return columns.reshape(2 * len(self.groups), 2 * groups), np.ones(2 * groups)


def _least(found: Floats, columns: Floats, weights: Floats, precision: Floats, pull: Floats) -> tuple[Floats, float]:
    """x of least  weights . huber(found + columns x) + pull x + precision x^2 / 2, by reweighting; the huber part."""
    x = np.zeros(len(precision))
    for _ in range(WEIGHTINGS):
        each = weights / np.maximum(1.0, np.abs(found + columns @ x))
        matrix = (columns * each[:, None]).T @ columns + np.diag(precision)
        before, x = x, -np.linalg.solve(matrix, (columns * each[:, None]).T @ found + pull)
        if np.abs(x - before).max() < 1e-4:
            break
    size = np.abs(found + columns @ x)
    return x, float((weights * np.where(size < 1.0, 0.5 * size**2, size - 0.5)).sum())


def fit(base: EngineProfile, rows: Sequence[Row], rounds: int = ROUNDS) -> EngineProfile:
    """`base` with the parameters that explain `rows` best, settled unless `rounds` steps do not do."""
    problem = Problem.of(base, rows)
    at = problem.middle
    found = problem.residuals(at)
    slopes, age = problem.slopes(at, found), 0
    for _ in range(rounds):
        before = problem.cost(found, at)
        step = problem.step(found, slopes, at)
        gain = 0.0
        for share in SHARES:
            there = problem.residuals(at + share * step)
            after = problem.cost(there, at + share * step)
            if after < before:
                at, found, gain = at + share * step, there, 1.0 - after / before
                break
        if gain < SETTLED and age == 0:
            break
        age = 0 if gain < SETTLED or age + 1 == KEPT else age + 1
        if age == 0:
            slopes = problem.slopes(at, found)
    return problem.profile(at)


def sample(rows: Sequence[Row]) -> list[Row]:
    """The rows that parameters are fitted to."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [row for of in groups.values() for row in of[:: -(-len(of) // SAMPLED_ROWS)]]


Unfitted = tuple[EngineProfile, Sequence[Row], Group | None]  # a profile, rows of its engine, the group to leave out


def fits(jobs: Sequence[Unfitted], processes: int = PROCESSES) -> list[EngineProfile]:
    """The profile of every job."""
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(_fit_without, jobs))


def _fit_without(job: Unfitted) -> EngineProfile:
    base, rows, group = job
    return fit(base, sample([row for row in rows if row.group != group]))


def left_out(rows: Sequence[Row], processes: int = PROCESSES) -> dict[Group, EngineProfile]:
    """By group of `rows`: the engine's profile, fitted to the rows of the other groups."""
    groups = sorted({row.group for row in rows if row.deployment.engine in PARAMETERS})
    jobs = [
        (load_engine(group[2]), [row for row in rows if row.deployment.engine == group[2]], group) for group in groups
    ]
    return dict(zip(groups, fits(jobs, processes), strict=True))


def write_fits(rows: Sequence[Row], names: Sequence[str] = tuple(PARAMETERS), write: bool = True) -> None:
    """Fit the engines to their rows, say how well, and put the parameters into the catalogue."""
    of_engine = {name: [row for row in rows if row.deployment.engine == name] for name in names}
    for profile in fits([(load_engine(name), of_engine[name], None) for name in names]):
        own = of_engine[profile.name]
        ttft, tpot = np.nanmedian(np.abs(simulate(own, profile) / measured(own) - 1.0), axis=0)
        print(f"{profile.name}: TTFT {100 * ttft:.1f} %, TPOT {100 * tpot:.1f} % (medians)", flush=True)
        if write:
            _write(profile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--engine", choices=sorted(PARAMETERS), action="append")
    parser.add_argument("--write", action="store_true", help="write the parameters into the catalogue")
    arguments = parser.parse_args()
    rows, refused = read_rows(arguments.table)
    print(f"{len(rows)} different rows; {len(refused)} cannot be read")
    write_fits(rows, arguments.engine or sorted(PARAMETERS), arguments.write)


def _write(profile: EngineProfile) -> None:
    """The profile as the catalogue holds it."""
    document = profile.model_dump(mode="json", exclude={"kind"}, exclude_none=True, exclude_defaults=True)
    document["collective_bytes"] = dict(profile.collective_bytes)  # JSON would make names of the ranks
    text = yaml.safe_dump(document, sort_keys=False, width=110, allow_unicode=True)
    (CATALOG / "engines" / f"{profile.name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
