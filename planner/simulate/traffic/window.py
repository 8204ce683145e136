"""How long a window of declared traffic has to be where so many requests come that ten minutes of them take long."""

from __future__ import annotations

import math

from planner.simulate.limits import requirements
from specs.deployment import (
    DeploymentSpec,
    FixedLength,
    LengthSpec,
    LognormalLength,
    MeanLength,
    TrafficClass,
    UniformLength,
)

# A window is shortened to no fewer requests than these: half a million take two seconds to simulate. From empty
# replicas on it takes as long as a request stays until as many are in service as ever will be.
FLEET_REQUESTS, STAYS, SHORTEST_S = 500_000, 3.0, 120.0


def window_s(spec: DeploymentSpec, seconds: float) -> float:
    """`seconds`, or less where more than `FLEET_REQUESTS` come in them: their time, but at least `STAYS` stays.

    A stay is the mean over the requests of a model, if each token takes as long as its class allows; the window is that
    of the model whose requests stay the longest. Where a rate, a mean length or a limit is not declared, `seconds`.
    """
    rates = [_rate_per_s(traffic) for traffic in spec.traffic]
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates) or sum(known) * seconds <= FLEET_REQUESTS:
        return seconds
    stays_s = max(_stay_s(spec, model) for model in spec.models)
    return min(seconds, max(SHORTEST_S, STAYS * stays_s, FLEET_REQUESTS / sum(known)))


def _stay_s(spec: DeploymentSpec, model: str) -> float:
    """How long a request of the model is in service on average, at the most; infinite where that is not declared."""
    own = [(traffic, _rate_per_s(traffic) or 0.0) for traffic in spec.traffic if traffic.model == model]
    total = sum(rate for _, rate in own)
    return sum(rate * _class_stay_s(traffic) for traffic, rate in own) / total if total > 0 else 0.0


def _class_stay_s(traffic: TrafficClass) -> float:
    limits: dict[str, float] = {}
    for requirement in requirements(traffic.slo) if traffic.slo is not None else ():
        for metric, limit_s in requirement.thresholds:
            limits[metric] = max(limits.get(metric, 0.0), limit_s)
    tokens = _mean_tokens(traffic.output_tokens)
    by_tokens = limits["tpot"] * tokens if "tpot" in limits else math.inf
    return min(by_tokens, limits.get("e2e", math.inf))


def _mean_tokens(length: LengthSpec | None) -> float:
    """Of a declared distribution; infinite where only a file says it."""
    match length:
        case FixedLength():
            return float(length.tokens)
        case MeanLength() | LognormalLength():
            return length.mean_tokens
        case UniformLength():
            return (length.low_tokens + length.high_tokens) / 2.0
    return math.inf


def _rate_per_s(traffic: TrafficClass) -> float | None:
    """The declared mean rate of a class; None where only its trace says it."""
    if traffic.arrivals is not None:
        return traffic.arrivals.rate_per_s
    if traffic.sessions is not None:
        return traffic.sessions.rate_per_s * traffic.sessions.turns_mean
    return traffic.trace.rate_per_s if traffic.trace is not None else None
