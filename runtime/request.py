"""What a client asks for, what the engine keeps of it, and what comes back."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from specs.errors import InputError
from specs.service import Sequence

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1000


class FinishReason(StrEnum):
    """Why a request ended. `stop` and `length` are the protocol's words; the others never reach a normal answer."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. `InputError` with the field's name where a value is out of range."""

    max_tokens: int
    min_tokens: int = 0  # until then no end-of-sequence and no stop token is sampled, and no stop string is looked for
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: the whole vocabulary
    top_p: float = 1.0
    seed: int | None = None  # None: drawn when the request arrives
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None  # so many of the likeliest tokens beside the chosen one; None: no log-probabilities

    def __post_init__(self) -> None:
        self._in_range("max_tokens", 1, None)
        self._in_range("min_tokens", 0, self.max_tokens)
        self._in_range("temperature", 0.0, 100.0)
        self._in_range("top_k", 0, None)
        self._in_range("top_p", 0.0, 1.0)
        if self.top_p == 0.0:
            raise InputError("is 0, which keeps no token", field="top_p", expected="a number above 0, at most 1")
        if self.seed is not None:
            self._in_range("seed", -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            self._in_range("logprobs", 0, MAX_LOGPROBS)
        if any(token < 0 for token in self.stop_token_ids):
            raise InputError("holds a negative id", field="stop_token_ids", expected="ids of the vocabulary, from 0")
        if len(self.stop) > MAX_STOP_STRINGS or any(not 0 < len(text) <= MAX_STOP_LENGTH for text in self.stop):
            raise InputError(
                "holds an empty, a very long or too many strings",
                field="stop",
                expected=f"at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_LENGTH} characters",
            )

    def _in_range(self, name: str, low: float, high: float | None) -> None:
        value = getattr(self, name)
        if value != value or value < low or (high is not None and value > high):
            expected = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            raise InputError(f"is {value}", field=name, expected=expected)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: int
    logprob: float  # natural, of the model's own distribution: before temperature, top-k and top-p


@dataclass(frozen=True, slots=True)
class SampledToken:
    token: int
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()  # likeliest first


@dataclass(frozen=True, slots=True)
class Output:
    """What one step added to one request. The last output of a request carries `finish_reason`."""

    sampled: SampledToken | None  # None: the request ended without a token (aborted, failed)
    text: str  # what may be shown now; text that could still become a stop string is held back
    generated_tokens: int
    finish_reason: FinishReason | None = None
    message: str | None = None  # why it failed or was aborted
    # Where the token begins: characters of the decoded text before it. A token of a stop string may begin where the
    # shown text has ended; all parts of one character begin where it does.
    text_offset: int = 0


@dataclass(slots=True, eq=False)
class Request:
    """One request inside the engine. `sequence` is the rules' view of it, and only the rules change that."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    sequence: Sequence
    sink: Callable[[Output], None]  # called by the engine's thread, once per output
    text: Any = None  # `runtime.detokenize.OutputText`, set by the engine
    output: list[int] = field(default_factory=list)
    seed: int = 0  # set at arrival
    arrival_s: float = 0.0  # time.perf_counter
    first_token_s: float | None = None
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.seed = self.params.seed if self.params.seed is not None else secrets.randbits(64)
        self.arrival_s = time.perf_counter()

    def tokens(self, start: int, count: int) -> list[int]:
        """Token ids at positions `start` .. `start + count`, of the prompt and what was generated."""
        prompt = len(self.prompt)
        known = list(self.prompt[start : start + count])
        if start + count > prompt:
            known += self.output[max(0, start - prompt) : start + count - prompt]
        return known
