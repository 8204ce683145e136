"""The requests of each class, and all of them together as one workload."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.simulate.model import FloatArray, IntArray, Workload
from specs.deployment import TrafficClass
from specs.traffic import Chains, Prefixes, Sharing, joined
from specs.traffic.columns import PRIORITIES


@dataclass(frozen=True)
class ClassRequests:
    """Requests of one class in a window, and where they come from. Arrays of one length; None: nothing is said."""

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    source: str
    window_s: float
    mean_tokens_per_s: tuple[float, float]  # prompt and output, of the whole source
    sha256: str | None = None
    start_s: float = 0.0
    longest_tokens: int = 0  # prompt and output of the longest recorded request, outside the window too
    sharing: Sharing | None = None
    session: IntArray | None = None
    after: IntArray | None = None  # in this class
    gap_s: FloatArray | None = None
    priority: IntArray | None = None  # as recorded
    tenants: tuple[str, ...] = ()  # as recorded
    tenant_index: IntArray | None = None
    notes: tuple[str, ...] = ()  # on the source

    @property
    def unused(self) -> tuple[str, ...]:
        """Sentences on what planning, which takes requests one by one as they come, makes no use of."""
        notes = []
        if self.after is not None:
            notes.append("turns are taken at their earliest moments, as if answers took no time")
        if self.sharing is not None:
            notes.append("what prompts share is not reused: every prompt is computed in full (no prefix cache)")
        if self.priority is not None and (self.priority != self.priority[0]).any():
            notes.append("recorded priorities are not used: requests are served first come, first served")
        return tuple(notes)

    @property
    def longest_request_tokens(self) -> int:
        """Of the whole trace, or of what was drawn."""
        return max(self.longest_tokens, int((self.prompt_tokens + self.output_tokens).max()))


def joined_workload(
    classes: Sequence[TrafficClass],
    parts: Sequence[ClassRequests],
    *,
    coupled: bool,
    predicted_tokens: Sequence[IntArray] | None,
) -> Workload:
    """All classes in order of arrival. Not `coupled`: without predecessors, sessions and shared prefixes."""
    counts = [len(part.arrival_s) for part in parts]
    arrival_s = np.concatenate([part.arrival_s for part in parts])
    order = np.argsort(arrival_s, kind="stable")
    tenants, tenant_index = _tenants(classes, parts)
    arrays: dict[str, Any] = {
        "tenant_index": tenant_index,
        "priority": _priorities(classes, parts),
        "deadline_s": _deadlines(classes, parts),
        "predicted_tokens": None if predicted_tokens is None else np.concatenate(predicted_tokens),
    }
    prefixes: Prefixes | None = None
    if coupled:
        arrays |= {"session": _sessions(parts)} | _predecessors(parts, order)
        prefixes = _prefixes(parts)
    return Workload(
        tuple(traffic.name for traffic in classes),
        np.repeat(np.arange(len(parts)), counts)[order],
        arrival_s[order],
        np.concatenate([part.prompt_tokens for part in parts])[order],
        np.concatenate([part.output_tokens for part in parts])[order],
        max(part.window_s for part in parts),
        tenants=tenants,
        prefixes=None if prefixes is None else prefixes.select(order),
        **{name: None if array is None else array[order] for name, array in arrays.items()},
    )


def _tenants(
    classes: Sequence[TrafficClass], parts: Sequence[ClassRequests]
) -> tuple[tuple[str, ...], IntArray | None]:
    """The trace's tenants, else the class's, which is its own where none is named. One alone needs no mention."""
    numbers: dict[str, int] = {}
    pieces = []
    for traffic, part in zip(classes, parts, strict=True):
        if part.tenant_index is not None:
            of_trace = [numbers.setdefault(name, len(numbers)) for name in part.tenants]
            pieces.append(np.array(of_trace, np.int64)[part.tenant_index])
        else:
            own = numbers.setdefault(traffic.tenant or traffic.name, len(numbers))
            pieces.append(np.full(len(part.arrival_s), own, np.int64))
    return (tuple(numbers), np.concatenate(pieces)) if len(numbers) > 1 else ((), None)


def _priorities(classes: Sequence[TrafficClass], parts: Sequence[ClassRequests]) -> IntArray | None:
    """0 high, 1 normal, 2 low: the trace's, else the class's. None where all are alike."""
    ranks = np.concatenate(
        [
            np.full(len(part.arrival_s), PRIORITIES[traffic.priority], np.int64)
            if part.priority is None
            else part.priority
            for traffic, part in zip(classes, parts, strict=True)
        ]
    )
    return None if (ranks == ranks[0]).all() else ranks


def _deadlines(classes: Sequence[TrafficClass], parts: Sequence[ClassRequests]) -> FloatArray | None:
    """Moments by which first tokens are due: arrival and the class's tightest limit of TTFT; never without one."""
    limits = [ttft_limit_s(traffic) for traffic in classes]
    if all(math.isinf(limit) for limit in limits):
        return None
    return np.concatenate([part.arrival_s + limit for part, limit in zip(parts, limits, strict=True)])


def ttft_limit_s(traffic: TrafficClass) -> float:
    """The tightest limit of the time to the first token; infinite where the class states none."""
    if traffic.slo is None:
        return math.inf
    stated = [limit.limit_s for limit in traffic.slo.percentiles if limit.metric == "ttft"]
    return min([*stated, traffic.slo.joint.get("ttft", math.inf)])


def _sessions(parts: Sequence[ClassRequests]) -> IntArray | None:
    """Numbers of sessions, different in every class; a request of a class without any is one by itself."""
    if all(part.session is None for part in parts):
        return None
    pieces, used = [], 0
    for part in parts:
        own = np.arange(len(part.arrival_s)) if part.session is None else part.session
        pieces.append(own + used)
        used += int(own.max()) + 1
    return np.concatenate(pieces)


def _predecessors(parts: Sequence[ClassRequests], order: IntArray) -> dict[str, Any]:
    """`after` (numbers in the workload) and `gap_s` in the order of the parts, where any class has predecessors."""
    if all(part.after is None for part in parts):
        return {}
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    after, gap_s, used = [], [], 0
    for part in parts:
        count = len(part.arrival_s)
        if part.after is None or part.gap_s is None:
            after.append(np.full(count, -1))
            gap_s.append(np.zeros(count))
        else:
            after.append(np.where(part.after >= 0, place[part.after + used], -1))
            gap_s.append(part.gap_s)
        used += count
    return {"after": np.concatenate(after), "gap_s": np.concatenate(gap_s)}


def _prefixes(parts: Sequence[ClassRequests]) -> Prefixes | None:
    """Units of all requests where any class shares some: prompts that share nothing compete for a cache as well."""
    if all(part.sharing is None for part in parts):
        return None
    return joined([part.sharing or Chains.of_each(part.prompt_tokens) for part in parts])
