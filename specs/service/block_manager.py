"""Paged KV cache: a fixed set of block ids, each on the free list, owned by one sequence, or of the prefix cache.

A block of the prefix cache is shared by the sequences that hold its unit, and idle when none does. Idle blocks are
taken for others when the free list is empty, so they count as available.
"""

from __future__ import annotations

from specs.service.host_tier import HostTier
from specs.service.prefix_cache import PrefixCache
from specs.service.sequence import Sequence


def blocks_for(tokens: int, block_size_tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_size_tokens)


class BlockManager:
    """Grants whole blocks and takes them back. Freed blocks are granted again last in, first out (still warm in L2).

    `prefix_unit_tokens`: unit of the prefix cache, 0 for none. `host_blocks`: size of the host tier.
    """

    def __init__(
        self, num_blocks: int, block_size_tokens: int, *, prefix_unit_tokens: int = 0, host_blocks: int = 0
    ) -> None:
        if num_blocks < 1 or block_size_tokens < 1:
            raise ValueError(f"a cache has at least one block of one token, not {num_blocks} of {block_size_tokens}")
        if prefix_unit_tokens < 0 or prefix_unit_tokens % block_size_tokens or host_blocks < 0:
            raise ValueError(
                f"prefix units of {prefix_unit_tokens} tokens must be whole blocks of {block_size_tokens}, "
                f"and the host tier cannot have {host_blocks} blocks"
            )
        self.num_blocks = num_blocks
        self.block_size_tokens = block_size_tokens
        self.prefix_unit_tokens = prefix_unit_tokens
        self.moved_tokens = 0  # between host and device, until `take_moved`
        self._unit_blocks = prefix_unit_tokens // block_size_tokens
        self._free = list(range(num_blocks - 1, -1, -1))
        self.cache = PrefixCache()
        self.host = HostTier(host_blocks, self._unit_blocks)

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def idle_blocks(self) -> int:
        """Of prefix units that no sequence holds."""
        return self.cache.idle_units * self._unit_blocks

    @property
    def used_blocks(self) -> int:
        """Of sequences, shared ones counted once."""
        return self.num_blocks - len(self._free) - self.idle_blocks

    @property
    def capacity_tokens(self) -> int:
        return self.num_blocks * self.block_size_tokens

    def match(self, sequence: Sequence) -> int:
        """Units of its prefix that are known, from the start on. The last token is never among them: it is computed."""
        unit_tokens = self.prefix_unit_tokens
        if unit_tokens == 0:
            return 0
        most = min(len(sequence.prefix), (sequence.total_tokens - 1) // unit_tokens)
        units = 0
        while units < most and (sequence.prefix[units] in self.cache or sequence.prefix[units] in self.host):
            units += 1
        return units

    def fits(self, sequence: Sequence, units: int, tokens: int) -> bool:
        """Whether a sequence without blocks gets them for `tokens` tokens, its first `units` units from the cache."""
        needed = blocks_for(tokens, self.block_size_tokens)
        available = len(self._free) + self.idle_blocks
        for unit in sequence.prefix[:units]:
            if unit in self.cache:
                needed -= self._unit_blocks
                available -= self._unit_blocks if self.cache.is_idle(unit) else 0
        return needed <= available

    def admit(self, sequence: Sequence, units: int, tokens: int) -> bool:
        """Blocks for `tokens` tokens to a sequence without any; False, and nothing changed, when they do not fit.

        Its first `units` units come from the cache: shared where they are on the device, loaded where they are in the
        host tier. What it has itself in the host tier (`host_blocks`) is loaded too.
        """
        if not self.fits(sequence, units, tokens):
            return False
        self._leave_host(sequence)
        known = sequence.prefix[:units]
        shared = [self.cache.acquire(unit) if unit in self.cache else None for unit in known]
        for unit, blocks in zip(known, shared, strict=True):
            if blocks is None:  # before anything is evicted into the host tier and pushes it out
                self.host.discard(unit)
        for unit, blocks in zip(known, shared, strict=True):
            sequence.blocks.extend(self._load(unit) if blocks is None else blocks)
            sequence.units.append(True)
        return self.grow(sequence, tokens)

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Give `sequence` blocks for `tokens` tokens in all. False, and nothing changed, when too few are available."""
        missing = blocks_for(tokens, self.block_size_tokens) - len(sequence.blocks)
        if missing > len(self._free) and missing > len(self._free) + self.idle_blocks:
            return False
        for _ in range(missing):
            sequence.blocks.append(self._take())
        return True

    def publish(self, sequence: Sequence) -> None:
        """Units of its prefix that are computed by now become known. Where another was faster it keeps its own copy."""
        unit_tokens, size = self.prefix_unit_tokens, self._unit_blocks
        index = len(sequence.units)
        while index < len(sequence.prefix) and (index + 1) * unit_tokens <= sequence.computed_tokens:
            unit = sequence.prefix[index]
            fresh = unit not in self.cache
            if fresh:
                self.host.discard(unit)
                self.cache.publish(unit, tuple(sequence.blocks[index * size : (index + 1) * size]))
            sequence.units.append(fresh)
            index += 1

    def free(self, sequence: Sequence) -> None:
        """Take back every block of `sequence`, the last one first; its units stay known."""
        if sequence.host_blocks:
            self.host.unpin(sequence.host_blocks)
            sequence.host_blocks = 0
        size, blocks = self._unit_blocks, sequence.blocks
        self._free.extend(reversed(blocks[len(sequence.units) * size :]))
        for index in range(len(sequence.units) - 1, -1, -1):
            if sequence.units[index]:
                self.cache.release(sequence.prefix[index])
            else:
                self._free.extend(reversed(blocks[index * size : (index + 1) * size]))
        blocks.clear()
        sequence.units.clear()

    def swap_out(self, sequence: Sequence) -> bool:
        """Move the computed tokens of `sequence` to the host tier; False, and nothing changed, when it has no room."""
        blocks = blocks_for(sequence.computed_tokens, self.block_size_tokens)
        if blocks == 0 or not self.host.pin(blocks):
            return False
        self.free(sequence)
        sequence.host_blocks = blocks
        self.moved_tokens += sequence.computed_tokens
        return True

    def take_moved(self) -> int:
        """Tokens moved between host and device since this was asked last."""
        moved, self.moved_tokens = self.moved_tokens, 0
        return moved

    def _leave_host(self, sequence: Sequence) -> None:
        if sequence.host_blocks:
            self.host.unpin(sequence.host_blocks)
            self.moved_tokens += sequence.computed_tokens
            sequence.host_blocks = 0

    def _load(self, unit: int) -> tuple[int, ...]:
        """Blocks for a unit that comes back from the host tier."""
        if unit in self.cache:  # an id that stands twice in one prefix
            return self.cache.acquire(unit)
        blocks = tuple(self._take() for _ in range(self._unit_blocks))
        self.cache.publish(unit, blocks)
        self.moved_tokens += self.prefix_unit_tokens
        return blocks

    def _take(self) -> int:
        """A block of the free list; where that is empty, the least recently used idle unit goes there first."""
        if not self._free:
            unit, blocks = self.cache.evict()
            self._free.extend(reversed(blocks))
            self.host.put(unit)
        return self._free.pop()
