"""One replica under a closed loop, by event jumps: `concurrency` clients, each sends its next request when one ends.

Between two events (a request ends, one may be admitted, memory runs out) the same sequences decode, and their steps
grow linearly with their context: many steps are taken at once.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.estimate.step import EngineStep
from specs.errors import InputError

Floats = NDArray[np.float64]
MOST_EVENTS = 2_000_000  # some ten seconds; published points have at most a few thousand


@dataclass(frozen=True)
class Rules:
    """How the engine schedules."""

    policy: Literal["mixed_chunked", "prefill_first"]
    seats: int  # sequences that may run
    budget: int  # tokens of a step
    capacity_tokens: int  # of KV cache
    reserve: float  # share of a request's output that must be free before it is admitted
    request_s: float  # of a request before it may be scheduled
    serial_s: float  # of the frontend for a request; it does one thing after the other
    stream_s: float  # of the frontend for an output token
    wait_steps: int = 0  # that a prompt waits for company, unless the token budget is full or nothing decodes
    whole: bool = False  # a prompt is not cut where other prompts leave too little of the budget


@dataclass(frozen=True)
class Observed:
    """Per request, in order of sending: seconds to the first token and per further token, when it was sent, ended."""

    ttft_s: Floats
    tpot_s: Floats
    sent_s: Floats
    ended_s: Floats


def run_closed_loop(
    step: EngineStep, rules: Rules, concurrency: int, prompts: list[int], outputs: list[int]
) -> Observed:
    """Serve `len(prompts)` requests with `concurrency` in flight; the first ones are all sent at time 0.

    `InputError` where that takes more than `MOST_EVENTS` steps of the scheduler that differ from the one before.
    """
    total = len(prompts)
    first = [0.0] * total
    ended = [0.0] * total
    sent = [0.0] * total
    arrivals: deque[tuple[float, int]] = deque()
    upcoming, frontend = 0, 0.0  # the next request to send, and when the frontend is free
    waiting: deque[int] = deque()
    length = list(prompts)  # tokens to compute before the next token is sampled; grows when preempted
    made = [0] * total  # output tokens so far, of preempted ones
    running: list[tuple[int, int]] = []  # (decode step after which it ends, request); outdated where not in `ends`
    ends: dict[int, int] = {}  # by running request
    began: dict[int, int] = {}  # decode step at which a running sequence began, by request
    under_way: deque[list[int]] = deque()  # [request, tokens computed] of prompts that are not done
    now, steps, decodes, context, reserved, done = 0.0, 0, 0, 0, 0.0, 0
    capacity, mixed = rules.capacity_tokens, rules.policy == "mixed_chunked"
    waiting_since = 0  # decode step at which the oldest of `waiting` arrived
    order: list[int] = []  # running requests by admission, for preemption

    def send(at_s: float) -> None:
        nonlocal upcoming, frontend
        sent[upcoming] = at_s
        frontend = max(frontend, at_s) + rules.serial_s
        arrivals.append((frontend + rules.request_s, upcoming))
        upcoming += 1

    def finish_due() -> None:
        nonlocal decodes, context, reserved, done
        delivered = max(frontend, now)
        while running and running[0][0] <= steps:
            end, request = heapq.heappop(running)
            if ends.get(request) != end:
                continue
            del ends[request]
            decodes -= 1
            context -= length[request] + steps - began.pop(request)
            reserved -= prompts[request] + rules.reserve * outputs[request]
            ended[request] = delivered
            done += 1
            if upcoming < total:
                send(delivered)

    for _ in range(min(concurrency, total)):
        send(0.0)
    events = 0
    while done < total:
        events += 1
        if events > MOST_EVENTS:
            raise InputError(
                f"takes too long to simulate: {done:,} of {total:,} requests are done after {MOST_EVENTS:,} events",
                field="concurrency",
                expected="fewer clients or shorter requests",
            )
        while arrivals and arrivals[0][0] <= now:
            if not waiting:
                waiting_since = steps
            waiting.append(arrivals.popleft()[1])
        budget = rules.budget - (decodes if mixed else 0)
        chunks: list[tuple[int, int]] = []
        completed: list[int] = []
        while under_way and budget > 0:
            part = under_way[0]
            new = min(length[part[0]] - part[1], budget)
            chunks.append((new, part[1]))
            part[1] += new
            budget -= new
            if part[1] == length[part[0]]:
                completed.append(part[0])
                under_way.popleft()
        waits = 0  # steps that prompts wait for company
        alone = waiting and decodes and rules.wait_steps and not under_way
        if alone and sum(length[request] for request in waiting) < rules.budget:
            waits = max(0, waiting_since + rules.wait_steps - steps)
        while waiting and not waits and budget > 0 and decodes + len(under_way) + len(completed) < rules.seats:
            request = waiting[0]
            need = prompts[request] + rules.reserve * outputs[request]
            running_any = decodes or under_way or completed
            if running_any and reserved + need > capacity:
                break
            if rules.whole and chunks and budget < length[request]:
                break
            if running_any and rules.reserve < 1.0 and context + sum(n for n, _ in chunks) + length[request] > capacity:
                break
            waiting.popleft()
            reserved += need
            new = min(length[request], budget)
            chunks.append((new, 0))
            budget -= new
            if new == length[request]:
                completed.append(request)
            else:
                under_way.append([request, new])
        if chunks:
            joins = decodes if mixed else 0
            now += step.prefill_s(joins, context / joins if joins else 0.0, chunks, len(completed))
            if joins:
                steps += 1
                context += joins
                finish_due()
            frontend = max(frontend, now) + (joins + len(completed)) * rules.stream_s
            for request in completed:
                if not made[request]:
                    first[request] = frontend
                began[request] = steps - 1  # its first token is cached with the next step
                ends[request] = steps + outputs[request] - made[request] - 1
                heapq.heappush(running, (ends[request], request))
                order.append(request)
                decodes += 1
                context += length[request] + 1
            finish_due()
            continue
        if not decodes:
            now = max(now, arrivals[0][0])
            continue
        while ends.get(running[0][1]) != running[0][0]:
            heapq.heappop(running)
        count = running[0][0] - steps
        mean = context / decodes
        each = step.decode_s(decodes, mean)
        if arrivals:
            count = min(count, max(1, math.ceil((arrivals[0][0] - now) / each)))
        if waits:
            count = min(count, waits)
        room = (capacity - context) // decodes
        if room < count:
            if room < 1 and decodes > 1:
                victim = _youngest(order, began)
                generated = steps - began.pop(victim)
                del ends[victim]
                decodes -= 1
                context -= length[victim] + generated
                reserved -= prompts[victim] + rules.reserve * outputs[victim]
                made[victim] += generated
                length[victim] += generated
                waiting.appendleft(victim)
                continue
            count = max(1, room)
        now += count * (step.decode_base_s(decodes) + step.attention_s(decodes, mean + (count - 1) / 2))
        steps += count
        context += count * decodes
        frontend = max(frontend + count * decodes * rules.stream_s, now + decodes * rules.stream_s)
        finish_due()
    return _observed(first, ended, sent, outputs)


def _youngest(order: list[int], running: dict[int, int]) -> int:
    while order[-1] not in running:
        order.pop()
    return order.pop()


def _observed(first: list[float], ended: list[float], sent: list[float], outputs: list[int]) -> Observed:
    begin, end, start = np.array(first), np.array(ended), np.array(sent)
    further = np.maximum(np.array(outputs) - 1, 1)
    return Observed(begin - start, (end - begin) / further, start, end)
