"""The largest multiple of the traffic at which a deployment still keeps every promise, by simulation.

The same requests arrive faster or slower. Multiples are doubled or halved until one holds and one does not, and then
cut in half (geometrically) until they are `CLOSE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from planner.candidates.pricing import broken_limits
from planner.stated.deployment import Progress, Standing
from planner.throughput import unsustained

CLOSE = 1.02  # of what holds and what does not
MOST, LEAST = 4.0, 1 / 16  # multiples; windows are so many times as short
_ALONE = "on the drawn traffic alone, with every machine there, promises would hold"
MOST_REQUESTS = 200_000  # of a window: beyond, a dozen simulations take minutes


@dataclass(frozen=True)
class Slack:
    """`multiple`: the largest that held, to two per cent; None where it was not simulated, none did, or none counts."""

    multiple: float | None
    text: str


def slack_of(stated: Standing, progress: Progress = lambda text: None) -> Slack:
    """How much more (or how much less) of its traffic the deployment bears."""
    problem, pricer = stated.problem, stated.master.pricer
    if not pricer.slos and not pricer.throughputs:
        return Slack(None, "no class states a promise, so the traffic could grow until queues do")
    if len(problem.declared) > MOST_REQUESTS:
        return Slack(None, f"slack: not simulated, the window holds {len(problem.declared):,} requests")

    def holds(multiple: float) -> bool:
        progress(f"simulating {multiple:.3g} times the traffic")
        pricer.simulations += 1
        workload = problem.declared.faster(multiple)
        result = stated.whole.simulate(workload, pricer.slos)
        return not broken_limits(result, workload, pricer.slos)[0] and not unsustained(
            result, workload, pricer.throughputs
        )

    held, failed = _apart(holds)
    while held is not None and failed is not None and failed > held * CLOSE:
        middle = math.sqrt(held * failed)
        held, failed = (middle, failed) if holds(middle) else (held, middle)
    if stated.broken and held is not None and held >= 1.0:  # by failing nodes, spot machines or fresh traffic
        return Slack(None, f"slack: none as it stands; {_ALONE} up to {held:.2f} times the traffic (simulated)")
    return Slack(held, _in_words(held, failed))


def _apart(holds: Callable[[float], bool]) -> tuple[float | None, float | None]:
    """A multiple that holds and one twice as large that does not; None where there is none of it."""
    held, failed = None, None
    multiple = 1.0
    while LEAST <= multiple <= MOST:
        if holds(multiple):
            held = multiple
            if failed is not None:
                break
            multiple *= 2.0
        else:
            failed = multiple
            if held is not None:
                break
            multiple /= 2.0
    return held, failed


def _in_words(held: float | None, failed: float | None) -> str:
    if held is None:
        return f"slack: none; even {LEAST:.3g} times the traffic breaks a promise (simulated)"
    if failed is None:
        return (
            f"slack: every promise to requests holds at {MOST:g} times the traffic, and no more was tried (simulated)"
        )
    if held < 1.0:
        return f"slack: none; every promise to requests would hold at {held:.2f} times the traffic (simulated)"
    return f"slack: every promise to requests holds up to {held:.2f} times the traffic (simulated)"
