"""From what clients of a live server saw to the host times of its engine: non-negative least squares.

Unknowns: seconds per request, per step, per sequence in a step, per step that holds a prompt; and factors on the
kernels of attention over a context, of attention in prompts, and of everything else, for a device that is not what its
profile says. Observations: the median TTFT and TPOT of every closed loop. What is small is log(predicted / measured),
squared for small ones and linear for outliers (Huber, 1964), as live machines have those. The model is the simulator
itself, on such requests as were sent, made linear at each solution (Gauss and Newton) and solved under x >= 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.calibrated import nonnegative_least_squares
from planner.estimate.observed import judged_rows
from planner.simulate import simulate_closed_loop
from planner.simulate.model import ReplicaModel
from specs.errors import InputError
from specs.measurements import Load, Measurements
from specs.profile import EngineProfile, KernelFactors

Floats = NDArray[np.float64]
UNITS = np.array([1e-2, 1e-3, 1e-4, 1e-3])  # request, step, sequence, prompt step
ROUNDS = 20  # linearisations; most end after five
SETTLED = 1e-4  # relative improvement below which the fit is done
PRIOR = 0.03  # weight of "the kernels are as predicted" (log of a factor) against one observation
FACTORS = (("attention",), ("prefill_attention",), ("gemm", "experts", "prefill_experts", "elementwise", "scan"))
LEAST_FACTOR, MOST_FACTOR = 1e-2, 1e4
OUTLIER = 0.2  # |log(predicted / measured)| beyond which an observation counts linearly
LEAST_ROWS = 3
SIMULATED = 6  # requests per client that are simulated: equal requests repeat themselves


@dataclass(frozen=True)
class Observed:
    """One closed loop as its clients saw it, medians in seconds; TPOT None where answers have one token."""

    name: str
    load: Load
    prompt_tokens: int
    output_tokens: int
    requests: int
    ttft_s: float
    tpot_s: float | None

    @property
    def times(self) -> tuple[float, ...]:
        return (self.ttft_s,) if self.tpot_s is None else (self.ttft_s, self.tpot_s)


@dataclass(frozen=True)
class FittedOverheads:
    """The engine's profile, and how well it tells what was seen: predicted / measured - 1 by observation."""

    engine: EngineProfile
    factors: tuple[float, ...]  # of the kernels in FACTORS
    observed: tuple[Observed, ...]
    predicted: tuple[tuple[float, ...], ...]  # TTFT and TPOT, seconds, by observation
    residual_p50: float
    residual_p90: float
    repeat_p50: float | None  # relative difference of equal loads: what no fit can be better than


def observed_loops(measurements: Measurements) -> tuple[Observed, ...]:
    """Closed loops with enough answers. `InputError` where there is none: open loops say little about overheads."""
    found = []
    for load in measurements.loads:
        rows = [row for row in judged_rows(measurements, load.request_class) if row.status == "ok"]
        if load.kind != "closed" or load.concurrency is None or len(rows) < LEAST_ROWS:
            continue
        tpots = [row.tpot_s for row in rows if row.tpot_s]
        found.append(
            Observed(
                load.request_class,
                load,
                round(float(np.median([row.prompt_tokens for row in rows]))),
                max(1, round(float(np.median([row.output_tokens for row in rows])))),
                len(rows),
                float(np.median([row.ttft_s for row in rows if row.ttft_s is not None])),
                float(np.median(tpots)) if tpots else None,
            )
        )
    if not found:
        raise InputError(
            f"holds no closed loop of {LEAST_ROWS} answers or more",
            field="requests",
            expected="answers of a server that works, measured for longer",
        )
    return tuple(found)


def fit_overheads(
    observed: Sequence[Observed],
    engine: EngineProfile,
    model_of: Callable[[EngineProfile], ReplicaModel],
    replicas: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> FittedOverheads:
    """`engine` with the host times and the kernel factor that these observations show.

    `model_of`: the replica under an engine's profile. Raises `InputError` where the replica cannot hold what was sent.
    """
    measured = np.array([time for one in observed for time in one.times])

    def predicted(unknowns: Floats) -> Floats:
        model = model_of(applied(engine, unknowns))
        return np.array([time for one in observed for time in _simulated(one, model, replicas)])

    unknowns = _start(engine)
    here = predicted(unknowns)
    for turn in range(ROUNDS):
        progress(f"round {turn + 1} of at most {ROUNDS}")
        moved, there = _step(unknowns, here, predicted, measured)
        gain = 1.0 - _loss(moved, there, measured) / _loss(unknowns, here, measured)
        unknowns, here = moved, there
        if gain < SETTLED:
            break
    errors = np.abs(here / measured - 1.0)
    told, rest = [], here.tolist()
    for one in observed:
        told.append(tuple(rest[: len(one.times)]))
        rest = rest[len(one.times) :]
    return FittedOverheads(
        applied(engine, unknowns),
        tuple(unknowns[len(UNITS) :].tolist()),
        tuple(observed),
        tuple(told),
        float(np.quantile(errors, 0.5)),
        float(np.quantile(errors, 0.9)),
        _repeats(observed),
    )


def applied(engine: EngineProfile, unknowns: Floats) -> EngineProfile:
    """The profile with these host times, and its kernels times the factors. The frontend's times are in the first."""
    request, step, sequence, prompt_step, *factors = unknowns.tolist()
    kernels = engine.kernels.model_dump()
    for names, factor in zip(FACTORS, factors, strict=True):
        kernels |= {name: kernels[name] * factor for name in names}
    return engine.model_copy(
        update={
            "request_overhead_s": request,
            "request_serial_s": 0.0,
            "stream_token_s": 0.0,
            "step_overhead_s": step,
            "sequence_overhead_s": sequence,
            "prefill_step_s": prompt_step,
            "kernels": KernelFactors(**kernels),
            "releases": (),
        }
    )


def _start(engine: EngineProfile) -> Floats:
    request = engine.request_overhead_s + engine.request_serial_s
    host = (request, engine.step_overhead_s, engine.sequence_overhead_s, engine.prefill_step_s)
    return np.array([*host, *(1.0 for _ in FACTORS)])


def _step(
    unknowns: Floats, here: Floats, predicted: Callable[[Floats], Floats], measured: Floats
) -> tuple[Floats, Floats]:
    """The next solution and what it predicts: no worse than this one."""
    factors = unknowns[len(UNITS) :]
    units = np.concatenate([UNITS, factors])
    slopes = np.stack([predicted(unknowns + row) - here for row in np.diag(units * 0.1)], axis=1) / 0.1  # per unit
    off = np.log(here / measured)
    weights = np.sqrt(np.minimum(1.0, OUTLIER / np.maximum(np.abs(off), 1e-12)))
    near = slopes / here[:, None]
    prior = np.zeros((len(factors), len(units)))  # log factor = 0, linear where it is now
    prior[:, len(UNITS) :] = PRIOR * np.eye(len(factors))
    matrix = np.vstack([weights[:, None] * near, prior])
    wanted = np.concatenate([weights * (near @ (unknowns / units) - off), PRIOR * (1.0 - np.log(factors))])
    solved = nonnegative_least_squares(matrix, wanted) * units
    solved[len(UNITS) :] = np.clip(solved[len(UNITS) :], np.maximum(LEAST_FACTOR, factors / 4), MOST_FACTOR)
    share = 1.0
    for _ in range(6):  # queues bend: go only as far as the true model follows
        moved = unknowns + share * (solved - unknowns)
        there = predicted(moved)
        if _loss(moved, there, measured) < _loss(unknowns, here, measured):
            return moved, there
        share /= 2
    return unknowns, here


def _loss(unknowns: Floats, predicted: Floats, measured: Floats) -> float:
    off = np.abs(np.log(predicted / measured))
    huber = np.where(off <= OUTLIER, off**2, OUTLIER * (2.0 * off - OUTLIER))
    prior = PRIOR * np.log(unknowns[len(UNITS) :])
    return float(huber.sum() + (prior**2).sum()) + 1e-300


def _simulated(one: Observed, model: ReplicaModel, replicas: int) -> tuple[float, ...]:
    clients = one.load.concurrency or 1
    warmup = one.load.warmup_requests
    count = warmup + min(max(one.requests, LEAST_ROWS), SIMULATED * clients)
    prompts, outputs = np.full(count, one.prompt_tokens), np.full(count, one.output_tokens)
    try:
        loop = simulate_closed_loop(model, clients, prompts, outputs, warmup=warmup, replicas=replicas)
    except ValueError as error:
        raise InputError(f"the plan's replica cannot serve {one.name}: {error}") from None
    times = (float(np.median(loop.ttft_s)), float(np.median(loop.tpot_s)))
    return times[: len(one.times)]


def _repeats(observed: Sequence[Observed]) -> float | None:
    """Median relative difference of equal loads of two rounds."""
    first: dict[tuple[int | None, int, int], Observed] = {}
    found = []
    for one in observed:
        key = (one.load.concurrency, one.prompt_tokens, one.output_tokens)
        if key in first:
            found += [abs(b / a - 1.0) for a, b in zip(first[key].times, one.times, strict=False)]
        first[key] = one
    return float(np.median(found)) if found else None


def factors_text(fitted: FittedOverheads) -> str:
    """`2.1 (attention), ...`: the factors on the kernels that the device's profile predicts."""
    names = ("attention over contexts", "attention in prompts", "other kernels")
    return ", ".join(f"{factor:.3g} ({name})" for name, factor in zip(names, fitted.factors, strict=True))


def described(fitted: FittedOverheads, measurements: Measurements, device_profile: str) -> EngineProfile:
    """The fitted profile with its sources: what was measured, where, and how well it fits."""
    count = sum(one.requests for one in fitted.observed)
    repeat = "" if fitted.repeat_p50 is None else f"; equal loads differ by {fitted.repeat_p50:.1%} in the median"
    version = measurements.environment.engine_version
    text = (
        f"fitted by `capstan calibrate --url` to {count} requests in {len(fitted.observed)} closed loops at "
        f"{measurements.source}{f' (version {version})' if version else ''}, with the kernels of {device_profile} "
        f"times {factors_text(fitted)}; |predicted / measured - 1| {fitted.residual_p50:.1%} in the median, "
        f"{fitted.residual_p90:.1%} at p90{repeat}"
    )
    names = "request_overhead_s, step_overhead_s, sequence_overhead_s, prefill_step_s, kernels"
    sources = {**fitted.engine.sources, names: text}
    update = {"sources": sources} | ({"version": version} if version else {})
    return EngineProfile.model_validate(fitted.engine.model_copy(update=update).model_dump())
