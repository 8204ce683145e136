"""`Engine`: one thread that forms steps, computes them and hands out tokens.

Other threads only put requests and aborts into an inbox; everything else belongs to the engine's thread, so there are
no locks around the rules. A request ends exactly once: it finishes, is aborted, or fails, and gives back its blocks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from runtime.detokenize import OutputText
from runtime.request import FinishReason, Output, Request, SampledToken, SamplingParams
from runtime.sampler import Draw, sample
from runtime.scheduler import Piece, Scheduler
from runtime.tokenizer import Tokenizer
from specs.errors import CapstanError, InputError

logger = logging.getLogger("capstan.engine")


class Runner(Protocol):
    """What the engine needs of a `ModelRunner`."""

    def run(self, pieces: Sequence[Piece]) -> Any: ...


class Observer(Protocol):
    """Told by the engine's thread what happened; `runtime.server.metrics` is one."""

    def first_token(self, request: Request, now_s: float) -> None: ...

    def finished(self, request: Request, now_s: float) -> None: ...


class EngineState(StrEnum):
    RUNNING = "running"
    DRAINING = "draining"  # what is in goes on, nothing new
    STOPPED = "stopped"
    FAILED = "failed"


class EngineBusyError(CapstanError):
    """The admission queue is full: come again later."""


class EngineStoppedError(CapstanError):
    """The engine takes no more requests."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    running: int
    waiting: int
    blocks_used: int
    blocks: int
    preemptions: int
    steps: int
    prompt_tokens: int
    generated_tokens: int


class Engine:
    """Drives a `Scheduler` and a runner. `start()` runs the thread; tests may call `step()` themselves instead."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        tokenizer: Tokenizer,
        vocabulary: int,
        *,
        max_waiting: int = 4096,
        observer: Observer | None = None,
        sampler: Callable[[Any, Sequence[Draw]], list[SampledToken]] = sample,
    ) -> None:
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary  # of the model: rows of its embedding
        self.state = EngineState.RUNNING
        self.error: str | None = None  # why the state is FAILED
        self._runner = runner
        self._sampler = sampler
        self._observer = observer
        self._max_waiting = max_waiting
        self._arrived: deque[Request] = deque()
        self._aborted: deque[tuple[Request, str]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stop_reason: str | None = None  # end everything now
        self._steps = self._prompt_tokens = self._generated_tokens = 0

    # Any thread ----------------------------------------------------------------------------------------------------

    def add_request(
        self, id: str, prompt: Sequence[int], params: SamplingParams, sink: Callable[[Output], None]
    ) -> Request:
        """Queue a request; `sink` is called with each `Output` in the engine's thread and must not block.

        Raises `InputError` where the limits can never serve it, `EngineBusyError` where the queue is full,
        `EngineStoppedError` after a stop.
        """
        for field, tokens in (("prompt", prompt), ("stop_token_ids", params.stop_token_ids)):
            unknown = next((token for token in tokens if not 0 <= token < self.vocabulary), None)
            if unknown is not None:
                message = f"token id {unknown} is not in the vocabulary"
                raise InputError(message, field=field, expected=f"0 to {self.vocabulary - 1}")
        request = self.scheduler.make(id, tuple(prompt), params, sink)
        request.text = OutputText(self.tokenizer.decoder(), params.stop, params.min_tokens)
        with self._wake:
            if self.state is not EngineState.RUNNING:
                raise EngineStoppedError(self.error or "the server is stopping and takes no new requests")
            waiting = self.scheduler.waiting + len(self._arrived)
            if waiting >= self._max_waiting:
                raise EngineBusyError(f"{waiting} requests are waiting already, at most {self._max_waiting} may")
            self._arrived.append(request)
            self._wake.notify()
        return request

    def abort(self, request: Request, message: str = "aborted") -> None:
        """End a request wherever it stands. One that has ended already is left alone."""
        with self._wake:
            self._aborted.append((request, message))
            self._wake.notify()

    def drain(self) -> None:
        """Take nothing new; what is in goes on to its end."""
        with self._wake:
            if self.state is EngineState.RUNNING:
                self.state = EngineState.DRAINING
            self._wake.notify()

    def stop(self, drain_s: float = 0.0, message: str = "the server is stopping") -> None:
        """End the engine: requests may go on for `drain_s` seconds, what is left then is aborted with `message`."""
        self.drain()
        deadline = time.monotonic() + drain_s
        while self.busy and time.monotonic() < deadline and self.state is EngineState.DRAINING:
            time.sleep(0.01)
        with self._wake:
            self._stop_reason = message
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        else:
            self._end_all(message, FinishReason.ABORT)
            self._settle(EngineState.STOPPED)

    @property
    def busy(self) -> bool:
        """Whether any request has not ended yet."""
        with self._wake:
            return bool(self._arrived or self.scheduler.waiting or self.scheduler.running)

    def stats(self) -> EngineStats:
        """Counters as they stand; read without stopping the engine, so they may be one step apart."""
        blocks = self.scheduler.blocks
        return EngineStats(
            running=self.scheduler.running,
            waiting=self.scheduler.waiting + len(self._arrived),
            blocks_used=blocks.used_blocks,
            blocks=blocks.num_blocks,
            preemptions=self.scheduler.preemptions,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
        )

    # The engine's thread -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the engine in its own thread until `stop`."""
        self._thread = threading.Thread(target=self._loop, name="capstan-engine", daemon=True)
        self._thread.start()

    def step(self) -> bool:
        """Take in what arrived, compute one step, hand out its tokens. False when there was nothing to compute."""
        self._take_in()
        step = self.scheduler.form()
        if step is None:
            return False
        pieces = self.scheduler.pieces(step)
        logits = self._runner.run(pieces)
        sampled = self._sampler(logits, [self._draw(piece.request) for piece in pieces if piece.samples])
        requests = self.scheduler.complete(step)
        now_s = time.perf_counter()
        self._steps += 1
        self._prompt_tokens += sum(
            max(0, min(chunk.tokens, chunk.sequence.prompt_tokens - chunk.start)) for chunk in step.chunks
        )
        self._generated_tokens += len(requests)
        for request, token in zip(requests, sampled, strict=True):
            self._deliver(request, token, now_s)
        return True

    def _loop(self) -> None:
        while True:
            with self._wake:
                while self._idle():
                    self._wake.wait()
                reason = self._stop_reason
            if reason is not None:
                self._end_all(reason, FinishReason.ABORT)
                self._settle(EngineState.STOPPED)
                return
            try:
                self.step()
            except Exception as error:
                # A step that failed may have written half of its keys and values: nothing in flight can be trusted.
                first = str(error).partition("\n")[0]
                debug = logger.isEnabledFor(logging.DEBUG)
                logger.error("a step failed (%s: %s); the engine stops", type(error).__name__, first, exc_info=debug)
                self._settle(EngineState.FAILED, f"the engine failed ({type(error).__name__}: {error})")
                self._end_all(self.error or "", FinishReason.ERROR)
                return

    def _idle(self) -> bool:
        if self._stop_reason is not None or self._arrived or self._aborted:
            return False
        return not (self.scheduler.waiting or self.scheduler.running)

    def _take_in(self) -> None:
        with self._wake:
            arrived, self._arrived = self._arrived, deque()
            aborted, self._aborted = self._aborted, deque()
            for request in arrived:  # under the lock, so that `busy` never misses them
                self.scheduler.add(request)
        for request, message in aborted:
            if request.finish_reason is None:
                self._end(request, None, "", FinishReason.ABORT, message)

    def _draw(self, request: Request) -> Draw:
        params, position = request.params, len(request.output)
        forbidden = self._stop_tokens(request) if position < params.min_tokens else frozenset[int]()
        return Draw(params, request.seed, position, forbidden)

    def _stop_tokens(self, request: Request) -> frozenset[int]:
        stop = request.params.stop_token_ids
        return stop if request.params.ignore_eos else stop | self.tokenizer.eos_token_ids

    def _deliver(self, request: Request, token: SampledToken, now_s: float) -> None:
        if request.first_token_s is None:
            request.first_token_s = now_s
            if self._observer is not None:
                self._observer.first_token(request, now_s)
        request.output.append(token.token)
        offset = request.text.offset
        reason: FinishReason | None = None
        if token.token in self._stop_tokens(request):
            reason, text = FinishReason.STOP, request.text.flush()
        else:
            text = request.text.push(token.token)
            if request.text.stopped:
                reason = FinishReason.STOP
            elif len(request.output) >= request.params.max_tokens:
                text += request.text.flush()
                reason = FinishReason.STOP if request.text.stopped else FinishReason.LENGTH
        if reason is None:
            self._send(request, Output(token, text, len(request.output), text_offset=offset))
        else:
            self._end(request, token, text, reason, None, offset)

    def _end(
        self,
        request: Request,
        token: SampledToken | None,
        text: str,
        reason: FinishReason,
        message: str | None,
        text_offset: int = 0,
    ) -> None:
        """Free what the request holds, then tell its client: a client that saw the end finds the blocks free."""
        self.scheduler.finish(request)
        request.finish_reason = reason
        if self._observer is not None:
            self._observer.finished(request, time.perf_counter())
        self._send(request, Output(token, text, len(request.output), reason, message, text_offset))

    def _send(self, request: Request, output: Output) -> None:
        try:
            request.sink(output)
        except RuntimeError:
            # The client's event loop is closed; nobody reads this answer any more.
            logger.warning("request %s: its client is gone", request.id)
            if request.finish_reason is None:
                self.abort(request, "its client is gone")

    def _end_all(self, message: str, reason: FinishReason) -> None:
        self._take_in()
        for request in self.scheduler.requests:
            self._end(request, None, "", reason, message)

    def _settle(self, state: EngineState, error: str | None = None) -> None:
        with self._wake:
            self.state = state
            self.error = error
