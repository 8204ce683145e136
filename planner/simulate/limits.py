"""Service-level objectives as a simulation judges them.

Percentile limits use the nearest rank: `p90 <= limit` holds exactly when at least 90 % of the requests of the class
meet the limit. A request that was refused, or had not finished when the run ended, meets nothing. A request of one
output token has no TPOT and meets every TPOT limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specs.deployment import SLO, DeploymentSpec, Metric

SLOs = dict[str, SLO]  # by request class


def slos_of(spec: DeploymentSpec, model: str | None = None) -> SLOs:
    """The objectives of the request classes that state one (of one model, or of all)."""
    return {
        traffic.name: traffic.slo
        for traffic in spec.traffic
        if traffic.slo is not None and (model is None or traffic.model == model)
    }


@dataclass(frozen=True, slots=True)
class Requirement:
    """At least `share` of the requests of a class meet all `thresholds` (metric, seconds)."""

    thresholds: tuple[tuple[Metric, float], ...]
    share: float
    text: str

    def allowed_misses(self, requests: int) -> int:
        return requests - required_count(self.share, requests)


def requirements(slo: SLO) -> tuple[Requirement, ...]:
    """One requirement for each percentile limit; or one for the joint limits (share 1 where none is stated)."""
    if slo.joint:
        share = 1.0 if slo.attainment is None else slo.attainment
        text = " and ".join(f"{metric.upper()} <= {limit_s:g} s" for metric, limit_s in slo.joint.items())
        return (Requirement(tuple(slo.joint.items()), share, f"{text} for {100 * share:g} % of requests"),)
    return tuple(
        Requirement(
            ((limit.metric, limit.limit_s),),
            limit.percentile / 100.0,
            f"p{limit.percentile:g} {limit.metric.upper()} <= {limit.limit_s:g} s",
        )
        for limit in slo.percentiles
    )


def required_count(share: float, requests: int) -> int:
    """The least number of `requests` that makes up `share` of them (a share such as 0.999 is not exact in binary)."""
    return math.ceil(share * requests - 1e-9 * max(1, requests))


def nearest_rank(sorted_values: Sequence[float] | NDArray[np.float64], percentile: float) -> float:
    """The smallest value that at least `percentile` per cent of the values do not exceed; NaN of no values."""
    if len(sorted_values) == 0:
        return math.nan
    return float(sorted_values[max(1, required_count(percentile / 100.0, len(sorted_values))) - 1])


def wilson_interval(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, 1927); 95 % by default; (0, 1) of no trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
