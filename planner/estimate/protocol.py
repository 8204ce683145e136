"""The clients behind published closed-loop measurements: which lengths they draw, how many requests, what they average.

`INFERENCEX`: prompt and output uniform in 0.8 to 1 times the target, 10 requests per client, the first of each sent at
once; means over all (its scripts say so). The client of other sweeps is not published; `SWEEP` is inferred from their
times: lengths around the target, 8 requests per client. Exactly equal lengths would keep requests in step for ever,
which measured times contradict; only SGLang's with few clients show it (`IN_STEP`), and mixtures of experts come near
(`NEARLY_EQUAL`): their prompts run as if several clients always sent together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.estimate.closed_loop import Observed

_SIMULATED_WAVES = 4  # requests per client that are simulated; those after the first wave stand for the rest


@dataclass(frozen=True)
class Protocol:
    """Lengths are uniform between `low` and `high` times the target."""

    prompt_low: float
    prompt_high: float
    output_low: float
    output_high: float
    waves: int = 10  # requests per client

    def lengths(self, isl: int, osl: int, concurrency: int, seed: int = 0) -> tuple[list[int], list[int]]:
        """Prompt and output tokens of the requests to simulate; same seed, same lengths."""
        count = concurrency * (_SIMULATED_WAVES if concurrency > 4 else self.waves)
        draw = np.random.default_rng(seed)

        def between(target: int, low: float, high: float) -> list[int]:
            least = max(1, round(low * target))
            most = max(least, round(high * target))
            drawn: list[int] = draw.integers(least, most, count, endpoint=True).tolist()
            return drawn

        return between(isl, self.prompt_low, self.prompt_high), between(osl, self.output_low, self.output_high)

    def longest(self, isl: int, osl: int) -> int:
        """Tokens of the longest request."""
        return max(1, round(self.prompt_high * isl)) + max(1, round(self.output_high * osl))

    def means(self, observed: Observed, concurrency: int) -> tuple[float, float]:
        """(TTFT, TPOT) in seconds, means over the requests of all waves."""
        first = 1.0 / self.waves
        rest = 1.0 - first
        ttft, tpot = observed.ttft_s, observed.tpot_s
        return (
            float(first * ttft[:concurrency].mean() + rest * ttft[concurrency:].mean()),
            float(first * tpot[:concurrency].mean() + rest * tpot[concurrency:].mean()),
        )


INFERENCEX = Protocol(0.8, 1.0, 0.8, 1.0)
SWEEP = Protocol(0.8, 1.2, 0.85, 1.15, waves=8)
IN_STEP = Protocol(1.0, 1.0, 1.0, 1.0)
NEARLY_EQUAL = Protocol(1.0, 1.0, 0.95, 1.05, waves=8)
# Prompt and output targets of the InferenceX runs.
INFERENCEX_LENGTHS = ((1024, 1024), (1024, 8192), (8192, 1024))
_FEW_CLIENTS = 16


def protocol_of(isl: int, osl: int, concurrency: int, engine: str, mixture: bool = False) -> Protocol:
    """The client that measures such a point of a model; `mixture`: of experts."""
    if (isl, osl) in INFERENCEX_LENGTHS:
        return INFERENCEX
    if mixture:
        return NEARLY_EQUAL
    return IN_STEP if engine == "sglang" and concurrency < _FEW_CLIENTS else SWEEP
