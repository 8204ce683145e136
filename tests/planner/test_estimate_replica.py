"""Stated deployments: what a row means, the closed loop by event jumps against step by step, published points."""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.estimate import Point, deployment_of, explain_point, predict_point, predict_rows, protocol_of
from planner.estimate.closed_loop import Rules, run_closed_loop
from planner.estimate.protocol import ALMOST_EQUAL, EQUAL, INFERENCEX, NEARLY_EQUAL, SWEEP, Protocol
from planner.estimate.replica import kv_dtype, simulate_point
from specs.catalog import load_engine
from specs.document import DType

CELLS: dict[str, object] = {
    "model": "meta-llama/Llama-3.1-70B",
    "gpu": "h100_sxm",
    "engine": "vllm",
    "engine_version": "",
    "precision": "fp8",
    "tp_size": "4.0",
    "pp_size": "1.0",
    "attention_dp_size": "",
    "moe_tp_size": "4",
    "moe_ep_size": "1",
    "isl": "1024",
    "osl": "1024",
    "concurrency": "16.0",
}


def point(**changes: object) -> Point:
    return Point.read({**CELLS, **changes})


class LinearStep:
    """Steps whose time is linear in everything, so that jumps over steps must equal them one by one."""

    def decode_base_s(self, sequences: int) -> float:
        return 0.010 + 0.001 * sequences

    def attention_s(self, sequences: int, keys: float) -> float:
        return 1e-6 * sequences * keys

    def decode_s(self, sequences: int, keys: float) -> float:
        return self.decode_base_s(sequences) + self.attention_s(sequences, keys)

    def prefill_s(self, decodes: int, keys: float, chunks: list[tuple[int, int]], completing: int) -> float:
        tokens = decodes + sum(new for new, _ in chunks)
        return 0.012 + 1e-4 * tokens + 1e-6 * decodes * keys


def rules(**changes: object) -> Rules:
    base = Rules("mixed_chunked", 64, 512, 10**9, 0.0, 0.0, 0.0, 0.0)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def one_by_one(own: Rules, clients: int, prompts: list[int], outputs: list[int]) -> tuple[list[float], list[float]]:
    """(first token, end) of every request: the same rules, one step at a time, no memory limit, no frontend."""
    step, now, upcoming = LinearStep(), 0.0, clients
    waiting = deque(range(clients))
    part: list[int] | None = None
    running: dict[int, int] = {}  # request: tokens made
    first, end = [0.0] * len(prompts), [0.0] * len(prompts)
    while waiting or part or running:
        mixed = own.policy == "mixed_chunked"
        budget = own.budget - (len(running) if mixed else 0)
        chunks, completed = [], []
        while budget > 0:
            if part is None:
                if not waiting or len(running) + len(completed) >= own.seats:
                    break
                part = [waiting.popleft(), 0]
            new = min(prompts[part[0]] - part[1], budget)
            chunks.append((new, part[1]))
            part[1], budget = part[1] + new, budget - new
            if part[1] == prompts[part[0]]:
                completed.append(part[0])
                part = None
        decoding = list(running) if mixed or not chunks else []
        keys = sum(prompts[one] + running[one] for one in decoding)
        if chunks:
            mean = keys / len(decoding) if decoding else 0.0
            now += step.prefill_s(len(decoding), mean, chunks, len(completed))
        else:
            now += step.decode_s(len(decoding), keys / len(decoding))
        for request in decoding:
            running[request] += 1
        for request in completed:
            first[request] = now
            running[request] = 1
        for request in sorted(running):
            if running[request] == outputs[request]:
                del running[request]
                end[request] = now
                if upcoming < len(prompts):
                    waiting.append(upcoming)
                    upcoming += 1
    return first, end


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(["mixed_chunked", "prefill_first"]),
    clients=st.integers(1, 6),
    seats=st.integers(1, 8),
    lengths=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 60)), min_size=6, max_size=20),
)
def test_jumps_equal_single_steps(policy: str, clients: int, seats: int, lengths: list[tuple[int, int]]) -> None:
    prompts, outputs = [one for one, _ in lengths], [one for _, one in lengths]
    own = rules(policy=policy, seats=seats)
    found = run_closed_loop(LinearStep(), own, clients, prompts, outputs)  # type: ignore[arg-type]
    first, end = one_by_one(own, clients, prompts, outputs)
    # requests that end in one step are sent in the order of their numbers in one, of their lengths in the other
    assert sorted(found.ended_s.tolist()) == pytest.approx(sorted(end), rel=1e-9)
    assert float(np.sum(found.ttft_s + found.sent_s)) == pytest.approx(sum(first), rel=1e-9)


def test_one_client_by_hand() -> None:
    found = run_closed_loop(LinearStep(), rules(request_s=0.2, serial_s=0.05), 1, [100, 100], [3, 3])  # type: ignore[arg-type]
    prefill = 0.012 + 1e-4 * 100
    decodes = 2 * 0.011 + 1e-6 * (101 + 102)
    assert found.ttft_s.tolist() == pytest.approx([0.25 + prefill] * 2)
    assert found.tpot_s.tolist() == pytest.approx([decodes / 2] * 2)
    assert found.sent_s[1] == pytest.approx(found.ended_s[0])


def test_a_frontend_that_cannot_keep_up_bounds_the_throughput() -> None:
    slow = rules(stream_s=0.004)
    found = run_closed_loop(LinearStep(), slow, 32, [10] * 320, [50] * 320)  # type: ignore[arg-type]
    assert 50 * 320 / found.ended_s.max() == pytest.approx(1 / 0.004, rel=0.02)


@pytest.mark.parametrize("reserve", [0.0, 0.7, 1.0])
def test_short_memory_delays_but_every_request_ends(reserve: float) -> None:
    prompts, outputs = [100] * 40, [50] * 40
    wide = run_closed_loop(LinearStep(), rules(), 8, prompts, outputs)  # type: ignore[arg-type]
    tight = run_closed_loop(LinearStep(), rules(capacity_tokens=420, reserve=reserve), 8, prompts, outputs)  # type: ignore[arg-type]
    assert tight.ended_s.max() > wide.ended_s.max()
    assert (tight.ttft_s > 0).all()
    assert (tight.tpot_s > 0).all()
    if reserve == 1.0:  # two at a time, never preempted: a token takes as long as with two clients
        two = run_closed_loop(LinearStep(), rules(), 2, prompts, outputs)  # type: ignore[arg-type]
        assert tight.tpot_s.mean() == pytest.approx(two.tpot_s.mean(), rel=0.05)


def test_prompts_wait_for_company_while_others_decode() -> None:
    lengths = [100, 100, 100], [3, 200, 2]
    at_once = run_closed_loop(LinearStep(), rules(), 2, *lengths)  # type: ignore[arg-type]
    waited = run_closed_loop(LinearStep(), rules(wait_steps=7), 2, *lengths)  # type: ignore[arg-type]
    step = LinearStep()
    steps = sum(step.decode_s(1, 103 + index) for index in range(7))
    assert waited.ttft_s[:2].tolist() == at_once.ttft_s[:2].tolist()  # nothing decodes: no wait
    assert waited.ttft_s[2] - at_once.ttft_s[2] == pytest.approx(steps, rel=1e-3)


def test_whole_prompts_share_a_step_only_where_they_fit() -> None:
    """Steps of 512 tokens: three prompts of 300 one after the other, or cut to fill two steps."""
    lengths, step = ([300] * 3, [2] * 3), LinearStep()
    cut = run_closed_loop(step, rules(), 3, *lengths)  # type: ignore[arg-type]
    whole = run_closed_loop(step, rules(whole=True), 3, *lengths)  # type: ignore[arg-type]
    assert cut.ttft_s[0] == pytest.approx(step.prefill_s(0, 0.0, [(512, 0)], 1))
    assert whole.ttft_s[0] == pytest.approx(step.prefill_s(0, 0.0, [(300, 0)], 1))
    second = step.prefill_s(1, 301.0, [(300, 0)], 1)
    assert whole.ttft_s[1] - whole.ttft_s[0] == pytest.approx(second)
    long = run_closed_loop(step, rules(whole=True), 1, [700], [2])  # type: ignore[arg-type]
    assert long.ttft_s[0] == pytest.approx(2 * 0.012 + 1e-4 * 700)  # no step holds it: it is cut


def test_clients_in_step_wait_for_each_others_prompts() -> None:
    """Equal outputs keep prompts together, and first tokens as late, however seldom they come; others spread them."""

    def ttft(protocol: Protocol, osl: int) -> float:
        own = rules(budget=protocol.step_tokens(400, 16, 512))
        prompts, outputs = protocol.lengths(400, osl, 16)
        found = run_closed_loop(LinearStep(), own, 16, prompts, outputs)  # type: ignore[arg-type]
        return protocol.means(found, 16)[0]

    spread = dataclasses.replace(EQUAL, output_low=0.85, output_high=1.15)
    assert ttft(EQUAL, 1024) == pytest.approx(ttft(EQUAL, 256), rel=0.1)
    assert ttft(spread, 1024) < 0.85 * ttft(EQUAL, 1024)


def test_the_token_budget_of_published_runs() -> None:
    assert SWEEP.step_tokens(4096, 64, default=8192) == 8192
    assert EQUAL.step_tokens(4096, 64, default=8192) == 4160
    assert ALMOST_EQUAL.step_tokens(128, 16, default=8192) == 3072
    assert ALMOST_EQUAL.step_tokens(4000, 16, default=8192) == 4016


def test_lengths_of_the_clients() -> None:
    assert protocol_of(1024, 8192, "vllm") is INFERENCEX
    assert protocol_of(4096, 512, "vllm") is EQUAL
    assert protocol_of(4096, 512, "capstan") is SWEEP
    assert protocol_of(4096, 512, "capstan", mixture=True) is NEARLY_EQUAL
    assert protocol_of(1024, 128, "trtllm", mixture=True) == dataclasses.replace(ALMOST_EQUAL, whole_prompts=True)
    assert protocol_of(1024, 1024, "sglang") == dataclasses.replace(INFERENCEX, least_tokens=16_384)
    prompts, outputs = INFERENCEX.lengths(1024, 8192, 64)
    assert min(prompts) >= 819
    assert max(prompts) <= 1024
    assert max(outputs) <= 8192
    assert np.mean(outputs) == pytest.approx(0.9 * 8192, rel=0.01)
    assert (prompts, outputs) == INFERENCEX.lengths(1024, 8192, 64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tp_size": "16"}, ["tp 16", "a node of h100-sxm: not measured"]),
        ({"attention_dp_size": "100"}, ["400 devices", "without experts"]),
        ({"isl": "130000", "osl": "2000"}, ["132,000", "context of 131,072"]),
        ({"tp_size": "2", "pp_size": "2"}, ["pp 2", "pipeline stages"]),
        (
            {
                "model": "deepseek-ai/DeepSeek-V3",
                "gpu": "h200_sxm",
                "tp_size": "1",
                "attention_dp_size": "8",
                "moe_tp_size": "1",
                "moe_ep_size": "8",
            },
            ["attention dp 8: no point with it was measured"],
        ),
    ],
)
def test_what_no_measured_point_is_like_has_low_confidence(changes: dict[str, object], words: list[str]) -> None:
    found = predict_point(point(**changes))
    assert found.tpot_ms is not None
    assert found.confidence == "low"
    assert all(word in found.note for word in words), found.note


def test_requests_that_wait_for_memory_are_said() -> None:
    found = predict_point(point(tp_size="1", concurrency="16"))
    assert "of 16 requests at full length: the others wait for it" in found.note
    assert found.ttft_ms is not None
    assert found.ttft_ms > 1e4
    assert "KV cache" not in predict_point(point(concurrency="16")).note


@pytest.mark.parametrize(
    ("changes", "layout", "words"),
    [
        ({}, (4, 1, 1), []),
        ({"moe_tp_size": "", "moe_ep_size": ""}, (4, 1, 1), []),
        ({"moe_tp_size": "8", "moe_ep_size": "8"}, (4, 1, 1), []),  # no meaning for a dense model
        (
            {"model": "openai/gpt-oss-120b", "precision": "fp4", "tp_size": "16", "moe_tp_size": 4, "moe_ep_size": 4},
            (4, 1, 1),
            ["mislabelled", "read as tp 4"],
        ),
        (
            {"model": "Qwen/Qwen3-235B-A22B-FP8", "moe_tp_size": "2", "moe_ep_size": "2", "isl": "128", "osl": "128"},
            (4, 1, 2),
            [],
        ),
        (
            {"model": "Qwen/Qwen3-235B-A22B-FP8", "tp_size": "1", "moe_tp_size": "1", "moe_ep_size": "8"},
            (8, 1, 8),
            ["mislabelled", "read as tp 8"],
        ),
        (
            {
                "model": "deepseek-ai/DeepSeek-V3",
                "gpu": "h200_sxm",
                "tp_size": "1",
                "attention_dp_size": "8",
                "moe_tp_size": "1",
                "moe_ep_size": "8",
            },
            (1, 8, 8),
            ["attention dp 8"],
        ),
    ],
)
def test_layouts(changes: dict[str, object], layout: tuple[int, int, int], words: list[str]) -> None:
    found = deployment_of(point(**changes))
    assert (found.tensor_parallel, found.attention_data_parallel, found.expert_parallel) == layout
    assert found.devices == layout[0] * layout[1]
    text = "; ".join((*found.notes, *found.doubts))
    assert all(word in text for word in words)
    assert bool(words) == bool(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ""}, ["model", "is empty"]),
        ({"isl": ""}, ["isl", "is empty"]),
        ({"isl": "nan"}, ["isl", "nan"]),
        ({"concurrency": "-4"}, ["concurrency", "-4"]),
        ({"tp_size": "1.5"}, ["tp_size", "1.5"]),
        ({"osl": "many"}, ["osl", "'many'"]),
        ({"osl": "0"}, ["osl", "is 0"]),
        ({"isl": "1e12"}, ["isl", "1,000,000"]),
        ({"tp_size": "0"}, ["tp_size: is 0"]),
        ({"pp_size": "0.0"}, ["pp_size: is 0"]),
        ({"model": "meta-llama/Llama-3.1-71B"}, ["model: 'meta-llama/Llama-3.1-71B'", "did you mean", "70B"]),
        ({"gpu": "h101"}, ["gpu: ", "h101", "h100-sxm"]),
        ({"engine": "vlm"}, ["engine: ", "'vlm'", "vllm"]),
        ({"precision": "fp7"}, ["precision: ", "fp7", "fp8"]),
        ({"tp_size": "1", "precision": "bf16"}, ["does not fit", "GiB", "weights"]),
        ({"tp_size": "3"}, ["tp_size: ", "64 attention heads", "3 ranks"]),
        ({"pp_size": "81"}, ["pp_size: ", "80 layers", "81"]),
        ({"gpu": "cpu"}, ["precision: ", "cpu", "fp8"]),
    ],
)
def test_rows_that_cannot_be_predicted_say_why(changes: dict[str, object], words: list[str]) -> None:
    (found,) = predict_rows([{**CELLS, **changes}], first_line=2)
    assert found.ttft_ms is None
    assert found.tpot_ms is None
    assert found.confidence == ""
    assert all(word in found.note for word in ("row 1 (line 2)", *words)), found.note


def test_broken_cells_name_the_row() -> None:
    unknown = {**CELLS, "model": "no/such"}
    good, bad, first, again = predict_rows([CELLS, {**CELLS, "isl": "x"}, unknown, unknown], first_line=2)
    assert good.tpot_ms is not None
    assert "row 2 (line 3)" in bad.note
    assert "row 3 (line 4): model: 'no/such'" in first.note
    assert "row 4 (line 5): model: 'no/such'" in again.note


def test_releases() -> None:
    engine = load_engine("vllm")
    assert engine.at("") == engine
    assert engine.at("nightly") == engine
    assert engine.at("0.18.0") == engine
    old = engine.at("0.12.0")
    assert old.sequence_overhead_s > engine.sequence_overhead_s
    assert old.kernels == engine.kernels


def test_kv_cache_types() -> None:
    vllm, trtllm = load_engine("vllm"), load_engine("trtllm")
    assert kv_dtype(deployment_of(point()), vllm) is DType.FP8
    assert kv_dtype(deployment_of(point(precision="bf16")), vllm) is DType.BF16
    mixture = deployment_of(point(model="deepseek-ai/DeepSeek-V3", gpu="h200", tp_size=8, moe_tp_size=8))
    assert kv_dtype(mixture, vllm) is DType.BF16
    assert kv_dtype(mixture, trtllm) is DType.FP8


# Measured points of the serving table of NVIDIA aiconfigurator-core 0.12.0 (Apache-2.0): concurrency, TTFT, TPOT in ms.
@pytest.mark.parametrize(
    ("changes", "tpot_ms"),
    [
        ({"concurrency": "4"}, 11.78),
        ({"concurrency": "64"}, 19.51),
        ({"isl": "8192", "concurrency": "32"}, 32.82),
        ({"tp_size": "8", "osl": "8192", "concurrency": "16"}, 11.58),
    ],
)
def test_published_points(changes: dict[str, object], tpot_ms: float) -> None:
    found = predict_point(point(**changes))
    assert found.tpot_ms == pytest.approx(tpot_ms, rel=0.18)
    assert found.confidence == "measured"


def test_throughput_follows_littles_law() -> None:
    own = point(concurrency="32")
    latency = simulate_point(own, deployment_of(own), load_engine("vllm"), INFERENCEX)
    whole = latency.ttft_s + 1023 * latency.tpot_s
    assert latency.output_tokens_per_s(1024, 32) == pytest.approx(32 * 1024 / whole)


def test_more_clients_never_make_tokens_faster_and_stages_share_them() -> None:
    times = [predict_point(point(concurrency=str(clients))).tpot_ms for clients in (1, 4, 16, 64)]
    assert all(time is not None for time in times)
    assert times == sorted(times)  # type: ignore[type-var]
    staged = predict_point(point(pp_size="2", tp_size="2", concurrency="16"))
    assert staged.tpot_ms is not None
    assert staged.tpot_ms > 0


def test_the_parts_of_a_row_add_up() -> None:
    own = point(concurrency="16")
    deployment, engine = deployment_of(own), load_engine("vllm")
    latency = simulate_point(own, deployment, engine, INFERENCEX)
    first, further = explain_point(own, deployment, engine)
    assert first.total_s == latency.ttft_s
    assert further.total_s == latency.tpot_s
    assert sum(part.seconds for part in further.parts) + further.rest_s == pytest.approx(further.total_s)
    assert 0.5 < sum(part.seconds for part in further.parts) / further.total_s < 1.02
    assert {"gemm", "attention", "collective", "elementwise", "engine"} <= {part.kind for part in further.parts}


def test_a_point_that_takes_too_long_to_simulate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.estimate.closed_loop.MOST_EVENTS", 200)
    found = predict_point(point(concurrency="64"))
    assert found.tpot_ms is None
    assert "concurrency: takes too long to simulate" in found.note
    assert "after 200 events" in found.note
