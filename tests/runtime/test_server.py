"""The OpenAI protocol from outside: a real port, real clients, and everything that a client can do wrong."""

# ruff: noqa: E402 - what is imported needs packages that may be absent; then the file is skipped
from __future__ import annotations

import json
import math
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

torch = pytest.importorskip("torch")
httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
from served import Collected, checkpoint_engine, greedy, limits, stub_engine
from tiny_checkpoints import FAMILIES, make_checkpoint, reference_logits

from runtime.engine import EngineState
from runtime.server.metrics import Metrics
from runtime.server.serve import address_of, make_server, serve_in_thread, take_port
from specs.errors import InputError


@contextmanager
def served(engine, metrics):
    engine.start()
    with take_port("127.0.0.1", 0) as taken:
        server = make_server(engine, "tiny", metrics, drain_s=5.0)
        thread = serve_in_thread(server, taken)
        try:
            yield address_of(taken), server
        finally:
            server.stop(0.0)
            thread.join(10)
            engine.stop()
            assert not thread.is_alive()


@contextmanager
def stub_server():
    """A server over the stub: answers continue the alphabet. Small steps take a little, so that things overlap."""
    metrics = Metrics("tiny")
    engine, runner = stub_engine(limits=limits(length=200), observer=metrics, max_waiting=20)
    step = runner.run
    runner.run = lambda pieces: (time.sleep(0.002), step(pieces))[1]
    with served(engine, metrics) as (base, server), httpx.Client(base_url=base, timeout=20) as client:
        client.engine, client.server = engine, server
        yield client


@pytest.fixture
def stub():
    with stub_server() as client:
        yield client


@pytest.fixture(scope="module")
def shared():
    """One for tests that leave nothing behind."""
    with stub_server() as client:
        yield client


def idle(engine) -> bool:
    return engine.scheduler.blocks.used_blocks == 0 and not engine.busy


def wait_for(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def complete(client, **more):
    body = {"model": "tiny", "prompt": "ABC", "max_tokens": 4, "temperature": 0, **more}
    return client.post("/v1/completions", json=body)


def events(client, path: str, **body):
    with client.stream("POST", path, json={"model": "tiny", "stream": True, **body}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_completions_of_text_ids_and_lists(shared):
    body = complete(shared).json()
    assert body["object"] == "text_completion"
    assert body["model"] == "tiny"
    assert body["choices"] == [{"index": 0, "text": "DEFG", "logprobs": None, "finish_reason": "length"}]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert complete(shared, prompt=[65, 66]).json()["choices"][0]["text"] == "CDEF"
    texts = complete(shared, prompt=["A", "MN"]).json()
    assert [choice["text"] for choice in texts["choices"]] == ["BCDE", "OPQR"]
    assert texts["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    assert [choice["text"] for choice in complete(shared, prompt=[[65], [97]]).json()["choices"]] == ["BCDE", "bcde"]
    default = shared.post("/v1/completions", json={"model": "tiny", "prompt": "A"}).json()
    assert default["usage"]["completion_tokens"] == 16


def test_a_stop_string_over_http(shared):
    choice = complete(shared, max_tokens=50, stop="GH").json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("DEF", "stop")
    pieces = events(shared, "/v1/completions", prompt="ABC", max_tokens=50, temperature=0, stop=["xx", "GH"])
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == "DEF"
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"


def test_streams_of_one_and_of_several_prompts_with_usage(shared):
    pieces = events(
        shared,
        "/v1/completions",
        prompt=["A", "M"],
        max_tokens=3,
        temperature=0,
        stream_options={"include_usage": True},
    )
    texts = {0: "", 1: ""}
    for piece in pieces[:-1]:
        assert piece["usage"] is None
        texts[piece["choices"][0]["index"]] += piece["choices"][0]["text"]
    assert texts == {0: "BCD", 1: "NOP"}
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    assert len({piece["id"] for piece in pieces}) == 1
    without = events(shared, "/v1/completions", prompt="A", max_tokens=3, temperature=0)
    assert all("usage" not in piece for piece in without)


def test_chat_fills_the_context_where_no_maximum_is_given(shared):
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "ABC"}]}]
    body = shared.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, "temperature": 0}).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["usage"]["total_tokens"] == 200
    pieces = events(shared, "/v1/chat/completions", messages=messages, temperature=0, max_completion_tokens=4)
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}


def test_the_openai_client_works(shared):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert client.completions.create(model="tiny", prompt="ABC", max_tokens=3, temperature=0).choices[0].text == "DEF"
    messages = [{"role": "user", "content": "hi"}]
    chunks = client.chat.completions.create(model="tiny", messages=messages, max_tokens=3, temperature=0, stream=True)
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) == 3
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="A")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="A", n=2)


BAD = {
    "malformed JSON": ("{", 400, None, "the body is not JSON"),
    "deep JSON": ("[" * 100_000, 400, None, "the body is not JSON"),
    "no object": ("[1]", 400, None, "the body is list"),
    "no model": ({"prompt": "A", "model": ...}, 400, "model", "is missing"),
    "unknown model": ({"model": "gpt-4"}, 404, "model", "'gpt-4' does not exist; this server has 'tiny'"),
    "no prompt": ({"prompt": ...}, 400, "prompt", "is missing"),
    "null prompt": ({"prompt": None}, 400, "prompt", "is wrong"),
    "number as prompt": ({"prompt": 5}, 400, "prompt", "is wrong"),
    "mixed prompt": ({"prompt": [1, "A"]}, 400, "prompt", "is wrong"),
    "truth as token": ({"prompt": [True]}, 400, "prompt", "is wrong"),
    "empty list": ({"prompt": []}, 400, "prompt", "is empty"),
    "empty text": ({"prompt": ""}, 400, "prompt", "has no tokens"),
    "token outside the vocabulary": ({"prompt": [262]}, 400, "prompt", "token id 262 is not in the vocabulary"),
    "text as number": ({"max_tokens": "4"}, 400, "max_tokens", "is wrong"),
    "half a token": ({"max_tokens": 1.5}, 400, "max_tokens", "is wrong"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens", "is 0"),
    "temperature": ({"temperature": -1}, 400, "temperature", "is -1"),
    "truth as temperature": ({"temperature": True}, 400, "temperature", "is wrong"),
    "infinity": ('{"model":"tiny","prompt":"A","temperature":Infinity}', 400, "temperature", "is"),
    "stream": ({"stream": "yes"}, 400, "stream", "is wrong"),
    "logprobs": ({"logprobs": 21}, 400, "logprobs", "is 21"),
    "stop": ({"stop": [1]}, 400, "stop", "is wrong"),
    "two choices": ({"n": 2}, 400, "n", "2 is not honoured"),
    "penalty": ({"presence_penalty": 0.5}, 400, "presence_penalty", "is not honoured"),
    "slip": ({"max_token": 3}, 400, "max_token", "did you mean 'max_tokens'"),
    "beyond the context": (
        {"max_tokens": 199}, 400, "prompt", "3 prompt tokens and max_tokens 199 are 202, more than the context of 200"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_one_clear_answer_in_the_protocols_form(shared, case):
    body, status, param, message = BAD[case]
    if isinstance(body, dict):
        whole = {"model": "tiny", "prompt": "ABC", "max_tokens": 4} | body
        body = json.dumps({name: value for name, value in whole.items() if value is not ...})
    response = shared.post("/v1/completions", content=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert message in error["message"]
    assert idle(shared.engine)


@pytest.mark.parametrize(
    ("messages", "param"),
    [([], "messages"), ([{"role": "robot", "content": "x"}], "messages.0.role"), ("hi", "messages"),
     ([{"role": "user"}], "messages.0.content"), ([{"role": "user", "content": [{"type": "image_url"}]}], None)],
)  # fmt: skip
def test_bad_messages(shared, messages, param):
    response = shared.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert response.status_code == 400
    if param:
        assert response.json()["error"]["param"] == param


def test_one_bad_prompt_of_several_takes_nothing_in(shared):
    assert complete(shared, prompt=["A", "B", "C" * 300]).status_code == 400
    wait_for(lambda: idle(shared.engine))


def test_unknown_routes_and_methods(shared):
    assert shared.get("/v1/nothing").status_code == 404
    assert shared.get("/v1/completions").status_code == 405
    assert "error" in shared.get("/v1/nothing").json()


def test_a_client_that_leaves_frees_its_request(stub):
    body = {"model": "tiny", "prompt": "A", "max_tokens": 190}
    with stub.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        for index, _ in enumerate(response.iter_lines()):
            if index == 3:
                break
        assert not idle(stub.engine)
    wait_for(lambda: idle(stub.engine))
    with pytest.raises(httpx.ReadTimeout):
        stub.post("/v1/completions", json=body, timeout=0.1)
    wait_for(lambda: idle(stub.engine))
    assert 'capstan_requests_finished_total{model="tiny",reason="abort"} 2.0' in stub.get("/metrics").text


def test_a_full_queue_is_429(stub):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(complete(stub, max_tokens=100).status_code)) for _ in range(60)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {200, 429}
    assert results.count(200) >= 20
    wait_for(lambda: idle(stub.engine))


def test_metrics_count_what_happened(stub):
    complete(stub)
    complete(stub, prompt=["A", "B"], max_tokens=1)
    values = {}
    for line in stub.get("/metrics").text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name.replace('{model="tiny"}', "")] = float(value)
    assert values["capstan_prompt_tokens_total"] == 5
    assert values["capstan_generation_tokens_total"] == 6
    assert values["capstan_requests_running"] == values["capstan_requests_waiting"] == 0
    assert values["capstan_kv_cache_usage_ratio"] == 0
    assert values["capstan_time_to_first_token_seconds_count"] == 3
    assert values["capstan_time_per_output_token_seconds_count"] == 1  # one token has no time per token
    assert 0.006 <= values["capstan_request_seconds_sum"] < 5
    assert values['capstan_requests_finished_total{model="tiny",reason="length"}'] == 3


def test_a_stop_in_mid_stream_drains_then_says_so(stub):
    """With patience the stream ends whole; new requests get 503 or find no one listening; nothing leaks."""
    body = {"model": "tiny", "prompt": "A", "max_tokens": 100, "stream": True, "temperature": 0}
    with stub.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        stub.server.stop(10.0)
        wait_for(lambda: stub.engine.state is EngineState.DRAINING)
        with suppress(httpx.TransportError):  # or the port is closed already
            assert httpx.post(f"{stub.base_url}/v1/completions", json=body).status_code == 503
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert len(rest) == 100
    assert idle(stub.engine)


def test_an_impatient_stop_ends_streams_with_an_error(stub):
    body = {"model": "tiny", "prompt": "A", "max_tokens": 190, "stream": True}
    with stub.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        stub.server.stop(0.0)
        rest = [line for line in lines if line]
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert (error["type"], error["message"]) == ("server_error", "the server is stopping")
    assert idle(stub.engine)


def test_a_failed_engine_answers_500_then_503_and_health_says_why(stub):
    stub.engine._runner.run = None
    assert complete(stub).status_code == 500
    assert complete(stub).status_code == 503
    health = stub.get("/health")
    assert health.status_code == 503
    assert "TypeError" in health.json()["error"]


def test_a_port_in_use_is_refused_before_anything_else():
    with take_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} on 127.0.0.1 cannot be used"):
            take_port("127.0.0.1", port)
    with pytest.raises(InputError, match="0 to 65535"):
        take_port("127.0.0.1", 70000)
    with pytest.raises(InputError, match="no address of this machine"):
        take_port("no.such.host.invalid", 0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))


@pytest.mark.parametrize("variant", FAMILIES)
def test_log_probabilities_over_http_are_the_references(variant, tmp_path):
    """Tokens outside UTF-8 included: `token_id:N` names them all."""
    folder = make_checkpoint(tmp_path / "model", variant, vocab_size=300)
    metrics = Metrics("tiny")
    engine = checkpoint_engine(folder, tmp_path, engine_limits=limits(budget=8), observer=metrics)
    prompt = [(7 * index) % 300 for index in range(20)]
    asked = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": 3}
    asked |= {"return_tokens_as_token_ids": True}
    with served(engine, metrics) as (base, _), httpx.Client(base_url=base, timeout=30) as client:
        whole = complete(client, **asked).json()["choices"][0]["logprobs"]
        streamed = [piece["choices"][0]["logprobs"] for piece in events(client, "/v1/completions", **asked)]
    ids = [int(token.removeprefix("token_id:")) for token in whole["tokens"]]
    assert [piece["tokens"][0] for piece in streamed] == whole["tokens"]
    (logits,) = reference_logits(folder, [prompt + ids])
    expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    for row, token, logprob, top in zip(expected, ids, whole["token_logprobs"], whole["top_logprobs"], strict=True):
        assert logprob == pytest.approx(float(row[token]), abs=2e-4)
        assert sorted(top.values(), reverse=True) == pytest.approx(torch.topk(row, 3).values.tolist(), abs=2e-4)
        assert math.isclose(max(top.values()), float(row.max()), abs_tol=2e-4)


def test_the_same_prompt_through_engine_and_http_gives_the_same_tokens(tmp_path):
    folder = make_checkpoint(tmp_path / "model", "llama", vocab_size=300)
    sink = Collected()
    direct = checkpoint_engine(folder, tmp_path)
    direct.add_request("a", list(b"hello"), greedy(6), sink)
    while direct.step():
        pass
    metrics = Metrics("tiny")
    engine = checkpoint_engine(folder, tmp_path, observer=metrics)
    with served(engine, metrics) as (base, _), httpx.Client(base_url=base, timeout=30) as client:
        asked = {"prompt": "hello", "max_tokens": 6, "ignore_eos": True, "logprobs": 0}
        tokens = complete(client, **asked, return_tokens_as_token_ids=True).json()["choices"][0]["logprobs"]["tokens"]
    assert tokens == [f"token_id:{token}" for token in sink.ids]
