"""`Scheduler`: real requests over the rules of `specs.service`. It has no rule of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.request import Output, Request, SamplingParams
from specs.errors import InputError
from specs.plan import Limits, Scheduling
from specs.service import BatchFormer, BlockManager, Rejection, Sequence, Step, may_ever_run


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one request in a step; `samples`: a token is drawn after the last of them."""

    request: Request
    start: int
    tokens: int
    samples: bool


class Scheduler:
    """Maps requests to the sequences that the rules order, and steps of sequences back to requests.

    Not thread-safe: one thread drives it (`runtime.engine`).
    """

    def __init__(self, limits: Limits, num_blocks: int, block_size_tokens: int, scheduling: Scheduling) -> None:
        self.limits = limits
        self.blocks = BlockManager(num_blocks, block_size_tokens)
        self.former = BatchFormer(
            self.blocks,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            policy=scheduling.prefill_policy,
        )
        self._requests: dict[int, Request] = {}  # by sequence id, until finished
        self._next_id = 0
        self.preemptions = 0

    def make(self, id: str, prompt: tuple[int, ...], params: SamplingParams, sink: Callable[[Output], None]) -> Request:
        """A request that these limits can serve alone; `InputError` with the numbers where they cannot. Any thread."""
        if not prompt:
            raise InputError("has no tokens", field="prompt", expected="at least one token")
        refusal = may_ever_run(
            len(prompt),
            params.max_tokens,
            max_model_len=self.limits.max_model_len,
            num_blocks=self.blocks.num_blocks,
            block_size_tokens=self.blocks.block_size_tokens,
        )
        if refusal is not None:
            asked = (
                f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens} are {len(prompt) + params.max_tokens}"
            )
            if refusal is Rejection.TOO_LONG:
                raise InputError(
                    f"{asked}, more than the context of {self.limits.max_model_len} tokens",
                    field="prompt",
                    expected=f"at most {self.limits.max_model_len} in all",
                )
            raise InputError(
                f"{asked}, more than the KV cache of {self.blocks.capacity_tokens} tokens holds",
                field="prompt",
                expected=f"at most {self.blocks.capacity_tokens + 1} in all",
            )
        return Request(id, prompt, params, Sequence(-1, len(prompt)), sink)

    def add(self, request: Request) -> None:
        """Queue a request made by `make`."""
        request.sequence.id = self._next_id
        self._next_id += 1
        self._requests[request.sequence.id] = request
        self.former.add(request.sequence)

    def form(self) -> Step | None:
        """The rules' next step; None when there is nothing to compute."""
        step = self.former.form()
        if step is not None:
            self.preemptions += len(step.preempted)
        return step

    def pieces(self, step: Step) -> list[Piece]:
        """The step as pieces of requests, decodes first, so that sampled rows come in the order of `complete`."""
        found = [
            Piece(self._requests[sequence.id], sequence.computed_tokens, 1, samples=True) for sequence in step.decodes
        ]
        found += [
            Piece(self._requests[chunk.sequence.id], chunk.start, chunk.tokens, chunk.completes)
            for chunk in step.chunks
        ]
        return found

    def complete(self, step: Step) -> list[Request]:
        """Record that the step was computed; the requests that sampled a token, in the order of `pieces`."""
        return [self._requests[sequence.id] for sequence in self.former.complete(step)]

    def finish(self, request: Request) -> None:
        """The request is over, whatever its state: its seat and its blocks are free again."""
        if self._requests.pop(request.sequence.id, None) is not None:
            self.former.finish(request.sequence)

    @property
    def requests(self) -> list[Request]:
        """All requests that wait or run, in order of arrival."""
        return list(self._requests.values())

    @property
    def running(self) -> int:
        return len(self.former.running)

    @property
    def waiting(self) -> int:
        return len(self.former.waiting)
