"""From the engine's thread to one asyncio task: a queue of outputs, and an end that always frees the request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from runtime.engine import Engine
from runtime.request import Output, Request, SamplingParams


class Answer:
    """The outputs of one request, in order. Leaving it early (client gone, error) aborts the request."""

    def __init__(self, engine: Engine, id: str, prompt: list[int], params: SamplingParams) -> None:
        """Queues the request; raises what `Engine.add_request` raises. Call inside a running event loop."""
        self._engine = engine
        self._queue: asyncio.Queue[Output] = asyncio.Queue()
        self._ended = False
        loop = asyncio.get_running_loop()
        put = self._queue.put_nowait
        self.prompt_tokens = len(prompt)
        self.request: Request = engine.add_request(
            id, prompt, params, lambda output: None if loop.is_closed() else _call(loop, put, output)
        )

    async def __aiter__(self) -> AsyncIterator[Output]:
        while not self._ended:
            output = await self._queue.get()
            self._ended = output.finish_reason is not None
            yield output

    def close(self) -> None:
        """The client is gone or has all it wanted; a request that still runs is aborted."""
        if not self._ended:
            self._ended = True
            self._engine.abort(self.request, "the client went away")


def _call(loop: asyncio.AbstractEventLoop, put: object, output: Output) -> None:
    loop.call_soon_threadsafe(put, output)  # type: ignore[arg-type]
