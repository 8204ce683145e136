"""Where a request goes: first to a replica group by the plan's shares, then to a replica inside the group.

All rules are deterministic: the same arrivals go the same way, in the simulator and in service.
"""

from __future__ import annotations

from collections.abc import Sequence


class ClassSplit:
    """Splits one request class over groups by shares: each request goes where the deficit is largest.

    The deficit of a group is (its share of all requests so far, this one included) - (requests it got). Ties go to the
    first group. No group is ever more than one request away from its share (for up to two groups).
    """

    def __init__(self, groups: Sequence[int], shares: Sequence[float]) -> None:
        if not groups or len(groups) != len(shares) or min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(f"shares {tuple(shares)} do not split a class over groups {tuple(groups)}")
        total = sum(shares)
        self._groups = tuple(groups)
        self._shares = tuple(share / total for share in shares)
        self._sent = [0] * len(groups)
        self._count = 0

    def next(self) -> int:
        """The group of the next request."""
        if len(self._groups) == 1:
            return self._groups[0]
        self._count += 1
        deficits = [share * self._count - sent for share, sent in zip(self._shares, self._sent, strict=True)]
        chosen = deficits.index(max(deficits))
        self._sent[chosen] += 1
        return self._groups[chosen]


class LeastOutstanding:
    """The replica with the fewest requests that were sent and have not finished; the lowest index among equals."""

    def choose(self, outstanding: Sequence[int]) -> int:
        return outstanding.index(min(outstanding))


class RoundRobin:
    """Replicas in turn, whatever their load."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, outstanding: Sequence[int]) -> int:
        chosen = self._next % len(outstanding)
        self._next = chosen + 1
        return chosen
