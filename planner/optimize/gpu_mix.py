"""The cheapest mix of device types that carries a histogram of request sizes, each bucket split at will.

Sets
    b in buckets, g in device types
Parameters
    rate[b] > 0            requests per second of bucket b
    throughput[g,b] >= 0   requests per second that one device of type g serves of bucket b alone; 0: it cannot
    cost[g] >= 0           per device and hour
    most[g]                devices of type g that there are; none stated: no limit
Variables
    n[g] integer >= 0      devices bought
    x[g,b] in [0, 1]       share of bucket b that type g serves, only where throughput[g,b] > 0
Objective
    minimise sum_g cost[g] n[g]

A bucket that may be split in any proportion is never dearer than one cut into a number of equal slices, each served by
one type; that number is no part of this programme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pulp

from planner.optimize.guard import certified
from specs.errors import CapstanError, InputError, NoPlanError

LOAD_TOLERANCE = 1e-6  # devices


@dataclass(frozen=True)
class DeviceType:
    """`throughputs` by bucket, in the order of the mix's rates."""

    name: str
    cost: float
    throughputs: tuple[float, ...]
    most: int | None = None


@dataclass(frozen=True)
class MixInstance:
    """`rates` by bucket, requests per second; buckets without requests are allowed and cost nothing."""

    rates: tuple[float, ...]
    types: tuple[DeviceType, ...]

    def __post_init__(self) -> None:
        """Raises `InputError` for what is no instance, `NoPlanError` for a bucket that nothing serves."""
        if not self.types:
            raise InputError("there are no device types", field="gpu_info")
        if all(kind.most == 0 for kind in self.types) and any(self.rates):
            raise NoPlanError(
                "no devices: every type has an inventory of zero", mends=("raise the inventory of a type",)
            )
        for kind in self.types:
            numbers = (kind.cost, *kind.throughputs)
            if len(kind.throughputs) != len(self.rates) or not all(math.isfinite(x) and x >= 0 for x in numbers):
                raise InputError(
                    "needs a cost and one throughput per bucket, finite and not negative", field=f"gpu_info.{kind.name}"
                )
            if kind.most is not None and kind.most < 0:
                raise InputError("must not be negative", field=f"gpu_info.{kind.name}.inventory")
        if not all(math.isfinite(rate) and rate >= 0 for rate in self.rates):
            raise InputError("rates must be finite and not negative", field="workload_distribution")
        for bucket, rate in enumerate(self.rates):
            if rate > 0 and not any(kind.throughputs[bucket] > 0 and kind.most != 0 for kind in self.types):
                raise NoPlanError(f"no device type serves bucket {bucket} (throughput 0 on all that there are)")


@dataclass(frozen=True)
class Mix:
    """Devices by type, shares by type and bucket; no mix costs less than `bound`."""

    counts: dict[str, int]
    shares: dict[str, tuple[float, ...]]
    cost: float
    bound: float
    solver: str


def cheapest_mix(instance: MixInstance, *, time_limit_s: float = 30.0) -> Mix:
    """The optimum, or the best mix found in time with its bound.

    Raises `NoPlanError` where the inventory cannot carry the rates.
    """
    problem, counts, shares = _build(instance)
    found = certified(problem, time_limit_s=time_limit_s)
    if found.status == "infeasible":
        raise NoPlanError(
            "the devices in the inventory cannot carry the requests",
            conflict=tuple(f"{kind.name}: at most {kind.most}" for kind in instance.types if kind.most is not None),
            mends=("raise the inventory of a type", "lower total_request_rate"),
        )
    mix = Mix(
        counts={kind.name: int(found.values[counts[index].name]) for index, kind in enumerate(instance.types)},
        shares={
            kind.name: tuple(
                found.values[shares[index, bucket].name] if (index, bucket) in shares else 0.0
                for bucket in range(len(instance.rates))
            )
            for index, kind in enumerate(instance.types)
        },
        cost=found.value,
        bound=found.bound,
        solver=found.solver,
    )
    if broken := broken_laws(instance, mix):
        raise CapstanError(f"{found.solver} returned a mix that is none: {broken[0]}")
    cost = sum(mix.counts[kind.name] * kind.cost for kind in instance.types)
    return Mix(mix.counts, mix.shares, cost, min(mix.bound, cost), mix.solver)


def _build(instance: MixInstance) -> tuple[Any, list[Any], dict[tuple[int, int], Any]]:
    problem = pulp.LpProblem("gpu_mix", pulp.LpMinimize)
    counts = [
        pulp.LpVariable(f"n_{index}", lowBound=0, upBound=kind.most, cat=pulp.LpInteger)
        for index, kind in enumerate(instance.types)
    ]
    shares = {
        (index, bucket): pulp.LpVariable(f"x_{index}_{bucket}", lowBound=0, upBound=1)
        for index, kind in enumerate(instance.types)
        for bucket, rate in enumerate(instance.rates)
        if rate > 0 and kind.throughputs[bucket] > 0 and kind.most != 0
    }
    problem += pulp.lpSum(kind.cost * count for kind, count in zip(instance.types, counts, strict=True))
    for name, row in (*buckets_are_served(instance, shares), *devices_are_not_overloaded(instance, counts, shares)):
        problem += row, name
    return problem, counts, shares


def buckets_are_served(instance: MixInstance, shares: dict[tuple[int, int], Any]) -> Iterable[tuple[str, Any]]:
    """The types together serve the whole of each bucket that has requests."""
    for bucket, rate in enumerate(instance.rates):
        if rate > 0:
            yield f"served_{bucket}", pulp.lpSum(x for (_, of), x in shares.items() if of == bucket) == 1


def devices_are_not_overloaded(
    instance: MixInstance, counts: list[Any], shares: dict[tuple[int, int], Any]
) -> Iterable[tuple[str, Any]]:
    """The work that a type takes, in devices kept busy, is at most its devices."""
    for index, kind in enumerate(instance.types):
        busy = [
            instance.rates[bucket] / kind.throughputs[bucket] * x for (of, bucket), x in shares.items() if of == index
        ]
        yield f"load_{index}", pulp.lpSum(busy) <= counts[index]


def broken_laws(instance: MixInstance, mix: Mix) -> list[str]:
    """What the mix does not keep, added up from the instance and the mix alone."""
    broken = []
    for bucket, rate in enumerate(instance.rates):
        served = math.fsum(mix.shares[kind.name][bucket] for kind in instance.types)
        if rate > 0 and abs(served - 1) > LOAD_TOLERANCE:
            broken.append(f"bucket {bucket}: {served:.6f} of it is served")
    for kind in instance.types:
        taken = [(rate, mix.shares[kind.name][b], kind.throughputs[b]) for b, rate in enumerate(instance.rates)]
        if any(share > 0 and throughput <= 0 for _, share, throughput in taken):
            broken.append(f"{kind.name}: serves what it cannot")
        busy = math.fsum(rate * share / throughput for rate, share, throughput in taken if throughput > 0)
        if busy > mix.counts[kind.name] * (1 + LOAD_TOLERANCE) + LOAD_TOLERANCE:
            broken.append(f"{kind.name}: {busy:.6f} devices of work for {mix.counts[kind.name]}")
        if kind.most is not None and mix.counts[kind.name] > kind.most:
            broken.append(f"{kind.name}: {mix.counts[kind.name]} devices of {kind.most}")
    return broken
