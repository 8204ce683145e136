"""Links that KV caches cross from prefill to decode replicas: each serves its transfers first come, first served."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from specs.service import Sequence


@dataclass(frozen=True)
class Link:
    """A link that several groups may share. A transfer occupies it for bytes / `bytes_per_s`, and is there later."""

    bytes_per_s: float  # infinity: takes no time
    latency_s: float = 0.0  # from the last byte sent to its arrival; does not occupy the link

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0 or not 0 <= self.latency_s < math.inf:
            raise ValueError(f"no link carries {self.bytes_per_s} bytes/s with a latency of {self.latency_s} s")


@dataclass(frozen=True)
class Handoff:
    """Where a prefill group sends requests after their first token."""

    group: str  # id of the decode group
    bytes_per_token: float  # of the KV cache
    link: str

    def __post_init__(self) -> None:
        if not 0 <= self.bytes_per_token < math.inf:
            raise ValueError(f"a token has a finite number of bytes in the KV cache, not {self.bytes_per_token}")


@dataclass(slots=True, eq=False)
class Transfer:
    """The KV cache of one request; the prefill lane keeps its blocks until it has arrived."""

    sequence: Sequence
    group: int  # of the prefill side
    replica: int
    lane: int
    size_bytes: float


class LinkQueue:
    """The transfers of one link on a virtual clock: waiting, being sent (one), and sent but not there yet."""

    def __init__(self, link: Link, horizon_s: float) -> None:
        self._link = link
        self._horizon_s = horizon_s
        self._waiting: deque[Transfer] = deque()
        self._sending: Transfer | None = None
        self._started_s = 0.0
        self._sent_s = math.inf  # when the one being sent is out
        self._flying: deque[tuple[float, Transfer]] = deque()  # by arrival
        self.busy_s = 0.0  # inside the arrival window
        self.transfers = 0  # sent whole
        self.moved_bytes = 0.0  # of these

    @property
    def next_s(self) -> float:
        """When something is out or arrives next."""
        return min(self._sent_s, self._flying[0][0]) if self._flying else self._sent_s

    def send(self, transfer: Transfer, now_s: float) -> None:
        """Queue a transfer at `now_s`."""
        self._waiting.append(transfer)
        if self._sending is None:
            self._start(now_s)

    def arrived(self, now_s: float) -> list[Transfer]:
        """Transfers that are whole on the other side by `now_s`, in order."""
        while self._sending is not None and self._sent_s <= now_s:
            self._flying.append((self._sent_s + self._link.latency_s, self._sending))
            self.transfers += 1
            self.moved_bytes += self._sending.size_bytes
            self._stop(self._sent_s)
        arrived = []
        while self._flying and self._flying[0][0] <= now_s:
            arrived.append(self._flying.popleft()[1])
        return arrived

    def drop(self, group: int, replica: int, now_s: float) -> list[Transfer]:
        """Take out the transfers that are lost with their source, which fails; the link goes on with the next one."""

        def lost(transfer: Transfer) -> bool:
            return (transfer.group, transfer.replica) == (group, replica)

        dropped = [transfer for _, transfer in self._flying if lost(transfer)]
        self._flying = deque(entry for entry in self._flying if not lost(entry[1]))
        dropped += [transfer for transfer in self._waiting if lost(transfer)]
        self._waiting = deque(transfer for transfer in self._waiting if not lost(transfer))
        if self._sending is not None and lost(self._sending):
            dropped.append(self._sending)
            self._stop(now_s)
        return dropped

    def _start(self, now_s: float) -> None:
        self._sending = self._waiting.popleft()
        self._started_s = now_s
        self._sent_s = now_s + self._sending.size_bytes / self._link.bytes_per_s

    def _stop(self, now_s: float) -> None:
        """What was being sent is out, or lost, at `now_s`: the next one begins."""
        self.busy_s += max(0.0, min(now_s, self._horizon_s) - self._started_s)
        self._sending, self._sent_s = None, math.inf
        if self._waiting:
            self._start(now_s)
