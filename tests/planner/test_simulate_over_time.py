"""Levels over time from the times of requests: sums of ramps by hand, and the KV cache against the oracle's blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulate_laws import ROUTES, replica, workload

from planner.simulate import FleetGroup, kv_over_time, queue_over_time, simulate_fleet
from planner.simulate.answers.over_time import Ramps
from planner.simulate.step import StepLane


def ramps(*rows: tuple[float, float, float, float]) -> Ramps:
    return Ramps(*(np.array(column, float) for column in zip(*rows, strict=True)))


def test_ramps_by_hand() -> None:
    two = ramps((0.0, 4.0, 10.0, 18.0), (2.0, 3.0, 5.0, 5.0))
    assert two.sum_at(np.array([-1.0, 0.0, 1.0, 2.0, 2.5, 3.0, 4.0, 9.0])) == pytest.approx(
        [0, 10, 12, 19, 20, 16, 0, 0], abs=1e-12
    )
    assert two.mean(4.0) == pytest.approx((14 * 4 + 5) / 4)
    assert two.mean(2.5) == pytest.approx((12.5 * 2.5 + 2.5) / 2.5)  # cut off in the middle of both


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 30), st.integers(0, 10**5), st.integers(0, 10**5)),
        min_size=1,
        max_size=40,
    )
)
def test_ramps_are_the_sum_of_their_parts(rows: list[tuple[int, int, int, int]]) -> None:
    many = ramps(*((begin, begin + length, low, high) for begin, length, low, high in rows))
    for at in np.linspace(0.0, 130.0, 27):
        alone = sum(
            low + (high - low) * (at - begin) / length
            for begin, length, low, high in rows
            if begin <= at < begin + length
        )
        found = many.sum_at(np.array([at]))[0]
        assert found == pytest.approx(alone, abs=1e-6 * max(1.0, alone))
        assert found == 0.0 or any(begin <= at < begin + length for begin, length, _, _ in rows)


def test_the_peak_of_the_queue_lies_between_the_moments_shown() -> None:
    load = workload([(0.0, 1, 1), *((5.01, 1, 1) for _ in range(7)), (99.0, 1, 1)])
    group = FleetGroup("g", 1, replica(flat_s=0.01))
    queue = queue_over_time(simulate_fleet((group,), ROUTES, load), load, points=2)
    assert max(queue["waiting"]) == 1
    assert queue["waiting_peak"] == 7


@pytest.mark.parametrize("seed", [1, 2])
def test_kv_over_time_is_near_the_blocks_that_the_oracle_holds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time means of blocks in use, as every step of the oracle has them, within a fifth of the estimate."""
    random = np.random.default_rng(seed)
    rows = [(at, int(random.integers(5, 60)), int(random.integers(20, 80))) for at in np.cumsum([1.7] * 200)]
    held: list[tuple[float, float, int]] = []
    form = StepLane.form

    def watched(lane: StepLane, time_s: float) -> float:
        end_s = form(lane, time_s)
        if lane.in_flight:
            held.append((time_s, end_s, lane._former.blocks.used_blocks))
        return end_s

    monkeypatch.setattr(StepLane, "form", watched)
    load = workload(rows)
    groups = (FleetGroup("g", 1, replica(flat_s=0.2, seats=64, budget=64, blocks=300)),)
    result = simulate_fleet(groups, ROUTES, load, exact=True)
    found = kv_over_time(result, load, groups)[0]
    horizon_s = result.horizon_s
    mean = sum(max(0.0, min(end, horizon_s) - begin) * used for begin, end, used in held) / horizon_s / 300
    assert mean > 0.02
    assert found["mean"] == pytest.approx(mean, rel=0.2)
    assert len(found["occupancy"]) == len(found["time_s"]) == 61
    assert max(found["occupancy"]) <= 1.3 * result.groups[0].blocks_peak / 300
    assert found["occupancy"][-1] == 0.0
