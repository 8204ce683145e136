"""The clients behind published closed-loop measurements, and what their servers were told: lengths, requests, budgets.

`INFERENCEX`: prompt and output uniform in 0.8 to 1 times the target, 10 requests per client, the first of each sent at
once; means over all (its scripts say so). The clients of other sweeps are not published; they are inferred from their
times:

- vLLM (`EQUAL`): first tokens come as late with 128 tokens of output as with 1,024, so that nobody queues at random:
  outputs are equal, clients stay in step, and a step holds one prompt beside a token of every client.
- TensorRT-LLM, mixtures of experts (`ALMOST_EQUAL`): as many decodes share their steps with prompts as when clients
  that differ by half a per cent send some three thousand tokens together.
- `SWEEP` for the others: lengths around the target, outputs nearer to it for mixtures (`NEARLY_EQUAL`).

Published TensorRT-LLM runs do not cut prompts (chunked context is off unless asked for); SGLang's fill a prefill batch
up to its default of 16,384 tokens.

Clients in step can wait twice as long for a first token as others under the same load. A point of lengths that nobody
published is taken to have the clients of the nearest ones that somebody did, so that it is predicted as its neighbours
are. `Client` says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from planner.estimate.closed_loop import Observed


@dataclass(frozen=True)
class Protocol:
    """Lengths are uniform between `low` and `high` times the target.

    `least_tokens`: what a step may hold at least, more where one prompt and a token of every client are more; None
    leaves the budget to the engine's profile. `whole_prompts`: none is cut to fill a step.
    """

    prompt_low: float
    prompt_high: float
    output_low: float
    output_high: float
    waves: int = 10  # requests per client
    simulated: int = 4  # of them; those after the first stand for the rest
    least_tokens: int | None = None
    whole_prompts: bool = False

    def lengths(self, isl: int, osl: int, concurrency: int, seed: int = 0) -> tuple[list[int], list[int]]:
        """Prompt and output tokens of the requests to simulate; same seed, same lengths."""
        count = concurrency * (self.simulated if concurrency > 4 else self.waves)
        draw = np.random.default_rng(seed)

        def between(target: int, low: float, high: float) -> list[int]:
            least = max(1, round(low * target))
            most = max(least, round(high * target))
            drawn: list[int] = draw.integers(least, most, count, endpoint=True).tolist()
            return drawn

        return between(isl, self.prompt_low, self.prompt_high), between(osl, self.output_low, self.output_high)

    def step_tokens(self, isl: int, concurrency: int, default: int) -> int:
        """Tokens that a step may hold; `default` is the engine's own budget."""
        return default if self.least_tokens is None else max(self.least_tokens, isl + concurrency)

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
EQUAL = Protocol(0.95, 1.05, 1.0, 1.0, simulated=10, least_tokens=0)
ALMOST_EQUAL = Protocol(1.0, 1.0, 0.995, 1.005, simulated=10, least_tokens=3072)
NEARLY_EQUAL = Protocol(1.0, 1.0, 0.95, 1.05, waves=8)
EXACT = Protocol(1.0, 1.0, 1.0, 1.0)
_SGLANG_TOKENS = 16_384

Client = Literal["published", "inferencex", "exact"]
CLIENTS: tuple[Client, ...] = ("published", "inferencex", "exact")
# Prompt and output targets of the InferenceX runs, and of the vendor sweeps by engine.
INFERENCEX_LENGTHS = ((1024, 1024), (1024, 8192), (8192, 1024))
SWEEP_LENGTHS: dict[str, tuple[tuple[int, int], ...]] = {
    "vllm": (*product((1024, 4096), (128, 512)), (4096, 1024), (4000, 1000)),
    "trtllm": (*product((128, 256, 512, 1024, 2048, 4096), (128, 256, 512)), (4000, 1000)),
    "sglang": tuple(product((1000, 2000, 4000, 8000), (100, 500, 1000, 2000))),
}
_EVERY_SWEEP = tuple(dict.fromkeys(lengths for own in SWEEP_LENGTHS.values() for lengths in own))
_DESCRIBED = {
    INFERENCEX: "lengths uniform in 0.8 to 1 times the stated ones",
    SWEEP: "outputs 15 % around the stated length",
    EQUAL: "equal outputs, so that all clients stay in step",
    ALMOST_EQUAL: "outputs equal to half a per cent, so that most clients stay in step",
    NEARLY_EQUAL: "outputs 5 % around the stated length",
}


def protocol_of(isl: int, osl: int, engine: str, mixture: bool = False, client: Client = "published") -> Protocol:
    """The client that measures such a point of a model, with the server's settings; `mixture`: of experts.

    `client`: `published` is that of the published runs with these lengths, or else the nearest ones; `inferencex` that
    of the InferenceX runs; `exact` sends requests of exactly these lengths.
    """
    own = EXACT if client == "exact" else _client(isl, osl, engine, mixture, client)
    if engine == "sglang":
        return replace(own, least_tokens=_SGLANG_TOKENS)
    return replace(own, whole_prompts=True) if engine == "trtllm" else own


def client_note(isl: int, osl: int, engine: str, mixture: bool = False, client: Client = "published") -> str:
    """Which client is taken, where it was inferred or assumed; empty where it is known."""
    if client != "published" or (isl, osl) in INFERENCEX_LENGTHS:
        return ""
    own = _client(isl, osl, engine, mixture, client)
    nearest = _nearest(isl, osl, engine)
    what = "the InferenceX runs" if nearest in INFERENCEX_LENGTHS else "a vendor sweep (inferred)"
    known = "" if nearest == (isl, osl) else f" at {nearest[0]}+{nearest[1]}, the nearest published lengths"
    return f"clients of {what}{known}: {_DESCRIBED[own]} (`--client` says otherwise)"


def _client(isl: int, osl: int, engine: str, mixture: bool, client: Client) -> Protocol:
    if client == "inferencex" or _nearest(isl, osl, engine) in INFERENCEX_LENGTHS:
        return INFERENCEX
    return _sweep(engine, mixture)


def _nearest(isl: int, osl: int, engine: str) -> tuple[int, int]:
    """The published lengths whose ratios to these are least; those of every engine where it has none of its own."""
    published = (*INFERENCEX_LENGTHS, *SWEEP_LENGTHS.get(engine, _EVERY_SWEEP))
    return min(published, key=lambda one: abs(math.log(one[0] / isl)) + abs(math.log(one[1] / osl)))


def _sweep(engine: str, mixture: bool) -> Protocol:
    if engine == "vllm":
        return EQUAL
    if mixture:
        return ALMOST_EQUAL if engine == "trtllm" else NEARLY_EQUAL
    return SWEEP
