"""The declared traffic as a workload: traces cut to their busiest window, arrivals and lengths drawn with a seed."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.simulate.model import FloatArray, IntArray, Workload
from planner.simulate.traffic.classes import ClassRequests, joined_workload
from planner.simulate.traffic.lengths import at_field, draw_lengths, draw_request_lengths, within_context
from planner.simulate.traffic.sessions import draw_turns
from specs.deployment import ArrivalSpec, DeploymentSpec, SessionSpec, SharedPrefixSpec, TrafficClass
from specs.errors import InputError, NotHonouredError
from specs.plan import SimulatedWindow
from specs.traffic import (
    Chains,
    Trace,
    constant_arrivals,
    diurnal_arrivals,
    gamma_arrivals,
    poisson_arrivals,
    read_trace,
)

BUSIEST_S = 600.0  # of every class
# A p99 of 1,000 requests rests on ten of them. A longer window holds at most so many of all classes together, as what a
# simulation costs grows with them, and lasts at most a week.
LEAST_REQUESTS, MOST_REQUESTS, MOST_S = 1000, 20_000, 7 * 86_400.0
# Diurnal windows grow to so much of the period, no further: within an eighth of it from the peak the rate keeps
# at least 0.7 of its swing, and beyond it a window would no longer be the busiest.
PEAK_PART = 0.25


@dataclass(frozen=True)
class _Source:
    """Where the requests of one class come from: a recording with its times, or a rate."""

    trace: Trace | None  # scaled to the declared rate
    rate_per_s: float  # mean
    longest_s: float = math.inf  # that a window may be made longer to

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
class _Draw:
    """What drawing the requests of one class needs."""

    traffic: TrafficClass
    base_dir: Path
    context: int | None  # tokens that the model is declared for
    seconds: float
    random: np.random.Generator


def declared_workload(
    spec: DeploymentSpec,
    base_dir: str | Path,
    *,
    seconds: float = BUSIEST_S,
    seed: int = 0,
    least_requests: int = 0,
    coupled: bool = True,
    predictor_error: float | None = None,
) -> tuple[Workload, tuple[SimulatedWindow, ...]]:
    """The busiest `seconds` of every request class, all starting at 0, and where each came from.

    A trace gives its busiest window (after scaling to the declared rate), diurnal arrivals the window around their peak
    (a window of a whole period begins where the period does); other drawn arrivals are alike everywhere, and sessions
    are drawn as a window finds them that opens while they go on. The windows of several classes are laid over each
    other, so their peaks coincide: the hardest case. Each class draws from its own generator (PCG64, seeded by `seed`
    and the class name), so one class does not disturb another. Where a class has fewer than `least_requests` requests
    in `seconds`, all windows are longer: until it has so many, a trace ends, a quarter of a diurnal period is over, all
    classes together have `MOST_REQUESTS`, or a week is over.

    Not `coupled`, requests depend on nothing: turns of sessions come at their earliest moments, as if answers took no
    time, and nothing is said about what prompts share. `predictor_error` adds predicted output lengths: the true one
    times exp(error * a normal deviate). Trace and histogram files are found relative to `base_dir`. `InputError` as
    `read_trace` raises it, and for traffic without arrivals (closed loops: `declared_closed_loop`).
    """
    sources = []
    for index, traffic in enumerate(spec.traffic):
        with at_field(f"traffic[{index}]"):
            sources.append(_source(traffic, Path(base_dir)))
    seconds = _long_enough(sources, seconds, least_requests)
    drawn = []
    for index, (traffic, source) in enumerate(zip(spec.traffic, sources, strict=True)):
        context = spec.models[traffic.model].max_context_tokens
        with at_field(f"traffic[{index}]"):
            drawn.append(
                _requests(_Draw(traffic, Path(base_dir), context, seconds, class_generator(seed, traffic)), source)
            )
    predictors = None
    if predictor_error is not None:
        predictors = [
            _predicted(part.output_tokens, predictor_error, class_generator(seed, traffic, 1))
            for part, traffic in zip(drawn, spec.traffic, strict=True)
        ]
    workload = joined_workload(spec.traffic, drawn, coupled=coupled, predicted_tokens=predictors)
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
            notes=(*part.notes, *_of_its_window(traffic), *(() if coupled else part.unused)),
            seed=seed,
        )
        for traffic, part in zip(spec.traffic, drawn, strict=True)
    )
    return workload, windows


def _of_its_window(traffic: TrafficClass) -> tuple[str, ...]:
    if traffic.window is None:
        return ()
    start, end = (
        f"{second // 3600:02d}:{second // 60 % 60:02d}" for second in (traffic.window.start_s, traffic.window.end_s)
    )
    return (f"taken as sending all the time, not from {start} to {end} only",)


def class_generator(seed: int, traffic: TrafficClass, *purpose: int) -> np.random.Generator:
    """The class's own generator; another `purpose`, another one."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(traffic.name.encode()), *purpose]))


def _predicted(output_tokens: IntArray, error: float, random: np.random.Generator) -> IntArray:
    noise = np.exp(error * random.standard_normal(len(output_tokens)))
    return np.maximum(np.rint(output_tokens * noise), 1).astype(np.int64)


def _source(traffic: TrafficClass, base_dir: Path) -> _Source:
    """The trace read and scaled, or the declared rate."""
    if traffic.arrivals is not None:
        diurnal = traffic.arrivals.diurnal
        longest_s = math.inf if diurnal is None else PEAK_PART * diurnal.period_s
        return _Source(None, traffic.arrivals.rate_per_s, longest_s)
    if traffic.sessions is not None:
        return _Source(None, traffic.sessions.rate_per_s * traffic.sessions.turns_mean)
    if traffic.trace is None:
        raise NotHonouredError("a closed loop has no arrivals of its own", expected="trace, arrivals or sessions")
    with at_field("trace"):
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
    # windows exclude their end
    ends = [min(math.nextafter(source.span_s, math.inf), source.longest_s) for source in sources]
    return max(seconds, min(wanted, *bounds, *ends))


def _requests(draw: _Draw, source: _Source) -> ClassRequests:
    if draw.traffic.trace is not None:
        with at_field("trace"):
            return _from_trace(draw, draw.traffic.trace.file, source)
    if draw.traffic.sessions is not None:
        return _from_sessions(draw, draw.traffic.sessions)
    assert draw.traffic.arrivals is not None
    return _from_arrivals(draw, draw.traffic.arrivals)


def _from_arrivals(draw: _Draw, arrivals: ArrivalSpec) -> ClassRequests:
    with at_field("arrivals"):
        arrival_s, start_s = _arrivals(arrivals, draw.seconds, draw.random)
        _check_some(arrival_s, draw.seconds)
    prompts, outputs = draw_request_lengths(draw.traffic, len(arrival_s), draw.base_dir, draw.context, draw.random)
    rate_per_s = arrivals.rate_per_s
    peak = "" if arrivals.diurnal is None else f", {arrivals.diurnal.peak_to_mean:g} times that at the peak"
    return ClassRequests(
        arrival_s=arrival_s,
        prompt_tokens=prompts,
        output_tokens=outputs,
        source=f"{arrivals.process} arrivals at {rate_per_s:g}/s{peak}",
        start_s=start_s,
        window_s=draw.seconds,
        mean_tokens_per_s=(rate_per_s * float(prompts.mean()), rate_per_s * float(outputs.mean())),
        sharing=_shared(draw, prompts),
    )


def _arrivals(spec: ArrivalSpec, seconds: float, random: np.random.Generator) -> tuple[FloatArray, float]:
    """Arrival times in the window, and where it begins in a diurnal period."""
    match spec.process:
        case "constant":
            return constant_arrivals(spec.rate_per_s, seconds), 0.0
        case "gamma":
            return gamma_arrivals(spec.rate_per_s, spec.cv, seconds, random), 0.0
        case "poisson":
            return poisson_arrivals(spec.rate_per_s, seconds, random), 0.0
        case "diurnal":
            if spec.diurnal is None:
                raise InputError("a diurnal process needs its swing", field="diurnal", expected="peak_to_mean")
            peak_to_mean, period_s, peak_at_s = (
                spec.diurnal.peak_to_mean,
                spec.diurnal.period_s,
                spec.diurnal.peak_at_s,
            )
            start_s = 0.0 if seconds >= period_s else (peak_at_s - seconds / 2) % period_s
            times_s = diurnal_arrivals(spec.rate_per_s, peak_to_mean, period_s, peak_at_s, start_s, seconds, random)
            return times_s, start_s


def _from_sessions(draw: _Draw, sessions: SessionSpec) -> ClassRequests:
    def lengths(count: int) -> tuple[IntArray, IntArray]:
        return draw_request_lengths(draw.traffic, count, draw.base_dir, draw.context, draw.random)

    with at_field("sessions"):
        turns = draw_turns(sessions, lengths, draw.context, draw.seconds, draw.random)
        _check_some(turns.arrival_s, draw.seconds)
    sharing = _shared(draw, turns.covered_tokens, turns.session, growing=sessions.growing_context)
    return ClassRequests(
        arrival_s=turns.arrival_s,
        prompt_tokens=turns.prompt_tokens,
        output_tokens=turns.output_tokens,
        source=f"sessions of {sessions.turns_mean:g} turns at {sessions.rate_per_s:g}/s",
        start_s=0.0,
        window_s=draw.seconds,
        mean_tokens_per_s=(
            float(turns.prompt_tokens.sum()) / draw.seconds,
            float(turns.output_tokens.sum()) / draw.seconds,
        ),
        sharing=sharing,
        session=turns.session,
        after=turns.after,
        gap_s=turns.gap_s,
    )


def _from_trace(draw: _Draw, file: str, source: _Source) -> ClassRequests:
    whole, traffic = source.trace, draw.traffic
    assert whole is not None
    if source.timed:
        window = whole.busiest(draw.seconds)
        arrival_s, start_s, window_s = window.arrival_s, window.start_s, min(draw.seconds, source.span_s)
    else:
        arrival_s, start_s, window_s = poisson_arrivals(source.rate_per_s, draw.seconds, draw.random), 0.0, draw.seconds
        _check_some(arrival_s, draw.seconds)
        window = whole.select(np.arange(len(arrival_s)) % len(whole))  # again from the top where it ends
    prompts, outputs, sharing = window.prompt_tokens, window.output_tokens, window.sharing
    mean_prompt, mean_output = float(whole.prompt_tokens.mean()), float(whole.output_tokens.mean())
    longest = int((whole.prompt_tokens + whole.output_tokens).max()) if traffic.prompt_tokens is None else 0
    if traffic.prompt_tokens is not None:
        prompts = draw_lengths("prompt_tokens", traffic.prompt_tokens, len(arrival_s), draw.base_dir, draw.random)
        mean_prompt, sharing = float(prompts.mean()), None
    if traffic.output_tokens is not None:
        outputs = draw_lengths("output_tokens", traffic.output_tokens, len(arrival_s), draw.base_dir, draw.random)
        mean_output = float(outputs.mean())
    prompts, outputs = within_context(traffic, draw.context, prompts, outputs)
    if traffic.shared_prefix is not None and sharing is not None:
        raise InputError("the trace says itself what its prompts share", expected="no shared_prefix beside it")
    return ClassRequests(
        arrival_s=arrival_s,
        prompt_tokens=prompts,
        output_tokens=outputs,
        source=file,
        sha256=whole.sha256,
        notes=whole.notes,
        start_s=start_s,
        window_s=window_s,
        mean_tokens_per_s=(source.rate_per_s * mean_prompt, source.rate_per_s * mean_output),
        longest_tokens=longest,
        sharing=sharing or _shared(draw, prompts),
        session=window.session,
        priority=window.priority,
        tenants=window.tenants,
        tenant_index=window.tenant_index,
    )


def _shared(
    draw: _Draw, covered_tokens: IntArray, session: IntArray | None = None, *, growing: bool = False
) -> Chains | None:
    """What the declaration says that prompts share; the group is drawn by conversation, or by request."""
    spec = draw.traffic.shared_prefix
    if spec is None and not growing:
        return None
    alone = np.arange(len(covered_tokens))
    group = shared_tokens = np.zeros(len(covered_tokens), np.int64)
    if spec is not None:
        owner = alone if session is None else session
        group = draw.random.choice(spec.groups, int(owner.max()) + 1, p=_popularity(spec))[owner]
        shared_tokens = np.full(len(covered_tokens), spec.tokens)
    return Chains(group, shared_tokens, session if growing and session is not None else alone, covered_tokens)


def _popularity(spec: SharedPrefixSpec) -> FloatArray:
    weights: FloatArray = np.arange(1, spec.groups + 1, dtype=np.float64) ** -spec.skew
    return weights / float(weights.sum())


def _check_some(arrival_s: FloatArray, seconds: float) -> None:
    """`InputError` where nothing was drawn."""
    if len(arrival_s) == 0:
        raise InputError(
            f"no request arrives within {seconds:g} s",
            field="rate",
            expected="a rate of at least a few requests in the window",
        )
