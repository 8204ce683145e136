"""Where the time of a point goes: by phase (the first token, every further one) and by operator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from planner.cost.engine_kernels import engine_s
from planner.cost.step_work import Operation, StepShape
from planner.estimate.points import Deployment, Point, is_mixture
from planner.estimate.protocol import Client, protocol_of
from planner.estimate.replica import simulate_point, work_of
from specs.profile import EngineProfile, KernelFactors


@dataclass(frozen=True)
class Part:
    """One line: an operator with how often it runs in a step, or a cost of the engine (`count` 0)."""

    name: str
    kind: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Phase:
    """Parts of one step and what they add up to; `total_s` is the simulated mean that the phase belongs to."""

    name: str
    parts: tuple[Part, ...]
    total_s: float

    @property
    def rest_s(self) -> float:
        """What the parts do not explain: waiting for others."""
        return self.total_s - sum(part.seconds for part in self.parts)


def explain_point(
    point: Point, deployment: Deployment, engine: EngineProfile, client: Client = "published"
) -> tuple[Phase, ...]:
    """The phases of a point: one prompt alone, and a decode step of the mean batch at its mean context.

    The second is left out where answers have one token. What waits is the rest of each: a request for the steps before
    its own, a further token for the prompts that share its steps. Raises `InputError` where the point cannot be
    predicted.
    """
    protocol = protocol_of(point.isl, point.osl, engine.name, is_mixture(deployment.architecture), client)
    latency = simulate_point(point, deployment, engine, protocol)
    prompt = point.isl * (protocol.prompt_low + protocol.prompt_high) / 2
    output = point.osl * (protocol.output_low + protocol.output_high) / 2
    clients = point.concurrency / deployment.pipeline_parallel
    decoding = output * latency.tpot_s / (latency.ttft_s + output * latency.tpot_s)
    sequences = float(max(1, round(clients * decoding)))
    window = deployment.architecture.window_tokens
    decode = StepShape.of(decodes=sequences, keys=prompt + output / 2, window=window)
    prefill = StepShape.of(chunks=1.0, new=prompt)
    first: tuple[Part, ...] = (
        Part("request to the scheduler", "engine", 0, engine.request_overhead_s + engine.request_serial_s),
        Part("step on the CPU", "engine", 0, engine.step_overhead_s + engine.prefill_step_s),
    )
    further = (Part("step on the CPU", "engine", 0, engine.step_overhead_s + engine.sequence_overhead_s * sequences),)
    prompts = _operators(deployment, engine, prefill, prefills=True)
    step_s = sum(part.seconds for part in (first[1], *prompts))
    kernels = work_of(deployment, engine).kernels
    behind_s = kernels * engine.eager_launch_s - step_s
    if behind_s > 0.0:
        first = (*first, Part("kernels wait for their launch", "engine", kernels, behind_s))
    begin = Phase("first token", (*first, *prompts), latency.ttft_s)
    if point.osl == 1:
        return (begin,)
    decodes = _operators(deployment, engine, decode, prefills=False)
    return begin, Phase("further token", (*further, *decodes), latency.tpot_s)


def _operators(deployment: Deployment, engine: EngineProfile, shape: StepShape, prefills: bool) -> tuple[Part, ...]:
    return operator_parts(work_of(deployment, engine).operations, engine.kernels, shape, prefills)


def operator_parts(
    operations: Iterable[Operation], kernels: KernelFactors, shape: StepShape, prefills: bool
) -> tuple[Part, ...]:
    """Operators of one step under an engine, longest first; those of a name together. `prefills`: it holds prompts."""
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for operation in operations:
        kind = "prefill_attention" if prefills and operation.kind == "attention" else operation.kind
        seconds = operation.count * float(np.ravel(operation.measure(shape).seconds)[0])
        seconds = float(engine_s(kernels, kind, shape.tokens, np.array([seconds]))[0])
        if seconds > 0.0:
            count, before = found.get((operation.name, operation.kind), (0, 0.0))
            found[operation.name, operation.kind] = (count + operation.count, before + seconds)
    parts = [Part(name, kind, count, seconds) for (name, kind), (count, seconds) in found.items()]
    return tuple(sorted(parts, key=lambda part: -part.seconds))
