"""Fitting one lane: the core's few parameters by coordinate search, then the grids by penalised least deviations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from planner.operators.cores import OperatorFacts, Parameter
from planner.operators.grid import Axes, Floats, Grid, Rows, corners, grid_shape
from planner.operators.lane import Lane

BACKFITTING_ROUNDS = 4
SAMPLE = 3000  # rows that the core's parameters are fitted on: more did not change them
RIDGE = 2e-3  # pulls knots without data to zero, that is to the core
OUTLIER = 1.5  # log error beyond which a row no longer pulls the core


def fit_lane(lane: Lane, rows: Rows, seconds: Floats, facts: OperatorFacts, axes: Sequence[Axes]) -> Lane:
    """`lane` with parameters and grids fitted to `seconds`[rows], deterministically (fixed seed, no threads)."""
    few = np.random.default_rng(0).permutation(len(seconds))[:SAMPLE]
    part = {name: column[few] for name, column in rows.items()}
    fitted = replace(lane, parameters=fit_core(lane, [(part, seconds[few], facts, 1.0)]), grids=())
    residual = np.log(seconds) - np.log(fitted.physical(rows, facts))
    return replace(fitted, grids=fit_residuals(axes, lane.coordinates(rows, facts), residual))


def fit_core(lane: Lane, samples: Sequence[tuple[Rows, Floats, OperatorFacts, float]]) -> Floats:
    """Parameters of the core for `samples` of (rows, seconds, device, weight): least mean of |log error|, capped."""
    total = sum(weight for *_, weight in samples)
    logs = [np.log(seconds) for _, seconds, _, _ in samples]

    def loss(p: Floats) -> float:
        error = 0.0
        for (rows, _, facts, weight), measured in zip(samples, logs, strict=True):
            off = np.abs(np.log(lane.core(rows, facts, p)) - measured)
            error += weight / total * float(np.mean(np.minimum(off, OUTLIER)))
        return error

    return pattern_search(loss, lane.kind.parameters)


def fit_residuals(axes: Sequence[Axes], coordinates: Rows, residual: Floats) -> tuple[Grid, ...]:
    """Backfitting: each grid is fitted to what the others leave of log(seconds / core); rounded as they are stored."""
    grids = [Grid(chosen, np.zeros(grid_shape(chosen))) for chosen in axes]
    for _ in range(BACKFITTING_ROUNDS):
        for number, grid in enumerate(grids):
            left = residual + grid(coordinates)
            grids[number] = fit_grid(grid, coordinates, left)
            residual = left - grids[number](coordinates)
    return tuple(grid.rounded() for grid in grids)


def fit_grid(grid: Grid, coordinates: Rows, target: Floats, rounds: int = 4) -> Grid:
    """Least absolute deviations (reweighted squares) with smoothness penalties; conjugate gradients on the normal
    equations. Starts from `grid`'s values."""
    index, weight = corners(grid.axes, coordinates)
    size = grid.values.size
    x = grid.values.ravel().copy()
    row_weight = np.ones(len(target))
    for _ in range(rounds):

        def normal(v: Floats, row_weight: Floats = row_weight) -> Floats:
            seen = (v[index] * weight).sum(axis=1) * row_weight
            back = np.bincount(index.ravel(), (seen[:, None] * weight).ravel(), minlength=size)
            result: Floats = back + _penalty(grid, v) + RIDGE * v
            return result

        pulled = ((target * row_weight)[:, None] * weight).ravel()
        right = np.bincount(index.ravel(), pulled, minlength=size).astype(np.float64)
        squares = (row_weight[:, None] * weight**2).ravel()
        penalties = sum(6 * axis.smooth + 2 * axis.flat for axis in grid.axes if len(axis.knots) > 1) + RIDGE
        diagonal = np.bincount(index.ravel(), squares, minlength=size).astype(np.float64) + penalties
        x = conjugate_gradients(normal, right, x, diagonal)
        residual = target - (x[index] * weight).sum(axis=1)
        row_weight = 0.05 / np.maximum(np.abs(residual), 0.015)
    return Grid(grid.axes, x.reshape(grid.values.shape))


def _penalty(grid: Grid, v: Floats) -> Floats:
    values = v.reshape(grid.values.shape)
    total = np.zeros(grid.values.shape)
    for number, axis in enumerate(grid.axes):
        if len(axis.knots) < 2:
            continue
        moved, out = np.moveaxis(values, number, 0), np.moveaxis(total, number, 0)
        gaps = axis.continuity().reshape(-1, *[1] * (moved.ndim - 1))
        first = axis.flat * gaps * np.diff(moved, axis=0)
        out[1:] += first
        out[:-1] -= first
        if len(axis.knots) > 2 and axis.smooth:
            second = axis.smooth * np.minimum(gaps[1:], gaps[:-1]) * (moved[2:] - 2 * moved[1:-1] + moved[:-2])
            out[2:] += second
            out[1:-1] -= 2 * second
            out[:-2] += second
    return total.ravel()


def conjugate_gradients(
    apply: Callable[[Floats], Floats],
    right: Floats,
    x: Floats,
    diagonal: Floats,
    limit: int = 60,
    tolerance: float = 2e-3,
) -> Floats:
    """Solve apply(x) = right for a symmetric positive `apply`, preconditioned by its `diagonal`.

    Stops early on purpose: a fit to noisy measurements needs no digits.
    """
    residual = right - apply(x)
    z = residual / diagonal
    p, rho = z.copy(), inner(residual, z)
    start = inner(right, right / diagonal) + 1e-30
    for _ in range(limit):
        if rho < tolerance**2 * start:
            break
        q = apply(p)
        alpha = rho / inner(p, q)
        x = x + alpha * p
        residual = residual - alpha * q
        z = residual / diagonal
        rho, old = inner(residual, z), rho
        p = z + rho / old * p
    return x


def inner(a: Floats, b: Floats) -> float:
    """Inner product without BLAS: its threads cost ten times the product here, and their number changes the digits."""
    return float(np.einsum("i,i->", a, b))


def pattern_search(loss: Callable[[Floats], float], parameters: Sequence[Parameter], rounds: int = 40) -> Floats:
    """Coordinate search in log space with shrinking steps; parameters with `low == high` stay fixed. Four digits."""
    x = np.log([parameter.start for parameter in parameters])
    low = np.log([parameter.low for parameter in parameters])
    high = np.log([parameter.high for parameter in parameters])
    step, best = np.full(len(x), 0.4), loss(np.exp(x))
    for _ in range(rounds):
        moved = False
        for i in range(len(x)):
            for sign in (1.0, -1.0):
                trial = x.copy()
                trial[i] = np.clip(trial[i] + sign * step[i], low[i], high[i])
                if trial[i] == x[i]:
                    continue
                value = loss(np.exp(trial))
                if value < best - 1e-6:
                    x, best, moved = trial, value, True
                    step[i] = min(step[i] * 1.5, 1.0)
                    break
            else:
                step[i] *= 0.6
        if not moved and step.max() < 0.01:
            break
    return np.array([float(f"{value:.4g}") for value in np.exp(x)])
