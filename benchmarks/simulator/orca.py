"""Iteration-level against request-level batching: Orca (Yu et al., OSDI 2022), section 6.2 and figure 10b.

GPT-3 175B on 16 A100 of 40 GB, two pipeline stages; prompts of 32 to 512 tokens, outputs of 1 to 128, both uniform,
Poisson arrivals. One step costs the same under both: what 190 ms is said to be twice of (the normalised time of the
engine, 95 ms a token), or the time of its matrix products where that is more. The throughput is the largest rate at
which the median of latency over generated tokens is 190 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulator.capacity import arriving, at_rate, largest_rate
from benchmarks.simulator.servers import replica, serve
from benchmarks.simulator.table import Row
from planner.cost.step_times import FREE
from planner.simulate import ReplicaModel, Workload
from specs.plan import Scheduling

STEP_S = 0.095
TOKEN_S = 2 * 175e9 / (8 * 312e12 * 0.6)  # one stage's eight GPUs after the other's; 60 % of the peak
LIMIT_S = 0.190
BATCHES = (1, 8)  # of FasterTransformer, the best two by the paper
BATCH = max(BATCHES)
KV_TOKENS = 51_000  # 16 x 40 GB less weights and a tenth, over 4.7 MB a token


def engine(policy: str, seats: int, lanes: int) -> ReplicaModel:
    """`lanes` batches in flight over the two stages; a request's whole output is reserved, as both systems do."""
    budget = max(seats, BATCH * 512)
    times = replace(FREE, tokens_s=tuple(max(STEP_S, TOKEN_S * n) for n in range(budget + 1)), lanes=lanes)
    scheduling = Scheduling(prefill_policy=policy, output_reserve=1.0)  # type: ignore[arg-type]
    return replica(times, seats, blocks=KV_TOKENS // 16, scheduling=scheduling)


def drawn(requests: int) -> Workload:
    random = np.random.Generator(np.random.PCG64(1))
    return arriving(random.integers(32, 513, requests), random.integers(1, 129, requests))


def normalised_s(model: ReplicaModel, workload: Workload) -> NDArray[np.float64]:
    """Latency over generated tokens."""
    return serve(model, workload).e2e_s / workload.output_tokens


def until_the_batch_ends_s(model: ReplicaModel, workload: Workload) -> NDArray[np.float64]:
    """The same where results return when the last request of the batch is done (a batch begins together)."""
    result = serve(model, workload)
    _, batch = np.unique(workload.arrival_s + result.ttft_s, return_inverse=True)
    end_s = np.zeros(batch.max() + 1)
    np.maximum.at(end_s, batch, workload.arrival_s + result.e2e_s)
    return (end_s[batch] - workload.arrival_s) / workload.output_tokens


def batch_server_s(workload: Workload, batch_size: int, *, token_by_token: bool) -> NDArray[np.float64]:
    """FasterTransformer's batches as arithmetic: as many as fit of those that wait, results when the last is done.

    `token_by_token`: the first pass takes as many tokens of each prompt as the shortest has, and the rest goes in one
    token a step (section 6.2); the simulator has no such rule. Without it, the same as `until_the_batch_ends_s`.
    """
    arrival_s, prompts, outputs = workload.arrival_s, workload.prompt_tokens, workload.output_tokens
    end_s = np.zeros(len(workload))
    first, now_s = 0, 0.0
    while first < len(workload):
        now_s = max(now_s, float(arrival_s[first]))
        last = min(first + batch_size, int(np.searchsorted(arrival_s, now_s, side="right")))
        batch = slice(first, last)
        passed = np.full(last - first, prompts[batch].min()) if token_by_token else prompts[batch]
        steps = int((prompts[batch] - passed + outputs[batch]).max())
        now_s += max(STEP_S, TOKEN_S * int(passed.sum())) + STEP_S * (steps - 1)
        end_s[batch] = now_s
        first = last
    return (end_s - arrival_s) / outputs


def throughput(latency: Callable[[Workload], NDArray[np.float64]], workload: Workload) -> float:
    """Largest rate at which the median of the normalised latency holds."""
    return largest_rate(lambda rate: float(np.median(latency(at_rate(workload, rate)))) <= LIMIT_S, 1.0)


def rows(requests: int = 4000) -> list[Row]:
    """Both systems at the same latency, and FasterTransformer rule by rule."""
    workload = drawn(requests)
    engines = {seats: engine("mixed_chunked", 2 * seats, 2) for seats in (8, 32, 128)}
    iterations = {seats: throughput(partial(normalised_s, model), workload) for seats, model in engines.items()}
    by_request = engine("decode_first", BATCH, 1)
    alone = throughput(partial(normalised_s, by_request), workload)
    together = throughput(partial(until_the_batch_ends_s, by_request), workload)
    token_by_token = max(
        throughput(partial(batch_server_s, batch_size=size, token_by_token=True), workload) for size in BATCHES
    )
    best = max(iterations.values())
    at_published = float(np.median(normalised_s(engines[128], at_rate(workload, 6.81))))
    return [
        *(
            Row(f"Orca: iteration-level, batches of {seats}, requests/s at 190 ms a token", None, rate)
            for seats, rate in iterations.items()
        ),
        Row("Orca: the best of these, requests/s", 6.81, best),
        Row("Orca: seconds a token at 6.81 requests/s", LIMIT_S, at_published),
        Row("Orca: request-level in its place, batches of 8, requests/s", None, alone),
        Row("Orca: and results return when the batch ends, requests/s", None, together),
        Row("Orca: and prompts beyond the shortest go in token by token (FasterTransformer)", 0.185, token_by_token),
        Row("Orca over FasterTransformer, times", 36.9, best / token_by_token),
        Row("Orca: iteration-level over request-level batching alone, times", None, best / alone),
    ]
