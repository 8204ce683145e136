"""The simulator beside laws of queues that are known in closed form; prints the table of `docs/simulation.md`.

    python benchmarks/simulator_laws.py [--requests 200000]

A replica with one seat and a budget of one token is a single server: a request of `n` output tokens holds it for n
steps of one length. So outputs that are fixed make an M/D/1 queue, drawn ones M/G/1. Everything is seeded.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.cost.step_times import StepTimes
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, percentile_interval, simulate_fleet
from specs.plan import Limits, Route, Scheduling
from specs.traffic import draw_fixed, draw_mean, draw_uniform

STEP_S = 0.01
MEAN_STEPS = 20


@dataclass(frozen=True)
class Row:
    law: str
    expected: float
    simulated: float

    def __str__(self) -> str:
        off = abs(self.simulated - self.expected) / abs(self.expected)
        return f"| {self.law} | {self.expected:.5g} | {self.simulated:.5g} | {off:.2%} |"


def server(seats: int = 1) -> ReplicaModel:
    """Every step takes `STEP_S`, whatever is in it."""
    times = StepTimes(
        tokens_s=(STEP_S,) * (seats + 1),
        sampled_s=(0.0,) * (seats + 1),
        sequence_s=0.0,
        decode_launch_s=0.0,
        decode_context_token_s=0.0,
        decode_window_token_s=0.0,
        window_tokens=None,
        prefill_launch_s=0.0,
        prefill_pair_s=0.0,
        prefill_window_pair_s=0.0,
        prefill_context_token_s=0.0,
        request_s=0.0,
        lanes=1,
    )
    limits = Limits(max_num_seqs=seats, max_num_batched_tokens=seats, max_model_len=100_000)
    return ReplicaModel(times, limits, num_blocks=100_000 * seats, block_size_tokens=16, scheduling=Scheduling())


def serve(load: float, steps: np.ndarray, seats: int = 1, seed: int = 1) -> tuple[FleetResult, Workload]:
    """Poisson arrivals that keep `seats` seats busy for the share `load` of the time."""
    random = np.random.Generator(np.random.PCG64(seed))
    count = len(steps)
    arrival_s = np.cumsum(random.exponential(STEP_S * float(steps.mean()) / (load * seats), count))
    workload = Workload(("all",), np.zeros(count, np.int64), arrival_s, np.ones(count, np.int64), steps)
    routes = (Route(request_class="all", group="one", share=1.0),)
    return simulate_fleet((FleetGroup("one", 1, server(seats)),), routes, workload), workload


def waiting_rows(count: int) -> list[Row]:
    """Mean waits by Pollaczek and Khinchine: W = rate E[S^2] / (2 (1 - load))."""
    draws: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "M/D/1": lambda random: draw_fixed(MEAN_STEPS, count),
        "M/G/1, uniform service": lambda random: draw_uniform(1, 2 * MEAN_STEPS - 1, count, random),
        "M/G/1, geometric service": lambda random: draw_mean(MEAN_STEPS, None, count, random),
    }
    rows: list[Row] = []
    for name, draw in draws.items():
        for load in (0.5, 0.8):
            steps = draw(np.random.Generator(np.random.PCG64(7)))
            result, workload = serve(load, steps, seed=len(rows))
            service_s = STEP_S * steps
            rate = count / workload.horizon_s
            busy = rate * float(service_s.mean())  # as drawn: near `load`
            expected = rate * float((service_s**2).mean()) / (2 * (1 - busy))
            rows.append(Row(f"{name}: mean wait at load {load:g}, s", expected, float((result.ttft_s - STEP_S).mean())))
    return rows


def balance_rows(count: int) -> list[Row]:
    """Little's law, work and tokens of a batch of eight."""
    steps = draw_mean(MEAN_STEPS, None, count, np.random.Generator(np.random.PCG64(3)))
    result, workload = serve(0.8, steps, seats=8)
    ends = workload.arrival_s + result.e2e_s
    moments = np.sort(np.concatenate([workload.arrival_s, ends]))
    present = np.searchsorted(np.sort(workload.arrival_s), moments, "right") - np.searchsorted(
        np.sort(ends), moments, "right"
    )
    mean_present = float((present[:-1] * np.diff(moments)).sum() / (moments[-1] - moments[0]))
    rate = count / float(moments[-1] - moments[0])
    group = result.groups[0]
    return [
        Row("Little: mean requests present = rate x mean stay", rate * float(result.e2e_s.mean()), mean_present),
        Row("tokens out = tokens asked for", float(steps.sum()), float(group.output_tokens)),
        Row("one seat: steps = tokens", float(steps.sum()), float(serve(0.8, steps)[0].groups[0].steps)),
    ]


def coverage_row(repeats: int = 100) -> Row:
    """How often the 95 % interval of the median wait holds the median of a run of 50 times its length."""
    draw = np.random.Generator(np.random.PCG64(11))
    long, _ = serve(0.5, draw_mean(MEAN_STEPS, None, 200_000, draw), seed=99)
    truth = long.percentile_s("ttft", 50)
    held = 0
    for seed in range(repeats):
        result, _ = serve(0.5, draw_mean(MEAN_STEPS, None, 4000, draw), seed=seed)
        low, high = percentile_interval(result.ttft_s, 50.0) or (math.nan, math.nan)
        held += low <= truth <= high
    return Row("batch means: share of 95 % intervals that hold the median TTFT", 0.95, held / repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    options = parser.parse_args()
    print("| law | expected | simulated | off by |\n|---|---:|---:|---:|")
    for row in [*waiting_rows(options.requests), *balance_rows(options.requests), coverage_row()]:
        print(row)


if __name__ == "__main__":
    main()
