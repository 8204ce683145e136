"""One streamed answer: server-sent events as they arrive, each with its moment."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from specs.measurements import RequestStatus

BUSY = (429, 503)  # the server refuses on purpose: try again later
MOST_MESSAGE = 200  # characters of a server's error that are kept


class AnswerError(Exception):
    """The answer is not one; the text says how, in the words of `RequestRow.error`."""

    def __init__(self, text: str, status: RequestStatus = "failed", code: int | None = None) -> None:
        super().__init__(text)
        self.status, self.code = status, code


@dataclass(slots=True)
class Answer:
    """What came of one request. Moments by `time.perf_counter`. Filled as it comes, so it is whole at any time."""

    sent: float | None = None
    first: float | None = None  # the first piece that carries a token
    last: float | None = None  # the last one so far
    pieces: int = 0
    longest_gap_s: float = 0.0
    prompt_tokens: int | None = None  # as the server counted them
    output_tokens: int | None = None
    finished: bool = False  # the server said that this is all
    status: RequestStatus = "cut"
    error: str | None = None
    code: int | None = None  # HTTP status, where one came

    def piece(self, now: float) -> None:
        """A piece that carries at least one token."""
        if self.first is None:
            self.first = now
        elif self.last is not None:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last)
        self.last = now
        self.pieces += 1

    @property
    def tokens(self) -> int:
        """Output tokens: the server's count, else the pieces."""
        return self.pieces if self.output_tokens is None else self.output_tokens


async def ask(
    client: httpx.AsyncClient,
    path: str,
    body: bytes,
    answer: Answer,
    timeout_s: float,
    redact: Callable[[str], str] = str,
) -> None:
    """Send `body` and fill `answer` until its end. Never raises what the server did: that is `answer.status`."""
    answer.sent = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            async with client.stream("POST", path, content=body) as response:
                answer.code = response.status_code
                await _read(response, answer)
        answer.status = "ok"
    except AnswerError as error:
        answer.status, answer.error = error.status, redact(str(error))
    except (TimeoutError, httpx.TimeoutException):
        answer.status, answer.error = "failed", f"timeout: no end within {timeout_s:g} s"
    except httpx.ConnectError as error:
        answer.status, answer.error = "failed", redact(f"connection: {error or 'refused'}")
    except (httpx.HTTPError, OSError) as error:
        place = "while it streamed" if answer.first is not None else "before a token came"
        answer.status, answer.error = "failed", redact(f"disconnected: {place} ({error or type(error).__name__})")


async def _read(response: httpx.Response, answer: Answer) -> None:
    if response.status_code != 200:
        text = (await response.aread()).decode("utf-8", "replace")
        status: RequestStatus = "rejected" if response.status_code in BUSY else "failed"
        raise AnswerError(f"http {response.status_code}: {_message(text)}", status, response.status_code)
    kind = response.headers.get("content-type", "")
    if "event-stream" not in kind:
        raise AnswerError(f"not streamed: the answer is {kind.partition(';')[0] or 'of no type'}")
    async for now, data in events(response.aiter_bytes()):
        if data == b"[DONE]":
            answer.finished = True
            continue
        _take(data, now, answer)
    if answer.first is None:
        raise AnswerError("empty: the stream ended without a token")
    if not answer.finished:
        raise AnswerError("disconnected: the stream ended before the answer did")


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[float, bytes]]:
    """(moment, data) of each `data:` line, as soon as its line is whole; comments and other fields are left out."""
    rest = b""
    async for chunk in chunks:
        now = time.perf_counter()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield now, line[5:].strip()
    if rest.startswith(b"data:"):
        yield time.perf_counter(), rest[5:].strip()


def _take(data: bytes, now: float, answer: Answer) -> None:
    """One event of /v1/completions or /v1/chat/completions. `AnswerError` where it is none, or says an error."""
    try:
        event = json.loads(data)
    except ValueError:
        raise AnswerError(f"malformed: an event is not JSON ({data[:60].decode('utf-8', 'replace')!r})") from None
    if not isinstance(event, dict):
        raise AnswerError("malformed: an event is no JSON object")
    if event.get("error"):
        raise AnswerError(f"error in the stream: {_message(data.decode('utf-8', 'replace'))}")
    usage = event.get("usage")
    if isinstance(usage, dict):
        answer.prompt_tokens = _count(usage.get("prompt_tokens"), answer.prompt_tokens)
        answer.output_tokens = _count(usage.get("completion_tokens"), answer.output_tokens)
    choices = event.get("choices")
    if not isinstance(choices, list):
        raise AnswerError("malformed: an event has no choices")
    for choice in choices:
        if not isinstance(choice, dict):
            raise AnswerError("malformed: a choice is no JSON object")
        ends = bool(choice.get("finish_reason"))
        answer.finished |= ends
        if _carries_token(choice, ends and answer.first is not None):
            answer.piece(now)
        elif ends and answer.first is not None:
            answer.last = now  # of a last token without text, or a moment after the last one


def _carries_token(choice: dict[str, Any], ends: bool) -> bool:
    """Whether a piece stands for a token. A token may have no text of its own (half of a character); the opening of a
    chat (a role without content) and an empty end are none."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text")) or not ends
    text = any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
    return text or ("role" not in delta and not ends)


def _count(value: Any, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


def _message(text: str) -> str:
    """What a body says of its error, shortened, in one line."""
    try:
        value = json.loads(text)
        error = value.get("error", value) if isinstance(value, dict) else value
        found = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        text = found if isinstance(found, str) else text
    except ValueError:
        pass
    return " ".join(text.split())[:MOST_MESSAGE]
