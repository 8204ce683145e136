"""The loads that a configuration is tried under: a ladder of rungs, what a trial of one said, what is known so far.

The loads of a configuration form a ladder: multiples of the whole demand on the fewest replicas that could carry it,
then the demand itself, then more replicas up to what the pool holds, then smaller shares of the demand on the whole
pool. Without the multiples, a replica that carries thrice the demand would count for no more than one that just does,
and two small ones for twice as much. Each rung asks less of a replica than the one above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.candidates.family import Family, Variant

SHARES = tuple(round(0.95 - 0.05 * step, 2) for step in range(19))  # 0.95 .. 0.05
MULTIPLES = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25)  # the first is the most headroom that counts in a tie
FIRST_FACTOR = 1.2  # a screen is busier than the window; whole plans start this much above it and shrink


@dataclass(frozen=True, slots=True)
class Rung:
    """`replicas` replicas asked to carry `share` of the demand (above 1: a multiple of it)."""

    replicas: int
    share: float

    @property
    def per_replica(self) -> float:
        return self.share / self.replicas


@dataclass(frozen=True, slots=True)
class Trial:
    """One rung tried: `broken` names the limits that did not hold (empty: it passed), `seen` the share of requests."""

    variant: Variant
    rung: Rung
    classes: tuple[str, ...]
    broken: tuple[str, ...]
    metrics: frozenset[str]  # of the broken limits: ttft, tpot, e2e, utilisation
    seen: float  # share of the requests that had arrived when the run ended
    running_peak: int
    simulated: bool = True  # False: latency floors refute it, or there is nothing to refute

    @property
    def passed(self) -> bool:
        return not self.broken


@dataclass
class Bracket:
    """What is known of a family's price: the highest rung that passed and the lowest that failed, so far.

    Rungs count from the heaviest load (0) to the lightest. Between `failed` and `passed` nothing is known; the bracket
    is closed when they are neighbours, or when even the lightest rung failed.
    """

    family: Family
    classes: tuple[str, ...]
    load: float  # replicas that the demand keeps busy, at the least
    rungs: list[Rung]
    failed: int = -1
    passed: int | None = None
    variant: Variant | None = None  # limits that passed on `passed`
    failure: Trial | None = None  # on `failed`: what stood in the way of more
    simulated: bool = True  # what passed was simulated; False: there was nothing to refute
    factor: float = FIRST_FACTOR  # of the screened load: what refutations of whole plans have left
    measured: bool = False  # the price is a measured rate, which no simulation is asked about

    @property
    def key(self) -> str:
        return f"{self.family.key}|{'+'.join(self.classes)}"

    @property
    def closed(self) -> bool:
        return self.failed == len(self.rungs) - 1 or (self.passed is not None and self.passed == self.failed + 1)

    @property
    def upper(self) -> float:
        """Share of the demand that one replica may still turn out to carry."""
        if self.closed:
            return self.lower
        rung = self.rungs[self.failed + 1]
        optimistic = 1.0 / self.load if self.load > 0 else rung.per_replica
        return min(optimistic, rung.per_replica * self.factor) if self.failed >= 0 else optimistic

    def take_in(self) -> None:
        """Lower the factor to where it starts to count: no replica carries more than the utilisation law allows."""
        if self.passed is not None and self.load > 0:
            self.factor = min(self.factor, 1.0 / (self.load * self.rungs[self.passed].per_replica))

    @property
    def lower(self) -> float:
        """Share of the demand that one replica carries, simulated; 0 while nothing passed."""
        if self.passed is None:
            return 0.0
        share = self.rungs[self.passed].per_replica * self.factor
        return min(share, 1.0 / self.load) if self.load > 0 else share


def ladder(load: float, most_replicas: int) -> list[Rung]:
    """Rungs from the heaviest load a replica could bear to the lightest; `load` in replicas kept busy."""
    fewest = max(1, math.ceil(load - 1e-9))
    most_share = most_replicas / load if load > 0 else 1.0
    above = [Rung(fewest, multiple) for multiple in MULTIPLES if fewest <= most_replicas and multiple * load <= fewest]
    rungs = [Rung(replicas, 1.0) for replicas in range(fewest, most_replicas + 1)]
    return above + rungs + [Rung(most_replicas, share) for share in SHARES if share <= most_share]
