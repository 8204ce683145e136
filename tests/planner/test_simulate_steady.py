"""Intervals, warm-up, stability and the queue: on samples whose laws are known, and on runs done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_simulate_laws import ROUTES, replica, simulate, workload

from planner.simulate import (
    FleetGroup,
    percentile_interval,
    queue_over_time,
    result_summary,
    simulate_fleet,
    stability,
    warm_up,
)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("percentile", [50.0, 90.0])
def test_intervals_cover_what_they_say(percentile: float) -> None:
    """Of 400 samples of the exponential law, 95 % of the intervals hold its percentile (within 4 standard errors)."""
    truth = -math.log(1 - percentile / 100)
    intervals = [percentile_interval(generator(seed).exponential(1.0, 2000), percentile) for seed in range(400)]
    covered = sum(low <= truth <= high for low, high in intervals if low is not None)
    assert 0.90 <= covered / 400 <= 0.995


def test_intervals_of_dependent_values_are_wider() -> None:
    """Waits that follow each other are alike: taken as independent, an interval would be too narrow."""
    noise = generator(1).exponential(1.0, 40_000)
    alike = np.convolve(noise, np.ones(50) / math.sqrt(50), mode="valid")
    widths = []
    for values in (alike, generator(2).permutation(alike)):
        low, high = percentile_interval(values, 50.0) or (0.0, 0.0)
        widths.append(high - low)
    assert widths[0] > 3 * widths[1] > 0


def test_no_interval_where_there_is_too_little() -> None:
    values = generator(0).exponential(1.0, 1999)
    assert percentile_interval(values, 99.0) is None  # ten batches of 200 would have two beyond it each
    assert percentile_interval(np.append(values, 1.0), 99.0) is not None
    assert percentile_interval(np.append(values[:-400], np.full(401, np.inf)), 90.0) is None


def test_warm_up_by_hand() -> None:
    steady = np.tile([1.0] * 5 + [2.0] * 5, 20)
    assert warm_up(steady) == 0
    assert warm_up(np.concatenate([np.full(35, 9.0), steady])) == 35
    assert warm_up(np.arange(200.0)) is None  # it never settles
    assert warm_up(np.ones(19)) is None


def test_verdicts() -> None:
    """One server of 1 s a request (one step of one token): at half load, at three times its load, and briefly."""
    model = replica(seats=1, budget=1, flat_s=1.0)
    half = workload([(2.0 * k, 1, 1) for k in range(150)])
    assert stability(simulate(model, half, exact=False), half) == "stable"
    triple = workload([(k / 3, 1, 1) for k in range(300)])
    assert stability(simulate(model, triple, exact=False), triple) == "saturated"
    few = workload([(2.0 * k, 1, 1) for k in range(99)])
    assert stability(simulate(model, few, exact=False), few) == "too short to tell"
    long = workload([(0.01 * k, 1, 400) for k in range(120)])
    wide = replica(seats=128, budget=128, flat_s=0.01)
    assert stability(simulate(wide, long, exact=False), long) == "too short to tell"  # 4 s each


def test_queue_by_hand() -> None:
    load = workload([(0.0, 1, 3), (0.0, 1, 1)], window_s=4.0)
    result = simulate(replica(seats=1, budget=1, flat_s=1.0), load, exact=False)
    queue = queue_over_time(result, load, points=4)
    assert queue["time_s"] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert queue["waiting"] == [2, 1, 1, 1, 0]
    assert queue["decoding"] == [0, 1, 1, 0, 0]


def test_summary_names_the_bound_and_what_is_too_short() -> None:
    groups = (FleetGroup("g", 1, replica()),)
    load = workload([(0.0, 3, 5)] * 4 + [(99.0, 3, 5)])
    bounded = result_summary(simulate_fleet(groups, ROUTES, load, max_events=2), load)
    assert bounded["verdict"]["text"] == "undecided: the run stopped at its bound of 2 simulated events"
    short = result_summary(simulate_fleet(groups, ROUTES, load), load)
    assert short["verdict"]["stability"] == "too short to tell"
    assert short["verdict"]["text"].endswith("too short to tell whether it stays so")
    assert short["classes"][0]["ttft_interval_s"]["p50"] is None
