"""Results of guidellm and `vllm bench serve`: small files made by hand, of the shape that these tools write."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from specs.errors import InputError
from specs.measurements import Environment, Measurements
from specs.results import read_result

BENCH: dict[str, Any] = {
    "date": "20260102-030405",
    "endpoint_type": "vllm",
    "backend": "vllm",
    "model_id": "org/model",
    "num_prompts": 3,
    "request_rate": 2.0,
    "max_concurrency": None,
    "duration": 1.5,
    "completed": 2,
    "failed": 1,
    "request_throughput": 1.33,
    "input_lens": [10, 20, 30],
    "output_lens": [3, 1, 0],
    "ttfts": [0.1, 0.2, 0.0],
    "itls": [[0.05, 0.07], [], []],
    "latencies": [0.22, 0.2, 0.0],
    "start_times": [1000.5, 1000.0, 1000.7],
    "errors": ["", "", "Service Unavailable"],
}


def request(start: float, **more: Any) -> dict[str, Any]:
    timings = {
        "targeted_start": start - 0.01,
        "resolve_start": start - 0.005,
        "request_start": start,
        "first_token_iteration": start + 0.1,
        "last_token_iteration": start + 0.5,
        "request_end": start + 0.51,
    }
    return {"request_id": "x", "prompt_tokens": 64, "output_tokens": 5, "info": {"timings": timings}, **more}


GUIDE: dict[str, Any] = {
    "metadata": {"version": 2},
    "benchmarks": [
        {
            "type_": "generative_benchmark",
            "config": {"strategy": {"type_": "concurrent", "streams": 4}},
            "requests": {
                "successful": [request(1002.0), request(1001.0)],
                "incomplete": [],
                "errored": [],
                "total": None,
            },
        },
        {
            "type_": "generative_benchmark",
            "config": {"strategy": {"type_": "poisson", "rate": 3.0}},
            "requests": {
                "successful": [request(2000.0)],
                "incomplete": [request(2001.0)],
                "errored": [request(2000.5, prompt_tokens=None, output_tokens=None)],
            },
        },
    ],
}
OLD_GUIDE: dict[str, Any] = {
    "benchmarks": [
        {
            "args": {"strategy": {"type_": "synchronous"}},
            "requests": {
                "successful": [
                    {
                        "prompt_tokens": 8,
                        "output_tokens": 3,
                        "start_time": 5.0,
                        "first_token_time": 5.25,
                        "last_token_time": 6.0,
                        "end_time": 6.1,
                    }
                ],
                "errored": [{"prompt_tokens": 8, "output_tokens": 0, "start_time": 7.0, "error": "timeout"}],
            },
        }
    ]
}


@pytest.fixture
def read(tmp_path):
    def written(value: Any, **more: Any) -> Measurements:
        path = tmp_path / "result.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return read_result(path, **more)

    return written


def without(value: dict[str, Any], *path: Any, to: Any = None) -> dict[str, Any]:
    """A copy with one member taken out, or replaced."""
    made = copy.deepcopy(value)
    *parents, last = path
    place: Any = made
    for parent in parents:
        place = place[parent]
    if to is None:
        del place[last]
    else:
        place[last] = to
    return made


def test_vllm_bench(read):
    seen = read(BENCH, environment=Environment(device="h100-sxm", engine="vllm"))
    assert [row.arrival_s for row in seen.requests] == pytest.approx([0.0, 0.5, 0.7])
    second, first, failed = seen.requests
    assert (first.prompt_tokens, first.output_tokens, first.ttft_s) == (10, 3, 0.1)
    assert first.e2e_s == pytest.approx(0.22)
    assert first.tpot_s == pytest.approx(0.06)
    assert first.longest_gap_s == 0.07
    assert second.tpot_s is None
    assert (failed.status, failed.error, failed.ttft_s) == ("failed", "Service Unavailable", None)
    (load,) = seen.loads
    assert (load.kind, load.seconds, load.rate_per_s) == ("open", 1.5, 2.0)
    assert (seen.model, seen.environment.device) == ("org/model", "h100-sxm")


def test_vllm_bench_of_clients(read):
    seen = read({**BENCH, "request_rate": "inf", "max_concurrency": 8})
    assert (seen.loads[0].kind, seen.loads[0].concurrency) == ("closed", 8)


def test_an_older_vllm_bench_has_no_times_of_sending(read):
    seen = read(without(BENCH, "start_times"))
    assert [row.arrival_s for row in seen.requests] == [0.0, 0.0, 0.0]
    assert seen.notes == ("the file does not say when requests were sent",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((without(BENCH, "itls")), "itls: is missing; expected a result of .*--save-detailed"),
        ((without(BENCH, "itls", to=[[]])), "itls: has 1 entries, ttfts has 3"),
        ((without(BENCH, "ttfts", 0, to=-1.0)), r"ttfts\[0\]: is -1.0"),
        ((without(BENCH, "ttfts", 0, to="0.1")), r"ttfts\[0\]: is '0.1'"),
        ((without(BENCH, "itls", 1, to=0.5)), r"itls\[1\]: holds float"),
        ((without(BENCH, "input_lens", 1, to=1.5)), "tokens: is 1.5"),
        ({"kind": "Plan"}, "no result that is known"),
        ("[]", "holds list"),
        ("{", "not JSON"),
        (without(GUIDE, "benchmarks", to=[]), "holds no request"),
        (without(GUIDE, "benchmarks", 0, "requests"), r"benchmarks\[0\].requests: holds NoneType"),
        (
            without(GUIDE, "benchmarks", 0, "requests", "successful", 1, "info", "timings", "first_token_iteration"),
            r"successful\[1\].first_token_iteration: is missing",
        ),
        (without(GUIDE, "benchmarks", 0, "requests", "successful", 0, to=3), r"successful\[0\]: holds int"),
    ],
)
def test_what_is_no_result(read, change, message):
    with pytest.raises(InputError, match=message) as found:
        read(change)
    assert found.value.file.endswith("result.json")


def test_guidellm(read):
    seen = read(GUIDE)
    closed, opened = seen.loads
    assert (closed.request_class, closed.kind, closed.concurrency) == ("concurrent 4/1", "closed", 4)
    assert (opened.request_class, opened.kind) == ("poisson/2", "open")
    first, second = (row for row in seen.requests if row.request_class == closed.request_class)
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.0)
    assert first.ttft_s == pytest.approx(0.1)
    assert first.e2e_s == pytest.approx(0.5)
    assert first.tpot_s == pytest.approx(0.1)
    assert second.late_s == pytest.approx(0.01)
    statuses = [row.status for row in seen.requests if row.request_class == opened.request_class]
    assert statuses == ["ok", "failed", "cut"]


def test_an_older_guidellm(read):
    seen = read(OLD_GUIDE)
    served, failed = seen.requests
    assert served.ttft_s == pytest.approx(0.25)
    assert served.e2e_s == pytest.approx(1.0)
    assert (failed.status, failed.error) == ("failed", "timeout")
    assert seen.loads[0].concurrency == 1


def test_our_own(read):
    own = Measurements(source="here", environment=Environment(device="cpu"))
    assert read(own.to_json()) == own
