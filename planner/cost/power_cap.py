"""Operations under a power cap: as long as their joules take at the watts that the cap leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.cost.energy import capped_seconds
from planner.cost.serving_power import operation_joules
from planner.cost.step_work import Cost, Operation, StepShape
from specs.catalog import load_power
from specs.deployment import PoolSpec
from specs.profile import DeviceFacts, PowerProfile


@dataclass(frozen=True)
class PowerCap:
    """The most watts of each device, and what its watts depend on."""

    watts: float
    power: PowerProfile


def cap_of(pool: PoolSpec, device: DeviceFacts, power: PowerProfile | None = None) -> PowerCap | None:
    """The cap that is declared for a pool; `power` None: the catalogue's."""
    return None if pool.power_cap_w is None else PowerCap(pool.power_cap_w, power or load_power(device.name))


def under_cap(every: tuple[Operation, ...], device: DeviceFacts, cap: PowerCap) -> tuple[Operation, ...]:
    """Each operation by itself keeps the cap, which is careful: a step could make up for one with another.

    Raises `InputError` for a cap that leaves nothing to work with.
    """
    return tuple(_capped(operation, device, cap) for operation in every)


def _capped(operation: Operation, device: DeviceFacts, cap: PowerCap) -> Operation:
    def measure(shape: StepShape) -> Cost:
        cost = operation.measure(shape)
        joules = operation_joules(operation, cost, device, cap.power)
        return replace(cost, seconds=capped_seconds(joules, cost.seconds, device, cap.power, cap.watts))

    return replace(operation, measure=measure)
