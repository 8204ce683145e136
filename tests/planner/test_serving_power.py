"""Watts of a device that serves: between idle and the limit, more with more work, and what one step says."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.energy import active_w, mean_power_w
from planner.cost.latency import latency_of
from planner.cost.operations import operations
from planner.cost.serving_power import Served, serving_power_w
from planner.cost.step_work import Operation, StepShape, measure
from specs.architecture import load_architecture
from specs.catalog import load_device, load_power, load_profile
from specs.document import DType
from specs.plan import Layout

H100, POWER = load_device("h100"), load_power("h100-sxm")


def listed(ranks: int = 1) -> tuple[Operation, ...]:
    architecture, profile = load_architecture("meta-llama/Llama-3.1-8B"), load_profile("h100")
    layout = Layout(tensor_parallel=ranks, pipeline_stages=(32,))
    latency = latency_of(H100, profile)
    return operations(architecture, layout, DType.BF16, DType.BF16, H100, profile, latency)


def watts(requests: int, steps: float, busy_s: float, prompt: int = 500, output: int = 100, ranks: int = 1) -> float:
    served = Served(np.full(requests, prompt), np.full(requests, output), steps, busy_s, 100.0)
    return serving_power_w(listed(ranks), 1, None, served, H100, POWER)


def test_power_lies_between_idle_and_the_limit_and_grows_with_the_work() -> None:
    loads = [watts(n, 100.0 * n, 0.5 * n) for n in (1, 10, 50, 190)]
    assert loads == sorted(loads)
    assert H100.idle_power_w < loads[0] < loads[-1] <= H100.power_w


def test_nothing_served_is_idle() -> None:
    nothing = Served(np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0, 0.0, 100.0)
    assert serving_power_w(listed(), 1, None, nothing, H100, POWER) == H100.idle_power_w


def test_fuller_batches_spend_less_on_the_same_requests() -> None:
    assert watts(64, 400.0, 20.0) < watts(64, 6400.0, 20.0)


def test_ranks_share_the_dynamic_joules() -> None:
    idle = mean_power_w(active_w(H100, POWER) * 20.0, 20.0, 100.0, H100)
    alone, shared = watts(64, 400.0, 20.0) - idle, watts(64, 400.0, 20.0, ranks=4) - idle
    assert shared == pytest.approx(alone / 4, rel=0.1)


def test_a_long_decode_draws_what_its_step_says() -> None:
    """One sequence: every step reads the weights once."""
    found = listed()
    step_s = measure(found, StepShape.of(decodes=1.0, keys=600.0)).seconds[0]
    weights = 2.0 * load_architecture("meta-llama/Llama-3.1-8B").parameter_count().active
    range_w = H100.power_w - H100.idle_power_w
    by_hand = active_w(H100, POWER) + range_w * POWER.memory_share * weights / H100.hbm_bytes_per_s / step_s
    served = Served(np.array([1]), np.array([1200]), 1200.0, 1200 * step_s, 1200 * step_s)
    assert serving_power_w(found, 1, None, served, H100, POWER) == pytest.approx(by_hand, rel=0.05)
