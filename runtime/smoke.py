"""Check a running server from outside: every way to ask, each answer compared with the reference.

Tokens come back as ids with log-probabilities, so an answer is judged without guessing: at each position the reference,
given the same prefix, must give the returned token the returned log-probability, and for greedy answers no other token
may be clearly likelier. Greedy tokens alone would not do: random models have margins below rounding.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from runtime.reference import Reference
from specs.errors import CapstanError

Encode = Callable[[str], list[int]]
TIMED_REQUESTS, TIMED_PROMPT_TOKENS, TIMED_TOKENS = 3, 16, 33  # no longer than what `smoke` asks for


class SmokeError(CapstanError):
    """An answer is wrong; the message says which and how."""


@dataclass(frozen=True)
class Scored:
    """An answer's token ids with their log-probabilities, and its text."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class SmokeReport:
    requests: int
    tokens: int
    worst_difference: float  # of log-probabilities, absolute
    seconds: float


def smoke(
    base: str,
    model: str,
    reference: Reference,
    encode: Encode,
    chat: Callable[[list[dict[str, str]]], list[int]] | None,
    tolerance: float = 2e-3,
    max_tokens: int = 12,
) -> SmokeReport:
    """Ask `base` in every way and compare. Raises `SmokeError` at the first wrong answer.

    `encode`, `chat`: the tokenizer's, so that the reference sees the ids that the server must have made of the text;
    `chat` None: the model has no chat template, and chats are left out.
    """
    started = time.perf_counter()
    text = "The quick brown fox jumps over the lazy dog"
    ids = encode(text)
    messages = [{"role": "user", "content": "Say something."}]
    greedy = {"model": model, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    greedy |= {"return_tokens_as_token_ids": True}
    plain = greedy | {"logprobs": 2}
    talk = greedy | {"messages": messages, "logprobs": True, "top_logprobs": 2}
    drawn = plain | {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    worst, tokens = 0.0, 0
    with httpx.Client(base_url=base, timeout=60.0) as client:
        cases: list[tuple[str, list[int], Scored, bool]] = [
            ("completion of text", ids, _completion(client, plain | {"prompt": text}), True),
            ("completion of token ids", ids, _completion(client, plain | {"prompt": ids}), True),
            ("streamed completion", ids, _streamed(client, plain | {"prompt": text}), True),
        ]
        if chat is not None:
            cases += [
                ("chat", chat(messages), _chat(client, talk), True),
                ("streamed chat", chat(messages), _streamed_chat(client, talk), True),
            ]
        cases.append(("drawn completion", ids, _completion(client, drawn | {"prompt": text}), False))
        again = _completion(client, drawn | {"prompt": text})
        health = client.get("/health")
    if again.ids != cases[-1][2].ids:
        raise SmokeError(f"the same seed drew {cases[-1][2].ids}, then {again.ids}")
    if health.status_code != 200:
        raise SmokeError(f"/health answers {health.status_code}: {health.text}")
    for what, prompt, answer, is_greedy in cases:
        if len(answer.ids) != max_tokens:
            raise SmokeError(f"{what}: {len(answer.ids)} tokens came, {max_tokens} were asked for")
        worst = max(worst, check(what, prompt, answer, reference, tolerance, is_greedy))
        tokens += len(answer.ids)
    return SmokeReport(len(cases) + 1, tokens, worst, time.perf_counter() - started)


def observed_tpot(base: str, model: str) -> float:
    """Seconds per further token of one request alone, as a client sees it: the median of a few streamed answers."""
    prompt = [token % 251 for token in range(TIMED_PROMPT_TOKENS)]
    body = {"model": model, "prompt": prompt, "max_tokens": TIMED_TOKENS, "temperature": 0, "ignore_eos": True}
    seen = []
    with httpx.Client(base_url=base, timeout=60.0) as client:
        for _ in range(TIMED_REQUESTS):
            arrived: list[float] = []
            with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
                arrived += [time.perf_counter() for line in response.iter_lines() if '"choices"' in line]
            if len(arrived) < 2:
                raise SmokeError(f"a stream of {TIMED_TOKENS} tokens came in {len(arrived)} pieces")
            seen.append((arrived[-1] - arrived[0]) / (TIMED_TOKENS - 1))
    return statistics.median(seen)


def check(
    what: str, prompt: Sequence[int], answer: Scored, reference: Reference, tolerance: float, greedy: bool
) -> float:
    """The largest difference of a log-probability from the reference's; `SmokeError` where it exceeds `tolerance`."""
    rows = reference.logprobs([*prompt, *answer.ids])[len(prompt) - 1 : -1]
    worst = 0.0
    for index, (token, logprob) in enumerate(zip(answer.ids, answer.logprobs, strict=True)):
        expected = float(rows[index, token])
        difference = abs(expected - logprob)
        worst = max(worst, difference)
        if not difference <= tolerance:  # true of NaN, too
            raise SmokeError(
                f"{what}: token {index} ({token}) has log-probability {logprob:.5f}, the reference says {expected:.5f}"
            )
        best = float(rows[index].max())
        if greedy and best - expected > 2 * tolerance:
            raise SmokeError(
                f"{what}: token {index} is {token}, but the reference prefers {int(rows[index].argmax())} "
                f"by {best - expected:.5f}"
            )
    return worst


def _completion(client: httpx.Client, body: dict[str, Any]) -> Scored:
    choice = _post(client, "/v1/completions", body)["choices"][0]
    return _scored(choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], choice["text"])


def _chat(client: httpx.Client, body: dict[str, Any]) -> Scored:
    choice = _post(client, "/v1/chat/completions", body)["choices"][0]
    content = choice["logprobs"]["content"]
    text = choice["message"]["content"]
    return _scored([one["token"] for one in content], [one["logprob"] for one in content], text)


def _streamed(client: httpx.Client, body: dict[str, Any]) -> Scored:
    tokens: list[str] = []
    logprobs: list[float] = []
    text = ""
    for chunk in _events(client, "/v1/completions", body):
        for choice in chunk["choices"]:
            text += choice["text"]
            if choice["logprobs"]:
                tokens += choice["logprobs"]["tokens"]
                logprobs += choice["logprobs"]["token_logprobs"]
    return _scored(tokens, logprobs, text)


def _streamed_chat(client: httpx.Client, body: dict[str, Any]) -> Scored:
    content: list[dict[str, Any]] = []
    text = ""
    for chunk in _events(client, "/v1/chat/completions", body):
        for choice in chunk["choices"]:
            text += choice["delta"].get("content", "")
            if choice["logprobs"]:
                content += choice["logprobs"]["content"]
    return _scored([one["token"] for one in content], [one["logprob"] for one in content], text)


def _scored(tokens: Sequence[str], logprobs: Sequence[float], text: str) -> Scored:
    return Scored(tuple(int(token.removeprefix("token_id:")) for token in tokens), tuple(logprobs), text)


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    if response.status_code != 200:
        raise SmokeError(f"{path} answers {response.status_code}: {response.text[:300]}")
    value: dict[str, Any] = response.json()
    return value


def _events(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a streamed answer; it must end with [DONE] and state its usage."""
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", path, json=asked) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    if response.status_code != 200 or not lines or lines[-1] != "[DONE]":
        raise SmokeError(f"{path}, streamed: the answer ({response.status_code}) ends with {lines[-1:]}, not [DONE]")
    chunks: list[dict[str, Any]] = [json.loads(line) for line in lines[:-1]]
    if (chunks[-1].get("usage") or {}).get("completion_tokens") != body["max_tokens"]:
        raise SmokeError(f"{path}, streamed: usage is {chunks[-1].get('usage')}")
    return chunks
