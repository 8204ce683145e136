"""Step times of a replica whose pipeline stages stand on unlike machines.

Each stage has step times of its own, from the tables of its own device: its layers, the embedding in the first, the
head in the last, and the hand-over of hidden states to the stage behind it. The engine's own time per step is shared by
layers, as among like stages. What the replica as a whole is known by (bounds, memory) are the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.collectives import stage_transfer_s
from planner.cost.latency import latency_of
from planner.cost.operations import Part, operations
from planner.cost.pieces import ChunkTable, DecodeTable
from planner.cost.power_cap import PowerCap, under_cap
from planner.cost.roofline import ACTIVATION_BYTES
from planner.cost.step import check_layout, times_of
from planner.cost.step_times import STEP_SECONDS, StepTimes
from planner.cost.step_work import Cost, Operation, StepShape
from specs.architecture.model import Architecture
from specs.document import DType
from specs.plan import Layout
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile


@dataclass(frozen=True)
class StageDevice:
    """What one stage runs on. `device`: as it stands in its pool.

    `onward`: the devices at both ends of the link to the next stage, as they reach each other; the slower one decides.
    """

    device: DeviceFacts
    profile: DeviceProfile
    cap: PowerCap | None = None
    onward: tuple[DeviceFacts, ...] = ()  # (): the last stage
    onward_in_node: bool = False


def parts(layout: Layout) -> Iterator[Part]:
    """The stretch of the model that each stage holds."""
    begin, last = 0, layout.pipeline_parallel - 1
    for index, count in enumerate(layout.pipeline_stages):
        yield Part(range(begin, begin + count), embedding=index == 0, head=index == last)
        begin += count


def stage_operations(
    architecture: Architecture,
    layout: Layout,
    weights_dtype: DType,
    kv_dtype: DType,
    stage: StageDevice,
    part: Part,
    expert_skew: float | None = None,
) -> tuple[Operation, ...]:
    """What one rank of a stage runs in a step, its hand-over included."""
    latency = latency_of(stage.device, stage.profile)
    every = operations(
        architecture, layout, weights_dtype, kv_dtype, stage.device, stage.profile, latency, expert_skew, part
    )
    if stage.cap is not None:
        every = under_cap(every, stage.device, stage.cap)
    return (*every, _hand_over(architecture.hidden_size, stage)) if stage.onward else every


def unlike_step_times(
    architecture: Architecture,
    layout: Layout,
    weights_dtype: DType,
    kv_dtype: DType,
    stages: Sequence[StageDevice],
    engine: EngineProfile,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    expert_skew: float | None = None,
) -> StepTimes:
    """As `planner.cost.step.step_times`, with `StepTimes.stages` of the devices that each stage stands on.

    Raises `InputError` as `check_layout` for any of the devices, and for a cap that stops all work.
    """
    found = []
    for part, stage in zip(parts(layout), stages, strict=True):
        check_layout(architecture, layout, weights_dtype, kv_dtype, stage.device)
        every = stage_operations(architecture, layout, weights_dtype, kv_dtype, stage, part, expert_skew)
        share = len(part.layers) / len(architecture.layers)
        found.append(times_of(every, architecture, engine, max_num_seqs, max_num_batched_tokens, share))
    return together(tuple(found))


def together(stages: tuple[StepTimes, ...]) -> StepTimes:
    """The stages one after the other: every term is the sum of theirs."""
    return replace(
        stages[0],
        tokens_s=tuple(np.sum([stage.tokens_s for stage in stages], axis=0).tolist()),
        sampled_s=tuple(np.sum([stage.sampled_s for stage in stages], axis=0).tolist()),
        lanes=len(stages),
        decode_table=_decodes([stage.decode_table for stage in stages]),
        decode_window_table=_decodes([stage.decode_window_table for stage in stages]),
        chunk_table=_chunks([stage.chunk_table for stage in stages]),
        stages=stages,
        **{name: sum(getattr(stage, name) for stage in stages) for name in STEP_SECONDS},
    )


def _decodes(tables: Sequence[DecodeTable | None]) -> DecodeTable | None:
    """Over the knots that all share: they follow from the limits and the model."""
    known = [table for table in tables if table is not None]
    return replace(known[0], seconds=np.sum([table.seconds for table in known], axis=0)) if known else None


def _chunks(tables: Sequence[ChunkTable | None]) -> ChunkTable | None:
    known = [table for table in tables if table is not None]
    return replace(known[0], seconds=np.sum([table.seconds for table in known], axis=0)) if known else None


def _hand_over(hidden_size: int, stage: StageDevice) -> Operation:
    """Hidden states of a step's tokens to the stage behind, by every rank its like."""

    def cost(shape: StepShape) -> Cost:
        message = shape.tokens * (hidden_size * ACTIVATION_BYTES)
        ends = [stage_transfer_s(message, stage.onward_in_node, device) for device in stage.onward]
        seconds = np.where(message > 0, np.max(ends, axis=0), 0.0)
        return Cost(np.zeros_like(message), message, seconds)

    return Operation("hand_over", "collective", DType.BF16, "ranks", 1, cost)
