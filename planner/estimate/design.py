"""The load that a live server is calibrated with: single requests of several lengths, closed loops of several sizes.

Single requests show what a request and a prompt cost, closed loops what a step and each sequence in it do. A single
request comes to a server that has been idle for a moment, as most do in a service that is not full. Every load is sent
twice, the second time in the opposite order, so that a machine that drifts is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from specs.plan import Limits
from specs.replay import ReplayLoad, ReplayRequest

ROUNDS = 2
SINGLE_OUTPUT, LOOP_OUTPUT = 32, 64
THINK_S = 0.25  # between single requests
FIRST_PROMPT, LONGEST_PROMPT = 32, 8192
LOOP_PROMPTS = (64, 512)
MOST_CLIENTS = 256
LEAST_ANSWERS = 3  # of a load beyond its warm-up, however long they take
MOST_REQUESTS = 2000  # of one load; its time ends it before


@dataclass(frozen=True)
class Designed:
    """Equal requests by a number of clients."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int

    @property
    def name(self) -> str:
        return f"{self.concurrency} x {self.prompt_tokens}+{self.output_tokens}"


def design(limits: Limits, capacity_tokens: int, replicas: int = 1) -> tuple[Designed, ...]:
    """Loads that one replica can hold without queueing for seats or KV blocks, times the replicas."""
    longest = min(LONGEST_PROMPT, limits.max_model_len // 2, limits.max_model_len - LOOP_OUTPUT)
    prompts = [FIRST_PROMPT]
    while prompts[-1] * 4 < longest:
        prompts.append(prompts[-1] * 4)
    if longest > prompts[-1] * 2:
        prompts.append(longest)
    found = [Designed(1, prompt, SINGLE_OUTPUT) for prompt in prompts if prompt <= longest]
    seats = min(limits.max_num_seqs, MOST_CLIENTS)
    clients, factor = [2], 2 if seats <= 32 else 4
    while clients[-1] * factor <= seats:
        clients.append(clients[-1] * factor)
    for prompt in LOOP_PROMPTS:
        for count in clients:
            if count <= seats and prompt <= longest and count * (prompt + LOOP_OUTPUT) <= capacity_tokens:
                found.append(Designed(count * replicas, prompt, LOOP_OUTPUT))
    return tuple(found)


def designed_loads(designs: tuple[Designed, ...], seconds: float) -> tuple[ReplayLoad, ...]:
    """The loads of all rounds, sharing out `seconds`; classes are named `DESIGN/ROUND`.

    Every client sends two requests at least, so a slow server takes longer.
    """
    each_s = seconds / (ROUNDS * len(designs))
    loads = []
    for turn in range(ROUNDS):
        for one in designs if turn % 2 == 0 else designs[::-1]:
            request = ReplayRequest(f"{one.name}/{turn + 1}", one.prompt_tokens, one.output_tokens)
            loads.append(
                ReplayLoad(
                    (request,) * MOST_REQUESTS,
                    concurrency=one.concurrency,
                    limit_s=each_s,
                    least_requests=one.concurrency + max(LEAST_ANSWERS, one.concurrency),
                    warmup_requests=one.concurrency,
                    think_s=THINK_S if one.output_tokens == SINGLE_OUTPUT else 0.0,
                    source="designed load of `capstan calibrate`",
                )
            )
    return tuple(loads)
