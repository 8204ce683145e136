"""Orders of service by a key that does not change while a sequence waits: priority, deadline, size, what is left."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from specs.service.sequence import Sequence

Key = Callable[[Sequence], float]


def by_priority(sequence: Sequence) -> float:
    """Its declared rank."""
    return sequence.priority


def by_deadline(sequence: Sequence) -> float:
    """When its first token is due."""
    return sequence.deadline_s


def by_size(sequence: Sequence) -> float:
    """Prompt and predicted output."""
    return sequence.prompt_tokens + sequence.predicted_tokens


def by_remainder(sequence: Sequence) -> float:
    """Known tokens that are not computed, and what is left of the predicted output."""
    return sequence.left_tokens + max(0, sequence.predicted_tokens - sequence.generated_tokens)


class KeyQueue:
    """The smallest key is served first, then who arrived first. Preempted sequences keep their number of arrival."""

    def __init__(self, key: Key, *, preemptive: bool = False) -> None:
        self.preemptive = preemptive
        self.waiting_tokens = 0
        self._key = key
        self._heap: list[tuple[float, int, Sequence]] = []
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, sequence: Sequence) -> None:
        self._arrived += 1
        sequence.number = self._arrived
        self.requeue(sequence)

    def requeue(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (self._key(sequence), sequence.number, sequence))
        self.waiting_tokens += sequence.left_tokens

    def head(self) -> Sequence | None:
        return self._heap[0][2] if self._heap else None

    def pop(self) -> Sequence:
        sequence = heapq.heappop(self._heap)[2]
        self.waiting_tokens -= sequence.left_tokens
        return sequence

    def remove(self, sequence: Sequence) -> bool:
        kept = [entry for entry in self._heap if entry[2] is not sequence]
        if len(kept) == len(self._heap):
            return False
        heapq.heapify(kept)
        self._heap = kept
        self.waiting_tokens -= sequence.left_tokens
        return True

    def rank(self, sequence: Sequence) -> tuple[float, int]:
        return self._key(sequence), sequence.number

    def before(self, first: Sequence, second: Sequence) -> bool:
        return self.rank(first) < self.rank(second)

    def served(self, sequence: Sequence, prompt_tokens: int, output_tokens: int) -> None:
        """Keys are of the sequence alone."""
