"""A whole run: loads one after the other, each request on its own, whatever happens to the others.

In an open loop requests are sent at their times and never wait for answers, so a slow server cannot slow its own load
down (coordinated omission). What the client itself was late by is in every row.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from runtime.replay.endpoint import Known, Target, meet
from runtime.replay.stream import Answer, ask
from specs.measurements import Environment, Load, Measurements, RequestRow
from specs.replay import ReplayLoad, ReplayRequest

AHEAD_S = 1.0  # a body is made so long before it is sent, so that sending it takes no time
GIVE_UP = 20  # failures in a row after which a server counts as dead
LATE_S = 0.01  # sends later than that at p99 are worth a note, as is a client that is busy for most of the time
BUSY_SHARE = 0.7

Progress = Callable[[int, int], None]  # (requests done, requests in all)


@dataclass(frozen=True)
class ReplayOptions:
    """`vocabulary`: of the model, for prompts of token ids. `timeout_s`: of one request, queueing included."""

    vocabulary: int
    seed: int = 0
    timeout_s: float = 300.0
    progress: Progress = lambda done, of: None


def replay(
    target: Target, loads: Sequence[ReplayLoad], environment: Environment, options: ReplayOptions
) -> Measurements:
    """Send the loads one after the other and tell what came back.

    Ctrl-C ends the run early: what there is is returned, marked `partial`, as it is where the server dies. Raises
    `InputError` where nothing answers at all, or the server refuses every way to ask.
    """
    return asyncio.run(_replay(target, loads, environment, options))


async def _replay(
    target: Target, loads: Sequence[ReplayLoad], environment: Environment, options: ReplayOptions
) -> Measurements:
    async with target.client() as client:
        known = await meet(client, target, options.vocabulary, options.seed, min(60.0, options.timeout_s))
        run = _Run(client, known, target, options, sum(len(load.requests) for load in loads))
        started, cpu = time.perf_counter(), time.process_time()
        records: list[Load] = []
        for load in loads:
            begun_s = run.now_s()
            await run.load(load)
            records += _records(load, run.rows.values(), run.now_s() - begun_s, options.seed)
            if run.stopped is not None:
                break
        share = (time.process_time() - cpu) / max(1e-9, time.perf_counter() - started)
    rows = tuple(run.rows[number] for number in sorted(run.rows))
    notes = (*known.notes, *_notes_of(rows, share))
    return Measurements(
        source=known.endpoint.url,
        environment=environment.model_copy(
            update={"engine_version": known.endpoint.version or environment.engine_version}
        ),
        model=known.endpoint.model,
        endpoint=known.endpoint,
        loads=tuple(records),
        partial=run.stopped or _partial(rows),
        requests=rows,
        notes=notes,
    )


@dataclass
class _Run:
    """The state of a run. Requests are numbered through all loads."""

    client: httpx.AsyncClient
    known: Known
    target: Target
    options: ReplayOptions
    total: int
    rows: dict[int, RequestRow] = field(default_factory=dict)
    stopped: str | None = None  # why the run ended early
    _start: float = field(default_factory=time.perf_counter)
    _first: int = 0  # number of the load's first request
    _failures: int = 0  # in a row
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def now_s(self) -> float:
        return time.perf_counter() - self._start

    async def load(self, load: ReplayLoad) -> None:
        """Send one load and wait for its answers; `stopped` says if it ended early."""
        ways = self._open_loop(load) if load.concurrency is None else self._closed_loop(load, load.concurrency)
        self._tasks = {asyncio.ensure_future(way) for way in ways}
        try:
            await asyncio.gather(*self._tasks)
        except asyncio.CancelledError:
            self.stopped = self.stopped or "interrupted"
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._first += len(load.requests)

    def _open_loop(self, load: ReplayLoad) -> list[Coroutine[Any, Any, None]]:
        begun_s = self.now_s()
        ended = [asyncio.Event() for _ in load.requests]

        async def one(number: int, request: ReplayRequest) -> None:
            due_s = begun_s + request.due_s
            try:
                if request.after is not None:
                    await ended[request.after].wait()
                    if self._status(request.after) != "ok":
                        self._skip(number, request, "the request before it in its session has failed")
                        return
                    due_s = max(due_s, self.now_s() + request.gap_s)
                await asyncio.sleep(due_s - AHEAD_S - self.now_s())
                await self._send(number, request, load.unit_tokens, due_s)
            finally:
                ended[number].set()

        return [one(number, request) for number, request in enumerate(load.requests)]

    def _closed_loop(self, load: ReplayLoad, clients: int) -> list[Coroutine[Any, Any, None]]:
        begun_s, waiting = self.now_s(), iter(enumerate(load.requests))

        async def client() -> None:
            for number, request in waiting:
                late = load.limit_s is not None and self.now_s() - begun_s >= load.limit_s
                if late and number >= load.least_requests:
                    return
                await self._send(number, request, load.unit_tokens, None)
                await asyncio.sleep(load.think_s)

        return [client() for _ in range(min(clients, len(load.requests)))]

    async def _send(self, number: int, request: ReplayRequest, unit_tokens: int, due_s: float | None) -> None:
        """Make the body, wait for its moment, send it, keep what came; also where the run is cancelled meanwhile."""
        form = self.known.form
        prompt = self.known.prompts.of(self._first + number, request, unit_tokens)
        body = form.body(prompt, request.output_tokens)
        if due_s is not None:
            await asyncio.sleep(due_s - self.now_s())
        answer = Answer()
        try:
            await ask(self.client, form.path, body, answer, self.options.timeout_s, self.target.redact)
        finally:
            self._keep(number, request, answer, due_s)

    def _keep(self, number: int, request: ReplayRequest, answer: Answer, due_s: float | None) -> None:
        if answer.sent is None:
            return
        done = answer.status == "ok" and answer.last is not None
        self.rows[self._first + number] = RequestRow(
            request_class=request.request_class,
            arrival_s=answer.sent - self._start,
            prompt_tokens=request.prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens,
            output_tokens=answer.tokens,
            ttft_s=None if answer.first is None else answer.first - answer.sent,
            e2e_s=answer.last - answer.sent if done and answer.last is not None else None,
            status=answer.status,
            due_s=due_s,
            error=answer.error,
            asked_tokens=request.output_tokens,
            longest_gap_s=answer.longest_gap_s if answer.pieces > 1 else None,
            number=self._first + number,
        )
        self.options.progress(len(self.rows), self.total)
        if answer.status == "failed":
            self._failures += 1
            if self._failures >= GIVE_UP and self.stopped is None:
                self._stop(f"gave up after {GIVE_UP} failures in a row; the last: {answer.error}")
        elif answer.status == "ok":
            self._failures = 0

    def _skip(self, number: int, request: ReplayRequest, error: str) -> None:
        self.rows[self._first + number] = RequestRow(
            request_class=request.request_class,
            arrival_s=self.now_s(),
            prompt_tokens=request.prompt_tokens,
            output_tokens=0,
            ttft_s=None,
            e2e_s=None,
            status="failed",
            error=error,
            asked_tokens=request.output_tokens,
            number=self._first + number,
        )

    def _status(self, number: int) -> str | None:
        row = self.rows.get(self._first + number)
        return None if row is None else row.status

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        for task in self._tasks:
            task.cancel()


def _records(load: ReplayLoad, rows: Iterable[RequestRow], ran_s: float, seed: int) -> list[Load]:
    """How each class of a load was sent; a run that was ended early had a shorter window."""
    names = list(dict.fromkeys(request.request_class for request in load.requests))
    counts = Counter(row.request_class for row in rows)
    window_s = load.window_s or max(request.due_s for request in load.requests)
    seconds = min(window_s, ran_s) if load.concurrency is None else ran_s
    return [
        Load(
            request_class=name,
            kind="open" if load.concurrency is None else "closed",
            concurrency=load.concurrency,
            rate_per_s=counts[name] / seconds if load.concurrency is None and counts[name] and seconds > 0 else None,
            seconds=seconds,
            seed=seed,
            source=load.source,
            warmup_requests=load.warmup_requests,
        )
        for name in names
    ]


def _partial(rows: Sequence[RequestRow]) -> str | None:
    """Why the rows are not all that was wanted, where requests failed."""
    failed = [row for row in rows if row.status == "failed"]
    if not failed:
        return None
    kinds = Counter((row.error or "unknown").partition(":")[0] for row in failed)
    told = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    return f"{len(failed)} of {len(rows)} requests failed ({told})"


def _notes_of(rows: Sequence[RequestRow], busy_share: float) -> list[str]:
    """What makes the numbers less than they seem: a late or busy client, answers of another length."""
    notes = []
    late = sorted(row.late_s for row in rows if row.late_s is not None)
    if late:
        p99_s = late[min(len(late) - 1, int(0.99 * len(late)))]
        notes.append(
            f"sent late by {1e3 * late[len(late) // 2]:.1f} ms in the median, {1e3 * p99_s:.1f} ms at p99, "
            f"{1e3 * late[-1]:.1f} ms at most"
        )
        if p99_s > LATE_S:
            notes.append("the client was late: this machine is too busy to send this load on time")
    if busy_share > BUSY_SHARE:
        notes.append(
            f"the client used {busy_share:.0%} of a core: its own work may be in the times; use a faster machine for it"
        )
    ended = [row for row in rows if row.status == "ok" and row.asked_tokens is not None]
    short = sum(row.output_tokens < (row.asked_tokens or 0) for row in ended)
    if short:
        notes.append(f"{short} of {len(ended)} answers were shorter than asked for")
    return notes
