"""Replicas of which queueing theory knows the answer, and Poisson traffic for them.

With flat step times a request of `n` output tokens and one prompt token holds its seat for `n` steps of one length.
Preemption by swap that takes no time is preemptive resume, at the ends of steps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.step_times import FREE, StepTimes
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, simulate_fleet
from specs.plan import Limits, Route, Scheduling

STEP_S = 0.01
Ints = NDArray[np.int64]


def replica(
    times: StepTimes, seats: int, *, blocks: int = 4096, block_size: int = 4096, scheduling: Scheduling | None = None
) -> ReplicaModel:
    """A replica whose token budget is all of `times.tokens_s`. Its cache binds nobody unless `blocks` says so."""
    return ReplicaModel(
        times=replace(times, sampled_s=(0.0,) * (seats + 1)),
        limits=Limits(max_num_seqs=seats, max_num_batched_tokens=len(times.tokens_s) - 1, max_model_len=10_000_000),
        num_blocks=blocks,
        block_size_tokens=block_size,
        scheduling=scheduling or Scheduling(),
        host_blocks=blocks if scheduling and scheduling.preemption == "swap" else 0,
    )


def flat_server(seats: int = 1, scheduling: Scheduling | None = None) -> ReplicaModel:
    """Every step takes `STEP_S`, whatever is in it: `seats` servers that share a clock. Swapping takes no time."""
    return replica(replace(FREE, tokens_s=(STEP_S,) * (seats + 1)), seats, scheduling=scheduling)


def shared_server(seats: int = 1024) -> ReplicaModel:
    """A step takes `STEP_S` for each sequence in it, so the requests present share one unit of work per second."""
    return replica(replace(FREE, tokens_s=tuple(STEP_S * n for n in range(seats + 1))), seats)


def poisson(rate: float, steps: Ints, seed: int = 1) -> Workload:
    """One prompt token, `steps` output tokens each, Poisson arrivals of `rate` per second."""
    random = np.random.Generator(np.random.PCG64(seed))
    count = len(steps)
    arrival_s = np.cumsum(random.exponential(1 / rate, count))
    return Workload(("all",), np.zeros(count, np.int64), arrival_s, np.ones(count, np.int64), steps)


def serve(model: ReplicaModel, workload: Workload, replicas: int = 1) -> FleetResult:
    """Everything on one group."""
    routes = tuple(Route(request_class=name, group="one", share=1.0) for name in workload.classes)
    return simulate_fleet((FleetGroup("one", replicas, model),), routes, workload)
