"""Lengths from a server's metrics: counts of buckets and the mean are kept, and what is no histogram is refused."""

from __future__ import annotations

import http.server
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.simulate import declared_workload
from specs.deployment import parse_deployment, unhonoured_statements
from specs.errors import InputError
from specs.traffic import draw_histogram
from specs.traffic.prometheus import Buckets, read_prometheus, spread

METRICS = """\
# HELP vllm:request_prompt_tokens Number of prefill tokens processed.
# TYPE vllm:request_prompt_tokens histogram
vllm:request_prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:request_prompt_tokens_bucket{engine="0",le="1.0",model_name="m"} 0.0
vllm:request_prompt_tokens_bucket{engine="0",le="10.0",model_name="m"} 2.0
vllm:request_prompt_tokens_bucket{engine="0",le="100.0",model_name="m"} 8.0
vllm:request_prompt_tokens_bucket{engine="0",le="+Inf",model_name="m"} 10.0
vllm:request_prompt_tokens_sum{engine="0",model_name="m"} 640.0
vllm:request_prompt_tokens_count{engine="0",model_name="m"} 10.0
vllm:request_prompt_tokens_bucket{engine="1",le="1.0",model_name="m"} 0.0
vllm:request_prompt_tokens_bucket{engine="1",le="10.0",model_name="m"} 0.0
vllm:request_prompt_tokens_bucket{engine="1",le="100.0",model_name="m"} 10.0
vllm:request_prompt_tokens_bucket{engine="1",le="+Inf",model_name="m"} 10.0
vllm:request_prompt_tokens_sum{engine="1",model_name="m"} 360.0
sglang:generation_tokens_histogram_bucket{le="4"} 3
sglang:generation_tokens_histogram_bucket{le="+Inf"} 3
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str):
        path = tmp_path / "metrics.txt"
        path.write_text(text)
        return path

    return write


def test_engines_are_summed_and_buckets_kept(written):
    found = read_prometheus(written(METRICS), "prompt_tokens")
    tokens, weights = np.array(found.tokens), np.array(found.weights)
    assert weights[tokens <= 10].sum() == pytest.approx(2)
    assert weights[(tokens > 10) & (tokens <= 100)].sum() == pytest.approx(16)
    assert weights[tokens > 100].sum() == pytest.approx(2)
    assert tokens.max() <= 200
    assert found.mean_tokens == pytest.approx(50)


def test_other_servers_and_no_sum(written):
    found = read_prometheus(written(METRICS), "output_tokens")
    assert found.tokens == (1, 2, 3, 4)
    assert sum(found.weights) == pytest.approx(3)


def test_it_can_be_drawn_from(written):
    drawn = draw_histogram(read_prometheus(written(METRICS), "prompt_tokens"), 20_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(50, rel=0.05)
    assert drawn.min() >= 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prompt_tokens", "other", "has no histogram vllm:request_prompt_tokens"),
        ('le="+Inf"', 'le="1000"', r"no bucket \+Inf"),
        ('le="10.0"', 'le="x"', "metrics.txt:5: le: has no bound"),
        ("} 8.0", "} eight", r"metrics.txt:6: .*is eight"),
        ("} 8.0", "} -8.0", r"metrics.txt:6: .*is -8.0"),
        ('sum{engine="1"', 'bucket{le="50",engine="1"', "has buckets that shrink"),
        ('model_name="m"} 8.0', 'model_name="other"} 8.0', "has the models m, other"),
        ("} 8.0", "", r"metrics.txt:6: is no sample"),
    ],
)
def test_what_is_no_histogram(written, old, new, message):
    with pytest.raises(InputError, match=message):
        read_prometheus(written(METRICS.replace(old, new)), "prompt_tokens")


def test_a_server_without_traffic_yet(written):
    with pytest.raises(InputError, match="has seen no request yet"):
        read_prometheus(written(METRICS.replace("} 3", "} 0")), "output_tokens")


def test_a_url(written):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(METRICS.encode())

        def log_message(self, *unused):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert read_prometheus(f"{base}/metrics", "prompt_tokens").mean_tokens == pytest.approx(50)
        with pytest.raises(InputError, match="404"):
            read_prometheus(f"{base}/nothing", "prompt_tokens")
        server.shutdown()
    with pytest.raises(InputError, match="cannot be fetched"):
        read_prometheus(f"{base}/other", "prompt_tokens")
    assert read_prometheus(f"{base}/metrics", "prompt_tokens").mean_tokens == pytest.approx(50)  # as it was read first
    with pytest.raises(InputError, match="cannot be read"):
        read_prometheus("nowhere.txt", "prompt_tokens")


def test_a_spec_draws_from_the_metrics(tmp_path, written):
    written(METRICS)
    spec = parse_deployment(
        "models: {chat: {architecture: Qwen/Qwen3-8B, max_context: 128}}\n"
        "hardware: {pools: [{name: h100, device: h100-sxm, count: 8}]}\n"
        "traffic:\n  - {name: all, arrivals: 50/s, output_tokens: 9, slo: {ttft: {p90: 1s}},\n"
        "     prompt_tokens: {histogram: metrics.txt, source: prometheus}}\n"
    ).spec
    assert unhonoured_statements(spec) == ()
    workload, _ = declared_workload(spec, tmp_path, seconds=200)
    assert workload.prompt_tokens.mean() == pytest.approx(48, rel=0.1)  # the tail beyond the context is cut
    assert workload.prompt_tokens.max() == 128 - 9


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=60),
    st.sampled_from([(1, 10, 100, 1000, 10_000, 100_000), (16, 64, 4096), (7,)]),
)
def test_counts_and_mean_of_any_lengths(lengths, bounds):
    lengths = [min(length, 2 * bounds[-1]) for length in lengths]
    cumulative = [sum(length <= bound for length in lengths) for bound in bounds]
    made = spread(Buckets((*map(float, bounds), float("inf")), (*cumulative, len(lengths)), float(sum(lengths))))
    tokens, weights = np.array(made.tokens), np.array(made.weights)
    assert tokens.min() >= 1
    assert weights.sum() == pytest.approx(len(lengths))
    for bound, count in zip(bounds, cumulative, strict=True):
        assert weights[tokens <= bound].sum() == pytest.approx(count)
    assert made.mean_tokens == pytest.approx(np.mean(lengths), rel=0.1)
