"""Where the time of a stated group goes: by phase (first token, every further one) and by operator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.candidates.family import Family
from planner.cost.adapters import adapter_operations
from planner.cost.latency import latency_of
from planner.cost.operations import operations
from planner.cost.power_cap import cap_of, under_cap
from planner.cost.step_work import Operation, StepShape
from planner.estimate.explain import Part, Phase, operator_parts
from planner.stated.deployment import Standing
from planner.stated.document import running_mean
from specs.errors import InputError


def group_phases(stated: Standing, index: int) -> tuple[Phase, ...]:
    """Phases of a group: its mean prompt computed alone, and a step of its mean batch at the mean context.

    Totals are the simulated means of its requests, so the rest of each is waiting: for the steps before, for prompts in
    the same step, for what a hand-over takes. A prefill group has no second phase, a decode group no first one. Raises
    `InputError` for a group that drafts, or has stages in several pools.
    """
    family, name = stated.decision.bought[index].column.family, stated.problem.stated[index].group.name
    if family.options.speculation is not None:
        message = f"{name} drafts: its steps make several tokens or one"
        raise InputError(message, field="--explain", expected="a group without draft_tokens")
    if family.stage_pools:
        message = f"the stages of {name} stand in several pools, and each takes times of its own"
        raise InputError(message, field="--explain", expected="a group in one pool")
    return tuple(_phases(stated, index))


def _phases(stated: Standing, index: int) -> Iterator[Phase]:
    item, result = stated.decision.bought[index], stated.decision.result
    own, family = result.had(index), item.column.family
    sent = stated.problem.declared.select(own)
    prompt, output = float(sent.prompt_tokens.mean()), float(sent.output_tokens.mean())
    cached = 0.0 if result.cached_tokens is None else float(result.cached_tokens[own].mean())
    engine, every = family.engine, _operations(family)
    margin = stated.problem.facts.margins[engine.name]
    if item.role != "decode":
        shape = StepShape.of(chunks=1.0, new=max(1.0, prompt - cached), cached=cached)
        parts = (
            Part("request to the scheduler", "engine", 0, engine.request_overhead_s + engine.request_serial_s),
            Part("step on the CPU", "engine", 0, engine.step_overhead_s + engine.prefill_step_s),
            *operator_parts(every, engine.kernels, shape, prefills=True),
        )
        ttft_s = float(np.nanmean(result.ttft_s[own]))
        late_s = ttft_s * (1.0 - 1.0 / margin.first_token)
        late = (Part("later at the confidence asked for", "engine", 0, late_s),) if late_s else ()
        yield Phase("first token", (*_scaled(parts, margin.steps), *late), ttft_s)
    tpot_s = result.tpot_s[own]
    if item.role != "prefill" and np.isfinite(tpot_s).any():
        batches = family.layout.attention_data_parallel * family.layout.pipeline_parallel
        sequences = max(1.0, round(running_mean(stated, index) / batches))
        keys = prompt + output / 2
        shape = StepShape.of(decodes=sequences, keys=keys, window=family.architecture.window_tokens)
        parts = (
            Part("step on the CPU", "engine", 0, engine.step_overhead_s + engine.sequence_overhead_s * sequences),
            *operator_parts(every, engine.kernels, shape, prefills=False),
        )
        yield Phase("further token", _scaled(parts, margin.steps), float(np.nanmean(tpot_s)))


def _scaled(parts: tuple[Part, ...], margin: float) -> tuple[Part, ...]:
    """At the confidence that the spec asks for, steps are longer."""
    return tuple(Part(part.name, part.kind, part.count, margin * part.seconds) for part in parts)


def _operations(family: Family) -> tuple[Operation, ...]:
    source = latency_of(family.device, family.profile)
    skew = None if family.experts is None else family.experts.skew
    every = operations(
        family.architecture,
        family.layout,
        family.weights_dtype,
        family.kv_dtype,
        family.device,
        family.profile,
        source,
        skew,
    )
    if family.adapters is not None:
        every += adapter_operations(family.architecture, family.layout, family.adapters, source)
    cap = cap_of(family.pool, family.device)
    return every if cap is None else under_cap(every, family.device, cap)
