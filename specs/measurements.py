"""The `Measurements` document: what was measured, where, and on what. The planner fits profiles to it.

Rows carry units in their names. A row that breaks physics (a bandwidth above the device's peak) is for the reader to
refuse: this document only says what was seen.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from specs.document import Document, DType, Frozen


class Environment(Frozen):
    """Where rows were measured. Two rows compare only under equal environments."""

    device: str  # catalogue name
    devices: PositiveInt = 1
    engine: Literal["vllm", "sglang", "trtllm", "capstan"] | None = None  # None: bare kernels
    engine_version: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)  # driver, torch, triton, ...
    clocks: Literal["default", "locked", "unknown"] = "unknown"
    clock_hz: PositiveFloat | None = None  # of the multiprocessors, seen while they worked
    memory_clock_hz: PositiveFloat | None = None
    power_cap_w: PositiveFloat | None = None


class Endpoint(Frozen):
    """A server that was measured from outside, as it names itself, and how it could be asked. No key is kept."""

    url: str
    model: str
    models: tuple[str, ...] = ()  # all that it serves
    max_model_len: PositiveInt | None = None
    version: str | None = None
    server: str | None = None  # the `Server` header
    api: Literal["completions", "chat"] = "completions"
    prompts: Literal["token ids", "text"] = "token ids"
    ignores_eos: bool = True  # answers have the length that was asked for
    counts_tokens: bool = True  # by the server's own usage; else by the chunks of its stream


class Load(Frozen):
    """How the requests of one class were sent: at stated times, or by clients that wait for their answers."""

    request_class: str
    kind: Literal["open", "closed"] = "open"
    concurrency: PositiveInt | None = None  # of a closed loop
    rate_per_s: PositiveFloat | None = None  # of an open loop, mean over the window
    seconds: NonNegativeFloat  # the arrival window; of a closed loop, how long it ran
    seed: NonNegativeInt | None = None
    source: str = ""  # trace, declared distribution, or the design of the load
    warmup_requests: NonNegativeInt = 0  # the first so many rows of the class are not judged


RequestStatus = Literal["ok", "rejected", "failed", "cut"]


class RequestRow(Frozen):
    """One request as its client saw it. `tpot_s` is derived: (e2e - ttft) / (output tokens - 1).

    `rejected`: the server refused it as it is busy. `failed`: `error` says how. `cut`: the run ended before the answer
    did, which is nobody's fault.
    """

    request_class: str
    arrival_s: NonNegativeFloat  # sent, since the start of the run
    prompt_tokens: NonNegativeInt  # as the server counted them, where it does
    output_tokens: NonNegativeInt
    ttft_s: NonNegativeFloat | None  # None: no token came
    e2e_s: NonNegativeFloat | None  # None: the answer did not end
    status: RequestStatus = "ok"
    due_s: NonNegativeFloat | None = None  # when it should have been sent; None: not planned by time
    error: str | None = None  # of one that failed: connection, timeout, http 500, ...
    asked_tokens: PositiveInt | None = None  # output tokens that were asked for
    longest_gap_s: NonNegativeFloat | None = None  # between two pieces of the stream
    number: NonNegativeInt | None = None  # of the request among those that were to be sent

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None where there is no second token."""
        if self.ttft_s is None or self.e2e_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    @property
    def late_s(self) -> float | None:
        """How much later than planned the client sent it."""
        return None if self.due_s is None else max(0.0, self.arrival_s - self.due_s)


class StepRow(Frozen):
    """One step of one replica, in the terms of the cost model (`planner/cost/step_times.py`)."""

    seconds: PositiveFloat
    tokens: PositiveInt
    sequences: PositiveInt
    decodes: NonNegativeInt
    decode_context_tokens: NonNegativeInt
    prefill_chunks: NonNegativeInt
    prefill_pairs: NonNegativeInt  # (query, key) pairs of the chunks
    samples: PositiveInt = 1  # repetitions behind `seconds`, their median


class KernelRow(Frozen):
    """One kernel launch under its shapes. `bytes` and `flops` are counted from the shapes, not measured."""

    family: str  # gemm, decode_attention, prefill_attention, moe, allreduce, elementwise, launch
    implementation: str
    dtype: DType
    shapes: dict[str, int]
    seconds: PositiveFloat
    bytes: NonNegativeFloat
    flops: NonNegativeFloat
    samples: PositiveInt = 1
    l2: Literal["cold", "warm"] | None = None  # whether repetitions found their operands in the cache; None: not said


class Measurements(Document):
    kind: Literal["Measurements"] = "Measurements"
    version: Literal[1] = 1
    source: str  # a machine, an endpoint, the tables that were read
    licence: str | None = None  # of tables that others measured
    environment: Environment
    model: str | None = None
    plan_sha256: str | None = None  # of the plan that was verified
    endpoint: Endpoint | None = None
    loads: tuple[Load, ...] = ()
    partial: str | None = None  # why the run ended before all was sent and answered; None: it did not
    requests: tuple[RequestRow, ...] = ()
    steps: tuple[StepRow, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    notes: tuple[str, ...] = ()
