"""What prompts share: chains of units with ids that stand for all tokens up to the unit's end.

Equal ids in equal places of two requests mean equal tokens from the start up to there, so a prefix cache has to
compare nothing else. `Prefixes` holds ids as a trace states them, `Chains` says in a few numbers by request what a
declaration implies; both give units of any size asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

PREFIX_UNIT_TOKENS = 16  # of declared prefixes: the usual KV block, so whole units are what an engine can reuse
MOST_UNITS = 4_000_000  # of one workload; units get twice as long until there are at most so many


@dataclass(frozen=True)
class Prefixes:
    """Request i has the units `ids[offsets[i] : offsets[i + 1]]`, each of `unit_tokens` tokens.

    They cover its prompt from the start, and may go on into its output where a later request continues it.
    """

    unit_tokens: int
    offsets: IntArray  # shape: requests + 1
    ids: IntArray

    def __post_init__(self) -> None:
        if self.unit_tokens < 1 or len(self.offsets) == 0 or self.offsets[0] != 0:
            raise ValueError("prefixes are units of one token at least, and their offsets begin at 0")
        if (np.diff(self.offsets) < 0).any() or self.offsets[-1] != len(self.ids):
            raise ValueError("prefix offsets must ascend to the number of ids")

    def of(self, request: int) -> tuple[int, ...]:
        """Units of one request, from the start of its prompt."""
        return tuple(self.ids[self.offsets[request] : self.offsets[request + 1]].tolist())

    def select(self, requests: IntArray) -> Prefixes:
        """Of these requests, in this order."""
        lengths = np.diff(self.offsets)[requests]
        offsets = _offsets(lengths)
        return Prefixes(
            self.unit_tokens, offsets, self.ids[np.repeat(self.offsets[requests], lengths) + _within(offsets)]
        )

    def most_units(self, unit_tokens: int) -> int:
        """Units of this size in all requests, at most."""
        return len(self.ids) * self.unit_tokens // unit_tokens

    def units(self, unit_tokens: int) -> Prefixes:
        """The same in units of another size, which divides this one or is a multiple of it (else `ValueError`).

        A longer unit takes the id of its last part, which stands for everything before it.
        """
        if unit_tokens % self.unit_tokens == 0:
            parts = unit_tokens // self.unit_tokens
            lengths = np.diff(self.offsets) // parts
            offsets = _offsets(lengths)
            places = np.repeat(self.offsets[:-1], lengths) + (_within(offsets) + 1) * parts - 1
            return Prefixes(unit_tokens, offsets, self.ids[places])
        if self.unit_tokens % unit_tokens == 0:
            parts = self.unit_tokens // unit_tokens
            ids = (self.ids[:, None] * parts + np.arange(parts)).reshape(-1)
            return Prefixes(unit_tokens, self.offsets * parts, ids)
        raise ValueError(f"units of {self.unit_tokens} tokens cannot become units of {unit_tokens}")


@dataclass(frozen=True)
class Chains:
    """Request i begins with the first `shared_tokens[i]` tokens of group `group[i]` and goes on with chain `chain[i]`.

    Requests of one chain (turns of a conversation) hold the same tokens in the same places, and belong to one group.
    Arrays of one length; `covered_tokens` from the start are known by their ids. Shared tokens beyond these do not
    matter. Groups and chains are numbered from 0; without shared tokens the group says nothing.
    """

    group: IntArray
    shared_tokens: IntArray
    chain: IntArray
    covered_tokens: IntArray
    unit_tokens: int = PREFIX_UNIT_TOKENS

    @classmethod
    def of_each(cls, prompt_tokens: IntArray) -> Chains:
        """Prompts that share nothing."""
        none = np.zeros(len(prompt_tokens), np.int64)
        return cls(none, none, np.arange(len(prompt_tokens)), prompt_tokens)

    def select(self, requests: IntArray) -> Chains:
        return Chains(
            self.group[requests],
            self.shared_tokens[requests],
            self.chain[requests],
            self.covered_tokens[requests],
            self.unit_tokens,
        )

    def most_units(self, unit_tokens: int) -> int:
        return int((self.covered_tokens // unit_tokens).sum())

    def units(self, unit_tokens: int) -> Prefixes:
        """Whole units: those that end within the shared tokens are the group's, the others the chain's."""
        lengths = self.covered_tokens // unit_tokens
        offsets = _offsets(lengths)
        within = _within(offsets)
        stride = int(lengths.max(initial=0)) + 1
        of_group = np.repeat(self.shared_tokens // unit_tokens, lengths) > within
        owner = np.where(of_group, np.repeat(self.group * 2, lengths), np.repeat(self.chain * 2 + 1, lengths))
        return Prefixes(unit_tokens, offsets, owner * stride + within)


Sharing = Prefixes | Chains


def joined(parts: Sequence[Sharing]) -> Prefixes:
    """The requests of all parts one after the other; parts share nothing with each other.

    Units are as long as the shortest of the parts' own, or longer by a power of two where there would be more than
    `MOST_UNITS`. Raises `ValueError` where no such size fits all.
    """
    unit_tokens = min(part.unit_tokens for part in parts)
    while sum(part.most_units(unit_tokens) for part in parts) > MOST_UNITS:
        unit_tokens *= 2
    ids: list[IntArray] = []
    lengths: list[IntArray] = []
    used = 0
    for part in parts:
        own = part.units(unit_tokens)
        ids.append(own.ids + used)
        lengths.append(np.diff(own.offsets))
        used += int(own.ids.max(initial=-1)) + 1
    return Prefixes(unit_tokens, _offsets(np.concatenate(lengths)), np.concatenate(ids))


def chained(unit_tokens: int, lengths: IntArray, ids: IntArray) -> Prefixes:
    """Prefixes from ids (numbers from 0) that may stand for a unit's own tokens alone.

    The same id after another unit becomes another one; ids that stand for the whole prefix already are only renamed.
    Level by level, all requests at once.
    """
    offsets = _offsets(lengths)
    whole = np.zeros(len(ids), np.int64)
    before = np.zeros(len(lengths), np.int64)  # chain id of each request's unit before
    kinds, used = int(ids.max(initial=0)) + 1, 0
    rows = np.arange(len(lengths))
    for depth in range(int(lengths.max(initial=0))):
        rows = rows[lengths[rows] > depth]
        places = offsets[rows] + depth
        distinct, names = np.unique(before[rows] * kinds + ids[places], return_inverse=True)
        whole[places] = before[rows] = names + used
        used += len(distinct)
    return Prefixes(unit_tokens, offsets, whole)


def _offsets(lengths: IntArray) -> IntArray:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))


def _within(offsets: IntArray) -> IntArray:
    """The place of every unit in its own request."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
