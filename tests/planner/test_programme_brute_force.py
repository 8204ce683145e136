"""Every objective and limit of the master programme against all numbers of replicas, levels and nodes, one by one."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from planner.optimize.failures import levels
from planner.optimize.objectives import gap_of, natural
from planner.optimize.parts import Quantity
from planner.optimize.placement import Demand, place
from planner.optimize.programme import Column, OptimisticFamily, Pool, Programme, slot_gpus
from planner.optimize.solve import second_opinion, solve

SHARES = (0.34, 0.5, 0.8, 1.3, 2.0)
ROLES = (("unified", ""), ("prefill", "net"), ("prefill", "node"), ("decode", "net"), ("decode", "node"))


def random_programme(
    seed: int, quantity: Quantity, *, roles: bool = False, survive: int = 0, over: bool = False
) -> Programme:
    """`over`: some columns take devices of both pools."""
    draw = random.Random(1000 * seed + len(quantity))
    node = Pool("n", 4 * draw.randint(1, 3), 4, 2.0, "node", idle_watts=90.0, most_watts=700.0)
    single = Pool("g", draw.randint(2, 5), 2, draw.choice([1.1, 3.0]), "gpu", idle_watts=40.0, most_watts=350.0)
    classes = ("chat", "code")[: draw.randint(1, 2)]
    columns = []
    for index in range(4 if roles else 3):
        role, channel = draw.choice(ROLES) if roles else ROLES[0]
        names = draw.sample(classes, draw.randint(1, len(classes)))
        columns.append(
            Column(
                f"c{index}",
                "m",
                draw.choice(["n", "g"]),
                draw.choice([1, 2, 4]) if not survive else draw.choice([1, 2, 4, 8]),
                tuple((name, draw.choice(SHARES)) for name in names),
                role=role,  # type: ignore[arg-type]
                channel=channel,
                watts=tuple((name, draw.choice([100.0, 400.0, 900.0])) for name in names),
            )
        )
    if over:
        columns = [replace(c, pool="n", gpus=c.gpus + 1, elsewhere=(("g", 1),)) if draw.random() < 0.6 else c
                   for c in columns]  # fmt: skip
    return Programme(
        (node, single),
        tuple(columns),
        (),
        classes,
        quantity,
        budget=draw.choice([None, None, 20.0]),
        power_w=draw.choice([None, None, 3000.0]),
        model_gpus=draw.choice([{}, {"m": 9}]),
        survive=survive,
        worth={name: draw.choice([1.0, 7.0]) for name in classes} if quantity in ("throughput", "goodput") else {},
    )


def taken(column: Column, pool: str) -> int:
    """Devices that one replica takes of a pool, from what the column says of the others."""
    elsewhere = dict(column.elsewhere)
    return column.gpus - sum(elsewhere.values()) if pool == column.pool else elsewhere.get(pool, 0)


def purchases(data: Programme) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """All replicas with all numbers of rented nodes that keep the limits which no demand is needed for."""
    pools = {pool.name: pool for pool in data.pools}
    ranges = [
        range(min(pool.devices // taken(column, pool.name) for pool in data.pools if taken(column, pool.name)) + 1)
        for column in data.columns
    ]
    for counts in itertools.product(*ranges):
        bought = {column.key: count for column, count in zip(data.columns, counts, strict=True)}
        slots = {
            pool.name: sum(
                bought[c.key] * slot_gpus(taken(c, pool.name), pool.node_devices)
                for c in data.columns
                if taken(c, pool.name)
            )
            for pool in data.pools
        }
        if any(slots[pool.name] > pool.devices for pool in data.pools):
            continue
        if sum(bought[c.key] * c.gpus for c in data.columns) > data.model_gpus.get("m", math.inf):
            continue
        drawn = sum(bought[c.key] * taken(c, pool.name) * pool.most_watts for c in data.columns for pool in data.pools)
        if data.power_w is not None and drawn > data.power_w:
            continue
        if sum(bought[c.key] > 0 for c in data.columns if c.role == "decode") > 1:
            continue
        least = math.ceil(slots["n"] / pools["n"].node_devices - 1e-9)
        most = pools["n"].nodes if data.survive else least
        for nodes in range(least, most + 1):
            if data.budget is None or rented(data, bought, nodes, lambda pool: pool.price or 0.0) <= data.budget:
                yield bought, {"n": nodes}


def rented(data: Programme, bought: dict[str, int], nodes: int, weight: object) -> float:
    total = 0.0
    for pool in data.pools:
        used = sum(bought[c.key] * taken(c, pool.name) for c in data.columns)
        total += weight(pool) * (nodes * pool.node_devices if pool.rent == "node" else used)  # type: ignore[operator]
    return total


def carried(data: Programme, bought: dict[str, int], name: str, lost: dict[tuple[str, str], float]) -> float:
    """Unified, and over each channel what prefill and decode carry both."""

    def of(role: str, channel: str) -> float:
        own = (c for c in data.columns if (c.role, c.channel) == (role, channel))
        return sum(bought[c.key] * dict(c.shares).get(name, 0.0) for c in own) - lost.get((name, role), 0.0)

    return of("unified", "") + sum(min(of("prefill", channel), of("decode", channel)) for channel in ("net", "node"))


def losses(data: Programme, bought: dict[str, int], nodes: int) -> Iterator[dict[tuple[str, str], float]]:
    """What N nodes may take away, for every choice of how many replicas of a column may share a node."""
    if not data.survive:
        yield {}
        return
    pools = {pool.name: pool for pool in data.pools}
    used = [column for column in data.columns if bought[column.key]]
    for chosen in itertools.product(*(levels(column, pools[column.pool]) for column in used)):
        level = {column.key: number for column, number in zip(used, chosen, strict=True)}
        fits = True
        for pool in data.pools:
            there = nodes if pool.rent == "node" else pool.nodes
            whole = sum(
                bought[c.key] * math.ceil(c.gpus / pool.node_devices)
                for c in used
                if c.pool == pool.name and c.gpus >= pool.node_devices
            )
            for c in used:
                if c.pool == pool.name and level[c.key] < levels(c, pool)[-1]:
                    fits &= bought[c.key] <= level[c.key] * (there - whole)
        if not fits:
            continue
        lost: dict[tuple[str, str], float] = {}
        for name in data.classes:
            for role in ("unified", "prefill", "decode"):
                by_pool = [
                    sum(
                        dict(c.shares).get(name, 0.0) * level[c.key]
                        for c in used
                        if c.pool == pool.name and c.role == role
                    )
                    for pool in data.pools
                ]
                lost[name, role] = data.survive * max(by_pool)
        yield lost


def value_of(data: Programme, bought: dict[str, int], nodes: int) -> float | None:
    """The value of a purchase as users state it, or None where it does not carry the traffic."""
    best: float | None = None
    for lost in losses(data, bought, nodes):
        shares = {name: carried(data, bought, name, lost) for name in data.classes}
        if data.quantity == "traffic":
            found: float | None = max(0.0, min(shares.values()))
        elif data.worth:
            found = sum(worth * max(0.0, min(1.0, shares[name])) for name, worth in data.worth.items())
        elif min(shares.values()) < 1 - 1e-6:
            found = None
        elif data.quantity == "energy":
            found = rented(data, bought, nodes, lambda pool: pool.idle_watts) + fewest_watts(data, bought)
        else:
            found = rented(
                data, bought, nodes, (lambda pool: pool.price or 0.0) if data.quantity == "cost" else (lambda pool: 1.0)
            )
        if found is not None and (best is None or (found > best) == data.maximises):
            best = found
    return best


def fewest_watts(data: Programme, bought: dict[str, int]) -> float:
    """Each class goes where it takes the fewest watts first."""
    total = 0.0
    for name in data.classes:
        left = 1.0
        own = [c for c in data.columns if name in dict(c.shares)]
        for column in sorted(own, key=lambda c: dict(c.watts)[name]):
            share = min(left, bought[column.key] * dict(column.shares)[name])
            total += share * dict(column.watts)[name]
            left -= share
    return total


def brute_force(data: Programme) -> float | None:
    values = [value_of(data, bought, nodes["n"]) for bought, nodes in purchases(data)]
    known = [value for value in values if value is not None]
    return (max if data.maximises else min)(known) if known else None


CASES = [
    *(("cost", {"roles": True}, seed) for seed in range(25)),
    *(("gpus", {"roles": True}, seed) for seed in range(25, 35)),
    *(("energy", {}, seed) for seed in range(20)),
    *(("traffic", {}, seed) for seed in range(12)),
    *(("traffic", {"roles": True}, seed) for seed in range(12, 24)),
    *(("throughput", {}, seed) for seed in range(12)),
    *(("goodput", {"roles": True}, seed) for seed in range(12)),
    *(("cost", {"survive": 1}, seed) for seed in range(25)),
    *(("gpus", {"survive": 2}, seed) for seed in range(10)),
    *(("cost", {"survive": 1, "roles": True}, seed) for seed in range(12)),
    *(("cost", {"over": True}, seed) for seed in range(30)),
    *(("gpus", {"over": True}, seed) for seed in range(10)),
    *(("energy", {"over": True}, seed) for seed in range(6)),
    *(("throughput", {"over": True}, seed) for seed in range(8)),
]


@pytest.mark.parametrize(("quantity", "kind", "seed"), CASES)
def test_the_optimum_is_that_of_brute_force(quantity: Quantity, kind: dict[str, object], seed: int) -> None:
    data = random_programme(seed, quantity, **kind)  # type: ignore[arg-type]
    found, best = solve(data), brute_force(data)
    if best is None:
        assert found.status == "infeasible"
        return
    assert natural(quantity, found.value) == pytest.approx(best, rel=3e-6, abs=1e-6)
    assert natural(quantity, found.bound) == pytest.approx(best, rel=3e-6, abs=1e-6)
    if seed % 6 == 0:
        assert second_opinion(data) == pytest.approx(found.value, rel=3e-6, abs=1e-6)
    tied = solve(data, ties="all")
    assert tied.value == pytest.approx(found.value)
    chosen = replace(data, columns=tuple(column for column in data.columns if column.key in tied.replicas))
    again = brute_force(chosen)
    assert again == pytest.approx(best, rel=3e-6, abs=1e-6)


def test_the_random_programmes_are_of_both_kinds() -> None:
    found = [brute_force(random_programme(seed, quantity, **kind)) for quantity, kind, seed in CASES]  # type: ignore[arg-type]
    of_demand = [best for best, (quantity, _, _) in zip(found, CASES, strict=True) if quantity in ("cost", "gpus")]
    assert 20 < sum(best is not None for best in of_demand) < len(of_demand) - 20
    assert sum(best is not None and best > 0 for best in found) > 80


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", [{"roles": True}, {"roles": True, "survive": 1}, {"over": True}])
def test_optimistic_families_bound_every_plan(seed: int, kind: dict[str, int]) -> None:
    data = random_programme(seed, "cost", **kind)  # type: ignore[arg-type]
    families = tuple(
        OptimisticFamily(  # a column carries all its classes at once, and the work of these fits into its replicas
            c.key,
            c.model,
            c.pool,
            c.gpus,
            tuple((name, 0.9 / share / len(c.shares)) for name, share in c.shares),
            (),
            c.role,
            c.channel,
            c.watts,
            c.elsewhere,
        )
        for c in data.columns
    )
    best = brute_force(data)
    for mixed in (
        replace(data, columns=(), families=families),
        replace(data, columns=data.columns[:2], families=families[2:]),
    ):
        bound = solve(mixed)
        assert best is None or bound.bound <= best + 1e-6


def test_of_equal_multiples_the_cheapest_plan_is_taken() -> None:
    pools = (Pool("dear", 2, 1, 3.0, "gpu"), Pool("cheap", 2, 1, 1.0, "gpu"))
    columns = (Column("a", "m", "dear", 1, (("chat", 0.8),)), Column("b", "m", "cheap", 1, (("chat", 0.8),)))
    data = Programme(pools, columns, (), ("chat",), "goodput", worth={"chat": 10.0})
    assert solve(data, ties="all").replicas == {"b": 2}  # all of the traffic, and no headroom for its own sake
    assert natural("goodput", solve(data).value) == pytest.approx(10.0)


def test_gaps_are_of_the_value_or_of_the_bound() -> None:
    assert gap_of(10.0, 8.0, maximised=False) == pytest.approx(0.2)
    assert gap_of(8.0, 10.0, maximised=True) == pytest.approx(0.2)
    assert gap_of(10.0, 10.0 + 1e-12, maximised=False) == 0.0


def test_tiny_loads_beside_large_ones_still_ask_for_a_replica() -> None:
    """Loads of 1e-9 and 3 replicas in one family: the tiny class alone needs one replica, both need three."""
    pool = Pool("p", 8, 8, 1.0, "gpu")
    family = OptimisticFamily("f", "m", "p", 1, (("big", 3.0), ("tiny", 1e-9)))
    assert solve(Programme((pool,), (), (family,), ("big", "tiny"), "cost")).value == 3.0
    assert solve(Programme((pool,), (), (family,), ("tiny",), "cost")).value == 1.0


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("failing", [1, 2])
def test_whatever_nodes_fail_the_replicas_on_the_others_carry_everything(seed: int, failing: int) -> None:
    """The optimum, placed; every set of failing nodes, tried."""
    data = random_programme(seed, "cost", survive=failing)
    found = solve(data, ties="all")
    if found.status == "infeasible":
        return
    bought = {column.key: found.replicas.get(column.key, 0) for column in data.columns}
    on: dict[tuple[str, int], list[tuple[str, int]]] = {}  # node -> replicas with a device there
    for pool in data.pools:
        demands = tuple(Demand(c.key, c.gpus, bought[c.key]) for c in data.columns if c.pool == pool.name)
        nodes = found.nodes.get(pool.name, 0) if pool.rent == "node" else math.ceil(pool.devices / pool.node_devices)
        rest = pool.devices - (nodes - 1) * pool.node_devices if pool.rent == "gpu" else None
        placed = place(demands, nodes, pool.node_devices, rest, spread=True)
        assert placed is not None
        for key, replicas in placed.items():
            for number, replica in enumerate(replicas):
                for node in {slot.node for slot in replica.slots}:
                    on.setdefault((pool.name, node), []).append((key, number))
    for failed in itertools.combinations(sorted(on), min(failing, len(on))):
        gone = {replica for node in failed for replica in on[node]}
        left = {key: sum((key, number) not in gone for number in range(count)) for key, count in bought.items()}
        for name in data.classes:
            assert carried(data, left, name, {}) >= 1 - 1e-5


def test_in_the_bound_a_node_stands_by_for_each_that_may_fail() -> None:
    """Work of 2.4 replicas: three carry it. Rented by node, a second node; by device, a fourth replica."""
    family = OptimisticFamily("f", "m", "p", 1, (("chat", 2.4),))
    by_node = Programme((Pool("p", 8, 4, 1.0, "node"),), (), (family,), ("chat",), "cost", survive=1)
    assert solve(by_node).value == 8.0
    by_device = replace(by_node, pools=(Pool("p", 8, 4, 1.0, "gpu"),))
    assert solve(by_device).value == 4.0
    assert solve(replace(by_device, pools=(Pool("p", 4, 4, 1.0, "gpu"),))).status == "infeasible"
    assert solve(replace(by_node, survive=2)).status == "infeasible"
