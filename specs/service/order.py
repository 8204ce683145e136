"""Order of service among waiting sequences: first come, first served; preempted ones come back to the front."""

from __future__ import annotations

from collections import deque

from specs.service.sequence import Sequence


class FcfsQueue:
    """Served from the front. A preempted sequence arrived before everything that waits, so the front is its place."""

    def __init__(self) -> None:
        self._waiting: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def push_front(self, sequence: Sequence) -> None:
        self._waiting.appendleft(sequence)

    def head(self) -> Sequence | None:
        return self._waiting[0] if self._waiting else None

    def pop(self) -> Sequence:
        return self._waiting.popleft()

    def remove(self, sequence: Sequence) -> bool:
        """Take a sequence out wherever it stands (the client went away); False if it does not wait here."""
        if sequence not in self._waiting:
            return False
        self._waiting.remove(sequence)
        return True
