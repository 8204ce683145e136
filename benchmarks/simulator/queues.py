"""Mean waits and responses of single queues: formulas in seconds, from the sizes that were drawn.

Sizes are whole steps. `rate` is per second. The papers: Pollaczek 1930 and Khinchine 1932; Erlang 1917; Cobham 1954 and
Phipps 1956; Schrage and Miller 1966; processor sharing in Kleinrock, Queueing Systems II, chapter 4.
"""

from __future__ import annotations

import math

import numpy as np

from benchmarks.simulator.servers import STEP_S, Ints


def pollaczek_khinchine(rate: float, steps: Ints) -> float:
    """Mean wait of M/G/1, first come first served: rate E[S^2] / 2 (1 - load)."""
    service_s = STEP_S * steps
    return rate * float((service_s**2).mean()) / (2 * (1 - rate * float(service_s.mean())))


def erlang_c(rate: float, mean_s: float, servers: int) -> float:
    """Mean wait of M/M/c."""
    offered = rate * mean_s
    blocking = 1.0
    for n in range(1, servers + 1):
        blocking = offered * blocking / (n + offered * blocking)
    load = offered / servers
    waits = blocking / (1 - load + load * blocking)
    return waits * mean_s / (servers * (1 - load))


def processor_sharing(rate: float, steps: Ints) -> float:
    """Mean response of M/G/1 with egalitarian sharing, whatever the distribution: E[S] / (1 - load)."""
    mean_s = STEP_S * float(steps.mean())
    return mean_s / (1 - rate * mean_s)


def priority_wait(rate: float, steps: Ints, rank: Ints) -> list[float]:
    """Mean wait by rank of M/G/1 with non-preemptive priorities (Cobham): W0 / (1 - s[k-1]) (1 - s[k])."""
    service_s = STEP_S * steps
    residual = rate * float((service_s**2).mean()) / 2
    waits, before = [], 0.0
    for k in range(int(rank.max()) + 1):
        own = rank == k
        through = before + rate * float(own.mean()) * (float(service_s[own].mean()) if own.any() else 0.0)
        waits.append(residual / ((1 - before) * (1 - through)))
        before = through
    return waits


def shortest_first_wait(rate: float, steps: Ints) -> float:
    """Mean wait of M/G/1 that serves the shortest waiting request, without preemption (Phipps): sizes are ranks."""
    sizes, rank = np.unique(steps, return_inverse=True)
    share = np.bincount(rank, minlength=len(sizes)) / len(steps)
    return float(share @ np.array(priority_wait(rate, steps, rank)))


def srpt_response(rate: float, steps: Ints, *, at_step_ends: bool = False) -> float:
    """Mean response of M/G/1 that serves the shortest remaining request (Schrage and Miller).

    A request of x waits V / (1 - load of sizes below x), where V is the work of up to x that it finds, larger ones
    counting with their last x; then it is served at the speed that smaller arrivals leave. `at_step_ends`: preemption
    only between steps, so it also waits for the step under way of a larger one, and a step cannot be interrupted.
    """
    share = np.bincount(steps) / len(steps)
    size_s = STEP_S * np.arange(len(share))
    grain_s = STEP_S if at_step_ends else 0.0
    load = rate * np.cumsum(share * size_s)  # of sizes up to each
    larger = 1 - np.cumsum(share)
    beyond_s = float(share @ size_s) - np.cumsum(share * size_s) - larger * (size_s + grain_s)  # before the last x
    found = np.cumsum(share * size_s**2) + larger * (size_s + grain_s) ** 2 + grain_s * np.maximum(beyond_s, 0.0)
    wait_s = rate * found[1:] / (2 * (1 - load[1:]) * (1 - load[:-1]))
    left = np.arange(1, len(share))  # steps still to do at the start of each step
    interrupting = load[np.maximum(left - 1 - at_step_ends, 0)]
    return float(share[1:] @ (wait_s + np.cumsum(STEP_S / (1 - interrupting))))


def square_law(load: float, choices: int) -> float:
    """Mean response over mean service where a request joins the shortest of `choices` random queues of very many.

    Mitzenmacher 2001: the share of queues of i or more is load^((d^i - 1)/(d - 1)).
    """
    if choices == 1:
        return 1 / (1 - load)
    total, i = 0.0, 1
    while (term := load ** ((choices**i - choices) / (choices - 1))) > 1e-15:
        total += term
        i += 1
    return total


def busy_share(offered: float, servers: int) -> float:
    """Share of time in which M/M/c is not empty, at `offered` Erlang."""
    terms = [offered**n / math.factorial(n) for n in range(servers + 1)]
    return 1 - 1 / (sum(terms[:-1]) + terms[-1] / (1 - offered / servers))
