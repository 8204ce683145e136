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
    TrafficClass,
    UniformLength,
)
from specs.errors import InputError, NotHonouredError
from specs.plan import SimulatedWindow
from specs.traffic import (
    Trace,
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

BUSIEST_S = 600.0  # of every class
# A p99 of 1,000 requests rests on ten of them. A longer window holds at most so many of all classes together, as what a
# simulation costs grows with them, and lasts at most a week.
LEAST_REQUESTS, MOST_REQUESTS, MOST_S = 1000, 20_000, 7 * 86_400.0


@dataclass(frozen=True)
class _Source:
    """Where the requests of one class come from: a recording with its times, or a rate."""

    trace: Trace | None  # scaled to the declared rate
    rate_per_s: float  # mean

    @property
    def timed(self) -> bool:
        """Whether the recorded times are kept: then there is an end."""
        return self.trace is not None and self.trace.timed

    @property
    def span_s(self) -> float:
        """Until the last recorded request; requests that are drawn never end."""
        return float(self.trace.arrival_s[-1]) if self.trace is not None and self.trace.timed else math.inf

    def requests(self, seconds: float) -> float:
        """Requests in the busiest `seconds`; expected ones where they are drawn."""
        if self.trace is not None and self.trace.timed:
            return len(self.trace.busiest(seconds))
        return self.rate_per_s * seconds


@dataclass(frozen=True)
class _Drawn:
    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    source: str
    sha256: str | None
    start_s: float
    window_s: float
    mean_tokens_per_s: tuple[float, float]  # prompt and output, of the whole source
    longest_tokens: int = 0  # prompt and output of the longest recorded request, outside the window too

    @property
    def longest_request_tokens(self) -> int:
        """Of the whole trace, or of what was drawn."""
        return max(self.longest_tokens, int((self.prompt_tokens + self.output_tokens).max()))


def declared_workload(
    spec: DeploymentSpec, base_dir: str | Path, *, seconds: float = BUSIEST_S, seed: int = 0, least_requests: int = 0
) -> tuple[Workload, tuple[SimulatedWindow, ...]]:
    """The busiest `seconds` of every request class, all starting at 0, and where each came from.

    A trace gives its busiest window (after scaling to the declared rate); drawn arrivals fill a window of that length.
    The windows of several classes are laid over each other, so their peaks coincide: the hardest case. Each class
    draws from its own generator (PCG64, seeded by `seed` and the class name), so one class does not disturb another.
    Where a class has fewer than `least_requests` requests in `seconds`, all windows are longer: until it has so many,
    a trace ends, all classes together have `MOST_REQUESTS`, or a week is over.
    Trace and histogram files are found relative to `base_dir`. `InputError` as `read_trace` raises it.
    """
    sources = []
    for index, traffic in enumerate(spec.traffic):
        with _at(f"traffic[{index}]"):
            sources.append(_source(traffic, Path(base_dir)))
    seconds = _long_enough(sources, seconds, least_requests)
    drawn = []
    for index, (traffic, source) in enumerate(zip(spec.traffic, sources, strict=True)):
        with _at(f"traffic[{index}]"):
            part = _draw(traffic, source, Path(base_dir), seconds, seed)
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
            mean_prompt_tokens_per_s=part.mean_tokens_per_s[0],
            mean_output_tokens_per_s=part.mean_tokens_per_s[1],
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


def _source(traffic: TrafficClass, base_dir: Path) -> _Source:
    """The trace read and scaled, or the declared rate."""
    if traffic.arrivals is not None:
        return _Source(None, traffic.arrivals.rate_per_s)
    if traffic.trace is None:
        raise NotHonouredError(
            "sessions and closed loops are not simulated",
            expected="trace or arrivals",
        )
    with _at("trace"):
        trace, rate_per_s = read_trace(base_dir / traffic.trace.file, traffic.trace.format), traffic.trace.rate_per_s
        if not trace.timed:
            if rate_per_s is None:
                raise InputError("the trace has no times", field="rate", expected="a rate in requests/s")
            return _Source(trace, rate_per_s)
        if not math.isfinite(trace.rate_per_s):
            raise InputError(
                f"all requests of {traffic.trace.file} come at one moment, so there is no rate to plan for",
                field="file",
                expected="a trace that spans some time",
            )
        trace = trace if rate_per_s is None else trace.scaled(rate_per_s)
        return _Source(trace, trace.rate_per_s)


def _long_enough(sources: list[_Source], seconds: float, least_requests: int) -> float:
    """`seconds`, or the longer window of `declared_workload`."""
    if all(source.requests(seconds) >= least_requests for source in sources):
        return seconds
    wanted = max(least_requests / source.rate_per_s for source in sources)
    bounds = (MOST_REQUESTS / sum(source.rate_per_s for source in sources), MOST_S)
    ends = [math.nextafter(source.span_s, math.inf) for source in sources]  # windows exclude their end
    return max(seconds, min(wanted, *bounds, *ends))


def _draw(traffic: TrafficClass, source: _Source, base_dir: Path, seconds: float, seed: int) -> _Drawn:
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(traffic.name.encode())]))
    if traffic.trace is not None:
        with _at("trace"):
            return _from_trace(traffic, traffic.trace.file, source, base_dir, seconds, random)
    arrivals = traffic.arrivals
    assert arrivals is not None
    if traffic.prompt_tokens is None or traffic.output_tokens is None:
        raise InputError("arrivals without lengths", expected="prompt_tokens and output_tokens")
    with _at("arrivals"):
        arrival_s = _some(_arrivals(arrivals, seconds, random), seconds)
    prompts = _lengths("prompt_tokens", traffic.prompt_tokens, len(arrival_s), base_dir, random)
    outputs = _lengths("output_tokens", traffic.output_tokens, len(arrival_s), base_dir, random)
    return _Drawn(
        arrival_s,
        prompts,
        outputs,
        f"{arrivals.process} arrivals at {arrivals.rate_per_s:g}/s",
        None,
        0.0,
        seconds,
        (arrivals.rate_per_s * float(prompts.mean()), arrivals.rate_per_s * float(outputs.mean())),
    )


def _some(arrival_s: FloatArray, seconds: float) -> FloatArray:
    """The drawn arrivals; `InputError` where there are none."""
    if len(arrival_s) == 0:
        raise InputError(
            f"no request arrives within {seconds:g} s",
            field="rate",
            expected="a rate of at least a few requests in the window",
        )
    return arrival_s


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
    traffic: TrafficClass, file: str, source: _Source, base_dir: Path, seconds: float, random: np.random.Generator
) -> _Drawn:
    trace = source.trace
    assert trace is not None
    if source.timed:
        window = trace.busiest(seconds)
        arrival_s, start_s, window_s = window.arrival_s, window.start_s, min(seconds, source.span_s)
        prompts, outputs = window.prompt_tokens, window.output_tokens
    else:
        arrival_s, start_s, window_s = (
            _some(poisson_arrivals(source.rate_per_s, seconds, random), seconds),
            0.0,
            seconds,
        )
        rows = np.arange(len(arrival_s)) % len(trace)  # from the first row on, again from the top where it ends
        prompts, outputs = trace.prompt_tokens[rows], trace.output_tokens[rows]
    mean_prompt, mean_output = float(trace.prompt_tokens.mean()), float(trace.output_tokens.mean())
    longest = int((trace.prompt_tokens + trace.output_tokens).max()) if traffic.prompt_tokens is None else 0
    if traffic.prompt_tokens is not None:
        prompts = _lengths("prompt_tokens", traffic.prompt_tokens, len(arrival_s), base_dir, random)
        mean_prompt = float(prompts.mean())
    if traffic.output_tokens is not None:
        outputs = _lengths("output_tokens", traffic.output_tokens, len(arrival_s), base_dir, random)
        mean_output = float(outputs.mean())
    return _Drawn(
        arrival_s,
        prompts,
        outputs,
        file,
        trace.sha256,
        start_s,
        window_s,
        (source.rate_per_s * mean_prompt, source.rate_per_s * mean_output),
        longest,
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
