"""Replay against a server with known delays and faults: times are right, faults are told, and nothing waits for it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
from fake_endpoint import fake_endpoint

from runtime.replay import ReplayOptions, Target, replay
from runtime.replay.prompts import Form, Prompts, WordScale
from specs.errors import InputError
from specs.measurements import Environment, Measurements
from specs.replay import ReplayLoad, ReplayRequest

HERE = Environment(device="cpu")


def open_load(count: int, gap_s: float = 0.05, **more) -> ReplayLoad:
    requests = tuple(ReplayRequest("chat", 20, 5, due_s=gap_s * index) for index in range(count))
    return ReplayLoad(requests, window_s=gap_s * count, **more)


def closed_load(count: int, concurrency: int, **more) -> ReplayLoad:
    return ReplayLoad(tuple(ReplayRequest("chat", 20, 5) for _ in range(count)), concurrency=concurrency, **more)


def run(fake, *loads: ReplayLoad, timeout_s: float = 20.0, **target) -> Measurements:
    return replay(Target(fake.base, **target), loads, HERE, ReplayOptions(vocabulary=1000, timeout_s=timeout_s))


def test_times_are_those_of_the_server():
    with fake_endpoint(first_s=0.1, token_s=0.03) as fake:
        seen = run(fake, open_load(6))
    assert seen.partial is None
    assert [row.status for row in seen.requests] == ["ok"] * 6
    for row in seen.requests:
        assert (row.prompt_tokens, row.output_tokens, row.asked_tokens) == (20, 5, 5)
        assert 0.095 < row.ttft_s < 5
        assert 0.028 < row.tpot_s < 2
        assert row.e2e_s == pytest.approx(row.ttft_s + 4 * row.tpot_s)
        assert 0.028 < row.longest_gap_s < 5


def test_an_open_loop_does_not_wait_for_a_slow_server():
    with fake_endpoint(first_s=0.8, token_s=0.0, serial=True) as fake:
        seen = run(fake, open_load(5, gap_s=0.02))
        gaps = [later - earlier for earlier, later in zip(fake.arrived[-5:], fake.arrived[-4:], strict=False)]
    assert max(gaps) < 0.7  # all were there before the first answer ended
    ttft_s = [row.ttft_s for row in seen.requests]
    assert ttft_s == sorted(ttft_s)
    assert ttft_s[-1] > 3.2  # and the queue that they made is in their times
    assert all(row.late_s < 0.7 for row in seen.requests)
    assert any(note.startswith("sent late by") for note in seen.notes)


def test_requests_are_sent_at_their_times():
    with fake_endpoint() as fake:
        seen = run(fake, open_load(4, gap_s=0.1))
    assert [row.due_s for row in seen.requests] == pytest.approx([seen.requests[0].due_s + 0.1 * i for i in range(4)])
    assert all(0 <= row.arrival_s - row.due_s < 2 for row in seen.requests)


def test_a_closed_loop_keeps_its_clients_busy_and_no_more():
    with fake_endpoint(first_s=0.05, token_s=0.01) as fake:
        seen = run(fake, closed_load(9, 3))
    moments = [(row.arrival_s, 1) for row in seen.requests] + [(row.arrival_s + row.e2e_s, -1) for row in seen.requests]
    present = peak = 0
    for _, change in sorted(moments):
        present += change
        peak = max(peak, present)
    assert peak == 3
    assert seen.loads[0].kind == "closed"
    assert seen.loads[0].concurrency == 3


def test_a_closed_loop_stops_sending_at_its_limit():
    with fake_endpoint(first_s=0.1, token_s=0.0) as fake:
        seen = run(fake, closed_load(1000, 2, limit_s=0.35))
    assert 2 <= len(seen.requests) <= 10
    assert all(row.status == "ok" for row in seen.requests)


def test_a_client_thinks_between_its_requests():
    with fake_endpoint(first_s=0.02, token_s=0.0) as fake:
        first, second = run(fake, closed_load(2, 1, think_s=0.2)).requests
    assert 0.2 <= second.arrival_s - (first.arrival_s + first.e2e_s) < 5


def test_a_closed_loop_sends_its_least_whatever_the_time():
    with fake_endpoint(first_s=0.1, token_s=0.0) as fake:
        seen = run(fake, closed_load(1000, 2, limit_s=0.01, least_requests=5))
    assert len(seen.requests) == 5


def test_a_turn_comes_after_the_answer_before_it():
    turns = (ReplayRequest("chat", 20, 5), ReplayRequest("chat", 40, 5, after=0, gap_s=0.2))
    with fake_endpoint(first_s=0.1) as fake:
        first, second = run(fake, ReplayLoad(turns)).requests
    assert 0.2 <= second.arrival_s - (first.arrival_s + first.e2e_s) < 5


def test_loads_follow_each_other():
    with fake_endpoint() as fake:
        seen = run(fake, closed_load(2, 1), closed_load(2, 2))
        prompts = [tuple(body["prompt"]) for body in fake.runs]
    first, second = seen.requests[:2], seen.requests[2:]
    assert min(row.arrival_s for row in second) >= max(row.arrival_s + row.e2e_s for row in first)
    assert len(set(prompts)) == 4


FAULTS = {
    "500": "http 500",
    "hang": "timeout",
    "empty": "empty",
    "malformed": "malformed",
    "dies": "disconnected",
    "closes": "disconnected",
    "error": "error in the stream: out of blocks",
    "json": "not streamed",
    "text": "not streamed",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_its_requests_and_marks_the_result(fault):
    with fake_endpoint(fault=fault, fault_from=3) as fake:  # the probe and two requests are served
        seen = run(fake, open_load(5), timeout_s=1.0)
    assert [row.status for row in seen.requests].count("ok") == 2
    failed = [row for row in seen.requests if row.status == "failed"]
    assert len(failed) == 3
    assert all(row.error.startswith(FAULTS[fault]) and row.e2e_s is None for row in failed)
    assert seen.partial.startswith("3 of 5 requests failed")
    came = fault in ("malformed", "dies", "closes", "error")
    assert all((row.ttft_s is not None) == came for row in failed)
    assert all(row.output_tokens == (2 if came else 0) for row in failed)


def test_a_busy_server_rejects():
    with fake_endpoint(fault="429", fault_from=2) as fake:
        seen = run(fake, open_load(4))
    assert [row.status for row in seen.requests] == ["ok", "rejected", "rejected", "rejected"]
    assert seen.partial is None


def test_a_server_that_is_broken_from_the_start_gives_a_partial_result():
    with fake_endpoint(fault="500") as fake:
        seen = run(fake, closed_load(500, 4))
    assert seen.partial.startswith("gave up after 20 failures in a row; the last: http 500")
    assert len(seen.requests) < 40
    assert any("the first request failed" in note for note in seen.notes)


def test_a_dead_session_sends_no_further_turns():
    turns = (ReplayRequest("chat", 20, 5), ReplayRequest("chat", 40, 5, after=0))
    with fake_endpoint(fault="empty", fault_from=1) as fake:
        seen = run(fake, ReplayLoad(turns))
        assert len(fake.runs) == 1
    assert seen.requests[1].error == "the request before it in its session has failed"


def test_nothing_there_is_an_error():
    with pytest.raises(InputError, match="nothing answers there"):
        replay(Target("http://127.0.0.1:9"), (open_load(1),), HERE, ReplayOptions(100))


def test_ctrl_c_returns_what_there_is():
    with fake_endpoint(first_s=0.02, token_s=0.0) as fake:

        def interrupt() -> None:
            while len(fake.runs) < 4:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        seen = run(fake, open_load(3000, gap_s=0.05))
    assert seen.partial == "interrupted"
    assert 3 <= len(seen.requests) < 300


def test_the_server_says_who_it_is():
    with fake_endpoint(models=("fake", "other")) as fake:
        endpoint = run(fake, open_load(1), model="fake").endpoint
        with pytest.raises(InputError, match="serves fake, other"):
            run(fake, open_load(1))
        with pytest.raises(InputError, match=r"no model 'fakes'.*did you mean 'fake'"):
            run(fake, open_load(1), model="fakes")
    assert (endpoint.model, endpoint.models, endpoint.version) == ("fake", ("fake", "other"), "1.2.3")
    assert (endpoint.max_model_len, endpoint.server, endpoint.api) == (4096, "uvicorn", "completions")
    assert endpoint.prompts == "token ids"


def test_the_key_is_sent_and_never_kept():
    with fake_endpoint(key="sk-secret", fault="500", fault_from=2) as fake:
        seen = run(fake, open_load(2), api_key="sk-secret")
        with pytest.raises(InputError, match="wants a key"):
            run(fake, open_load(1))
    assert seen.requests[0].status == "ok"
    assert "your key is ***" in seen.requests[1].error
    assert "sk-secret" not in seen.to_json() + repr(Target("http://x", api_key="sk-secret"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x", "no address"),
        ("http://", "no address"),
        ("http://x:abc", "no address"),
        ("http://me:pw@x", "a name or a password"),
        ("http://x/v1?key=1", "a query"),
    ],
)
def test_what_is_no_url(url, message):
    with pytest.raises(InputError, match=message):
        _ = Target(url).base


@pytest.mark.parametrize("url", ["http://x:1", "http://x:1/", "http://x:1/v1", "x:1/v1/"])
def test_a_url_with_or_without_v1(url):
    assert Target(url).base == "http://x:1"


@pytest.mark.parametrize(
    ("refuses", "expected"),
    [
        (("ignore_eos",), "does not take ignore_eos"),
        (("stream_options",), "does not count tokens"),
        (("token ids",), "prompts are text"),
        (("token ids", "ignore_eos", "stream_options"), "prompts are text"),
    ],
)
def test_what_a_server_does_not_take_is_left_out_and_said(refuses, expected):
    with fake_endpoint(refuses=refuses) as fake:
        seen = run(fake, open_load(2))
        assert all(name not in body for name in refuses for body in fake.seen)
    assert any(expected in note for note in seen.notes)
    assert [row.output_tokens for row in seen.requests] == [5, 5]
    assert seen.endpoint.ignores_eos == ("ignore_eos" not in refuses)
    assert seen.endpoint.counts_tokens == ("stream_options" not in refuses)


def test_a_server_that_takes_ignore_eos_and_stops_nevertheless():
    with fake_endpoint(stops_after=3) as fake:
        seen = run(fake, open_load(2))
        assert not any("ignore_eos" in body for body in fake.runs)
    assert not seen.endpoint.ignores_eos
    assert any("2 of 2 answers were shorter" in note for note in seen.notes)


def test_a_server_without_counts_is_counted_by_pieces():
    with fake_endpoint(counts=False, refuses=("token ids",)) as fake:
        seen = run(fake, open_load(2))
    assert not seen.endpoint.counts_tokens
    assert [(row.prompt_tokens, row.output_tokens) for row in seen.requests] == [(20, 5), (20, 5)]
    assert any("a word of a prompt is taken for a token" in note for note in seen.notes)


def test_text_prompts_have_about_the_declared_tokens():
    with fake_endpoint(refuses=("token ids",)) as fake:  # it makes 5 + 2 n tokens of n words
        seen = run(fake, ReplayLoad((ReplayRequest("a", 205, 5), ReplayRequest("a", 55, 5))))
    assert [row.prompt_tokens for row in seen.requests] == [205, 55]


def test_a_server_with_chat_only():
    with fake_endpoint(api=("chat",), first_s=0.1) as fake:
        seen = run(fake, open_load(2))
    assert seen.endpoint.api == "chat"
    assert all(0.095 < row.ttft_s < 5 for row in seen.requests)  # the opening of a chat is no token
    assert [row.output_tokens for row in seen.requests] == [5, 5]


def test_a_server_that_refuses_everything():
    with (
        fake_endpoint(refuses=("model",)) as fake,
        pytest.raises(InputError, match=r"refuses every request.*not taken"),
    ):
        run(fake, open_load(1))


def test_prompts_are_new_but_for_declared_prefixes():
    prompts = Prompts(0, 1000, True)
    shared = ReplayRequest("a", 40, 1, units=(7, 8))
    first, second, other = (
        prompts.of(0, shared, 16),
        prompts.of(1, shared, 16),
        prompts.of(2, ReplayRequest("a", 40, 1), 16),
    )
    assert first[:32] == second[:32]
    assert first[32:] != second[32:]
    assert other[:32] != first[:32]
    assert [len(prompt) for prompt in (first, second, other)] == [40, 40, 40]
    assert all(0 < token < 1000 for token in first)
    assert prompts.of(0, shared, 16) == first
    assert Prompts(1, 1000, True).of(0, shared, 16) != first
    words = Prompts(0, 0, False, WordScale(4.0, 2.0)).of(0, shared, 16)
    assert len(words.split()) == 18


def test_a_prefix_longer_than_the_prompt_is_cut():
    prompt = Prompts(0, 1000, True).of(0, ReplayRequest("a", 20, 1, units=(1, 2, 3)), 16)
    assert len(prompt) == 20


def test_a_body_is_the_protocol():
    assert Form("m", chat=True, ignore_eos=False, usage=False).body("hi", 3) == (
        b'{"model":"m","max_tokens":3,"temperature":0,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
    )


@pytest.mark.parametrize(
    "requests",
    [(), (ReplayRequest("a", 0, 1),), (ReplayRequest("a", 1, 1, after=0),), (ReplayRequest("a", 1, 1, units=(1,)),)],
)
def test_a_load_that_cannot_be_sent(requests):
    with pytest.raises(ValueError, match=r"request|unit"):
        ReplayLoad(requests)
