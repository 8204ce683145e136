"""Seconds of an engine's kernels, from those that the operator model predicts."""

from __future__ import annotations

import numpy as np

from planner.cost.roofline import Floats
from specs.profile import KernelFactors

_FEW, _MANY = 64.0, 1024.0


def engine_s(factors: KernelFactors, kind: str, tokens: Floats, seconds: Floats) -> Floats:
    """Seconds of operations of one kind in steps of so many tokens, as the engine's kernels take them.

    Grouped products turn from reading weights to arithmetic between `_FEW` and `_MANY` tokens.
    """
    if kind != "experts":
        return factors.of(kind) * seconds
    turn = np.clip(np.log(np.maximum(tokens, 1.0) / _FEW) / np.log(_MANY / _FEW), 0.0, 1.0)
    result: Floats = factors.experts ** (1.0 - turn) * factors.prefill_experts**turn * seconds
    return result
