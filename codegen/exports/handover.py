"""Hands requests over from prefill to decode replicas of vLLM: the router between the two sides of a plan.

A request first goes to the prefill replica with the fewest open ones, with one output token, and then, with what that
replica says of its KV cache, to the decode replica with the fewest open ones, which answers the client. Needs fastapi,
httpx and uvicorn, which vLLM brings.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import count
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

TIMEOUT = httpx.Timeout(3600.0, connect=5.0)  # a request may wait in the engine's queue before its first token


class Side:
    """Replicas of one side, and how many requests each has open."""

    def __init__(self, addresses: list[str], in_turn: bool) -> None:
        self._open = dict.fromkeys(addresses, 0)
        self._turns = count() if in_turn else None

    @contextmanager
    def replica(self) -> Iterator[str]:
        """The address of the replica with the fewest open requests, or of the next one in turn."""
        addresses = list(self._open)
        if self._turns is None:
            address = min(addresses, key=lambda each: self._open[each])
        else:
            address = addresses[next(self._turns) % len(addresses)]
        self._open[address] += 1
        try:
            yield address
        finally:
            self._open[address] -= 1


def wanted_tokens(body: dict[str, Any]) -> int | None:
    """Most output tokens that the client asks for; None where it does not say."""
    stated = body.get("max_completion_tokens", body.get("max_tokens"))
    return stated if isinstance(stated, int) else None


def prefill_body(body: dict[str, Any]) -> dict[str, Any]:
    """The request as the prefill side takes it: one token, not streamed, its KV cache kept for another replica."""
    changed = {name: value for name, value in body.items() if name not in ("stream_options", "min_tokens")}
    if "max_completion_tokens" in changed:
        changed["max_completion_tokens"] = 1
    return changed | {
        "max_tokens": 1,
        "stream": False,
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
    }


def application(prompts: Side, tokens: Side, client: httpx.AsyncClient) -> FastAPI:
    """The server: OpenAI's paths, and `/health`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/v1/models")
    async def models() -> Response:
        with prompts.replica() as address:
            answer = await client.get(f"{address}/v1/models")
        return Response(answer.content, answer.status_code, media_type="application/json")

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def serve(request: Request) -> Response:
        body = await request.json()
        headers = {"X-Request-Id": request.headers.get("X-Request-Id") or uuid.uuid4().hex}
        if "authorization" in request.headers:
            headers["Authorization"] = request.headers["authorization"]
        path = request.url.path
        if wanted_tokens(body) == 1:
            return await passed_on(prompts, path, body, headers)
        with prompts.replica() as address:
            first = await client.post(address + path, json=prefill_body(body), headers=headers)
        if first.status_code != 200:
            return Response(first.content, first.status_code, media_type="application/json")
        held = first.json().get("kv_transfer_params")
        if not held:
            error = {"message": f"{address} kept no KV cache: is it a prefill replica?", "type": "handover"}
            return JSONResponse({"error": error}, 502)
        return await passed_on(tokens, path, body | {"kv_transfer_params": held}, headers)

    async def passed_on(side: Side, path: str, body: dict[str, Any], headers: dict[str, str]) -> Response:
        """The answer of a replica of `side` as it comes; the request is open until its last byte."""
        stack = ExitStack()
        try:
            address = stack.enter_context(side.replica())
            asked = client.build_request("POST", address + path, json=body, headers=headers)
            answer = await client.send(asked, stream=True)
        except BaseException:
            stack.close()
            raise

        async def content() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                stack.close()
                await answer.aclose()

        kept = {name: value for name, value in answer.headers.items() if name in ("content-type", "content-encoding")}
        return StreamingResponse(content(), answer.status_code, headers=kept)

    @app.exception_handler(httpx.HTTPError)
    async def unreachable(_: Request, error: httpx.HTTPError) -> Response:
        return JSONResponse({"error": {"message": f"a replica does not answer: {error!r}", "type": "handover"}}, 502)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="router between prefill and decode replicas of vLLM")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--prefill", nargs="+", required=True, metavar="URL")
    parser.add_argument("--decode", nargs="+", required=True, metavar="URL")
    parser.add_argument("--in-turn", action="store_true", help="replicas in turn, not the one with the fewest requests")
    words = parser.parse_args()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(timeout=TIMEOUT, limits=limits)
    sides = Side(words.prefill, words.in_turn), Side(words.decode, words.in_turn)
    uvicorn.run(application(*sides, client), host="0.0.0.0", port=words.port, log_level="warning")


if __name__ == "__main__":
    main()
