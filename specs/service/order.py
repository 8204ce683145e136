"""Order of service among waiting sequences: the protocol, and first come, first served."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from specs.service.sequence import Sequence


class Queue(Protocol):
    """Waiting sequences, and who goes first among all sequences. The batch former tells it what was served."""

    waiting_tokens: int  # known tokens of those that wait, less what is computed of them
    preemptive: bool  # whether the head may push out running sequences that come after it

    def __len__(self) -> int: ...

    def push(self, sequence: Sequence) -> None:
        """A new sequence."""

    def requeue(self, sequence: Sequence) -> None:
        """A preempted sequence takes its place again."""

    def head(self) -> Sequence | None:
        """Who is admitted next."""

    def pop(self) -> Sequence:
        """Take the head out: it is admitted."""

    def remove(self, sequence: Sequence) -> bool:
        """Take a sequence out wherever it stands (the client went away); False if it does not wait here."""

    def rank(self, sequence: Sequence) -> tuple[float, int]:
        """Lower goes first, waiting or running. No two sequences have the same."""

    def before(self, first: Sequence, second: Sequence) -> bool:
        """Whether `first` goes first."""

    def served(self, sequence: Sequence, prompt_tokens: int, output_tokens: int) -> None:
        """A step computed so many tokens of a prompt, and sampled so many."""


class FcfsQueue:
    """Served from the front. A preempted sequence arrived before everything that waits, so the front is its place."""

    preemptive = False

    def __init__(self) -> None:
        self.waiting_tokens = 0
        self._waiting: deque[Sequence] = deque()
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, sequence: Sequence) -> None:
        self._arrived += 1
        sequence.number = self._arrived
        self._waiting.append(sequence)
        self.waiting_tokens += sequence.left_tokens

    def requeue(self, sequence: Sequence) -> None:
        self._waiting.appendleft(sequence)
        self.waiting_tokens += sequence.left_tokens

    def head(self) -> Sequence | None:
        return self._waiting[0] if self._waiting else None

    def pop(self) -> Sequence:
        sequence = self._waiting.popleft()
        self.waiting_tokens -= sequence.left_tokens
        return sequence

    def remove(self, sequence: Sequence) -> bool:
        if sequence not in self._waiting:
            return False
        self._waiting.remove(sequence)
        self.waiting_tokens -= sequence.left_tokens
        return True

    def rank(self, sequence: Sequence) -> tuple[float, int]:
        return 0.0, sequence.number

    def before(self, first: Sequence, second: Sequence) -> bool:
        return first.number < second.number

    def served(self, sequence: Sequence, prompt_tokens: int, output_tokens: int) -> None:
        """It does not matter here."""
