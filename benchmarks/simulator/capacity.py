"""The largest rate at which something holds, on one drawn workload whose arrivals are pulled together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.simulator.servers import Ints
from planner.simulate import Workload


def arriving(prompts: Ints, outputs: Ints, seed: int = 1) -> Workload:
    """Poisson arrivals of one request per second; `at_rate` pulls them together."""
    count = len(prompts)
    arrival_s = np.cumsum(np.random.Generator(np.random.PCG64(seed)).exponential(1.0, count))
    return Workload(("all",), np.zeros(count, np.int64), arrival_s, prompts, outputs)


def at_rate(workload: Workload, rate: float) -> Workload:
    """The same requests in the same order, arriving `rate` times as fast."""
    return replace(workload, arrival_s=workload.arrival_s / rate)


def largest_rate(holds: Callable[[float], bool], start: float, tolerance: float = 0.02) -> float:
    """Bisection between the last rate that holds and the first that does not, from `start` on; 0 where none holds."""
    low, high = 0.0, start
    while holds(high):
        low, high = high, 2 * high
        if high > 1e4:
            return low
    while high - low > tolerance * high and high > start / 4096:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def lognormal(median: float, p90: float, count: int, seed: int) -> Ints:
    """Token counts of a lognormal with that median and 90th percentile, at least one."""
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal(count)
    values = median * np.exp(np.log(p90 / median) / 1.2815515594 * normal)
    tokens: Ints = np.maximum(1, np.rint(values)).astype(np.int64)
    return tokens
