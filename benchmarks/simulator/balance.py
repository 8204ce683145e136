"""Rows: what must balance. Little's law, tokens, blocks, work; fairness of tenants; choice among replicas."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulator.queues import square_law
from benchmarks.simulator.servers import STEP_S, flat_server, poisson, replica, serve
from benchmarks.simulator.table import Row, mean_and_half_width
from benchmarks.simulator.waits import MEAN_STEPS, drawn, loaded
from planner.cost.step_times import FREE
from planner.simulate import FleetGroup, ReplicaModel, Workload, percentile_interval, simulate_fleet
from specs.plan import Route, Scheduling
from specs.service import BatchFormer, BlockManager, Sequence

ORDERS: tuple[Literal["fcfs", "priority", "sjf", "srpt", "mlfq", "vtc"], ...] = (
    "fcfs", "priority", "sjf", "srpt", "mlfq", "vtc",
)  # fmt: skip
PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2


def balance_rows(count: int) -> list[Row]:
    """Little's law, and tokens, of a batch of eight."""
    steps = drawn(MEAN_STEPS, count, seed=3)
    workload, _ = loaded(0.8, steps, 8)
    result = serve(flat_server(8), workload)
    ends = workload.arrival_s + result.e2e_s
    moments = np.sort(np.concatenate([workload.arrival_s, ends]))
    present = np.searchsorted(np.sort(workload.arrival_s), moments, "right") - np.searchsorted(
        np.sort(ends), moments, "right"
    )
    seconds = float(moments[-1] - moments[0])
    mean_present = float((present[:-1] * np.diff(moments)).sum()) / seconds
    return [
        Row("Little: mean requests present = rate x mean stay", count / seconds * result.e2e_s.mean(), mean_present),
        Row("tokens out = tokens asked for", float(steps.sum()), float(result.groups[0].output_tokens)),
    ]


def work_rows(count: int) -> list[Row]:
    """The same work whatever the order: busy seconds of one seat, each token one step."""
    steps = drawn(MEAN_STEPS, count, seed=3)
    workload, _ = loaded(0.9, steps)
    random = np.random.Generator(np.random.PCG64(4))
    tenant = random.integers(0, 2, count)
    workload = replace(
        workload,
        window_s=1e9,
        priority=tenant,
        tenants=("f", "g"),
        tenant_index=tenant,
    )
    rows = []
    for order in ORDERS:
        scheduling = Scheduling(order=order, preemption="swap", mlfq_quantum_tokens=8)
        busy_s = serve(flat_server(scheduling=scheduling), workload).groups[0].busy_s[0]
        rows.append(Row(f"work conservation, {order}: busy seconds = steps asked for", STEP_S * steps.sum(), busy_s))
    anew_s = serve(flat_server(scheduling=Scheduling(order="srpt")), workload).groups[0].busy_s[0]
    rows.append(Row("srpt with preemption by recompute: busy seconds over steps asked for", None, anew_s / busy_s))
    return rows


def block_rows(requests: int = 400) -> list[Row]:
    """A cache too small for its seats, by the rules alone: preempted, served, and empty at the end."""
    random = np.random.Generator(np.random.PCG64(6))
    former = BatchFormer(BlockManager(64, 16), max_num_seqs=16, max_num_batched_tokens=256)
    outputs = random.integers(1, 200, requests).tolist()
    for number, prompt in enumerate(random.integers(1, 300, requests).tolist()):
        former.add(Sequence(number, prompt))
    peak = generated = preempted = 0
    while (step := former.form()) is not None:
        peak = max(peak, former.blocks.used_blocks)
        preempted += len(step.preempted)
        for sequence in former.complete(step):
            generated += 1
            if sequence.generated_tokens == outputs[sequence.id]:
                former.finish(sequence)
    return [
        Row(f"blocks: peak of {preempted} preemptions", 64, peak, "<="),
        Row("blocks: in use after the last request", 0, former.blocks.used_blocks),
        Row("blocks: tokens generated = asked for, preempted or not", sum(outputs), generated),
    ]


def fairness_rows(requests: int = 1500) -> list[Row]:
    """Two backlogged tenants, one with long requests: by VTC and by arrival (Sheng et al., OSDI 2024, theorem 4.4)."""
    workload = _two_tenants(requests)
    capacity, block = 2048, 16
    bound = 2 * max(PROMPT_WEIGHT * int(workload.prompt_tokens.max()), OUTPUT_WEIGHT * capacity)
    gaps = {}
    for order in ("vtc", "fcfs"):
        scheduling = Scheduling(order=order, output_reserve=1.0)
        times = replace(FREE, tokens_s=(STEP_S,) * 4097)
        model = replica(times, 64, blocks=capacity // block, block_size=block, scheduling=scheduling)
        gaps[order] = service_gap(model, workload)
    return [
        Row("VTC: largest difference of service of two backlogged tenants", bound, gaps["vtc"], "<="),
        Row("the same requests by arrival: beyond that bound", bound, gaps["fcfs"], ">="),
    ]


def _two_tenants(requests: int) -> Workload:
    """Tenant f sends four times as much as g, all far above what one replica serves."""
    random = np.random.Generator(np.random.PCG64(8))
    tenant = (random.random(requests) < 0.5).astype(np.int64)
    prompts = np.where(tenant == 0, random.integers(64, 256, requests), random.integers(16, 64, requests))
    outputs = np.where(tenant == 0, random.integers(64, 256, requests), random.integers(16, 64, requests))
    arrival_s = np.sort(random.random(requests))
    return Workload(
        ("all",),
        np.zeros(requests, np.int64),
        arrival_s,
        prompts,
        outputs,
        tenants=("f", "g"),
        tenant_index=tenant,
    )


def service_gap(model: ReplicaModel, workload: Workload) -> float:
    """Largest change of W_f - W_g over any interval in which both tenants have something waiting.

    Service is prompt tokens, counted with the first token, plus twice the output tokens; on a flat server nobody is
    preempted, so a token is sampled every step from the first on.
    """
    result = serve(model, workload)
    assert workload.tenant_index is not None
    first = np.rint((workload.arrival_s + result.ttft_s) / STEP_S).astype(np.int64)
    first -= first.min()
    service = np.zeros((2, int((first + workload.output_tokens).max()) + 1))
    for tenant, start, prompt, output in zip(
        workload.tenant_index, first, workload.prompt_tokens, workload.output_tokens, strict=True
    ):
        service[tenant, start] += PROMPT_WEIGHT * prompt
        service[tenant, start : start + output] += OUTPUT_WEIGHT
    arrived = int(workload.arrival_s[-1] / STEP_S) + 1
    backlogged = min(int(first[workload.tenant_index == tenant].max()) for tenant in (0, 1))
    difference = np.cumsum(service[0] - service[1])[arrived:backlogged]
    return float(difference.max() - difference.min())


def routing_rows(count: int, replicas: int = 100, load: float = 0.9) -> list[Row]:
    """Mitzenmacher's two choices, in mean services; the limit of many queues, so a hundred are near it."""
    steps = drawn(MEAN_STEPS, count, seed=13)
    workload, _ = loaded(load, steps, replicas, seed=14)
    routes = (Route(request_class="all", group="one", share=1.0),)
    group = FleetGroup("one", replicas, flat_server())
    rows = []
    for router, law in (
        (
            "power_of_two",
            f"two random choices of {replicas} queues (Mitzenmacher): response at load {load:g}, services",
        ),
        ("least_outstanding", "shortest of all queues instead: no worse than two choices"),
    ):
        response = simulate_fleet((group,), routes, workload, router=router).e2e_s / (STEP_S * steps.mean())  # type: ignore[arg-type]
        mean, half_width = mean_and_half_width(response)
        expected = square_law(load, 2)
        rows.append(Row(law, expected, mean, "=" if router == "power_of_two" else "<=", half_width=half_width))
    return rows


def coverage_row(repeats: int = 100) -> Row:
    """How often the 95 % interval of the median wait holds the median of a run of 50 times its length."""

    def run(count: int, seed: int) -> NDArray[np.float64]:
        steps = drawn(MEAN_STEPS, count, seed)
        return serve(flat_server(), poisson(0.5 / (STEP_S * MEAN_STEPS), steps, seed + 1000)).ttft_s

    truth = float(np.median(run(200_000, 99)))
    held = 0
    for seed in range(repeats):
        low, high = percentile_interval(run(4000, seed), 50.0) or (math.nan, math.nan)
        held += low <= truth <= high
    return Row("batch means: share of 95 % intervals that hold the median TTFT", 0.95, held / repeats)
