"""When requests arrive: at their own times, after their predecessors, or as the clients of a closed loop send them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol

from planner.simulate.model import Workload


class Arrivals(Protocol):
    """Where requests come from."""

    arrival_s: list[float]  # by request, actual; infinity until it is known
    dependent: bool  # arrivals depend on when others end
    next_s: float  # when the next request arrives, as far as is known; infinity: none

    def pop(self) -> int:
        """The request that arrives next; of one moment, the one that stands first in the workload."""
        ...

    def ended(self, request: int, now_s: float) -> None:
        """A request has its last token."""
        ...

    def refused(self, request: int, now_s: float) -> tuple[int, ...]:
        """A request is refused; returns those that can never arrive now."""
        ...


class OpenArrivals:
    """Arrivals of a workload. A dependent request arrives a gap after its predecessor's end, never before its time."""

    def __init__(self, workload: Workload) -> None:
        self.arrival_s: list[float] = workload.arrival_s.tolist()
        self._own_s: list[float] = self.arrival_s
        self._ready: list[tuple[float, int]] = []  # heap of dependent requests whose predecessor has ended
        self._gap_s: list[float] = []
        self._followers: dict[int, list[int]] = {}
        after = [] if workload.after is None else workload.after.tolist()
        self.dependent = any(before >= 0 for before in after)
        self._order: Sequence[int] = range(len(workload))  # of the independent ones
        if self.dependent and workload.gap_s is not None:
            self._gap_s = workload.gap_s.tolist()
            self._own_s = list(self.arrival_s)
            self._order = [request for request, before in enumerate(after) if before < 0]
            for request, before in enumerate(after):
                if before >= 0:
                    self.arrival_s[request] = math.inf
                    self._followers.setdefault(before, []).append(request)
        self._next = 0
        self.next_s = self._own_s[self._order[0]] if self._order else math.inf

    def pop(self) -> int:
        if self._ready and not (self._next < len(self._order) and self._head() < self._ready[0]):
            request = heappop(self._ready)[1]
        else:
            request = self._order[self._next]
            self._next += 1
        self._find_next()
        return request

    def _head(self) -> tuple[float, int]:
        """The independent request that arrives next."""
        request = self._order[self._next]
        return self._own_s[request], request

    def _find_next(self) -> None:
        self.next_s = self._own_s[self._order[self._next]] if self._next < len(self._order) else math.inf
        if self._ready:
            self.next_s = min(self.next_s, self._ready[0][0])

    def ended(self, request: int, now_s: float) -> None:
        for follower in self._followers.get(request, ()):
            arrival_s = max(self._own_s[follower], now_s + self._gap_s[follower])
            self.arrival_s[follower] = arrival_s
            heappush(self._ready, (arrival_s, follower))
            self.next_s = min(self.next_s, arrival_s)

    def refused(self, request: int, now_s: float) -> tuple[int, ...]:
        followers = tuple(self._followers.get(request, ()))
        for follower in followers:
            self.arrival_s[follower] = max(self._own_s[follower], now_s)
        return followers


class ClosedLoopClients:
    """A fixed number of clients: all send at 0, and each sends the next request when its last one has ended."""

    dependent = True

    def __init__(self, requests: int, clients: int) -> None:
        self.arrival_s = [0.0] * min(clients, requests) + [math.inf] * max(0, requests - clients)
        self._ready = [(0.0, request) for request in range(min(clients, requests))]  # a heap
        self._sent = len(self._ready)
        self.next_s = 0.0 if requests else math.inf

    def pop(self) -> int:
        request = heappop(self._ready)[1]
        self.next_s = self._ready[0][0] if self._ready else math.inf
        return request

    def ended(self, request: int, now_s: float) -> None:
        if self._sent < len(self.arrival_s):
            self.arrival_s[self._sent] = now_s
            heappush(self._ready, (now_s, self._sent))
            self.next_s = min(self.next_s, now_s)
            self._sent += 1

    def refused(self, request: int, now_s: float) -> tuple[int, ...]:
        self.ended(request, now_s)
        return ()
