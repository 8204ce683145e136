"""Lengths from the metrics of a running server: Prometheus' text format, saved or fetched from its `/metrics`.

A histogram's buckets count requests up to each bound since the server started. Inside a bucket nothing is known but, by
`_sum`, the mean over all: lengths are spread over each bucket so that the counts of all buckets and the mean are kept.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from specs.errors import InputError
from specs.traffic.distributions import MAX_TOKENS, Histogram

Field = Literal["prompt_tokens", "output_tokens"]
METRICS: Mapping[Field, tuple[str, ...]] = {
    "prompt_tokens": ("vllm:request_prompt_tokens", "sglang:prompt_tokens_histogram"),
    "output_tokens": ("vllm:request_generation_tokens", "sglang:generation_tokens_histogram"),
}
TIMEOUT_S = 10.0
MOST_BYTES = 64 * 2**20
POINTS = 16  # lengths that stand for a bucket, at most
BEYOND = 2.0  # what lies above the last bound ends at so many times it
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Buckets:
    """One histogram, summed over engines: cumulative counts by upper bound, the last one infinite."""

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    sum_tokens: float | None

    @property
    def mean_tokens(self) -> float | None:
        return None if self.sum_tokens is None else self.sum_tokens / self.cumulative[-1]


def read_prometheus(source: str | Path, field: Field, model: str | None = None) -> Histogram:
    """Lengths of `field` as a server (vLLM, SGLang) has counted them; `source`: a file, or the URL of its metrics.

    `model`: where the server has several. `InputError` names the source, and the line where one is wrong.
    """
    text, name = _text(source), str(source)
    samples = _samples(text, METRICS[field], name)
    if not samples:
        raise InputError(
            f"has no histogram {' or '.join(METRICS[field])}", file=name, expected="the metrics of vLLM or SGLang"
        )
    return spread(_buckets(samples, model, name))


def is_url(source: str | Path) -> bool:
    """Whether the metrics are to be fetched."""
    return str(source).startswith(("http://", "https://"))


def _text(source: str | Path) -> str:
    """The metrics, from a file or over HTTP. `InputError` where they cannot be had."""
    if is_url(source):
        return _fetched(str(source))
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=str(source)) from None


@functools.cache
def _fetched(source: str) -> str:
    """Fetched once by a command: what it draws twice must be the same."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(source, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read(MOST_BYTES + 1)
        if len(body) > MOST_BYTES:
            raise InputError(f"is longer than {MOST_BYTES >> 20} MiB", file=source, expected="metrics")
        return body.decode("utf-8")
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise InputError(
            f"cannot be fetched ({error})", file=str(source), expected="http://HOST:PORT/metrics"
        ) from None


@dataclass(frozen=True)
class _Sample:
    metric: str
    part: str  # bucket | sum | count
    labels: Mapping[str, str]
    value: float
    line: int


def _samples(text: str, metrics: tuple[str, ...], file: str) -> list[_Sample]:
    """All samples of the first of `metrics` that is there."""
    found: list[_Sample] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith(metrics):
            continue
        match = _SAMPLE.match(line.strip())
        if match is None:
            raise InputError("is no sample", file=file, line=number, expected='name{label="value"} number')
        name, labels, value = match[1], dict(_LABEL.findall(match[2] or "")), match[3]
        metric, _, part = name.rpartition("_")
        if metric not in metrics or part not in ("bucket", "sum", "count"):
            continue
        try:
            amount = float(value)
        except ValueError:
            amount = math.nan
        if not 0 <= amount < math.inf:
            raise InputError(f"is {value}", file=file, line=number, field=name, expected="a number >= 0")
        found.append(_Sample(metric, part, labels, amount, number))
    first = next((metric for metric in metrics if any(one.metric == metric for one in found)), None)
    return [one for one in found if one.metric == first]


def _buckets(samples: list[_Sample], model: str | None, file: str) -> Buckets:
    names = sorted({one.labels["model_name"] for one in samples if "model_name" in one.labels})
    if model is None and len(names) > 1:
        raise InputError(f"has the models {', '.join(names)}", file=file, expected="metrics of one model")
    if model is not None:
        samples = [one for one in samples if one.labels.get("model_name") == model]
    counts: dict[float, float] = {}
    sums = [one.value for one in samples if one.part == "sum"]
    for one in samples:
        if one.part != "bucket":
            continue
        try:
            bound = float(one.labels["le"])
        except (KeyError, ValueError):
            raise InputError("has no bound", file=file, line=one.line, field="le", expected="a number") from None
        counts[bound] = counts.get(bound, 0.0) + one.value
    bounds = sorted(counts)
    cumulative = [counts[bound] for bound in bounds]
    if not bounds or bounds[-1] != math.inf or len(bounds) < 2:
        raise InputError("has no bucket +Inf", file=file, field="le", expected="all buckets of the histogram")
    if any(later < earlier for earlier, later in itertools.pairwise(cumulative)):
        raise InputError("has buckets that shrink", file=file, field="le", expected="cumulative counts")
    if cumulative[-1] <= 0:
        raise InputError("has seen no request yet", file=file, expected="metrics of a server after some traffic")
    return Buckets(tuple(bounds), tuple(cumulative), sum(sums) if sums else None)


def spread(buckets: Buckets) -> Histogram:
    """Whole lengths for the buckets, each bucket's count kept, and the mean where the lengths can have it.

    A bucket's lengths are a geometric series over it; their weights are length^a with one a for all buckets, solved for
    the mean (a = -1: as many requests in every octave).
    """
    lengths: list[NDArray[np.float64]] = []
    counts: list[float] = []
    below, before = 0.0, 0.0
    for bound, total in zip(buckets.bounds, buckets.cumulative, strict=True):
        high = min(bound, below * BEYOND, MAX_TOKENS) if math.isinf(bound) else min(bound, MAX_TOKENS)
        if total > before:
            lengths.append(_lengths(below, high))
            counts.append(total - before)
        below, before = max(below, high), total
    power = _power(lengths, counts, buckets.mean_tokens)
    merged: dict[int, float] = {}
    for values, count in zip(lengths, counts, strict=True):
        for length, weight in zip(values.tolist(), _weights(values, power).tolist(), strict=True):
            merged[int(length)] = merged.get(int(length), 0.0) + count * weight
    kept = sorted((length, weight) for length, weight in merged.items() if weight > 0)
    return Histogram(tuple(length for length, _ in kept), tuple(weight for _, weight in kept))


def _lengths(below: float, high: float) -> NDArray[np.float64]:
    """Whole lengths in (below, high], at most `POINTS`; at least one, from 1 on."""
    first = max(1.0, math.floor(below) + 1.0)
    last = max(first, math.floor(high))
    return np.unique(np.rint(np.geomspace(first, last, POINTS)))


def _weights(lengths: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    weights = (lengths / lengths[-1]) ** power
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _power(lengths: list[NDArray[np.float64]], counts: list[float], mean_tokens: float | None) -> float:
    """The exponent that gives the mean; as far as it goes where none does."""
    if mean_tokens is None:
        return 0.0

    def mean(power: float) -> float:
        sums = [
            count * float((values * _weights(values, power)).sum())
            for values, count in zip(lengths, counts, strict=True)
        ]
        return sum(sums) / sum(counts)

    low, high = -30.0, 30.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < mean_tokens else (low, middle)
    return (low + high) / 2
