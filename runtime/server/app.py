"""The routes: /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from runtime.engine import Engine, EngineBusyError, EngineState, EngineStoppedError
from runtime.request import FinishReason, Output, SamplingParams
from runtime.server.answers import Gathered, Names, error, usage
from runtime.server.metrics import Metrics
from runtime.server.protocol import ChatRequest, CompletionRequest, R, parse_request
from runtime.server.streams import Answer
from specs.errors import InputError

# Text for a million tokens. Reading JSON keeps the interpreter, so this bounds how long one body delays all others.
MAX_BODY_BYTES = 8 * 2**20
# A text up to so long is tokenised where it is, in about a millisecond; a longer one in a thread, so that the event
# loop goes on. The same for the bytes of a body.
INLINE_CHARACTERS = 4096
READ = ["GET", "HEAD"]

T = TypeVar("T")


class RefusedError(Exception):
    """An HTTP status with an error body; raised before anything was sent."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(body["error"]["message"])
        self.status, self.body, self.headers = status, body, headers


def create_app(engine: Engine, model: str, metrics: Metrics) -> FastAPI:
    """The application over a started engine; `model` is the name that clients use."""
    app = FastAPI(title="capstan", docs_url=None, redoc_url=None, openapi_url=None)
    created = int(time.time())
    service = _Service(engine, model)
    metrics.watch(engine.stats)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await service.completions(request)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await service.chat(request)

    @app.api_route("/v1/models", methods=READ)
    async def models() -> dict[str, Any]:
        limit = engine.scheduler.limits.max_model_len
        entry = {"id": model, "object": "model", "created": created, "owned_by": "capstan", "max_model_len": limit}
        return {"object": "list", "data": [entry]}

    @app.api_route("/v1/models/{name:path}", methods=READ)
    async def one_model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return (await models())["data"][0]  # type: ignore[no-any-return]

    @app.api_route("/health", methods=READ)
    async def health() -> Response:
        ready = engine.state is EngineState.RUNNING
        body = {"status": str(engine.state)} | ({"error": engine.error} if engine.error else {})
        return JSONResponse(body, status_code=200 if ready else 503)

    @app.api_route("/metrics", methods=READ)
    async def scrape() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(RefusedError)
    async def refused(request: Request, exception: RefusedError) -> Response:
        return JSONResponse(exception.body, status_code=exception.status, headers=exception.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, exception: Exception) -> Response:
        # The framework logs the traceback; the client gets the protocol's form.
        return JSONResponse(error(f"unexpected failure ({type(exception).__name__})", "server_error"), status_code=500)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, exception: HTTPException) -> Response:
        body = error(f"{request.method} {request.url.path}: {exception.detail}", "invalid_request_error")
        return JSONResponse(body, status_code=exception.status_code, headers=exception.headers)

    return app


@dataclass(frozen=True)
class _Kind:
    """What differs between the two endpoints."""

    prefix: str
    object: str
    chunk_object: str
    choice: Callable[[Gathered], dict[str, Any]]
    piece: Callable[[Output], dict[str, Any]]
    opening: dict[str, Any] | None = None  # a first chunk per choice, before any token


class _Service:
    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    def check_model(self, name: str) -> None:
        if name != self._model:
            message = f"the model {name[:200]!r} does not exist; this server has {self._model!r}"
            raise RefusedError(404, error(message, "invalid_request_error", "model", "model_not_found"))

    async def completions(self, http: Request) -> Response:
        with _input_errors():
            request = await _parsed(http, CompletionRequest)
            self.check_model(request.model)
            prompts = [await self._ids(prompt) for prompt in request.prompt]
            params = request.params(request.max_tokens, request.logprobs)
        names = Names(self._engine.tokenizer, request.return_tokens_as_token_ids)
        scored = request.logprobs is not None
        kind = _Kind(
            "cmpl",
            "text_completion",
            "text_completion",
            lambda whole: {
                "text": whole.text,
                "logprobs": names.completion(whole.tokens, whole.offsets) if scored else None,
            },
            lambda output: {
                "text": output.text,
                "logprobs": names.completion([output.sampled], [output.text_offset])
                if scored and output.sampled
                else None,
            },
        )
        return await self._answer(http, kind, prompts, params, request.stream, request.include_usage)

    async def chat(self, http: Request) -> Response:
        with _input_errors():
            request = await _parsed(http, ChatRequest)
            self.check_model(request.model)
            prompt = await self._chat_ids([message.plain() for message in request.messages])
            asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
            params = request.params(asked if asked is not None else self._room(len(prompt)), request.wanted_logprobs())
        names = Names(self._engine.tokenizer, request.return_tokens_as_token_ids)
        kind = _Kind(
            "chatcmpl",
            "chat.completion",
            "chat.completion.chunk",
            lambda whole: {
                "message": {"role": "assistant", "content": whole.text},
                "logprobs": names.chat(whole.tokens) if request.logprobs else None,
            },
            lambda output: {
                "delta": {"content": output.text} if output.text else {},
                "logprobs": names.chat([output.sampled]) if request.logprobs and output.sampled else None,
            },
            opening={"delta": {"role": "assistant", "content": ""}, "logprobs": None},
        )
        return await self._answer(http, kind, [prompt], params, request.stream, request.include_usage)

    async def _ids(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a prompt. `InputError` where they cannot fit the context, for a long text without tokenising."""
        if isinstance(prompt, str):
            self._check_size(len(prompt.encode()), "prompt")
            prompt = await _aside(len(prompt), self._engine.tokenizer.encode, prompt)
        self._check_tokens(len(prompt), "prompt")
        return prompt

    async def _chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """The same of a chat."""
        size = sum(len(message["content"].encode()) for message in messages)
        self._check_size(size, "messages")
        prompt = await _aside(size, self._engine.tokenizer.chat, messages)
        self._check_tokens(len(prompt), "messages")
        return prompt

    def _check_size(self, size_bytes: int, field: str) -> None:
        context = self._engine.scheduler.limits.max_model_len
        most = context * self._engine.tokenizer.longest_token_bytes
        if size_bytes > most:
            raise InputError(
                f"{size_bytes} bytes of text are more than the context of {context} tokens holds",
                field=field,
                expected=f"at most {most} bytes, and fewer where tokens are short",
            )

    def _check_tokens(self, count: int, field: str) -> None:
        context = self._engine.scheduler.limits.max_model_len
        if count >= context:
            raise InputError(
                f"{count} tokens and at least one to generate are more than the context of {context} tokens",
                field=field,
                expected=f"at most {context - 1}",
            )

    def _room(self, prompt_tokens: int) -> int:
        """Tokens that may still be generated after the prompt; at least 1, so that `make` states the numbers."""
        limits, blocks = self._engine.scheduler.limits, self._engine.scheduler.blocks
        return max(1, min(limits.max_model_len, blocks.capacity_tokens + 1) - prompt_tokens)

    async def _answer(
        self, http: Request, kind: _Kind, prompts: list[list[int]], params: SamplingParams, stream: bool, counted: bool
    ) -> Response:
        id = f"{kind.prefix}-{uuid.uuid4().hex}"
        answers = self._submit(id, prompts, params)
        head = {"id": id, "created": int(time.time()), "model": self._model}
        if stream:
            return _EventStream(_chunks(kind, {**head, "object": kind.chunk_object}, answers, counted), answers)
        gathered = await _gathered(http, answers)
        choices = [
            {"index": index, **kind.choice(whole), "finish_reason": str(whole.finish_reason)}
            for index, whole in enumerate(gathered)
        ]
        generated = sum(len(whole.tokens) for whole in gathered)
        counts = usage(sum(answer.prompt_tokens for answer in answers), generated)
        return JSONResponse({**head, "object": kind.object, "choices": choices, "usage": counts})

    def _submit(self, id: str, prompts: Sequence[list[int]], params: SamplingParams) -> list[Answer]:
        """All prompts of a request enter, or none."""
        answers: list[Answer] = []
        try:
            with _input_errors():
                for index, prompt in enumerate(prompts):
                    answers.append(Answer(self._engine, f"{id}-{index}", prompt, params))
        except BaseException:
            for answer in answers:
                answer.close()
            raise
        return answers


class _EventStream(StreamingResponse):
    """Server-sent events. However it ends, a client that left before the first event included, requests are freed."""

    def __init__(self, chunks: AsyncIterator[str], answers: Sequence[Answer]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for answer in self._answers:
                answer.close()


async def _aside(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """The function's value; for a large input computed in a thread."""
    return function(*arguments) if size <= INLINE_CHARACTERS else await asyncio.to_thread(function, *arguments)


async def _parsed(http: Request, kind: type[R]) -> R:
    body = await _body(http)
    return await _aside(len(body), parse_request, body, kind)


async def _body(http: Request) -> bytes:
    parts, size = [], 0
    try:
        async for part in http.stream():
            size += len(part)
            if size > MAX_BODY_BYTES:
                message = f"the body is longer than {MAX_BODY_BYTES} bytes"
                raise RefusedError(413, error(message, "invalid_request_error"))
            parts.append(part)
    except ClientDisconnect:
        raise _gone() from None
    return b"".join(parts)


def _gone() -> RefusedError:
    return RefusedError(499, error("the client went away", "aborted"))


async def _gathered(http: Request, answers: list[Answer]) -> list[Gathered]:
    """Wait for all answers, or until the client has gone, which aborts them."""

    async def gather(answer: Answer) -> Gathered:
        whole = Gathered()
        async for output in answer:
            whole.add(output)
        return whole

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(gather(answer)) for answer in answers]
    watch = asyncio.ensure_future(gone())
    waiting: set[asyncio.Future[Any]] = {*tasks}
    try:
        while waiting:
            done, _ = await asyncio.wait({*waiting, watch}, return_when=asyncio.FIRST_COMPLETED)
            waiting -= done
            if watch in done and waiting:
                raise _gone()
        gathered = [task.result() for task in tasks]
    finally:
        for answer in answers:
            answer.close()
        for task in (*tasks, watch):
            task.cancel()
        await asyncio.gather(*tasks, watch, return_exceptions=True)
    for whole in gathered:
        if whole.finish_reason in (FinishReason.ABORT, FinishReason.ERROR):
            status = 503 if whole.finish_reason is FinishReason.ABORT else 500
            raise RefusedError(status, error(whole.message or "aborted", "server_error"))
    return gathered


async def _chunks(kind: _Kind, head: dict[str, Any], answers: list[Answer], counted: bool) -> AsyncIterator[str]:
    """The events of a stream. `_EventStream` frees the requests, whatever ends this generator."""
    merged: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()

    async def pump(index: int, answer: Answer) -> None:
        async for output in answer:
            merged.put_nowait((index, output))

    pumps = [asyncio.ensure_future(pump(index, answer)) for index, answer in enumerate(answers)]
    open_choices, generated = len(answers), 0
    blank: dict[str, Any] = {"usage": None} if counted else {}
    try:
        if kind.opening is not None:
            for index in range(len(answers)):
                yield _event({**head, "choices": [{"index": index, **kind.opening, "finish_reason": None}], **blank})
        while open_choices:
            index, output = await merged.get()
            if output.finish_reason in (FinishReason.ABORT, FinishReason.ERROR):
                yield _event(error(output.message or "aborted", "server_error"))
                return
            generated += output.sampled is not None
            reason = None if output.finish_reason is None else str(output.finish_reason)
            choice = {"index": index, **kind.piece(output), "finish_reason": reason}
            open_choices -= reason is not None
            yield _event({**head, "choices": [choice], **blank})
        if counted:
            counts = usage(sum(answer.prompt_tokens for answer in answers), generated)
            yield _event({**head, "choices": [], "usage": counts})
        yield "data: [DONE]\n\n"
    finally:
        for task in pumps:
            task.cancel()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


@contextlib.contextmanager
def _input_errors() -> Iterator[None]:
    """What the engine and the protocol raise, as HTTP statuses."""
    try:
        yield
    except InputError as wrong:
        code = "context_length_exceeded" if "more than the context" in wrong.message else None
        raise RefusedError(400, error(str(wrong), "invalid_request_error", wrong.field, code)) from None
    except EngineBusyError as busy:
        raise RefusedError(429, error(str(busy), "rate_limit_error", code="queue_full"), {"Retry-After": "1"}) from None
    except EngineStoppedError as stopped:
        raise RefusedError(503, error(str(stopped), "server_error", code="stopping"), {"Retry-After": "5"}) from None
