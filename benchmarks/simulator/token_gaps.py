"""Gaps between the tokens of every request, which a result does not hold: from the steps that the oracle takes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cost.step_times import StepTimes
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, simulate_fleet
from specs.plan import Route


@dataclass(frozen=True)
class LoggedTimes(StepTimes):
    """Step times that note (seconds, prompts completed, decodes) of every step they are asked for."""

    log: list[tuple[float, int, int]] = field(default_factory=list)

    def step_s(self, tokens: int, sampled: int, sequences: int, decodes: int, *rest: Any, **more: Any) -> float:
        seconds = StepTimes.step_s(self, tokens, sampled, sequences, decodes, *rest, **more)
        self.log.append((seconds, sampled - decodes, decodes))
        return seconds


def logged(group: FleetGroup) -> FleetGroup:
    """The group with replicas that log their steps each; only the oracle asks for the time of every step."""
    values = {item.name: getattr(group.model.times, item.name) for item in fields(StepTimes)}
    models = (replace(group.model, times=LoggedTimes(**values)) for _ in range(group.replicas))
    return replace(group, models=tuple(models))


def token_gaps_s(group: FleetGroup) -> NDArray[np.float64]:
    """The gap before every output token but the first of what a logged group served, in seconds.

    A sequence that decodes waits from its last token to the end of the next step that decodes; while anything decodes
    no replica is idle, so gaps are sums of steps. Right for outputs of two tokens or more, without preemption, and
    for decode groups but for the wait of a sequence that was handed over.
    """
    times = (model.times for model in group.models or ())
    return np.concatenate([_gaps(item.log) for item in times if isinstance(item, LoggedTimes)])


def serve_with_gaps(model: ReplicaModel, workload: Workload) -> tuple[FleetResult, NDArray[np.float64]]:
    """The result of one replica, stepped, and its token gaps."""
    group = logged(FleetGroup("one", 1, model))
    routes = (Route(request_class="all", group="one", share=1.0),)
    result = simulate_fleet((group,), routes, workload, exact=True)
    return result, token_gaps_s(group)


def _gaps(log: list[tuple[float, int, int]]) -> NDArray[np.float64]:
    values: list[float] = []
    counts: list[int] = []
    waited_s = 0.0  # since the last step that decoded
    fresh: list[tuple[float, int]] = []  # prompts completed since then, and when
    for seconds, completed, decodes in log:
        if decodes:
            new = sum(count for _, count in fresh)
            values += [waited_s + seconds, *(waited_s - since_s + seconds for since_s, _ in fresh)]
            counts += [decodes - new, *(count for _, count in fresh)]
            waited_s, fresh = 0.0, []
        else:
            waited_s += seconds
        if completed:
            fresh.append((waited_s, completed))
    return np.repeat(values, np.maximum(counts, 0))
