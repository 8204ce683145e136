"""Multi-level feedback queue with skip-join: short requests first, without knowing which are short.

Level i has a quantum of q 2^i tokens. A request joins at the first level whose quantum holds its prompt, and falls a
level, to that level's end, when its tokens there (prompt and output) have used up the quantum. Lower levels go first
and preempt (FastServe, Wu et al. 2023; without its promotion of starved requests).
"""

from __future__ import annotations

from specs.service.orders import KeyQueue
from specs.service.sequence import Sequence


def by_level(sequence: Sequence) -> float:
    return sequence.level


class MlfqQueue(KeyQueue):
    """Ordered by level, then by who came to the level first."""

    def __init__(self, quantum_tokens: int) -> None:
        if quantum_tokens < 1:
            raise ValueError(f"a quantum is one token at least, not {quantum_tokens}")
        super().__init__(by_level, preemptive=True)
        self._quantum_tokens = quantum_tokens

    def push(self, sequence: Sequence) -> None:
        while self._quantum_tokens << sequence.level < sequence.prompt_tokens:
            sequence.level += 1
        super().push(sequence)

    def served(self, sequence: Sequence, prompt_tokens: int, output_tokens: int) -> None:
        sequence.level_tokens += prompt_tokens + output_tokens
        if sequence.level_tokens >= self._quantum_tokens << sequence.level:
            sequence.level += 1
            sequence.level_tokens = 0
            self._arrived += 1
            sequence.number = self._arrived
