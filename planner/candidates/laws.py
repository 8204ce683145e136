"""What is known of a configuration without simulating it: the utilisation law, and latencies without a queue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.candidates.family import Family
from planner.candidates.options import NEUTRAL
from planner.candidates.prefix_hits import most_cached
from planner.candidates.screens import Screens, decisive
from planner.cost.bound import LatencyFloors, WorkSums, role_floors, role_work_s
from planner.simulate import Requirement, Workload, requirements
from planner.throughput import Throughput

if TYPE_CHECKING:
    from planner.measured_rates import MeasuredRates

MOST_FLOORS = 2_000  # requests of a class whose latencies without a queue are worked out, where prices are sampled


@dataclass(kw_only=True)
class Laws(Screens):
    """Floors on the work and the latencies of the planned traffic, by family and class."""

    measured: MeasuredRates | None = None
    throughputs: Mapping[str, Throughput] = field(default_factory=dict)  # of the classes that state one
    _few: dict[str, Workload] = field(default_factory=dict)  # some requests of a class
    _sums: dict[str, WorkSums] = field(default_factory=dict)  # by class
    _hits: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    _late: dict[tuple[str, str], Mapping[Requirement, float]] = field(default_factory=dict)  # by family and class
    _loads: dict[tuple[str, str], float] = field(default_factory=dict)

    def load(self, family: Family, name: str) -> float:
        """Replicas of `family` that the demand of class `name` keeps busy, at the least (utilisation law)."""
        key = (family.key, name)
        if key not in self._loads:
            self._loads[key] = self._work_s(family, name) / self.own((name,)).horizon_s
        return self._loads[key]

    def measures(self, family: Family, classes: tuple[str, ...]) -> bool:
        """Whether measured rates say what a replica of `family` carries of `classes`."""
        if self.measured is None:
            return False
        parts = (self.own((name,)) for name in classes)
        return all(self.measured.covers(family, part.prompt_tokens, part.output_tokens) for part in parts)

    def _work_s(self, family: Family, name: str) -> float:
        part, options = self.own((name,)), family.options
        if self.measured is not None:
            seconds = self.measured.busy(family, part.prompt_tokens, part.output_tokens)
            if math.isfinite(seconds):
                return seconds
        if options == NEUTRAL and family.times.window_tokens is None:
            if name not in self._sums:
                self._sums[name] = WorkSums.of(part.prompt_tokens, part.output_tokens)
            return self._sums[name].seconds(family.times)
        return role_work_s(
            options.role,
            family.times,
            part.prompt_tokens,
            part.output_tokens,
            cached_tokens=self._cached(family, name, part),
            speculation=options.speculation,
        )

    def miss(self, family: Family, name: str) -> float:
        """Share of the requests of class `name` that break its decisive requirement on `family` even alone.

        Of two sides only one counts a request as late: the decode side, but for requirements on TTFT alone.
        """
        if name not in self.slos or self.measures(family, (name,)):
            return 0.0
        requirement = decisive(self.slos[name])
        if family.options.role == "prefill" and any(metric != "ttft" for metric, _ in requirement.thresholds):
            return 0.0
        return self.late(family, name)[requirement]

    def late(self, family: Family, name: str) -> Mapping[Requirement, float]:
        """By requirement of class `name`, the share of its requests that break it on `family` without any queue."""
        key = (family.key, name)
        if key not in self._late:
            floors = self.floors(family, name)
            by_metric = {"ttft": floors.ttft_s, "tpot": floors.tpot_s, "e2e": floors.e2e_s}
            self._late[key] = {
                requirement: float(
                    np.any([by_metric[metric] > limit_s for metric, limit_s in requirement.thresholds], axis=0).mean()
                )
                for requirement in requirements(self.slos[name])
            }
        return self._late[key]

    def floors(self, family: Family, name: str) -> LatencyFloors:
        """What requests of class `name` take on `family` without any queue, at the least; of some, where sampled."""
        sampled = self.sampled is not None and not family.options.prefix_caching
        part = self.few(name) if sampled else self.own((name,))
        return role_floors(
            family.options.role,
            family.times,
            part.prompt_tokens,
            part.output_tokens,
            cached_tokens=self._cached(family, name, part),
            speculation=family.options.speculation,
        )

    def few(self, name: str) -> Workload:
        """At most `MOST_FLOORS` requests of class `name`, evenly taken."""
        if name not in self._few:
            part = self.own((name,))
            self._few[name] = part.at(np.arange(0, len(part), max(1, -(-len(part) // MOST_FLOORS))))
        return self._few[name]

    def _cached(self, family: Family, name: str, part: Workload) -> NDArray[np.int64] | None:
        """Prompt tokens of class `name`, request by request, that `family` never computes at the best."""
        if not family.options.prefix_caching:
            return None
        if name not in self._hits:
            self._hits[name] = most_cached(part)
        return self._hits[name]

    def hopeless(self, family: Family, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The limits that more requests than may do so break even alone, in words: no load keeps them."""
        found = tuple(
            f"{name}: {requirement.text} (met by at most {1 - late:.1%})"
            for name in classes
            if name in self.slos
            for requirement, late in self.late(family, name).items()
            if late > 1.0 - requirement.share
        )
        loops = [name for name in classes if name in self.throughputs and family.options.role == "unified"]
        return (*found, *(text for name in loops for text in self._slow_loop(family, name)))

    def _slow_loop(self, family: Family, name: str) -> tuple[str, ...]:
        """Little's law: more clients than there are would be in flight, even if no request waited for another."""
        clients, part = self.throughputs[name].clients, self.own((name,))
        needed = len(part) / part.horizon_s * float(self.floors(family, name).e2e_s.mean())
        if clients is None or needed <= clients:
            return ()
        return (f"{name}: {clients} requests in flight (needs {needed:,.0f} even without any queue)",)
