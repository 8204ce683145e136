"""Drawn lengths of the requests of one class, by its spec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from planner.simulate.model import IntArray
from specs.deployment import (
    FixedLength,
    HistogramLength,
    LengthSpec,
    LognormalLength,
    MeanLength,
    TrafficClass,
    UniformLength,
)
from specs.errors import InputError
from specs.traffic import (
    Histogram,
    draw_fixed,
    draw_histogram,
    draw_lognormal,
    draw_mean,
    draw_uniform,
    read_histogram,
)
from specs.traffic.prometheus import is_url, read_prometheus


@contextmanager
def at_field(field: str) -> Iterator[None]:
    """Errors about no file are placed at this field of the spec, or below it where they already name one."""
    try:
        yield
    except InputError as error:
        if error.file is None:
            error.field = field if error.field is None else f"{field}.{error.field}"
        raise


def draw_request_lengths(
    traffic: TrafficClass, count: int, base_dir: Path, context: int | None, random: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Prompt and output tokens of `count` requests, within the model's `context`; histograms are read in `base_dir`."""
    if traffic.prompt_tokens is None or traffic.output_tokens is None:
        raise InputError("arrivals without lengths", expected="prompt_tokens and output_tokens")
    prompt_tokens = draw_lengths("prompt_tokens", traffic.prompt_tokens, count, base_dir, random)
    output_tokens = draw_lengths("output_tokens", traffic.output_tokens, count, base_dir, random)
    return within_context(traffic, context, prompt_tokens, output_tokens)


def within_context(
    traffic: TrafficClass, context: int | None, prompt_tokens: IntArray, output_tokens: IntArray
) -> tuple[IntArray, IntArray]:
    """Drawn lengths without a largest value, cut to the model's declared context: the tail of a law is no request.

    The output keeps at most half of the context, the prompt what the output leaves. Lengths that someone stated or
    recorded stay as they are; where they are too long, that is an error elsewhere.
    """
    if context is None or not _endless(traffic.prompt_tokens):
        return prompt_tokens, output_tokens
    if _endless(traffic.output_tokens):
        output_tokens = np.minimum(output_tokens, max(1, context // 2))
    return np.minimum(prompt_tokens, np.maximum(1, context - output_tokens)), output_tokens


def _endless(length: LengthSpec | None) -> bool:
    """Whether nobody knows the largest value; of a server's metrics the last bucket has no end."""
    if isinstance(length, HistogramLength):
        return length.source == "prometheus"
    return isinstance(length, LognormalLength | MeanLength)


def draw_lengths(field: str, spec: LengthSpec, count: int, base_dir: Path, random: np.random.Generator) -> IntArray:
    """`count` lengths in tokens; errors name `field`."""
    with at_field(field):
        match spec:
            case FixedLength():
                return draw_fixed(spec.tokens, count)
            case MeanLength():
                return draw_mean(spec.mean_tokens, spec.max_tokens, count, random)
            case LognormalLength():
                return draw_lognormal(spec.mean_tokens, spec.p99_tokens, count, random)
            case UniformLength():
                return draw_uniform(spec.low_tokens, spec.high_tokens, count, random)
            case HistogramLength():
                return draw_histogram(_histogram(field, spec, base_dir), count, random)


def _histogram(field: str, spec: HistogramLength, base_dir: Path) -> Histogram:
    if spec.source == "csv":
        return read_histogram(base_dir / spec.file)
    source = spec.file if is_url(spec.file) else base_dir / spec.file
    return read_prometheus(source, "prompt_tokens" if field == "prompt_tokens" else "output_tokens")
