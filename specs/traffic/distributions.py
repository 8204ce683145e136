"""Drawn lengths in tokens: whole numbers >= 1, from a generator that the caller seeds.

Where a declaration leaves the shape open, the choice made here is written beside it.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specs.errors import InputError

IntArray = NDArray[np.int64]
MAX_TOKENS = 10_000_000  # longer than any context: a larger figure is a slip
_Z99 = 2.3263478740408408  # 99 % quantile of the standard normal


def draw_fixed(tokens: int, count: int) -> IntArray:
    """The same length for all."""
    _check_tokens("tokens", tokens)
    return np.full(count, tokens, dtype=np.int64)


def draw_uniform(low_tokens: int, high_tokens: int, count: int, random: np.random.Generator) -> IntArray:
    """Every whole number from `low_tokens` to `high_tokens`, both included, alike."""
    _check_tokens("low", low_tokens)
    _check_tokens("high", high_tokens)
    if low_tokens > high_tokens:
        raise InputError(f"low {low_tokens} is above high {high_tokens}", field="uniform", expected="low <= high")
    return random.integers(low_tokens, high_tokens, size=count, dtype=np.int64, endpoint=True)


def draw_mean(mean_tokens: float, max_tokens: int | None, count: int, random: np.random.Generator) -> IntArray:
    """Only the mean (and perhaps the maximum) is known: the distribution of greatest entropy that has them.

    On 1, 2, ... that is the geometric distribution; on 1..max the same family cut at `max_tokens`, its ratio solved so
    that the mean after the cut is `mean_tokens` (the ratio passes 1 when the mean is above the middle). Drawn by
    inversion. Close to what served outputs look like: many short ones, a tail (coefficient of variation about 1).
    """
    _check_tokens("mean", mean_tokens)
    uniform = random.random(count)
    if max_tokens is None:
        if mean_tokens == 1:
            return np.ones(count, dtype=np.int64)
        decay = -math.log1p(-1.0 / mean_tokens)
        lengths = np.ceil(-np.log1p(-uniform) / decay)
        return np.clip(lengths, 1, MAX_TOKENS).astype(np.int64)
    _check_tokens("max", max_tokens)
    if mean_tokens > max_tokens:
        raise InputError(f"mean {mean_tokens:g} is above max {max_tokens}", field="mean", expected="mean <= max")
    if mean_tokens in (1, max_tokens):
        return np.full(count, int(mean_tokens), dtype=np.int64)
    decay = _truncated_decay(mean_tokens, max_tokens)
    if abs(decay) * max_tokens < 1e-9:
        lengths = np.ceil(uniform * max_tokens)
    else:
        lengths = np.ceil(-np.log1p(uniform * math.expm1(-decay * max_tokens)) / decay)
    return np.clip(lengths, 1, max_tokens).astype(np.int64)


def _truncated_decay(mean_tokens: float, max_tokens: int) -> float:
    """d such that weights exp(-d k) on k = 1..max have the stated mean; bisection, the mean falls with d."""

    def mean(decay: float) -> float:
        k = np.arange(1, max_tokens + 1, dtype=np.float64)
        exponent = -decay * k
        weights = np.exp(exponent - exponent.max())
        return float((k * weights).sum() / weights.sum())

    def mean_of_large(decay: float) -> float:  # closed form of the continuous law on [1/2, max + 1/2]
        x = decay * max_tokens
        if abs(x) < 1e-6:
            return (max_tokens + 1) / 2 - x * max_tokens / 12
        return 0.5 + 1 / decay - max_tokens / math.expm1(x) if x < 700 else 0.5 + 1 / decay

    of = mean if max_tokens <= 4096 else mean_of_large
    low, high = (-50.0, 50.0) if max_tokens <= 4096 else (-600.0 / max_tokens, 600.0)
    for _ in range(200):
        middle = (low + high) / 2
        if of(middle) > mean_tokens:
            low = middle
        else:
            high = middle
        if high - low <= 1e-15 * max(abs(low), abs(high)):
            break
    return (low + high) / 2


def lognormal_parameters(mean_tokens: float, p99_tokens: float) -> tuple[float, float]:
    """(mu, sigma) of the lognormal law with this mean and 99 % quantile.

    ln(p99 / mean) = z sigma - sigma^2 / 2 with z = 2.326; of its two roots the smaller sigma. No lognormal law has a
    p99 above exp(z^2 / 2) = 14.97 times its mean.
    """
    _check_tokens("mean", mean_tokens)
    _check_tokens("p99", p99_tokens)
    log_ratio = math.log(p99_tokens / mean_tokens)
    if not 0 < log_ratio <= _Z99 * _Z99 / 2:
        raise InputError(
            f"p99 {p99_tokens:g} is {p99_tokens / mean_tokens:.3g} times the mean {mean_tokens:g}",
            field="lognormal",
            expected="a p99 above the mean and at most 14.9 times it",
        )
    sigma = _Z99 - math.sqrt(_Z99 * _Z99 - 2 * log_ratio)
    return math.log(mean_tokens) - sigma * sigma / 2, sigma


def draw_lognormal(mean_tokens: float, p99_tokens: float, count: int, random: np.random.Generator) -> IntArray:
    """Lognormal by mean and 99 % quantile, rounded, at least 1."""
    mu, sigma = lognormal_parameters(mean_tokens, p99_tokens)
    return np.clip(np.rint(random.lognormal(mu, sigma, count)), 1, MAX_TOKENS).astype(np.int64)


@dataclass(frozen=True)
class Histogram:
    """Lengths and how often each occurs."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def mean_tokens(self) -> float:
        total = sum(self.weights)
        return sum(token * weight for token, weight in zip(self.tokens, self.weights, strict=True)) / total


def read_histogram(path: str | Path) -> Histogram:
    """Read a CSV with columns `tokens` and `count`: each length stands for itself. `InputError` by row."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=str(path)) from None
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise InputError(f"is not CSV ({error})", file=str(path)) from None
    if not rows or [name.strip() for name in rows[0]] != ["tokens", "count"]:
        raise InputError("has no header", file=str(path), line=1, expected="the columns tokens,count")
    tokens: list[int] = []
    weights: list[float] = []
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        try:
            token, weight = (float(field) for field in row)
        except ValueError:
            raise InputError(f"holds {','.join(row)!r}", file=str(path), line=line, expected="two numbers") from None
        if not (1 <= token <= MAX_TOKENS and token == int(token)):
            raise InputError(
                f"is {row[0]}", file=str(path), line=line, field="tokens", expected=f"a whole number 1..{MAX_TOKENS}"
            )
        if not 0 <= weight < math.inf:
            raise InputError(f"is {row[1]}", file=str(path), line=line, field="count", expected="a number >= 0")
        tokens.append(int(token))
        weights.append(weight)
    if len(set(tokens)) != len(tokens):
        raise InputError("names a length twice", file=str(path), field="tokens", expected="each length once")
    if not 0 < sum(weights) < math.inf:
        raise InputError("holds no counts", file=str(path), field="count", expected="at least one above 0")
    return Histogram(tuple(tokens), tuple(weights))


def draw_histogram(histogram: Histogram, count: int, random: np.random.Generator) -> IntArray:
    """Lengths drawn by their counts."""
    weights = np.array(histogram.weights, dtype=np.float64)
    return random.choice(np.array(histogram.tokens, dtype=np.int64), size=count, p=weights / weights.sum())


def _check_tokens(field: str, tokens: float) -> None:
    if not 1 <= tokens <= MAX_TOKENS:
        raise InputError(f"is {tokens!r} tokens", field=field, expected=f"1 to {MAX_TOKENS}")
