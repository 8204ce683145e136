"""The OpenAI protocol from outside: a real port, real clients, and everything that a client can do wrong."""

# ruff: noqa: E402 - what is imported needs packages that may be absent; then the file is skipped
from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import threading
import time
from contextlib import contextmanager

import pytest

torch = pytest.importorskip("torch")
httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
from served import Collected, checkpoint_engine, greedy, limits, stub_engine
from tiny_checkpoints import FAMILIES, make_checkpoint, reference_logits

from runtime.engine import EngineState
from runtime.server.app import _EventStream
from runtime.server.metrics import Metrics
from runtime.server.serve import address_of, make_server, serve_in_thread, take_port
from runtime.tokenizer import load_tokenizer
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
def stub_server(length=200):
    """A server over the stub: answers continue the alphabet. Small steps take a little, so that things overlap."""
    metrics = Metrics("tiny")
    blocks = max(64, length // 4 + 1)
    engine, runner = stub_engine(blocks, limits=limits(length=length), observer=metrics, max_waiting=20)
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


def test_a_conversation_goes_on_with_the_answer_as_the_openai_client_dumps_it(shared):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=3).choices[0].message
    dumped = answer.model_dump()
    assert None in dumped.values()
    messages += [dumped | {"annotations": [], "tool_calls": []}, {"role": "user", "content": "and", "name": None}]
    again = client.chat.completions.create(model="tiny", messages=messages, max_tokens=3)
    assert again.usage.completion_tokens == 3


def test_what_has_no_effect_here_is_taken_without_a_word(shared):
    harmless = {
        "user": "me",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
    }
    neutral = {"n": 1.0, "tools": [], "tool_choice": "auto", "presence_penalty": 0.0, "logit_bias": {}, "stop": None}
    options = {"include_usage": None, "include_obfuscation": False}
    assert complete(shared, **harmless, **neutral, stream_options=options).json()["choices"][0]["text"] == "DEFG"


def test_a_long_text_that_cannot_fit_is_not_tokenised(stub):
    def never(text):
        raise AssertionError("tokenised")

    stub.engine.tokenizer.encode = stub.engine.tokenizer.chat = never
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 700_000}]}
    response = stub.post("/v1/chat/completions", json=body)
    assert response.status_code == complete(stub, prompt="x" * 700_000).status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_health_answers_while_a_long_text_is_tokenised(path):
    with stub_server(length=10_000) as client:
        begun, go_on = threading.Event(), threading.Event()
        tokenizer = client.engine.tokenizer
        encode = tokenizer.encode

        def slow(text):
            begun.set()
            assert go_on.wait(20)
            return encode(text)[:100]

        tokenizer.encode = slow
        text = "x" * 9000
        body = {"model": "tiny", "max_tokens": 1, "prompt": text}
        if "chat" in path:
            body = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
        answers = []
        thread = threading.Thread(target=lambda: answers.append(client.post(path, json=body).status_code))
        thread.start()
        try:
            assert begun.wait(20)
            assert httpx.get(f"{client.base_url}/health", timeout=10).status_code == 200
        finally:
            go_on.set()
            thread.join()
        assert answers == [200]


def script(engine, tokens):
    """The stub's answer to a prompt of one token becomes `tokens`."""

    def run(pieces):
        sampled = [piece.request for piece in pieces if piece.samples]
        logits = torch.zeros(len(sampled), engine.vocabulary)
        for row, request in enumerate(sampled):
            logits[row, tokens[len(request.output)]] = 10.0
        return logits

    engine._runner.run = run


def test_text_offsets_are_places_in_the_text_streamed_or_not(stub):
    """Bytes of one character begin where it does; a name such as `bytes:\\xf0` has no length in the text."""
    text = "aé🙂b€"
    script(stub.engine, list(text.encode()))
    asked = {"prompt": "?", "max_tokens": len(text.encode()), "logprobs": 0}
    choice = complete(stub, **asked).json()["choices"][0]
    assert choice["text"] == text
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 4]
    pieces = events(stub, "/v1/completions", temperature=0, **asked)
    streamed = [offset for piece in pieces for offset in piece["choices"][0]["logprobs"]["text_offset"]]
    assert streamed == choice["logprobs"]["text_offset"]


def test_log_probabilities_of_a_byte_level_tokenizer_state_the_tokens_bytes(tmp_path):
    """Each token of an emoji is a part of it; all parts together are its UTF-8."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a plain text"], vocab_size=257, special_tokens=["<s>"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>").save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    metrics = Metrics("tiny")
    engine, _ = stub_engine(limits=limits(), observer=metrics)
    engine.tokenizer, engine.vocabulary = load_tokenizer(tmp_path), 257
    text = "é 東京 🙂"
    ids = engine.tokenizer.encode(text)
    script(engine, ids)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "東"}], "logprobs": True, "max_tokens": len(ids)}
    with served(engine, metrics) as (base, _), httpx.Client(base_url=base, timeout=20) as client:
        (choice,) = client.post("/v1/chat/completions", json=body | {"temperature": 0}).json()["choices"]
    assert choice["message"]["content"] == text
    entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == text.encode()
    assert "\ufffd" not in "".join(entry["token"] for entry in entries)


def test_text_offsets_with_text_held_back_for_a_stop_string(stub):
    script(stub.engine, list(b"ab--c--|d"))
    asked = {"prompt": "?", "max_tokens": 9, "logprobs": 0, "stop": "--|"}
    choice = complete(stub, **asked).json()["choices"][0]
    assert choice["text"] == "ab--c"
    assert choice["logprobs"]["text_offset"] == list(range(8))
    pieces = events(stub, "/v1/completions", temperature=0, **asked)
    assert [piece["choices"][0]["logprobs"]["text_offset"] for piece in pieces] == [[index] for index in range(8)]


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
    "many stops": ({"stop": [5] * 10_001}, 400, "stop", "holds 10001 entries, at most 10000"),
    "many stop tokens": ({"stop_token_ids": ["x"] * 10_001}, 400, "stop_token_ids", "holds 10001 entries"),
    "stop": ({"stop": [1]}, 400, "stop.0", "is wrong"),
    "two choices": ({"n": 2}, 400, "n", "2 is not honoured"),
    "penalty": ({"presence_penalty": 0.5}, 400, "presence_penalty", "is not honoured"),
    "slip": ({"max_token": 3}, 400, "max_token", "did you mean 'max_tokens'"),
    "truth as a count": ({"n": True}, 400, "n", "true is not honoured"),
    "text for a switch": ({"echo": 0}, 400, "echo", "0 is not honoured"),
    "tools": ({"tools": [{"type": "function"}]}, 400, "tools", "is not honoured"),
    "JSON mode": ({"response_format": {"type": "json_object"}}, 400, "response_format", "is not honoured"),
    "deep": ('{"model":"tiny","prompt":"A","tools":' + 700 * "[" + 700 * "]" + "}", 400, "tools", "is not honoured"),
    "half a pair in the prompt": ('{"model":"tiny","prompt":"a\\ud800"}', 400, "prompt", "half of a surrogate pair"),
    "half a pair in a list": ('{"model":"tiny","prompt":["a","\\uDFFF"]}', 400, "prompt.1", "half of a surrogate"),
    "half a pair in the suffix": ({"suffix": "\ud800"}, 400, "suffix", "half of a surrogate pair"),
    "half a pair in a stop": ({"stop": ["\udfff"]}, 400, "stop.0", "half of a surrogate pair"),
    "half a pair in what is ignored": ({"user": "\ud800"}, 400, "user", "half of a surrogate pair"),
    "half a pair in the model": ({"model": "\ud800"}, 400, "model", "half of a surrogate pair"),
    "half a pair in a name": ({"x\ud800": 1}, 400, "x\\ud800", "half of a surrogate pair"),
    "half a pair deep in": ({"metadata": {"a": [{"\udc00": 1}]}}, 400, "metadata.a.0.\\udc00", "half of a surrogate"),
    "UTF-16": (json.dumps({"model": "tiny", "prompt": "A"}).encode("utf-16"), 400, None, "the body is not UTF-8"),
    "surrogates as bytes": (b'{"model":"\xed\xa0\x80"}', 400, None, "the body is not UTF-8 (at byte 10)"),
    "beyond floats": ('{"model":"tiny","prompt":"A","temperature":1e400}', 400, "temperature", "finite"),
    "beyond floats, whole": ('{"model":"tiny","prompt":"A","top_p":1' + 400 * "0" + "}", 400, "top_p", "too large"),
    "no number": ('{"model":"tiny","prompt":"A","top_p":NaN}', 400, "top_p", "finite"),
    "minus infinity": ('{"model":"tiny","prompt":"A","max_tokens":-Infinity}', 400, "max_tokens", "is wrong"),
    "infinity for what is not honoured": ('{"model":"tiny","prompt":"A","min_p":Infinity}', 400, "min_p", "Infinity"),
    "far too many tokens": ({"max_tokens": 1e300}, 400, "max_tokens", "the number does not fit 64 bits"),
    "far too many digits": ('{"model":"tiny","prompt":"A","seed":' + 5000 * "1" + "}", 400, None, "is not JSON that"),
    "a huge token id": ({"prompt": [10**300]}, 400, "prompt", "does not fit 64 bits"),
    "half a token id": ({"prompt": [1.5]}, 400, "prompt", "a token id is not a whole number"),
    "lists of kinds": ({"prompt": [[1], "A"]}, 400, "prompt", "its members are of several kinds"),
    "an empty list in a list": ({"prompt": [[]]}, 400, "prompt", "has no tokens"),
    "too many prompts": ({"prompt": ["A"] * 257}, 400, "prompt", "holds 257 prompts, at most 256"),
    "the last token as a stop": ({"stop_token_ids": [-1]}, 400, "stop_token_ids", "negative"),
    "a stop outside the vocabulary": ({"stop_token_ids": [262]}, 400, "stop_token_ids", "262 is not in the vocabulary"),
    "stream options": ({"stream_options": {"usage": True}}, 400, "stream_options.usage", "is not honoured"),
    "a text of more bytes than the context": ({"prompt": "A" * 5000}, 400, "prompt", "5000 bytes of text are more"),
    "more ids than the context": ({"prompt": [65] * 300}, 400, "prompt", "300 tokens and at least one to generate"),
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
    assert len(error["message"]) < 300
    assert idle(shared.engine)


@pytest.mark.parametrize("depth", range(800, 1010, 5))
def test_no_depth_of_nesting_is_too_much_for_an_answer(shared, depth):
    """Near the interpreter's limit a value can be read but not be written again."""
    for field in ("tools", "prompt", "user", "stop", "unknown"):
        body = f'{{"model":"tiny","max_tokens":1,"prompt":"A","{field}":{depth * "["}{depth * "]"}}}'
        assert shared.post("/v1/completions", content=body).status_code in (200, 400), field


@pytest.mark.parametrize(
    ("messages", "param"),
    [([], "messages"), ([{"role": "robot", "content": "x"}], "messages.0.role"), ("hi", "messages"),
     ([{"role": "user"}], "messages.0.content"), ([{"role": "user", "content": [{"type": "image_url"}]}], None),
     ([{"role": "user", "content": None}], "messages.0.content"),
     ([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], "messages.0.tool_calls"),
     ([{"role": "assistant", "content": "x", "refusal": "no"}], "messages.0.refusal"),
     ([{"role": "user", "content": "\ud800"}], "messages.0.content"), ([{"role": "user"}, 5], "messages.0.content"),
     ([{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], "messages.0.content.0.text"),
     ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages.0.content.0.text"),
     ([{"role": "user", "content": ["x"]}], "messages.0.content.0"), ([5], "messages.0"),
     ([{"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}], "messages.0.content.0.cache"),
     ([{"role": "user", "content": "x"}] * 10_001, "messages"),
     ([{"role": "user", "content": [{"type": "text", "text": "x"}] * 5000}] * 2, "messages")],
)  # fmt: skip
def test_bad_messages(shared, messages, param):
    response = shared.post("/v1/chat/completions", content=json.dumps({"model": "tiny", "messages": messages}))
    assert response.status_code == 400
    if param:
        assert response.json()["error"]["param"] == param


def test_a_client_that_leaves_within_its_body_is_no_failure(stub, caplog):
    base = httpx.URL(stub.base_url)
    with socket.create_connection((base.host, base.port)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        wait_for(lambda: stub.server.server_state.tasks)
    wait_for(lambda: not stub.server.server_state.tasks)
    assert not caplog.records


def test_a_body_may_begin_with_a_byte_order_mark(shared):
    body = b'\xef\xbb\xbf{"model":"tiny","prompt":"A","max_tokens":1}'
    assert shared.post("/v1/completions", content=body).status_code == 200


def test_a_body_that_is_too_long_is_413(shared):
    response = shared.post("/v1/completions", content=b" " * (8 * 2**20 + 1))
    assert response.status_code == 413
    assert "longer than 8388608 bytes" in response.json()["error"]["message"]


def test_one_bad_prompt_of_several_takes_nothing_in(shared):
    assert complete(shared, prompt=["A", "B", "C" * 300]).status_code == 400
    wait_for(lambda: idle(shared.engine))


def test_unknown_routes_and_methods(shared):
    assert shared.get("/v1/nothing").status_code == 404
    assert shared.get("/v1/completions").status_code == 405
    assert "error" in shared.get("/v1/nothing").json()


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v1/models/tiny"])
def test_what_can_be_read_has_a_head(shared, path):
    response = shared.head(path)
    assert (response.status_code, response.content) == (200, b"")


def test_a_stream_whose_client_left_before_its_first_event_frees_its_request():
    closed = []

    class Held:
        def close(self):
            closed.append(self)

    async def nothing():
        yield ""

    async def gone():
        return {"type": "http.disconnect"}

    async def blocked(message):
        await asyncio.sleep(60)

    held = Held()
    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    asyncio.run(_EventStream(nothing(), [held])(scope, gone, blocked))
    assert closed == [held]


def test_a_client_that_leaves_frees_its_request():
    body = {"model": "tiny", "prompt": "A", "max_tokens": 3900}  # eight seconds
    with stub_server(length=4000) as stub:
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


def test_a_stop_in_mid_stream_drains_and_says_so(stub):
    """With patience the stream ends whole; meanwhile new requests get 503 and health says why; nothing leaks."""
    body = {"model": "tiny", "prompt": "A", "max_tokens": 190, "stream": True, "temperature": 0}
    with stub.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        stub.server.stop(10.0)
        wait_for(lambda: stub.engine.state is EngineState.DRAINING)
        time.sleep(0.15)  # longer than the server takes to see that it should end
        health = httpx.get(f"{stub.base_url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        refused = httpx.post(f"{stub.base_url}/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert len(rest) == 190
    assert idle(stub.engine)

    def closed():
        try:
            return httpx.get(f"{stub.base_url}/health") is None
        except httpx.TransportError:
            return True

    wait_for(closed)


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


def test_a_failed_engine_answers_500_then_503_and_health_says_why(stub, caplog):
    stub.engine._runner.run = None
    failed = complete(stub)
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    (said,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "a step failed (TypeError: " in said.getMessage()
    assert not said.exc_info  # one line, no traceback
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
