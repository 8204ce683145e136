"""Virtual token counters: fair shares of service among tenants that keep something waiting (Sheng et al., OSDI 2024).

A tenant's counter grows by 1 per prompt token, when the request is admitted the first time, and by 2 per output token,
when it is sampled. The waiting tenant with the smallest counter is served next, its requests as they came. A tenant of
which nothing waited is lifted, when something does again, to the smallest counter of the waiting tenants (of the last
one that waited, where none does): idle times earn no credit. Counters of tenants that both keep something waiting
differ by max(1 x longest prompt, 2 x output tokens that can be under way) at most.
"""

from __future__ import annotations

from bisect import insort
from collections import deque

from specs.service.sequence import Sequence

PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2


def _number(sequence: Sequence) -> int:
    return sequence.number


class VtcQueue:
    """Tenants are numbers from 0 on; counters are whole numbers."""

    preemptive = False

    def __init__(self) -> None:
        self.waiting_tokens = 0
        self._waiting: list[deque[Sequence]] = []  # by tenant, in order of arrival
        self._counters: list[int] = []  # by tenant
        self._last = -1  # tenant of which something waited last
        self._count = 0
        self._arrived = 0

    def __len__(self) -> int:
        return self._count

    def counter(self, tenant: int) -> int:
        return self._counters[tenant] if tenant < len(self._counters) else 0

    def push(self, sequence: Sequence) -> None:
        self._arrived += 1
        sequence.number = self._arrived
        self.requeue(sequence)

    def requeue(self, sequence: Sequence) -> None:
        tenant = sequence.tenant
        while len(self._waiting) <= tenant:
            self._waiting.append(deque())
            self._counters.append(0)
        if not self._waiting[tenant]:
            self._lift(tenant)
        insort(self._waiting[tenant], sequence, key=_number)
        self._count += 1
        self.waiting_tokens += sequence.left_tokens

    def head(self) -> Sequence | None:
        if not self._count:
            return None
        return min((waiting[0] for waiting in self._waiting if waiting), key=self.rank)

    def pop(self) -> Sequence:
        sequence = self.head()
        assert sequence is not None
        self._waiting[sequence.tenant].popleft()
        self._left(sequence)
        if sequence.preemptions == 0 and sequence.computed_tokens == 0:
            self._counters[sequence.tenant] += PROMPT_WEIGHT * sequence.prompt_tokens
        return sequence

    def remove(self, sequence: Sequence) -> bool:
        tenant = sequence.tenant
        if tenant >= len(self._waiting) or sequence not in self._waiting[tenant]:
            return False
        self._waiting[tenant].remove(sequence)
        self._left(sequence)
        return True

    def rank(self, sequence: Sequence) -> tuple[float, int]:
        return self._counters[sequence.tenant], sequence.number

    def before(self, first: Sequence, second: Sequence) -> bool:
        return self.rank(first) < self.rank(second)

    def served(self, sequence: Sequence, prompt_tokens: int, output_tokens: int) -> None:
        self._counters[sequence.tenant] += OUTPUT_WEIGHT * output_tokens

    def _lift(self, tenant: int) -> None:
        counters = [self._counters[other] for other, waiting in enumerate(self._waiting) if waiting]
        if not counters and self._last >= 0:
            counters = [self._counters[self._last]]
        self._counters[tenant] = max(self._counters[tenant], min(counters, default=0))

    def _left(self, sequence: Sequence) -> None:
        self._count -= 1
        self.waiting_tokens -= sequence.left_tokens
        if not self._waiting[sequence.tenant]:
            self._last = sequence.tenant
