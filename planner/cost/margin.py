"""The margin of `limits.confidence`: how much longer steps are planned to take than the cost model predicts.

An engine's `step_error` says what share of measured steps, of models and devices that its fit never saw, took at most
so many times the predicted seconds. A plan at 90 % confidence is made with every step that much longer: prices,
simulations, bound and certificate are those of the slower steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from specs.errors import InputError
from specs.profile import EngineProfile, quantile_share

LEAST = 0.5  # below the median a margin would shorten steps


def step_margin(engine: EngineProfile, confidence: float | None) -> float:
    """Measured / predicted seconds of a step at the quantile `confidence`, linear between those known; 1 for None.

    Raises `InputError` below the median, above the largest quantile known, and where none is.
    """
    if confidence is None:
        return 1.0
    known = {quantile_share(name): ratio for name, ratio in engine.step_error.items()}
    if not known:
        raise InputError(
            f"the profile of engine {engine.name} states no errors of its steps (step_error)",
            field="limits.confidence",
            expected="no confidence, or a profile that has been compared with measurements",
        )
    if not LEAST <= confidence <= max(known):
        raise InputError(
            f"{100 * confidence:.6g}% is outside what is known of the steps of {engine.name}",
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
        source = engine.sources.get("step_error")
        said = f"{name}: {source}" if source else name
        each.append(f"{step_margin(engine, confidence):.3g} times the predicted ones ({said})")
    return f"planned at {100 * confidence:.6g} % confidence: steps {', '.join(each)}"
