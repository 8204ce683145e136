"""Replicas that fail and come back: when, and what that changes at each moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.simulate.model import FleetGroup

Place = tuple[int, int]  # group, replica


@dataclass(frozen=True)
class Fault:
    """A replica is down from `from_s` until `until_s` (infinity: for good). From 0 on it is a delay of its start."""

    group: str
    replica: int
    from_s: float
    until_s: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.from_s < self.until_s:
            raise ValueError(
                f"replica {self.replica} of {self.group!r} cannot be down from {self.from_s} s until {self.until_s} s"
            )


class FaultSchedule:
    """The moments at which replicas go down or come up. Overlapping faults of one replica are one."""

    def __init__(self, faults: Sequence[Fault], groups: Sequence[FleetGroup]) -> None:
        """Raises `ValueError` on a group or a replica that does not exist."""
        names = [group.id for group in groups]
        events: list[tuple[float, Place, int]] = []
        for fault in faults:
            if fault.group not in names:
                raise ValueError(f"a fault of group {fault.group!r}; the groups are {', '.join(names)}")
            place = (names.index(fault.group), fault.replica)
            if not 0 <= fault.replica < groups[place[0]].replicas:
                raise ValueError(
                    f"a fault of replica {fault.replica}; group {fault.group!r} has the replicas 0 to "
                    f"{groups[place[0]].replicas - 1}"
                )
            events.append((fault.from_s, place, 1))
            if fault.until_s < math.inf:
                events.append((fault.until_s, place, -1))
        self._events = sorted(events)
        self._next = 0
        self._down: dict[Place, int] = {}  # faults under way
        self.next_s = self._events[0][0] if events else math.inf  # when something changes next

    def due(self, now_s: float) -> tuple[list[Place], list[Place]]:
        """Replicas that fail and replicas that come back by `now_s`, in order of group and index."""
        change: dict[Place, int] = {}
        while self.next_s <= now_s:
            _, place, step = self._events[self._next]
            change[place] = change.get(place, 0) + step
            self._next += 1
            self.next_s = self._events[self._next][0] if self._next < len(self._events) else math.inf
        failed, recovered = [], []
        for place, step in sorted(change.items()):
            before = self._down.get(place, 0)
            self._down[place] = before + step
            if before == 0 and before + step > 0:
                failed.append(place)
            elif before > 0 and before + step == 0:
                recovered.append(place)
        return failed, recovered
