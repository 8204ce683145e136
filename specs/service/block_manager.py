"""Paged KV cache: a fixed set of block ids, each on the free list or owned by exactly one sequence."""

from __future__ import annotations

from specs.service.sequence import Sequence


def blocks_for(tokens: int, block_size_tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_size_tokens)


class BlockManager:
    """Grants whole blocks and takes them back. Freed blocks are granted again last in, first out (still warm in L2)."""

    def __init__(self, num_blocks: int, block_size_tokens: int) -> None:
        if num_blocks < 1 or block_size_tokens < 1:
            raise ValueError(f"a cache has at least one block of one token, not {num_blocks} of {block_size_tokens}")
        self.num_blocks = num_blocks
        self.block_size_tokens = block_size_tokens
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        return self.num_blocks - len(self._free)

    @property
    def capacity_tokens(self) -> int:
        return self.num_blocks * self.block_size_tokens

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Give `sequence` blocks for `tokens` tokens in all. False, and nothing changed, when too few are free."""
        missing = blocks_for(tokens, self.block_size_tokens) - len(sequence.blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            sequence.blocks.append(self._free.pop())
        return True

    def free(self, sequence: Sequence) -> None:
        """Take back every block of `sequence`."""
        self._free.extend(reversed(sequence.blocks))
        sequence.blocks.clear()
