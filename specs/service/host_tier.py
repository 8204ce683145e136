"""Host tier of the KV cache: blocks in host memory, for sequences swapped out and for prefix units evicted."""

from __future__ import annotations

from collections import OrderedDict


class HostTier:
    """Counts blocks. Those of swapped sequences are pinned; prefix units fill the rest, and the oldest make way."""

    def __init__(self, num_blocks: int, unit_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.pinned_blocks = 0  # of sequences that are swapped out
        self._unit_blocks = unit_blocks  # of one prefix unit
        self._units: OrderedDict[int, None] = OrderedDict()  # ids, oldest first

    def __contains__(self, unit: int) -> bool:
        return unit in self._units

    @property
    def unit_count(self) -> int:
        return len(self._units)

    def put(self, unit: int) -> None:
        """Keep a unit that the device evicted, if it fits beside what is pinned."""
        if self._make_room(self._unit_blocks):
            self._units[unit] = None

    def discard(self, unit: int) -> None:
        """The unit is on the device now, or nowhere: it is kept in one place only."""
        self._units.pop(unit, None)

    def pin(self, blocks: int) -> bool:
        """Room for a sequence; False, and nothing changed, when other sequences fill the tier."""
        if not self._make_room(blocks):
            return False
        self.pinned_blocks += blocks
        return True

    def unpin(self, blocks: int) -> None:
        self.pinned_blocks -= blocks

    def _make_room(self, blocks: int) -> bool:
        room = self.num_blocks - self.pinned_blocks
        if blocks > room:
            return False
        while len(self._units) * self._unit_blocks + blocks > room:
            self._units.popitem(last=False)
        return True
