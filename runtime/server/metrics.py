"""What `/metrics` shows, in Prometheus' text format. One registry per app, so that tests and apps do not share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from runtime.engine import EngineStats
from runtime.request import Request

_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TPOT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
_E2E_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """An `Observer` of the engine, and a collector of its counters at the moment of a scrape."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._stats: Callable[[], EngineStats] | None = None
        self.registry = CollectorRegistry()
        self._ttft = self._histogram("capstan_time_to_first_token_seconds", "Arrival to first token", _TTFT_BUCKETS)
        self._tpot = self._histogram(
            "capstan_time_per_output_token_seconds", "Mean time of a request's tokens after the first", _TPOT_BUCKETS
        )
        self._e2e = self._histogram("capstan_request_seconds", "Arrival to last token", _E2E_BUCKETS)
        self._finished = Counter(
            "capstan_requests_finished", "Requests that ended", ("model", "reason"), registry=self.registry
        )
        self.registry.register(self)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ("model",), buckets=buckets, registry=self.registry).labels(self._model)

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Where the gauges come from: `Engine.stats`."""
        self._stats = stats

    def first_token(self, request: Request, now_s: float) -> None:
        self._ttft.observe(now_s - request.arrival_s)

    def finished(self, request: Request, now_s: float) -> None:
        reason = str(request.finish_reason)
        self._finished.labels(self._model, reason).inc()
        if reason not in ("stop", "length"):
            return
        self._e2e.observe(now_s - request.arrival_s)
        if request.first_token_s is not None and len(request.output) > 1:
            self._tpot.observe((now_s - request.first_token_s) / (len(request.output) - 1))

    def collect(self) -> Iterator[Metric]:
        """Gauges and counters of the engine, read now."""
        if self._stats is None:
            return
        stats = self._stats()
        usage = stats.blocks_used / stats.blocks
        for name, text, value in (
            ("capstan_requests_running", "Requests in the batch", stats.running),
            ("capstan_requests_waiting", "Requests in the queue", stats.waiting),
            ("capstan_kv_cache_usage_ratio", "Share of KV blocks in use", usage),
            ("capstan_kv_cache_blocks", "KV blocks in all", stats.blocks),
        ):
            gauge = GaugeMetricFamily(name, text, labels=("model",))
            gauge.add_metric((self._model,), value)
            yield gauge
        for name, text, value in (
            ("capstan_prompt_tokens", "Prompt tokens computed, recomputed ones included", stats.prompt_tokens),
            ("capstan_generation_tokens", "Tokens generated", stats.generated_tokens),
            ("capstan_preemptions", "Requests that lost their blocks and started over", stats.preemptions),
            ("capstan_steps", "Forward passes", stats.steps),
        ):
            counter = CounterMetricFamily(name, text, labels=("model",))
            counter.add_metric((self._model,), value)
            yield counter

    def text(self) -> bytes:
        return generate_latest(self.registry)
