"""Levels over the time of a run, from the times of its requests: the queue, and the tokens that the KV cache holds.

The simulator keeps no samples. What a request holds follows from when it arrived, started, and had its first and last
token, as far as it grows evenly in between; sums over requests are then exact at any moment, in O(n log n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.simulate.model import FleetGroup, FloatArray, IntArray, Workload
from planner.simulate.result import BoolArray, FleetResult

POINTS = 60


@dataclass(frozen=True)
class Ramps:
    """Values that run from `low` at `begin_s` to `high` at `end_s`, and are 0 outside. Arrays of one length."""

    begin_s: FloatArray
    end_s: FloatArray
    low: FloatArray
    high: FloatArray

    def sum_at(self, times_s: FloatArray) -> FloatArray:
        """Sum of all values at each of the moments; a ramp counts from its beginning until just before its end."""
        slope = self._slopes()
        base = self.low - slope * self.begin_s
        total, active = np.zeros(len(times_s)), np.zeros(len(times_s), np.int64)
        for moments, sign in ((self.begin_s, 1), (self.end_s, -1)):
            order = np.argsort(moments, kind="stable")
            place = np.searchsorted(moments[order], times_s, side="right")
            constant, steep = (np.concatenate(([0.0], np.cumsum(part[order]))) for part in (base, slope))
            total += sign * (constant[place] + steep[place] * times_s)
            active += sign * place
        return np.where(active == 0, 0.0, total)  # no rounding is left where nothing is

    def mean(self, until_s: float) -> float:
        """Mean of the sum from 0 to `until_s`."""
        if until_s <= 0:
            return 0.0
        end_s = np.clip(self.end_s, 0.0, until_s)
        begin_s = np.clip(self.begin_s, 0.0, until_s)
        middle = self.low + self._slopes() * ((begin_s + end_s) / 2 - self.begin_s)
        return float((middle * (end_s - begin_s)).sum()) / until_s

    def _slopes(self) -> FloatArray:
        length = self.end_s - self.begin_s
        return np.where(length > 0, (self.high - self.low) / np.where(length > 0, length, 1.0), 0.0)


@dataclass(frozen=True)
class Moments:
    """When each of the requests under `mask` (those that finished) arrived, had its first and its last token."""

    mask: BoolArray
    arrival_s: FloatArray
    first_s: FloatArray
    finish_s: FloatArray

    @classmethod
    def of(cls, result: FleetResult, workload: Workload, mask: BoolArray | None = None) -> Moments:
        served = ~np.isnan(result.e2e_s) if mask is None else mask & ~np.isnan(result.e2e_s)
        arrival_s = result.arrivals_s(workload)[served]
        return cls(served, arrival_s, arrival_s + result.ttft_s[served], arrival_s + result.e2e_s[served])


def moments_of_run(result: FleetResult, points: int = POINTS) -> FloatArray:
    """`points` + 1 evenly spaced moments from 0 to the end of the run, in seconds."""
    return np.linspace(0.0, max(result.horizon_s, result.end_s), points + 1)


def queue_over_time(result: FleetResult, workload: Workload, points: int = POINTS) -> dict[str, Any]:
    """Requests without a first token (`waiting`) and between first and last one (`decoding`), at moments of the run.

    `waiting_peak` is the most at any moment, between those moments too.
    """
    times_s = moments_of_run(result, points)
    moments = Moments.of(result, workload)
    arrivals, begins, ends = (
        np.searchsorted(np.sort(of), times_s, side="right")
        for of in (moments.arrival_s, moments.first_s, moments.finish_s)
    )
    return {
        "time_s": times_s.tolist(),
        "waiting": (arrivals - begins).tolist(),
        "decoding": (begins - ends).tolist(),
        "waiting_peak": _peak(moments.arrival_s, moments.first_s),
    }


def _peak(arrival_s: FloatArray, first_s: FloatArray) -> int:
    """The most requests at once between arrival and first token; of one moment, arrivals count before first tokens."""
    arrived = np.sort(arrival_s)
    begun = np.searchsorted(np.sort(first_s), arrived, side="left")
    return int((np.arange(1, len(arrived) + 1) - begun).max(initial=0))


def kv_ramps(result: FleetResult, workload: Workload, group: int, block_size_tokens: int) -> Ramps:
    """Tokens that the blocks of each request of one group hold: an estimate from its times.

    A prompt grows evenly from its start to its first token (what starts at an unknown time is left out until then),
    the output evenly from there to the last one. Half a block a request is never full. What a preempted request lost
    meanwhile is not seen, and a prefix that several requests share counts for each of them.
    """
    unfilled = (block_size_tokens - 1) / 2
    prefill = Moments.of(result, workload, result.group_index == group)
    decode = Moments.of(result, workload, decode_places(result)[0] == group)
    held, whole = (workload.prompt_tokens[moments.mask] + unfilled for moments in (prefill, decode))
    return Ramps(
        begin_s=np.concatenate((result.starts_s(workload)[prefill.mask], decode.first_s)),
        end_s=np.concatenate((prefill.first_s, decode.finish_s)),
        low=np.concatenate((_cached(result, prefill.mask) + unfilled, whole)),
        high=np.concatenate((held, whole + (workload.output_tokens[decode.mask] - 1))),
    )


def decode_places(result: FleetResult) -> tuple[IntArray, IntArray]:
    """By request the group and the replica where it decodes: where it was sent, unless it was handed over."""
    if result.decode_group_index is None or result.decode_replica_index is None:
        return result.group_index, result.replica_index
    handed = result.decode_group_index >= 0
    return (
        np.where(handed, result.decode_group_index, result.group_index),
        np.where(handed, result.decode_replica_index, result.replica_index),
    )


def kv_over_time(
    result: FleetResult, workload: Workload, groups: Sequence[FleetGroup], points: int = POINTS
) -> list[dict[str, Any]]:
    """Share of each group's KV cache in use, all replicas together, at moments of the run, and its mean: estimates."""
    times_s = moments_of_run(result, points)
    found = []
    for index, group in enumerate(groups):
        size = group.model.block_size_tokens
        capacity = size * sum(model.num_blocks for model in group.models or (group.model,) * group.replicas)
        ramps = kv_ramps(result, workload, index, size)
        occupancy = np.clip(ramps.sum_at(times_s) / capacity, 0.0, 1.0)
        found.append(
            {
                "group": group.id,
                "mean": min(1.0, ramps.mean(result.horizon_s) / capacity),
                "time_s": times_s.tolist(),
                "occupancy": occupancy.tolist(),
            }
        )
    return found


def _cached(result: FleetResult, mask: BoolArray) -> IntArray:
    if result.cached_tokens is None:
        return np.zeros(int(mask.sum()), np.int64)
    return result.cached_tokens[mask]
