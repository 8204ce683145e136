"""The day cut where declared rates and windows change: slots, and the declaration that holds in each of them.

The swing of a diurnal class is cut into pieces around its peak; a piece is planned for its highest rate, as Poisson
arrivals. So slots never promise less than the day asks for, and the shorter they are, the less they promise beyond.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.throughput import stated_at
from specs.deployment import ArrivalSpec, DeploymentSpec, DiurnalSpec, ScheduleSpec, TimeWindow, TrafficClass
from specs.errors import InputError
from specs.traffic.arrivals import diurnal_rate

DAY_S = 86_400.0
MOST_SLOTS = 200


@dataclass(frozen=True)
class Slot:
    """From `start_s` to `end_s` of the cycle, with the classes that send anything then; None: nobody does."""

    start_s: float
    end_s: float
    spec: DeploymentSpec | None

    @property
    def hours(self) -> float:
        return (self.end_s - self.start_s) / 3600.0


def changes_over_time(spec: DeploymentSpec) -> bool:
    """Whether the declared traffic is not the same at all times."""
    return any(item.window is not None or _swing(item) is not None for item in spec.traffic)


def cycle_s(spec: DeploymentSpec) -> float:
    """After so long everything repeats: a day, unless one diurnal class alone says another period."""
    periods = {swing.period_s for swing in map(_swing, spec.traffic) if swing is not None}
    windows = any(item.window is not None for item in spec.traffic)
    return periods.pop() if len(periods) == 1 and not windows else DAY_S


def slots(spec: DeploymentSpec) -> tuple[Slot, ...]:
    """The slots of one cycle, in order and without gaps. Neighbours differ, except across the end of the cycle.

    Raises `InputError` where there are more than `MOST_SLOTS`.
    """
    whole_s = cycle_s(spec)
    cuts = {0.0, *(_cut(moment_s, whole_s) for item in spec.traffic for moment_s in _changes(item, spec, whole_s))}
    if len(cuts) > MOST_SLOTS:
        raise InputError(
            f"cuts the day into {len(cuts)} slots", field="schedule.slot", expected=f"at most {MOST_SLOTS} slots"
        )
    edges = [*sorted(cuts), whole_s]
    found: list[Slot] = []
    for start_s, end_s in itertools.pairwise(edges):
        slot = Slot(start_s, end_s, _in_slot(spec, start_s, end_s, whole_s))
        if found and found[-1].spec == slot.spec:
            found[-1] = Slot(found[-1].start_s, end_s, slot.spec)
        else:
            found.append(slot)
    return tuple(found)


def _swing(item: TrafficClass) -> DiurnalSpec | None:
    """The swing of a diurnal class; None where its rate does not change."""
    diurnal = item.arrivals.diurnal if item.arrivals is not None else None
    return diurnal if diurnal is not None and diurnal.peak_to_mean > 1 else None


def _fits(swing: DiurnalSpec, whole_s: float) -> bool:
    """Whether periods fill the cycle; a class of another period is taken at its peak all day."""
    times = whole_s / swing.period_s
    return abs(times - round(times)) < 1e-9


def _cut(moment_s: float, whole_s: float) -> float:
    """To the millisecond, so that cuts of different origin that mean the same moment are one."""
    return round(moment_s % whole_s, 3) % whole_s


def _changes(item: TrafficClass, spec: DeploymentSpec, whole_s: float) -> list[float]:
    """Moments at which the traffic of a class changes."""
    found: list[float] = []
    if item.window is not None:
        found += [float(item.window.start_s), float(item.window.end_s)]
    swing = _swing(item)
    if swing is not None and _fits(swing, whole_s):
        count = math.ceil(swing.period_s / 2.0 / spec.schedule.slot_s - 0.5 - 1e-9)  # cuts on either side of the peak
        aside = [(k + 0.5) * spec.schedule.slot_s for k in range(count)]
        peaks = [swing.peak_at_s + k * swing.period_s for k in range(round(whole_s / swing.period_s))]
        found += [peak_s + sign * away_s for peak_s in peaks for away_s in aside for sign in (-1, 1)]
    return found


def _in_slot(spec: DeploymentSpec, start_s: float, end_s: float, whole_s: float) -> DeploymentSpec | None:
    """The declaration with the classes of the slot, at their highest rates in it, and the models that these ask for."""
    classes = tuple(
        _at_most(item, start_s, end_s, whole_s)
        for item in spec.traffic
        if item.window is None or _open(item.window, (start_s + end_s) / 2)
    )
    if not classes:
        return None
    models = {item.model for item in classes}

    def of_these(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in models}

    return spec.model_copy(
        update={
            "models": of_these(spec.models),
            "traffic": classes,
            "limits": spec.limits.model_copy(update={"gpus": of_these(spec.limits.gpus)}),
            "choices": spec.choices.model_copy(update={"models": of_these(spec.choices.models)}),
            **_of_one_plan(spec),
        }
    )


def _of_one_plan(spec: DeploymentSpec) -> dict[str, Any]:
    """What is left out of a declaration for one plan: statements about changes, which mean nothing there."""
    host = spec.hardware.host.model_copy(update={"nvme_bytes_per_s": None})
    return {"schedule": ScheduleSpec(), "hardware": spec.hardware.model_copy(update={"host": host})}


def _open(window: TimeWindow, moment_s: float) -> bool:
    if window.start_s < window.end_s:
        return window.start_s <= moment_s < window.end_s
    return moment_s >= window.start_s or moment_s < window.end_s


def _at_most(item: TrafficClass, start_s: float, end_s: float, whole_s: float) -> TrafficClass:
    """The class without its window, and where it swings at its highest rate between these moments."""
    changed: dict[str, Any] = {"window": None}
    swing = _swing(item)
    if swing is not None and item.arrivals is not None and _fits(swing, whole_s):
        rate_per_s = _highest(item.arrivals.rate_per_s, swing, start_s, end_s)
        changed["arrivals"] = ArrivalSpec(rate_per_s=rate_per_s)
        changed |= stated_at(item, min(1.0, rate_per_s / item.arrivals.rate_per_s))
    return item.model_copy(update=changed)


def _highest(mean_per_s: float, swing: DiurnalSpec, start_s: float, end_s: float) -> float:
    """Arrivals/s, to six digits, so that pieces left and right of the peak are equal."""
    to_peak_s = (swing.peak_at_s - start_s) % swing.period_s
    moments = np.array([start_s, end_s, start_s + to_peak_s if to_peak_s <= end_s - start_s else start_s])
    rates = diurnal_rate(moments, mean_per_s, swing.peak_to_mean, swing.period_s, swing.peak_at_s)
    return float(f"{rates.max():.6g}")
