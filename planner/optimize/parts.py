"""What the master programme is written about: pools, columns, families, their limits, and the variables on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["unified", "prefill", "decode"]
Quantity = Literal["cost", "gpus", "energy", "carbon", "throughput", "goodput", "traffic"]

MAXIMISED: tuple[Quantity, ...] = ("throughput", "goodput", "traffic")
DEMAND_TOLERANCE = 1e-6
MOST_HEADROOM = 4.0  # spare capacity beyond this multiple of the traffic is worth nothing in a tie
MOST_MULTIPLE = 1e4  # of the traffic, where the multiple is what is asked for


@dataclass(frozen=True, slots=True)
class Pool:
    """What can be rented: `devices` in nodes of `node_devices`, at `price` $/h a device."""

    name: str
    devices: int
    node_devices: int
    price: float | None
    rent: Literal["node", "gpu"]
    idle_watts: float = 0.0  # of one device that is rented and runs nothing
    most_watts: float = 0.0  # of one device at work: its cap, or what it may draw
    availability: float = 1.0  # share of the time that a device is there; of spot machines below 1

    @property
    def nodes(self) -> int:
        return self.devices // self.node_devices


@dataclass(frozen=True, slots=True)
class Column:
    """One configuration with the load that one replica of it carries; `shares` by class name, positive.

    `watts` by class name: beyond idle ones, what the whole demand of a class draws on this column; only where energy or
    carbon is minimised.
    """

    key: str
    model: str
    pool: str
    gpus: int
    shares: tuple[tuple[str, float], ...]
    role: Role = "unified"
    channel: str = ""  # that a prefill and a decode column have to share
    watts: tuple[tuple[str, float], ...] = ()
    elsewhere: tuple[tuple[str, int], ...] = ()  # (pool, devices of `gpus`) where stages stand outside `pool`, too


@dataclass(frozen=True, slots=True)
class OptimisticFamily:
    """A configuration not priced yet; `loads` by class name: replicas that the class's demand keeps busy, at least.

    `misses` by class name: the share of its requests that break a limit even alone; only shares above 0 are listed.
    `watts` by class name, as of a column: at least.
    """

    key: str
    model: str
    pool: str
    gpus: int
    loads: tuple[tuple[str, float], ...]
    misses: tuple[tuple[str, float], ...] = ()
    role: Role = "unified"
    channel: str = ""
    watts: tuple[tuple[str, float], ...] = ()
    elsewhere: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Programme:
    """The data of one master programme; `None` where the user stated no such limit."""

    pools: tuple[Pool, ...]
    columns: tuple[Column, ...]
    families: tuple[OptimisticFamily, ...]
    classes: tuple[str, ...]
    quantity: Quantity
    allowed_misses: dict[str, float] = field(default_factory=dict)  # by class; classes without an SLO are not listed
    budget: float | None = None
    model_gpus: dict[str, int] = field(default_factory=dict)
    model_replicas: dict[str, tuple[int, ...]] = field(default_factory=dict)  # pinned: the allowed numbers
    power_w: float | None = None  # of all devices at work
    survive: int = 0  # nodes that may fail
    worth: dict[str, float] = field(default_factory=dict)  # by class: what serving all of it counts, if maximised
    per_watt: float = 1.0  # of the value, where energy (1) or carbon (grams an hour) is minimised

    @property
    def maximises(self) -> bool:
        return self.quantity in MAXIMISED

    @property
    def meters(self) -> bool:
        """Whether watts are minimised, so that it matters where requests go."""
        return self.quantity in ("energy", "carbon")

    @property
    def priced(self) -> bool:
        return all(pool.price is not None for pool in self.pools)


@dataclass(frozen=True)
class Variables:
    replicas: dict[str, Any]  # of columns and of families
    nodes: dict[str, Any]
    taken: dict[tuple[str, str], Any]  # (family, class): z; of columns, too, where watts are minimised
    late: dict[tuple[str, str], Any]  # (family, class): late; only where some requests miss
    picked: dict[tuple[str, int], Any]  # (model, allowed number of replicas): whether it is that one
    split: dict[tuple[str, str], Any]  # (class, channel): share that a prefill and a decode column serve over it
    decodes: dict[str, Any]  # decode column: 1 where it is the one of its model
    demand: dict[str, Any]  # class: the share of its traffic that is to be carried: 1, or a variable
    multiple: Any  # of the traffic, where it is maximised; None elsewhere
    level: dict[tuple[str, int], Any]  # (column, replicas on a node): 1 where that many may share a node
    loss: dict[tuple[str, Role], Any]  # (class, role): share of its traffic that a failing node takes away
    spare: dict[str, Any]  # pool: nodes that stand by; family in a pool without rented nodes: replicas that do
    used: dict[str, Any]  # 1 where any replica of a column or family is bought; used in tie-breaks only
    headroom: Any  # multiple of the demand that priced columns carry; used in tie-breaks only


def members(programme: Programme) -> tuple[Column | OptimisticFamily, ...]:
    """Everything that replicas can be bought of: priced columns, then unpriced families."""
    return (*programme.columns, *programme.families)


def slot_gpus(gpus: int, node_devices: int) -> float:
    """Devices that one replica takes away, with what its size leaves unusable (3 of 8 fit twice: 4 each)."""
    if gpus >= node_devices:
        return float(math.ceil(gpus / node_devices) * node_devices)
    return node_devices / (node_devices // gpus)


def devices_in(member: Column | OptimisticFamily, pool: str) -> int:
    """Devices that one replica takes of a pool."""
    if pool == member.pool:
        return member.gpus - sum(devices for _, devices in member.elsewhere)
    return sum(devices for name, devices in member.elsewhere if name == pool)


def most_replicas(member: Column | OptimisticFamily, pool: Pool) -> int:
    """No more replicas of this size are in the devices of their first pool."""
    return pool.devices // devices_in(member, pool.name)


def scale_of(programme: Programme, name: str, role: Role, channel: str = "") -> float:
    """Makes the smallest share of a class's row 1."""
    shares = [
        share
        for column in programme.columns
        if column.role == role and column.channel == channel
        for of_class, share in column.shares
        if of_class == name
    ]
    return 1.0 / min(shares, default=1.0)


def split_of(variables: Variables, name: str) -> Any:
    """Share of a class that is served by prefill and decode columns, over all channels."""
    return sum(split for (of_class, _), split in variables.split.items() if of_class == name)
