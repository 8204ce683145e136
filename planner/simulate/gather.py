"""What a run wrote down, as a `FleetResult`. Knows neither lanes nor loops: whoever simulates gathers here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.simulate.model import FleetGroup, FloatArray, IntArray, Workload
from planner.simulate.record import LaneLoad
from planner.simulate.result import FleetResult, GroupLoad, LinkLoad


@dataclass(frozen=True)
class Outcome:
    """Arrays or lists by request; times are NaN and places -1 where nothing happened."""

    arrival_s: ArrayLike  # actual; infinity: not arrived when the run ended
    start_s: ArrayLike
    first_s: ArrayLike
    finish_s: ArrayLike
    preemptions: ArrayLike
    cached_tokens: ArrayLike
    refusal: ArrayLike  # index into `result.REFUSALS`
    group_index: ArrayLike  # where it arrived
    replica_index: ArrayLike
    decode_group_index: ArrayLike  # where it was handed over to
    decode_replica_index: ArrayLike
    loads: Sequence[Sequence[Sequence[LaneLoad]]]  # by group, replica and lane
    lost: Sequence[int]  # by group: requests that were on a replica when it failed
    links: tuple[LinkLoad, ...]  # by name
    events: int
    event_bound_hit: bool
    refuted: str | None  # the limit that ended the run


def gather(groups: Sequence[FleetGroup], workload: Workload, outcome: Outcome) -> FleetResult:
    """Latencies of each request and loads of each group."""
    refusal, group_of, decode_group_of = (
        np.asarray(values, dtype=np.int64)
        for values in (outcome.refusal, outcome.group_index, outcome.decode_group_index)
    )
    rejected: NDArray[np.bool_] = refusal > 0
    arrival_s, first_s = np.array(outcome.arrival_s, dtype=np.float64), np.array(outcome.first_s, dtype=np.float64)
    finish_s = np.asarray(outcome.finish_s, dtype=np.float64)
    arrival_s[np.isinf(arrival_s)] = math.nan
    first_s[rejected] = math.nan  # lost with its replica after the first token, then refused
    later_s = _later(groups, group_of) * (first_s - arrival_s)
    done = ~np.isnan(finish_s)
    several = done & (workload.output_tokens > 1)
    tpot_s = np.full(len(workload), math.nan)
    tpot_s[several] = (finish_s[several] - first_s[several]) / (workload.output_tokens[several] - 1)
    return FleetResult(
        ttft_s=first_s - arrival_s + later_s,
        tpot_s=tpot_s,
        e2e_s=finish_s - arrival_s + later_s,
        group_index=group_of,
        replica_index=np.asarray(outcome.replica_index, dtype=np.int64),
        preemptions=np.asarray(outcome.preemptions, dtype=np.int64),
        rejected=rejected,
        groups=_loads(groups, workload, outcome, first_s, finish_s, group_of, decode_group_of),
        horizon_s=workload.horizon_s,
        end_s=float(finish_s[done].max()) if done.any() else 0.0,
        events=outcome.events,
        event_bound_hit=outcome.event_bound_hit,
        refuted_early=outcome.refuted,
        waiting=(
            _waiting(arrival_s, first_s, rejected, 0.1 * workload.horizon_s),
            _waiting(arrival_s, first_s, rejected, workload.horizon_s),
        ),
        arrival_s=arrival_s,
        start_s=np.asarray(outcome.start_s, dtype=np.float64),
        cached_tokens=np.asarray(outcome.cached_tokens, dtype=np.int64),
        refusal=refusal,
        links=outcome.links,
        decode_group_index=decode_group_of,
        decode_replica_index=np.asarray(outcome.decode_replica_index, dtype=np.int64),
    )


def _later(groups: Sequence[FleetGroup], group_of: IntArray) -> FloatArray:
    """By request: how much later its first token is, in multiples of TTFT, by the margin of the group it came to."""
    most = [max(model.times.first_token for model in group.models or (group.model,)) - 1.0 for group in groups]
    return np.array([*most, 0.0])[group_of]


def _loads(
    groups: Sequence[FleetGroup],
    workload: Workload,
    outcome: Outcome,
    first_s: FloatArray,
    finish_s: FloatArray,
    group_of: IntArray,
    decode_group_of: IntArray,
) -> tuple[GroupLoad, ...]:
    """Of a request that was handed over, prompt and first token count where it arrived, the rest where it decodes."""
    done = ~np.isnan(finish_s)
    prompt_in, output_in = _served_in_window(workload, first_s, finish_s)
    handed = decode_group_of >= 0
    here = np.where(handed, 1, workload.output_tokens)
    here_in = np.where(handed, np.minimum(output_in, 1.0), output_in)
    loads = []
    for index, group in enumerate(groups):
        at, decodes = group_of == index, decode_group_of == index
        replicas = outcome.loads[index]
        lanes = [lane for replica in replicas for lane in replica]
        output = here[done & at].sum() + workload.output_tokens[done & decodes].sum() - (done & decodes).sum()
        output_rate = float(here_in[at].sum()) + float((output_in - here_in)[decodes].sum())
        loads.append(
            GroupLoad(
                group=group.id,
                busy_s=tuple(sum(load.busy_s for load in replica) / len(replica) for replica in replicas),
                running_peak=max(sum(load.running_peak for load in replica) for replica in replicas),
                blocks_peak=max(sum(load.blocks_peak for load in replica) for replica in replicas),
                num_blocks=max(model.num_blocks for model in group.models or (group.model,)),
                preemptions=sum(load.preemptions for load in lanes),
                steps=sum(load.steps for load in lanes),
                requests=int((done & (at | decodes)).sum()),
                prompt_tokens=int(workload.prompt_tokens[done & at].sum()),
                output_tokens=int(output),
                prompt_tokens_per_s=float(prompt_in[at].sum()) / (workload.horizon_s or 1.0),
                output_tokens_per_s=output_rate / (workload.horizon_s or 1.0),
                looked_up_tokens=sum(load.looked_up_tokens for load in lanes),
                hit_tokens=sum(load.hit_tokens for load in lanes),
                moved_tokens=sum(load.moved_tokens for load in lanes),
                swaps=sum(load.swaps for load in lanes),
                lost=outcome.lost[index],
            )
        )
    return tuple(loads)


def _served_in_window(workload: Workload, first_s: FloatArray, finish_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """By request: prompt and output tokens served before the arrival window ends.

    A prompt counts with its first token; the output tokens after it are spread evenly until the last one.
    """
    begun = first_s <= workload.horizon_s  # NaN, never begun, is not
    decode_s = np.maximum(finish_s - first_s, 1e-12)
    share = np.clip((workload.horizon_s - first_s) / decode_s, 0.0, 1.0)
    output = np.where(begun, 1.0 + (workload.output_tokens - 1) * share, 0.0)
    return np.where(begun, workload.prompt_tokens, 0).astype(np.float64), np.nan_to_num(output)


def _waiting(arrival_s: FloatArray, first_s: FloatArray, rejected: NDArray[np.bool_], at_s: float) -> int:
    """Requests that have arrived by `at_s` and have no first token then; refused ones wait for nothing."""
    return int(((arrival_s <= at_s) & ~(first_s <= at_s) & ~rejected).sum())
