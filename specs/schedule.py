"""The `Schedule` document: which plan runs at which time of a day (or another cycle), and what changing over costs.

A schedule stands alone as plans do: it embeds every plan that it uses. The cycle repeats, so the last slot is followed
by the first.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from specs.document import Document, Frozen
from specs.plan import Check, Plan


class ScheduleSlot(Frozen):
    """A part of the cycle with the same traffic; seconds after its beginning (midnight, where it is a day)."""

    start_s: NonNegativeFloat
    end_s: PositiveFloat
    requests_per_s: dict[str, NonNegativeFloat]  # by class, planned for; classes that are silent are not listed
    plan: str | None  # None: nothing is asked for and nothing runs
    value_per_hour: NonNegativeFloat  # of the objective
    bound_per_hour: NonNegativeFloat  # no plan for the traffic of this slot can be better


class Switch(Frozen):
    """Changing from one plan to the next, at the beginning of a slot: what is new starts before, what goes drains."""

    at_s: NonNegativeFloat
    before: str | None  # plan
    after: str | None
    started: NonNegativeInt  # replicas
    stopped: NonNegativeInt
    kept: NonNegativeInt  # replicas that go on running where they are
    start_s: NonNegativeFloat  # both plans are up for so long before `at_s`,
    drain_s: NonNegativeFloat  # and after it
    devices: dict[str, NonNegativeInt]  # rented meanwhile, by pool
    value: NonNegativeFloat  # of the objective, for the time that both are up, and what the user stated per replica


class Schedule(Document):
    kind: Literal["Schedule"] = "Schedule"
    version: Literal[1] = 1
    name: str
    capstan: str  # version that made it
    objective: str
    cycle_s: PositiveFloat
    slots: tuple[ScheduleSlot, ...]
    switches: tuple[Switch, ...]
    value: NonNegativeFloat  # of a cycle: of the slots by their hours, and of the switches
    bound: NonNegativeFloat  # of the slots by their hours, if changing cost nothing
    gap: NonNegativeFloat
    flat_plan: str | None  # the best single plan for the whole cycle; None where there is none
    flat_value: NonNegativeFloat | None  # of a cycle
    plans: dict[str, Plan]
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    spec: dict[str, Any]  # the resolved DeploymentSpec

    def plan_at(self, moment_s: float) -> Plan | None:
        """The plan that runs at this moment of the cycle."""
        moment_s %= self.cycle_s
        slot = next(slot for slot in reversed(self.slots) if slot.start_s <= moment_s)
        return None if slot.plan is None else self.plans[slot.plan]
