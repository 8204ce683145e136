"""An OpenAI-compatible server in a thread, with known delays and every fault that a server may have."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse


@dataclass
class Fake:
    """How the server behaves, and what it was asked. `fault` applies from request `fault_from` on."""

    first_s: float = 0.03
    token_s: float = 0.01
    serial: bool = False  # one request after the other
    fault: str | None = None  # 500 | 429 | hang | empty | malformed | dies | closes | error | json
    fault_from: int = 0
    refuses: tuple[str, ...] = ()  # members of a body, or "token ids", that are answered with 400
    api: tuple[str, ...] = ("completions", "chat")
    counts: bool = True  # usage
    stops_after: int | None = None  # tokens after which an answer ends, whatever it was asked for
    models: tuple[str, ...] = ("fake",)
    key: str | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    base: str = ""

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Bodies beyond the probes."""
        return [body for body in self.seen if body["max_tokens"] != 8]


def _app(current: list[Fake]) -> FastAPI:
    """Behaves as the last of `current`."""
    app = FastAPI(openapi_url=None)
    lock = asyncio.Lock()

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        fake = current[-1]
        if fake.key and request.headers.get("authorization") != f"Bearer {fake.key}":
            return JSONResponse({"error": {"message": "no key"}}, 401)
        return JSONResponse({"data": [{"id": name, "max_model_len": 4096} for name in fake.models]})

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": "1.2.3"}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, False)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, True)

    async def answer(request: Request, is_chat: bool) -> Response:
        fake, body = current[-1], await request.json()
        if ("chat" if is_chat else "completions") not in fake.api:
            return JSONResponse({"error": {"message": "no such route"}}, 404)
        prompt = body["messages"][0]["content"] if is_chat else body["prompt"]
        for name in fake.refuses:
            if name in body or (name == "token ids" and isinstance(prompt, list)):
                return JSONResponse({"error": {"message": f"{name} is not taken"}}, 400)
        fake.seen.append(body)
        fake.arrived.append(time.perf_counter())
        fault = fake.fault if len(fake.seen) > fake.fault_from else None
        if fault in ("500", "429"):
            return JSONResponse({"error": {"message": f"says the server, your key is {fake.key}"}}, int(fault))
        if fault == "json":
            return JSONResponse({"choices": []})
        if fault == "text":
            return PlainTextResponse("hello")
        return StreamingResponse(stream(fake, body, is_chat, prompt, fault), media_type="text/event-stream")

    async def stream(
        fake: Fake, body: dict[str, Any], is_chat: bool, prompt: Any, fault: str | None
    ) -> AsyncIterator[str]:
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "empty":
            yield "data: [DONE]\n\n"
            return
        async with lock if fake.serial else contextlib.nullcontext():
            if is_chat:
                yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            await asyncio.sleep(fake.first_s)
            wanted = min(body["max_tokens"], fake.stops_after or body["max_tokens"])
            for index in range(wanted):
                if index:
                    await asyncio.sleep(fake.token_s)
                if fault == "malformed" and index == 2:
                    yield "data: {not json\n\n"
                if fault == "error" and index == 2:
                    yield event({"error": {"message": "out of blocks"}})
                    return
                if fault == "dies" and index == 2:
                    raise RuntimeError("the server dies")
                if fault == "closes" and index == 2:
                    return
                reason = "length" if index == wanted - 1 else None
                piece = {"delta": {"content": "x "}} if is_chat else {"text": "x "}
                yield ": a comment\n" + event({"choices": [{"index": 0, **piece, "finish_reason": reason}]})
            if fake.counts and (body.get("stream_options") or {}).get("include_usage"):
                size = len(prompt) if isinstance(prompt, list) else 5 + 2 * len(prompt.split())
                yield event({"choices": [], "usage": {"prompt_tokens": size, "completion_tokens": wanted}})
        yield "data: [DONE]\n\n"

    return app


def event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


_CURRENT: list[Fake] = []


@functools.cache
def _address() -> str:
    """Of the one server of this process, which runs until its end: starting and stopping one takes its time."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(_app(_CURRENT), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def fake_endpoint(**how: Any) -> Iterator[Fake]:
    """The server, behaving so; its address is `base`."""
    fake = Fake(**how)
    _CURRENT.append(fake)
    fake.base = _address()
    try:
        yield fake
    finally:
        _CURRENT.remove(fake)
