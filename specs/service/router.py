"""Where a request goes: first to a replica group by the plan's shares, then to a replica inside the group.

All rules are deterministic: the same arrivals and the same loads go the same way, in the simulator and in service. They
have no clock: how old the loads of a `View` are is the caller's affair.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from specs.service.hashing import splitmix64


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


@dataclass(slots=True)
class View:
    """What a router knows about the replicas of its group. Sequences by replica; `up` are the ones to choose from.

    Loads may be old. Whether a replica is up is always known: sending to one that is gone fails at once.
    """

    outstanding: list[int]  # requests that were sent and have not finished
    kv_blocks: list[int]  # KV blocks in use; only `LeastKV` reads them
    up: Sequence[int]  # ascending, not empty; those that cannot hold the request are left out
    weights: Sequence[float] = ()  # capacity of each replica; empty: all are alike

    def load(self, replica: int) -> float:
        """Outstanding requests; with weights, what they would be per unit of capacity with one more."""
        outstanding = self.outstanding[replica]
        return (outstanding + 1) / self.weights[replica] if self.weights else outstanding

    def least_loaded(self) -> int:
        """The replica with the smallest load, the lowest index among equals."""
        if self.weights:
            return min(self.up, key=self.load)
        outstanding = self.outstanding
        if len(self.up) == len(outstanding):
            return outstanding.index(min(outstanding))
        return min(self.up, key=outstanding.__getitem__)


class RequestKey(NamedTuple):
    """What routers read of a request."""

    number: int
    session: int = -1  # -1: of no session
    units: tuple[int, ...] = ()  # prefix units of its prompt; an id stands for all tokens up to the unit's end


class Router(Protocol):
    """Chooses a replica for each request."""

    reads_kv: ClassVar[bool]  # `View.kv_blocks` has to be filled
    reads_units: ClassVar[bool]  # `RequestKey.units` has to be filled

    def choose(self, view: View, request: RequestKey) -> int:
        """One of `view.up`."""
        ...

    def forget(self, replica: int) -> None:
        """The replica failed: what it had cached is gone."""
        ...


class _Stateless:
    reads_kv: ClassVar[bool] = False
    reads_units: ClassVar[bool] = False

    def forget(self, replica: int) -> None:
        """Nothing is remembered about single replicas."""


class LeastOutstanding(_Stateless):
    """The replica with the fewest requests that were sent and have not finished; the lowest index among equals."""

    def choose(self, view: View, request: RequestKey) -> int:
        return view.least_loaded()


class RoundRobin(_Stateless):
    """Replicas in turn, whatever their load; one that is down is passed over.

    With weights, nginx's smooth round robin: everyone gains its weight, the richest is chosen and pays the sum.
    """

    def __init__(self) -> None:
        self._next = 0
        self._credit: dict[int, float] = {}

    def choose(self, view: View, request: RequestKey) -> int:
        if view.weights:
            return self._smooth(view)
        chosen = next((replica for replica in view.up if replica >= self._next), view.up[0])
        self._next = chosen + 1
        return chosen

    def _smooth(self, view: View) -> int:
        credit = self._credit
        for replica in view.up:
            credit[replica] = credit.get(replica, 0.0) + view.weights[replica]
        chosen = max(view.up, key=credit.__getitem__)
        credit[chosen] -= sum(view.weights[replica] for replica in view.up)
        return chosen


class LeastKV(_Stateless):
    """The replica with the fewest KV blocks in use (per capacity); then the smallest load, then the lowest index."""

    reads_kv: ClassVar[bool] = True

    def choose(self, view: View, request: RequestKey) -> int:
        weights = view.weights

        def load(replica: int) -> tuple[float, float]:
            blocks = view.kv_blocks[replica]
            return blocks / weights[replica] if weights else blocks, view.load(replica)

        return min(view.up, key=load)


class PowerOfTwo(_Stateless):
    """Of two replicas drawn by a hash of seed and request number the one with the smaller load; the first of equals."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = splitmix64(seed)

    def choose(self, view: View, request: RequestKey) -> int:
        up, count = view.up, len(view.up)
        if count == 1:
            return up[0]
        drawn = splitmix64(self._seed ^ request.number)
        first, second = drawn % count, splitmix64(drawn) % (count - 1)
        second += second >= first
        return min(up[first], up[second], key=view.load)


class PrefixAware:
    """The replica that was sent the longest part of the request's prefix, unless it is too loaded.

    The router cannot see caches. It remembers, for each replica, the units of the prompts it sent there, the least
    recently sent ones forgotten beyond `max_units` (SGLang's router keeps such an approximate tree). Among equal
    matches the smallest load wins. Where the load of the best match is more than `imbalance` requests above the least,
    or nothing matches, the request goes to the least loaded replica.
    """

    reads_kv: ClassVar[bool] = False
    reads_units: ClassVar[bool] = True

    def __init__(self, imbalance: int = 32, max_units: int = 65_536) -> None:
        if imbalance < 0 or max_units < 1:
            raise ValueError(f"an imbalance of {imbalance} requests and a memory of {max_units} units make no router")
        self._imbalance = imbalance
        self._max_units = max_units
        self._sent: dict[int, OrderedDict[int, None]] = {}  # by replica, least recently sent first

    def choose(self, view: View, request: RequestKey) -> int:
        chosen = self._choose(view, request.units)
        self._remember(chosen, request.units)
        return chosen

    def forget(self, replica: int) -> None:
        self._sent.pop(replica, None)

    def _choose(self, view: View, units: tuple[int, ...]) -> int:
        least = view.least_loaded()
        matches = {replica: self._match(replica, units) for replica in view.up}
        longest = max(matches.values())
        if longest == 0:
            return least
        best = min((replica for replica in view.up if matches[replica] == longest), key=view.load)
        return least if view.load(best) > view.load(least) + self._imbalance else best

    def _match(self, replica: int, units: tuple[int, ...]) -> int:
        """Leading units that the replica was sent."""
        sent = self._sent.get(replica, ())
        return next((count for count, unit in enumerate(units) if unit not in sent), len(units))

    def _remember(self, replica: int, units: tuple[int, ...]) -> None:
        """Last unit first, so that a prefix outlives what continues it."""
        sent = self._sent.setdefault(replica, OrderedDict())
        for unit in reversed(units):
            sent[unit] = None
            sent.move_to_end(unit)
        while len(sent) > self._max_units:
            sent.popitem(last=False)


class Sticky(_Stateless):
    """The same replica for all requests of a session, by rendezvous hashing (Thaler and Ravishankar, 1998).

    Every replica has a score for every session, and the highest one that is up serves: a replica that is lost moves
    only its own sessions, and they return with it. A request of no session is a session of its own. With weights, a
    replica gets sessions in proportion to its weight (score -w / ln u, u uniform).
    """

    def choose(self, view: View, request: RequestKey) -> int:
        alone = request.session < 0
        session = splitmix64((request.number if alone else request.session) ^ (alone << 63))

        def score(replica: int) -> float:
            drawn = splitmix64(session ^ splitmix64(replica))
            if not view.weights:
                return drawn
            return -view.weights[replica] / math.log(((drawn >> 11) + 0.5) * 2.0**-53)

        return max(view.up, key=score)


def make_router(name: str, seed: int = 0) -> Router:
    """A router by its name in `specs.plan.Plan.router`. Raises `ValueError` on another name."""
    match name:
        case "least_outstanding":
            return LeastOutstanding()
        case "round_robin":
            return RoundRobin()
        case "least_kv":
            return LeastKV()
        case "power_of_two":
            return PowerOfTwo(seed)
        case "prefix_aware":
            return PrefixAware()
        case "sticky":
            return Sticky()
    raise ValueError(f"no router {name!r}; there are {', '.join(ROUTERS)}")


ROUTERS = ("least_outstanding", "round_robin", "least_kv", "power_of_two", "prefix_aware", "sticky")
