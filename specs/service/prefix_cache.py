"""Prefix cache: KV blocks of prompts that stay known after their sequence, until their room is needed.

Its unit is a fixed number of tokens, whole blocks of them, under an id that stands for all tokens from the start of
the prompt up to the unit's end. Equal ids therefore mean equal keys and values, whoever computed them.
"""

from __future__ import annotations

from collections import OrderedDict


class PrefixCache:
    """Units on the device: held by sequences, or idle and in order of their last use."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[int, ...]] = {}  # by id, of every unit that is known
        self._holders: dict[int, int] = {}  # sequences by id, of the units that are held
        self._idle: OrderedDict[int, None] = OrderedDict()  # ids, least recently used first

    def __contains__(self, unit: int) -> bool:
        return unit in self._blocks

    @property
    def idle_units(self) -> int:
        return len(self._idle)

    @property
    def held_units(self) -> int:
        return len(self._holders)

    def is_idle(self, unit: int) -> bool:
        return unit in self._idle

    def publish(self, unit: int, blocks: tuple[int, ...]) -> None:
        """An unknown unit is known from now on; the sequence whose blocks these are holds it."""
        self._blocks[unit] = blocks
        self._holders[unit] = 1

    def acquire(self, unit: int) -> tuple[int, ...]:
        """One more sequence holds a known unit; returns its blocks."""
        if unit in self._idle:
            del self._idle[unit]
            self._holders[unit] = 1
        else:
            self._holders[unit] += 1
        return self._blocks[unit]

    def release(self, unit: int) -> None:
        """A sequence lets go of a unit; without holders it is idle, the most recently used of them."""
        self._holders[unit] -= 1
        if self._holders[unit] == 0:
            del self._holders[unit]
            self._idle[unit] = None

    def evict(self) -> tuple[int, tuple[int, ...]]:
        """Forget the least recently used idle unit; returns its id and its blocks."""
        unit, _ = self._idle.popitem(last=False)
        return unit, self._blocks.pop(unit)
