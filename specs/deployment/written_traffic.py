"""`traffic:` as it is written: where requests come from, how long they are, which latency they are promised."""

from __future__ import annotations

import re
from typing import Any

from specs import quantities as q
from specs.deployment import models as m
from specs.deployment.grammar import ByKind, Field, ListOf, Made, Place, Record, Shape, mapping_of
from specs.deployment.scalars import (
    DURATION,
    LIMIT,
    POSITIVE_SHARE,
    RATE,
    TOKENS,
    Count,
    Flag,
    Name,
    OneOf,
    Parsed,
    Quantity,
    Real,
    Text,
)  # fmt: skip
from specs.errors import nearest_names
from specs.quantities import shown
from specs.yaml_source import Mapping as MappingNode
from specs.yaml_source import Node, Sequence


class Uniform(Shape[tuple[int, int]]):
    """`[low, high]`."""

    says = "two token counts such as [100, 1024]"

    def read(self, node: Node, at: Place) -> tuple[int, int]:
        values = ListOf(TOKENS).read(node, at)
        if len(values) != 2 or values[0] > values[1]:
            raise at.error(f"[{', '.join(map(str, values[:4]))}] is no range", self.says)
        return values[0], values[1]

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": TOKENS.schema(), "minItems": 2, "maxItems": 2}


def _check_mean(values: dict[str, Any], at: Place) -> None:
    longest = values.get("max_tokens")
    if longest is not None and longest < values["mean_tokens"]:
        raise at.error(f"max {longest} is below the mean {values['mean_tokens']}", field="max")


def _check_lognormal(values: dict[str, Any], at: Place) -> None:
    mean, p99 = values["mean_tokens"], values["p99_tokens"]
    # With z the 99 % point of a normal, p99/mean = exp(z*sigma - sigma^2/2) peaks at sigma = z with exp(z^2/2) = 14.97.
    if not 1 < p99 / mean < 14.9:
        message = f"no lognormal distribution has mean {mean} and p99 {p99}"
        raise at.error(message, "a p99 above the mean and below 14.9 times the mean", field="p99")


LOGNORMAL = Record(
    m.LognormalLength,
    {
        "mean": Field(TOKENS, "mean tokens", "mean_tokens", required=True),
        "p99": Field(TOKENS, "tokens that 1 % of requests exceed", "p99_tokens", required=True),
    },
    _check_lognormal,
)
MEAN = Record(
    m.MeanLength,
    {
        "mean": Field(TOKENS, "mean tokens", "mean_tokens", required=True),
        "max": Field(TOKENS, "no request is longer", "max_tokens"),
    },
    _check_mean,
)
HISTOGRAM = Record(
    m.HistogramLength,
    {
        "histogram": Field(Text("a file of counts by length"), "file of counts by length", "file", required=True),
        "source": Field(OneOf(("csv", "prometheus")), "csv (default), or the metrics of a running vLLM"),
    },
)


class Length(Shape[Any]):
    """A number of tokens per request: fixed, or a distribution named by its first field."""

    says = "a token count, or a mapping with mean (and max), lognormal, uniform or histogram"

    def read(self, node: Node, at: Place) -> Any:
        if isinstance(node, Sequence):
            raise at.error("is a list", self.says)
        if not isinstance(node, MappingNode):
            return m.FixedLength(tokens=TOKENS.read(node, at))
        kinds = [kind for kind in ("mean", "lognormal", "uniform", "histogram") if kind in node.entries]
        if not kinds:
            key = next(iter(node.entries), "")
            nearest = nearest_names(key[:80], ("mean", "lognormal", "uniform", "histogram"))
            raise at.error(f"{shown(key)} is no distribution" if key else "is empty", self.says, nearest)
        if len(kinds) > 1:
            raise at.error(f"{kinds[0]!r} and {kinds[1]!r} are two distributions", "one")
        if kinds[0] in ("lognormal", "uniform"):
            return self._single(node, at, kinds[0])
        return (MEAN if kinds[0] == "mean" else HISTOGRAM).read(node, at)

    def _single(self, node: MappingNode, at: Place, kind: str) -> Any:
        for key in node.entries:
            if key != kind:
                raise at.of(key, node.key_lines[key]).error("unknown field", f"only {kind}")
        place = at.of(kind, node.key_lines[kind])
        if kind == "lognormal":
            return LOGNORMAL.read(node.entries[kind], place)
        low, high = Uniform().read(node.entries[kind], place)
        return m.UniformLength(low_tokens=low, high_tokens=high)

    def schema(self) -> dict[str, Any]:
        def only(name: str, shape: dict[str, Any]) -> dict[str, Any]:
            return {"type": "object", "properties": {name: shape}, "required": [name], "additionalProperties": False}

        lognormal, uniform = only("lognormal", LOGNORMAL.schema()), only("uniform", Uniform().schema())
        return {"anyOf": [TOKENS.schema(), MEAN.schema(), lognormal, uniform, HISTOGRAM.schema()]}


class MeanOf(Shape[float]):
    """`{mean: x}`."""

    def __init__(self, inner: Shape[float]) -> None:
        self.inner = inner
        self.says = f"a mapping with mean: {inner.says}"

    def read(self, node: Node, at: Place) -> float:
        node = mapping_of(node, at, self.says)
        for key in node.entries:
            if key != "mean":
                nearest = nearest_names(key[:80], ("mean",))
                raise at.of(key, node.key_lines[key]).error("unknown field", "only mean", nearest)
        return self.inner.read(node.entries["mean"], at.of("mean", node.key_lines["mean"]))

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "properties": {"mean": self.inner.schema()}, "required": ["mean"],
                "additionalProperties": False}  # fmt: skip


_PERCENTILE = re.compile(r"p([0-9]{1,2}(?:\.[0-9]{1,3})?|100)", re.ASCII)


class LatencyLimit(Shape[Any]):
    """A duration (a joint limit), or `{p90: 1s, p99: 3s}`; the value is a float, or (percentile, limit) pairs."""

    says = "a duration such as 300ms, or percentiles such as {p90: 1s}"

    def read(self, node: Node, at: Place) -> float | tuple[tuple[float, float], ...]:
        if isinstance(node, Sequence):
            raise at.error("is a list", self.says)
        if not isinstance(node, MappingNode):
            return LIMIT.read(node, at)
        node = mapping_of(node, at, self.says)
        limits: dict[float, float] = {}
        for key, child in node.entries.items():
            place = at.of(key, node.key_lines[key])
            match = _PERCENTILE.fullmatch(key)
            if match is None or not float(match[1]):
                nearest = ("p50",) if key in ("median", "mean", "average", "avg") else ()
                raise place.error(f"{shown(key)} is not a percentile", "p50, p90, p99, p99.9, ...", nearest)
            if float(match[1]) in limits:
                raise place.error("this percentile stands twice")
            limits[float(match[1])] = LIMIT.read(child, place)
        return tuple(sorted(limits.items()))

    def schema(self) -> dict[str, Any]:
        percentiles = {"type": "object", "minProperties": 1, "additionalProperties": False,
                       "patternProperties": {f"^{_PERCENTILE.pattern}$": LIMIT.schema()}}  # fmt: skip
        return {"anyOf": [LIMIT.schema(), percentiles]}


METRICS: tuple[m.Metric, ...] = ("ttft", "tpot", "e2e")


def _finish_slo(values: dict[str, Any], at: Place) -> None:
    stated = {metric: values.pop(metric) for metric in METRICS if metric in values}
    joint = {metric: limit for metric, limit in stated.items() if isinstance(limit, float)}
    percentiles = {metric: limit for metric, limit in stated.items() if not isinstance(limit, float)}
    both = "percentile limits (ttft: {p90: 1s}) or joint limits (ttft: 1s, attainment: 99%)"
    if not stated:
        raise at.error("states no latency limit", f"at least one of {', '.join(METRICS)}")
    if joint and percentiles:
        message = f"mixes the joint limit of {next(iter(joint))} with percentile limits of {next(iter(percentiles))}"
        raise at.error(message, f"either {both}")
    if percentiles and "attainment" in values:
        raise at.error("stands without joint limits: percentiles already state the share", both, field="attainment")
    if joint and "attainment" not in values:
        raise at.error("joint limits need the share of requests that meets all of them", "attainment: 99%")
    values["joint"] = joint
    values["percentiles"] = tuple(
        m.PercentileLimit(metric=metric, percentile=percentile, limit_s=limit)
        for metric, limits in percentiles.items()
        for percentile, limit in limits
    )


SLO = Record(
    m.SLO,
    {
        "ttft": Field(LatencyLimit(), "time to first token"),
        "tpot": Field(LatencyLimit(), "time per output token after the first: (e2e - ttft) / (tokens - 1)"),
        "e2e": Field(LatencyLimit(), "end to end latency"),
        "attainment": Field(POSITIVE_SHARE, "share of requests that meets all joint limits"),
    },
    _finish_slo,
)


def _finish_arrivals(values: dict[str, Any], at: Place) -> None:
    process, cv = values.get("process", "poisson"), values.get("cv")
    fixed = {"poisson": 1.0, "diurnal": 1.0, "constant": 0.0}.get(process)
    if fixed is None and cv is None:
        raise at.error("a gamma process needs cv, the coefficient of variation of its gaps", "cv: 4")
    if fixed is None and not cv:
        raise at.error("a gamma process with cv 0 is constant", "process: constant", field="cv")
    if fixed is not None and cv is not None and cv != fixed:
        raise at.error(f"a {process} process has cv {fixed:g}", "process: gamma", field="cv")
    values["cv"] = cv if fixed is None else fixed
    _finish_diurnal(values, process, at)


def _finish_diurnal(values: dict[str, Any], process: str, at: Place) -> None:
    names = {"peak_to_mean": "peak_to_mean", "period_s": "period", "peak_at_s": "peak_at"}
    stated = {name: values.pop(name) for name in names if name in values}
    if process != "diurnal":
        for name in stated:
            raise at.error(f"a {process} process has the same rate all day", "process: diurnal", field=names[name])
        return
    if "peak_to_mean" not in stated:
        raise at.error("a diurnal process needs peak_to_mean, its highest rate over the mean one", "peak_to_mean: 1.8")
    period_s = stated.setdefault("period_s", 86_400.0)
    if stated.setdefault("peak_at_s", period_s / 2) >= period_s:
        raise at.error(f"lies not within a period of {period_s:g} s", "a shorter time", field="peak_at")
    values["diurnal"] = m.DiurnalSpec(**stated)


ARRIVALS = ByKind(
    Made(RATE, lambda rate, at: m.ArrivalSpec(rate_per_s=rate)),
    Record(
        m.ArrivalSpec,
        {
            "rate": Field(RATE, "mean requests per time", "rate_per_s", required=True),
            "process": Field(OneOf(("poisson", "gamma", "constant", "diurnal")), "how gaps vary (default poisson)"),
            "cv": Field(Real(0, 100), "coefficient of variation of the gaps: above 1 is bursty"),
            "peak_to_mean": Field(Real(1, 2), "diurnal: the highest rate over the mean one; in between a cosine"),
            "period": Field(LIMIT, "diurnal: from peak to peak (default 24h)", "period_s"),
            "peak_at": Field(DURATION, "diurnal: the peak's place in the period (default the middle)", "peak_at_s"),
        },
        _finish_arrivals,
    ),
)


def _finish_trace(values: dict[str, Any], at: Place) -> None:
    if values.get("format") == "sharegpt" and "rate_per_s" not in values:
        raise at.error("a sharegpt trace has lengths and no times, so it needs a rate", "rate: 20/s")


TRACE = Record(
    m.TraceSpec,
    {
        "file": Field(Text("a file beside the spec"), "recorded requests; .gz is read too", required=True),
        "format": Field(
            OneOf(("azure", "burstgpt", "mooncake", "sharegpt", "csv")),
            "csv (default): arrival_s,prompt_tokens,output_tokens and, if known, tenant, priority, session, prefix and "
            "prefix_tokens",
        ),
        "rate": Field(RATE, "rescale time to this mean rate (default: as recorded)", "rate_per_s"),
    },
    _finish_trace,
)
SESSIONS = Record(
    m.SessionSpec,
    {
        "rate": Field(RATE, "new conversations per time (Poisson)", "rate_per_s", required=True),
        "turns": Field(MeanOf(Real(1, 10_000)), "turns of one conversation (geometric)", "turns_mean", required=True),
        "think_time": Field(MeanOf(DURATION), "between an answer and the next turn (exponential)", "think_time_mean_s"),
        "growing_context": Field(
            Flag(),
            "a turn's prompt is the prompt before, its answer, and `prompt_tokens` more, until `max_context` is full",
        ),
    },
)
CLOSED_LOOP = Record(
    m.ClosedLoopSpec,
    {
        "concurrency": Field(Count(), "requests always in flight", required=True),
        "requests": Field(Count(), "how many are served (default: ten for each in flight)"),
        "warmup": Field(Count(low=0), "how many are served before these and do not count (default 0)"),
    },
)
SHARED_PREFIX = Record(
    m.SharedPrefixSpec,
    {
        "tokens": Field(TOKENS, "tokens of the prompt that prompts of a group share", required=True),
        "groups": Field(Count(), "groups (default 1)"),
        "skew": Field(Real(0, 10), "how unlike groups are: 0 (default) alike, 1 Zipf's law"),
    },
)
THROUGHPUT = Record(
    m.ThroughputSpec,
    {
        "at_least": Field(
            Quantity(q.TOKENS_PER_S, q.parse_tokens_per_s),
            "prompt and output tokens",
            "at_least_tokens_per_s",
            required=True,
        )
    },
)


def _window(text: str) -> m.TimeWindow:
    start_s, end_s = q.parse_time_window(text)
    return m.TimeWindow(start_s=start_s, end_s=end_s)


WINDOW = Parsed("a part of the day such as 01:00-05:00", _window, r"^[0-9]{2}:[0-9]{2}\s*-\s*[0-9]{2}:[0-9]{2}$")
SOURCES = ("trace", "arrivals", "sessions", "closed_loop")


def _finish_class(values: dict[str, Any], at: Place) -> None:
    values.setdefault("model", "")  # filled in with the whole document, where there is only one
    stated = [source for source in SOURCES if source in values]
    if not stated:
        raise at.error("says not where its requests come from", f"one of {', '.join(SOURCES)}")
    if len(stated) > 1:
        raise at.error(f"states both {stated[0]} and {stated[1]}", "one of them", field=stated[1])
    for field in ("prompt_tokens", "output_tokens"):
        if stated == ["trace"] and field in values:
            raise at.error("the trace already holds the lengths", f"no {field} beside trace", field=field)
        if stated != ["trace"] and field not in values:
            raise at.error(f"{field!r} is missing", f"{field}: {Length.says}")
    if "shared_prefix" in values and stated == ["closed_loop"]:
        raise at.error("a closed loop sends prompts that share nothing", "arrivals or sessions", field="shared_prefix")
    longest = _longest(values.get("prompt_tokens"))
    if "shared_prefix" in values and longest is not None and values["shared_prefix"].tokens > longest:
        message = f"{values['shared_prefix'].tokens} tokens are more than the longest prompt has ({longest})"
        raise at.error(message, f"at most {longest}", field="shared_prefix.tokens")


def _longest(length: Any) -> int | None:
    """The most tokens that a stated length can have, where that is known."""
    for name in ("tokens", "high_tokens", "max_tokens"):
        if (most := getattr(length, name, None)) is not None:
            return int(most)
    return None


CLASS = Record(
    m.TrafficClass,
    {
        "name": Field(Name(), "what this kind of request is called", required=True),
        "model": Field(Name(), "a model of `models` (default: the only one)"),
        "trace": Field(TRACE, "recorded requests"),
        "arrivals": Field(ARRIVALS, "drawn arrivals: a rate, or a mapping"),
        "sessions": Field(SESSIONS, "multi-turn conversations"),
        "closed_loop": Field(CLOSED_LOOP, "a fixed number of requests in flight"),
        "prompt_tokens": Field(Length(), "prompt length"),
        "output_tokens": Field(Length(), "output length"),
        "shared_prefix": Field(SHARED_PREFIX, "prompts that begin alike"),
        "slo": Field(SLO, "latency limits: percentiles, or joint limits with an attainment"),
        "priority": Field(OneOf(("high", "normal", "low")), "who goes first (default normal)"),
        "tenant": Field(Name(), "who asks, for fairness between tenants (default: the class by itself)"),
        "window": Field(WINDOW, "only in this part of the day"),
        "throughput": Field(THROUGHPUT, "tokens per second, prompt and output"),
    },
    _finish_class,
)
