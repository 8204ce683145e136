"""Mean watts of a device that serves known requests: dynamic joules of their operations, plus running and idle time.

FLOPs and bytes of attention add up over requests whatever the schedule is; all else depends on how many tokens share a
step, and is taken at the mean step of the run. Both are exact for steps of one size; routed experts, whose traffic is
concave in the tokens of a step, come out a little high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.energy import bounded_joules, dynamic_joules, mean_power_w
from planner.cost.roofline import compute_dtype
from planner.cost.step_work import Cost, Operation, StepShape
from specs.document import DType
from specs.profile import DeviceFacts, PowerProfile

_MOST_KNOTS = 1024


@dataclass(frozen=True)
class Served:
    """What one replica did: `prompt_tokens` and `output_tokens` by request, in `steps` steps.

    `prompt_tokens` are those computed here, 0 of a request whose prompt came computed; `context_tokens` those that its
    decodes read (None: the same).
    """

    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    steps: float
    busy_s: float  # inside `horizon_s`
    horizon_s: float
    context_tokens: NDArray[np.int64] | None = None
    decoded_per_token: float = 1.0  # tokens that decodes compute by output token: more than one under speculation


def serving_power_w(
    operations: tuple[Operation, ...],
    stages: int,
    window: int | None,
    served: Served,
    device: DeviceFacts,
    power: PowerProfile,
    power_cap_w: float | None = None,
) -> float:
    """Mean watts of one device of a replica over `horizon_s`. `window`: of windowed layers.

    `operations` are those of one rank of all `stages`: a device of a pipeline runs its part of them.
    """
    if not len(served.prompt_tokens) or served.steps <= 0:
        return mean_power_w(0.0, 0.0, served.horizon_s, device)
    total = served_joules(operations, stages, window, served, device, power)
    busy = float(bounded_joules(total, served.busy_s, device, power, power_cap_w))
    return mean_power_w(busy, min(served.busy_s, served.horizon_s), served.horizon_s, device)


def served_joules(
    operations: tuple[Operation, ...],
    stages: int,
    window: int | None,
    served: Served,
    device: DeviceFacts,
    power: PowerProfile,
) -> float:
    """Dynamic joules of one device: those of the arithmetic and the memory traffic, whatever time they take.

    The fewer `steps` there are, the fewer joules: what a step reads once, more tokens share.
    """
    prompts, outputs = served.prompt_tokens.astype(np.float64), served.output_tokens.astype(np.float64)
    decodes = outputs - 1.0
    one = np.ones(1)
    contexts = prompts if served.context_tokens is None else served.context_tokens.astype(np.float64)
    prompts = prompts[prompts > 0]
    mean = StepShape.of(
        decodes=decodes.sum() * served.decoded_per_token / served.steps,
        keys=1.0,
        chunks=len(prompts) / served.steps,
        new=prompts.mean() if len(prompts) else 0.0,
    )
    keys = contexts + outputs / 2.0
    prompt_knots, key_knots = _knots(prompts), _knots(keys)
    own_prompt = StepShape.of(chunks=one, new=prompt_knots)
    own_decodes = StepShape.of(decodes=one, keys=key_knots, window=window)
    total = 0.0
    for operation in operations:
        if operation.kind == "attention":
            of_prompts, of_decodes = (_joules(operation, own, device, power) for own in (own_prompt, own_decodes))
            joules = 0.0
            if len(prompts):
                joules = np.interp(prompts, prompt_knots, np.broadcast_to(of_prompts, prompt_knots.shape)).sum()
            joules += (np.interp(keys, key_knots, np.broadcast_to(of_decodes, key_knots.shape)) * decodes).sum()
        else:
            joules = _joules(operation, mean, device, power).sum() * served.steps
        total += float(joules) * operation.count / stages
    return total


def _knots(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distinct values in order; of very many, some in even shares, between which joules are nearly linear."""
    distinct = np.unique(values, return_index=True)[0]  # alone, it would load numpy.ma
    if len(distinct) <= _MOST_KNOTS:
        return distinct
    return distinct[np.linspace(0, len(distinct) - 1, _MOST_KNOTS).round().astype(np.int64)]


def _joules(operation: Operation, shape: StepShape, device: DeviceFacts, power: PowerProfile) -> NDArray[np.float64]:
    return operation_joules(operation, operation.measure(shape), device, power)


def operation_joules(operation: Operation, cost: Cost, device: DeviceFacts, power: PowerProfile) -> NDArray[np.float64]:
    """Dynamic joules of an operation that takes `cost`, by step."""
    if operation.kind == "collective":  # its bytes go over links, whose power is not known
        return np.zeros_like(cost.bytes)
    dtype = compute_dtype(operation.dtype, device)
    if operation.kind in ("attention", "elementwise", "scan") or dtype not in device.flops:
        dtype = DType.BF16 if DType.BF16 in device.flops else DType.FP16
    return dynamic_joules(cost.flops, cost.bytes, device, power, dtype)
