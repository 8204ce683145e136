"""Rows: waits and responses of one replica as a queue, each beside its formula at the rate that was drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulator import queues
from benchmarks.simulator.servers import STEP_S, Ints, flat_server, poisson, serve, shared_server
from benchmarks.simulator.table import Row, mean_and_half_width
from planner.simulate import Workload
from specs.plan import Scheduling
from specs.traffic import draw_fixed, draw_mean, draw_uniform

MEAN_STEPS = 20
FINE_STEPS = 200  # where the end of a step matters, so that half a step is a quarter of a percent
RANKS = 3


def drawn(mean: int, count: int, seed: int = 7) -> Ints:
    """Geometric sizes."""
    return draw_mean(mean, None, count, np.random.Generator(np.random.PCG64(seed)))


def loaded(load: float, steps: Ints, servers: int = 1, seed: int = 1) -> tuple[Workload, float]:
    """Poisson arrivals that keep the servers busy for that share of the time, and the rate that came of it."""
    workload = poisson(load * servers / (STEP_S * float(steps.mean())), steps, seed)
    return workload, len(steps) / workload.horizon_s


def row(law: str, expected: float, values: NDArray[np.float64]) -> Row:
    mean, half_width = mean_and_half_width(values)
    return Row(law, expected, mean, half_width=half_width)


def first_come_rows(count: int) -> list[Row]:
    """Pollaczek and Khinchine."""
    draws: dict[str, Callable[[np.random.Generator], Ints]] = {
        "M/D/1": lambda random: draw_fixed(MEAN_STEPS, count),
        "M/G/1, uniform service": lambda random: draw_uniform(1, 2 * MEAN_STEPS - 1, count, random),
        "M/G/1, geometric service": lambda random: draw_mean(MEAN_STEPS, None, count, random),
    }
    rows: list[Row] = []
    for name, draw in draws.items():
        for load in (0.5, 0.8):
            steps = draw(np.random.Generator(np.random.PCG64(7)))
            workload, rate = loaded(load, steps, seed=len(rows))
            wait_s = serve(flat_server(), workload).ttft_s - STEP_S
            rows.append(row(f"{name}: mean wait at load {load:g}, s", queues.pollaczek_khinchine(rate, steps), wait_s))
    return rows


def many_servers_row(count: int, servers: int = 8, load: float = 0.8) -> Row:
    """Erlang's C, and half a step because the seats share a clock."""
    steps = drawn(FINE_STEPS, count)
    workload, rate = loaded(load, steps, servers)
    mean_s = STEP_S * float(steps.mean())
    shared_clock_s = queues.busy_share(rate * mean_s, servers) * STEP_S / 2
    wait_s = serve(flat_server(servers), workload).ttft_s - STEP_S
    expected = queues.erlang_c(rate, mean_s, servers) + shared_clock_s
    return row(f"M/M/{servers} (Erlang C): mean wait at load {load:g}, s", expected, wait_s)


def sharing_rows(count: int, load: float = 0.7) -> list[Row]:
    """A batch whose steps last as long as it is large shares the server; the mean depends on the mean size only."""
    sizes = {
        "fixed": draw_fixed(FINE_STEPS, count),
        "geometric": drawn(FINE_STEPS, count),
        "one in twenty eleven times the rest": np.where(
            np.random.Generator(np.random.PCG64(5)).random(count) < 0.05, 11 * FINE_STEPS, FINE_STEPS
        )
        * 2
        // 3,
    }
    rows = []
    for name, steps in sizes.items():
        workload, rate = loaded(load, steps, seed=2)
        expected = queues.processor_sharing(rate, steps)
        response_s = serve(shared_server(), workload).e2e_s
        rows.append(row(f"processor sharing, {name} sizes: mean response at load {load:g}, s", expected, response_s))
    return rows


def ordered_rows(count: int, load: float = 0.8) -> list[Row]:
    """Cobham's priorities, Phipps's shortest first, Schrage and Miller's shortest remaining, on the same requests."""
    steps = drawn(MEAN_STEPS, count)
    workload, rate = loaded(load, steps)
    rank = np.random.Generator(np.random.PCG64(9)).integers(0, RANKS, count)
    by_rank = flat_server(scheduling=Scheduling(order="priority"))
    wait_s = serve(by_rank, replace(workload, priority=rank)).ttft_s - STEP_S
    rows = [
        row(f"priorities at load {load:g} (Cobham): mean wait of rank {k}, s", expected, wait_s[rank == k])
        for k, expected in enumerate(queues.priority_wait(rate, steps, rank))
    ]
    by_size = serve(flat_server(scheduling=Scheduling(order="sjf")), workload)
    expected = queues.shortest_first_wait(rate, steps)
    rows.append(row("shortest first (Phipps): mean wait, s", expected, by_size.ttft_s - STEP_S))
    by_rest = serve(flat_server(scheduling=Scheduling(order="srpt", preemption="swap")), workload)
    expected = queues.srpt_response(rate, steps)
    rows.append(row("shortest remaining (Schrage and Miller): mean response, s", expected, by_rest.e2e_s))
    expected = queues.srpt_response(rate, steps, at_step_ends=True)
    rows.append(row("the same formula for preemption at the ends of steps, s", expected, by_rest.e2e_s))
    return rows
