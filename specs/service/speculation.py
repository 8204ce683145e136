"""Which draft tokens are accepted: drawn by hashing, so that it does not depend on the schedule."""

from __future__ import annotations

from specs.service.hashing import splitmix64


def accepted_tokens(seed: int, request: int, generated_tokens: int, *, draft_tokens: int, acceptance: float) -> int:
    """Draft tokens accepted, of `draft_tokens`, in the step of a request that has `generated_tokens` by then.

    One uniform number u in [0, 1) of (seed, request, generated tokens); draft token j (from 1) is accepted when
    u < acceptance^j, so each with probability `acceptance` when those before it were. Powers are multiplied up, one
    factor at a time.
    """
    hashed = splitmix64(splitmix64(splitmix64(seed) ^ request) ^ generated_tokens)
    uniform = (hashed >> 11) * 2.0**-53
    accepted, power = 0, 1.0
    for _ in range(draft_tokens):
        power *= acceptance
        if uniform >= power:
            break
        accepted += 1
    return accepted
