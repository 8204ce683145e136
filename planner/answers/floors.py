"""Configurations that break a limit even alone, without any queue: dropped before anything is solved or simulated.

How long the requests of a class take at the least does not depend on the limits that are asked for. So the quantile
that a limit is held against is worked out once for each configuration, and asking of ever softer limits costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.answers.resolve import without
from planner.candidates.family import Family
from planner.candidates.pricing import Pricer
from planner.cost.margin import Margin
from planner.problem import Problem
from planner.simulate import Workload, requirements
from specs.deployment import SLO


@dataclass
class Floors:
    """Least latencies of one workload, as quantiles."""

    workload: Workload
    _quantiles: dict[tuple[str, Margin, str, str, float], float] = field(default_factory=dict)

    def kept(self, problem: Problem) -> Problem | None:
        """The problem without configurations that no load keeps in its limits; None where a model has none left."""
        pricer = problem.master().pricer
        margins = max(problem.facts.margins.values(), default=Margin())

        def hopeless(family: Family) -> bool:
            return any(
                self._breaks(pricer, family, margins, name, pricer.slos[name])
                for name in problem.classes_of[family.model]
                if name in pricer.slos
            )

        left = without(problem, hopeless)
        models = {family.model for family in (*left.families, *left.role_families)}
        return left if models >= set(problem.spec.models) else None

    def _breaks(self, pricer: Pricer, family: Family, margin: Margin, name: str, slo: SLO) -> bool:
        return any(
            self._quantile(pricer, family, margin, name, metric, requirement.share) > limit_s
            for requirement in requirements(slo)
            for metric, limit_s in requirement.thresholds
        )

    def _quantile(self, pricer: Pricer, family: Family, margin: Margin, name: str, metric: str, share: float) -> float:
        """What all but 1 - `share` of the requests of a class take at the least."""
        key = (family.key, margin, name, metric, share)
        if key not in self._quantiles:
            floors = pricer.floors(family, name)
            seconds = {"ttft": floors.ttft_s, "tpot": floors.tpot_s, "e2e": floors.e2e_s}
            for other, values in seconds.items():
                self._quantiles[family.key, margin, name, other, share] = _at_share(values, share)
        return self._quantiles[key]


def _at_share(values: NDArray[np.float64], share: float) -> float:
    """The least limit that at least `share` of `values` keep."""
    spare = int((1.0 - share) * len(values) + 1e-9)
    return float(np.partition(values, len(values) - 1 - spare)[len(values) - 1 - spare]) if len(values) else 0.0
