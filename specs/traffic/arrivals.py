"""Drawn arrival times: sorted, in [0, seconds), from a generator that the caller seeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specs.errors import InputError

MAX_REQUESTS = 5_000_000  # of one class in one window; more would only fill memory


def poisson_arrivals(rate_per_s: float, seconds: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Independent arrivals: exponential gaps of mean 1 / rate."""
    return gamma_arrivals(rate_per_s, 1.0, seconds, random)


def gamma_arrivals(rate_per_s: float, cv: float, seconds: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Gamma-distributed gaps of mean 1 / rate and coefficient of variation `cv` (1: Poisson; above: bursts).

    The first request comes after one gap, like every other, so a burst may start the window. `cv` 0 is constant.
    """
    _check(rate_per_s, seconds)
    if not cv >= 0:
        raise InputError(f"is {cv!r}", field="cv", expected="a number that is not negative")
    if cv == 0:
        return constant_arrivals(rate_per_s, seconds)
    shape = 1.0 / (cv * cv)
    scale = 1.0 / (rate_per_s * shape)
    pieces: list[NDArray[np.float64]] = []
    start_s = 0.0
    drawn = 0
    while start_s < seconds:
        expected = (seconds - start_s) * rate_per_s
        count = int(expected + 4.0 * max(1.0, cv) * np.sqrt(expected + 1.0)) + 16
        times = start_s + np.cumsum(random.gamma(shape, scale, count))
        pieces.append(times)
        start_s = float(times[-1])
        drawn += count
        if drawn > 4 * MAX_REQUESTS:
            raise InputError(f"draws more than {MAX_REQUESTS} requests", field="cv", expected="a smaller cv")
    arrivals = np.concatenate(pieces)
    return arrivals[arrivals < seconds]


def constant_arrivals(rate_per_s: float, seconds: float) -> NDArray[np.float64]:
    """One request every 1 / rate seconds, the first at 0."""
    _check(rate_per_s, seconds)
    count = int(np.ceil(seconds * rate_per_s - 1e-9))
    return np.arange(count, dtype=np.float64) / rate_per_s


def diurnal_rate(
    times_s: NDArray[np.float64], rate_per_s: float, peak_to_mean: float, period_s: float, peak_at_s: float
) -> NDArray[np.float64]:
    """Arrivals per second at these moments: one cosine a period around the mean, highest at `peak_at_s`."""
    swing = (peak_to_mean - 1.0) * np.cos(2.0 * np.pi * (times_s - peak_at_s) / period_s)
    return np.asarray(rate_per_s * (1.0 + swing), dtype=np.float64)


def diurnal_arrivals(
    rate_per_s: float,
    peak_to_mean: float,
    period_s: float,
    peak_at_s: float,
    start_s: float,
    seconds: float,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """A Poisson process with the rate of `diurnal_rate`, from `start_s` of the period on; times from 0.

    `rate_per_s` is the mean over a period; `peak_to_mean` from 1 (no swing) to 2 (silence at the trough). By thinning:
    candidates come at the peak's rate, and each is kept with the share of it that its moment has.
    """
    if not 1 <= peak_to_mean <= 2:
        raise InputError(f"is {peak_to_mean!r}", field="peak_to_mean", expected="a number from 1 to 2")
    if not 0 < period_s < float("inf"):
        raise InputError(f"is {period_s!r}", field="period", expected="a positive number of seconds")
    candidates = poisson_arrivals(rate_per_s * peak_to_mean, seconds, random)
    rates = diurnal_rate(candidates + start_s, rate_per_s, peak_to_mean, period_s, peak_at_s)
    return candidates[random.random(len(candidates)) * rate_per_s * peak_to_mean < rates]


def _check(rate_per_s: float, seconds: float) -> None:
    if not 0 < rate_per_s < float("inf") or not 0 < seconds < float("inf"):
        raise InputError(f"{rate_per_s!r} requests/s over {seconds!r} s", field="rate", expected="positive numbers")
    if rate_per_s * seconds > MAX_REQUESTS:
        raise InputError(
            f"{rate_per_s:g}/s over {seconds:g} s is {rate_per_s * seconds:.3g} requests",
            field="rate",
            expected=(
                f"at most {MAX_REQUESTS / seconds:,.0f}/s (state a share of the traffic, such as a tenth, and take the "
                "plan that many times)"
            ),
        )
