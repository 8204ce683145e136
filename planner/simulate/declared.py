"""The declared traffic as a workload: traces cut to their busiest window, arrivals and lengths drawn with a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from planner.simulate.model import FloatArray, IntArray, Workload
from specs.deployment import (
    ArrivalSpec,
    DeploymentSpec,
    FixedLength,
    HistogramLength,
    LengthSpec,
    LognormalLength,
    MeanLength,
    TraceSpec,
    TrafficClass,
    UniformLength,
)
from specs.errors import InputError, NotHonouredError
from specs.plan import SimulatedWindow
from specs.traffic import (
    constant_arrivals,
    draw_fixed,
    draw_histogram,
    draw_lognormal,
    draw_mean,
    draw_uniform,
    gamma_arrivals,
    poisson_arrivals,
    read_histogram,
    read_trace,
)


@dataclass(frozen=True)
class _Drawn:
    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    source: str
    sha256: str | None
    start_s: float
    window_s: float
    longest_tokens: int = 0  # prompt and output of the longest recorded request, outside the window too

    @property
    def longest_request_tokens(self) -> int:
        """Of the whole trace, or of what was drawn."""
        return max(self.longest_tokens, int((self.prompt_tokens + self.output_tokens).max()))


def declared_workload(
    spec: DeploymentSpec, base_dir: str | Path, *, seconds: float = 600.0, seed: int = 0
) -> tuple[Workload, tuple[SimulatedWindow, ...]]:
    """The busiest `seconds` of every request class, all starting at 0, and where each came from.

    A trace gives its busiest window (after scaling to the declared rate); drawn arrivals fill a window of that length.
    The windows of several classes are laid over each other, so their peaks coincide: the hardest case. Each class
    draws from its own generator (PCG64, seeded by `seed` and the class name), so one class does not disturb another.
    Trace and histogram files are found relative to `base_dir`. `InputError` as `read_trace` raises it.
    """
    drawn = []
    for index, traffic in enumerate(spec.traffic):
        with _at(f"traffic[{index}]"):
            part = _draw(traffic, Path(base_dir), seconds, seed)
        drawn.append(_cut(part, traffic, spec.models[traffic.model].max_context_tokens))
    classes = tuple(traffic.name for traffic in spec.traffic)
    class_index = np.repeat(np.arange(len(drawn)), [len(part.arrival_s) for part in drawn])
    arrival_s = np.concatenate([part.arrival_s for part in drawn])
    order = np.argsort(arrival_s, kind="stable")
    workload = Workload(
        classes,
        class_index[order],
        arrival_s[order],
        np.concatenate([part.prompt_tokens for part in drawn])[order],
        np.concatenate([part.output_tokens for part in drawn])[order],
        max(part.window_s for part in drawn),
    )
    windows = tuple(
        SimulatedWindow(
            request_class=traffic.name,
            source=part.source,
            sha256=part.sha256,
            start_s=part.start_s,
            end_s=part.start_s + part.window_s,
            requests=len(part.arrival_s),
            longest_request_tokens=part.longest_request_tokens,
            seed=seed,
        )
        for traffic, part in zip(spec.traffic, drawn, strict=True)
    )
    return workload, windows


@contextmanager
def _at(field: str) -> Iterator[None]:
    """Errors about no file are placed at this field of the spec, or below it where they already name one."""
    try:
        yield
    except InputError as error:
        if error.file is None:
            error.field = field if error.field is None else f"{field}.{error.field}"
        raise


def _draw(traffic: TrafficClass, base_dir: Path, seconds: float, seed: int) -> _Drawn:
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(traffic.name.encode())]))
    if traffic.trace is not None:
        with _at("trace"):
            return _from_trace(traffic, traffic.trace, base_dir, seconds, random)
    if traffic.arrivals is None:
        raise NotHonouredError(
            "sessions and closed loops are not simulated",
            expected="trace or arrivals",
        )
    if traffic.prompt_tokens is None or traffic.output_tokens is None:
        raise InputError("arrivals without lengths", expected="prompt_tokens and output_tokens")
    with _at("arrivals"):
        arrival_s = _arrivals(traffic.arrivals, seconds, random)
    if len(arrival_s) == 0:
        raise InputError(
            f"no request arrives within {seconds:g} s at {traffic.arrivals.rate_per_s:g}/s",
            field="arrivals",
            expected="a rate of at least a few requests in the window",
        )
    arrivals = traffic.arrivals
    return _Drawn(
        arrival_s,
        _lengths("prompt_tokens", traffic.prompt_tokens, len(arrival_s), base_dir, random),
        _lengths("output_tokens", traffic.output_tokens, len(arrival_s), base_dir, random),
        f"{arrivals.process} arrivals at {arrivals.rate_per_s:g}/s",
        None,
        0.0,
        seconds,
    )


def _cut(drawn: _Drawn, traffic: TrafficClass, context: int | None) -> _Drawn:
    """Drawn lengths without a largest value, cut to the model's declared context: the tail of a law is no request.

    The output keeps at most half of the context, the prompt what the output leaves. Lengths that someone stated or
    recorded stay as they are; where they are too long, that is an error elsewhere.
    """
    endless = (LognormalLength, MeanLength)
    if context is None or not isinstance(traffic.prompt_tokens, endless):
        return drawn
    output_tokens = drawn.output_tokens
    if isinstance(traffic.output_tokens, endless):
        output_tokens = np.minimum(output_tokens, max(1, context // 2))
    prompt_tokens = np.minimum(drawn.prompt_tokens, np.maximum(1, context - output_tokens))
    return replace(drawn, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def _from_trace(
    traffic: TrafficClass, spec: TraceSpec, base_dir: Path, seconds: float, random: np.random.Generator
) -> _Drawn:
    trace = read_trace(base_dir / spec.file, spec.format)
    if not trace.timed:
        if spec.rate_per_s is None:
            raise InputError("the trace has no times", field="rate", expected="a rate in requests/s")
        arrival_s = poisson_arrivals(spec.rate_per_s, seconds, random)
        rows = np.arange(len(arrival_s)) % len(trace)  # from the first row on, again from the top where it ends
        prompts, outputs, start_s, window_s = trace.prompt_tokens[rows], trace.output_tokens[rows], 0.0, seconds
    else:
        whole = trace if spec.rate_per_s is None else trace.scaled(spec.rate_per_s)
        window = whole.busiest(seconds)
        arrival_s, prompts, outputs, start_s = (
            window.arrival_s,
            window.prompt_tokens,
            window.output_tokens,
            window.start_s,
        )
        span_s = float(whole.arrival_s[-1])
        window_s = seconds if span_s >= seconds else max(span_s, math.ulp(1.0))
    count = len(arrival_s)
    return _Drawn(
        arrival_s,
        prompts
        if traffic.prompt_tokens is None
        else _lengths("prompt_tokens", traffic.prompt_tokens, count, base_dir, random),
        outputs
        if traffic.output_tokens is None
        else _lengths("output_tokens", traffic.output_tokens, count, base_dir, random),
        spec.file,
        trace.sha256,
        start_s,
        window_s,
        longest_tokens=int((trace.prompt_tokens + trace.output_tokens).max()) if traffic.prompt_tokens is None else 0,
    )


def _arrivals(spec: ArrivalSpec, seconds: float, random: np.random.Generator) -> FloatArray:
    match spec.process:
        case "constant":
            return constant_arrivals(spec.rate_per_s, seconds)
        case "gamma":
            return gamma_arrivals(spec.rate_per_s, spec.cv, seconds, random)
        case "poisson":
            return poisson_arrivals(spec.rate_per_s, seconds, random)


def _lengths(field: str, spec: LengthSpec, count: int, base_dir: Path, random: np.random.Generator) -> IntArray:
    with _at(field):
        return _drawn_lengths(spec, count, base_dir, random)


def _drawn_lengths(spec: LengthSpec, count: int, base_dir: Path, random: np.random.Generator) -> IntArray:
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
            if spec.source != "csv":
                raise NotHonouredError(f"histograms from {spec.source} are not read", field="histogram.source")
            return draw_histogram(read_histogram(base_dir / spec.file), count, random)
