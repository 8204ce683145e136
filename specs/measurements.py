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


class RequestRow(Frozen):
    """One request as its client saw it. `tpot` is derived: (e2e - ttft) / (output tokens - 1)."""

    request_class: str
    arrival_s: NonNegativeFloat  # since the start of the run
    prompt_tokens: NonNegativeInt
    output_tokens: NonNegativeInt
    ttft_s: NonNegativeFloat | None  # None: no token came
    e2e_s: NonNegativeFloat | None
    status: Literal["ok", "rejected", "failed"] = "ok"

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None where there is no second token."""
        if self.ttft_s is None or self.e2e_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


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
    requests: tuple[RequestRow, ...] = ()
    steps: tuple[StepRow, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    notes: tuple[str, ...] = ()
