"""One row of the re-check: a law, its two sides, and whether it holds."""

from __future__ import annotations

import math
from typing import Literal

from specs.plan import Check

TOLERANCE = 1e-6
UNKNOWN = 1e300  # stands for a figure that the plan does not have


def check(law: str, left: float, relation: Literal["<=", ">=", "=="], right: float) -> Check:
    """The law with its sides, held to one part in a million; a side that is not known breaks it."""
    slack = TOLERANCE * max(1.0, abs(left), abs(right))
    holds = {
        "<=": left <= right + slack,
        ">=": left >= right - slack,
        "==": abs(left - right) <= slack,
    }[relation]
    known = math.isfinite(left)  # what is not known breaks its law; documents hold finite numbers only
    return Check(law=law, left=left if known else UNKNOWN, relation=relation, right=right, holds=holds and known)
