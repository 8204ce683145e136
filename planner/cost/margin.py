"""The margins of `limits.confidence`: how much later tokens are planned to come than the cost model predicts.

Two quantiles of measured / predicted, of models and devices that the engine's fit never saw, in its profile:

- `step_error`, of TPOT: every step of a plan is that much longer, and with it prices, queues, bound and certificate.
- `first_token_error`, of TTFT where steps are already so much longer: what clients, queues, frontends and batch waiting
  add to it. Nothing waits for it: a simulated TTFT is reported that much longer, and the answer ends as much later.

At 90 % nine of ten measured deployments had their further tokens, and nine of ten their first ones, no later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specs.errors import InputError
from specs.profile import EngineProfile, quantile_share

LEAST = 0.5  # below the median a margin would shorten steps


@dataclass(frozen=True, order=True)
class Margin:
    """Multiples of what is predicted: seconds of steps; TTFT, beside longer steps."""

    steps: float = 1.0
    first_token: float = 1.0


def margin_of(engine: EngineProfile, confidence: float | None) -> Margin:
    """Both at the quantile `confidence`, linear between those known; no margin for None.

    A profile that says nothing of first tokens has them late by its steps only, and none is planned to be early.
    Raises `InputError` below the median, above the largest quantile known, and where none is.
    """
    if confidence is None:
        return Margin()
    if not engine.step_error:
        raise InputError(
            f"the profile of engine {engine.name} states no errors of its steps (step_error)",
            field="limits.confidence",
            expected="no confidence, or a profile that has been compared with measurements",
        )
    steps = _at(engine.step_error, engine.name, confidence)
    if not engine.first_token_error:
        return Margin(steps)
    return Margin(steps, max(1.0, _at(engine.first_token_error, engine.name, confidence)))


def _at(ratios: Mapping[str, float], name: str, confidence: float) -> float:
    known = {quantile_share(quantile): ratio for quantile, ratio in ratios.items()}
    if not LEAST <= confidence <= max(known):
        raise InputError(
            f"{100 * confidence:.6g}% is outside what is known of the steps of {name}",
            field="limits.confidence",
            expected=f"{100 * LEAST:g}% to {100 * max(known):g}%",
        )
    return float(np.interp(confidence, list(known), list(known.values())))


def margin_note(engines: Mapping[str, EngineProfile], confidence: float | None) -> str | None:
    """The sentence of a plan that was made at `confidence`, with the source of each margin; None without one."""
    if confidence is None:
        return None
    each = []
    for name, engine in engines.items():
        source, margin = engine.sources.get("step_error"), margin_of(engine, confidence)
        said = f"{name}: {source}" if source else name
        late = f", first tokens {margin.first_token:.3g} times beside that" if margin.first_token > 1.0 else ""
        each.append(f"{margin.steps:.3g} times the predicted ones{late} ({said})")
    return f"planned at {100 * confidence:.6g} % confidence: steps {', '.join(each)}"
