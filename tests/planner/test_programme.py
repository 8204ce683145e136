"""Each constraint family of the master programme against an instance solved by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner.optimize.programme import Column, OptimisticFamily, Pool, Programme, build, slot_gpus
from planner.optimize.solve import solve

NODES = Pool("nodes", devices=16, node_devices=8, price=2.0, rent="node")
SINGLES = Pool("singles", devices=8, node_devices=4, price=1.0, rent="gpu")


def column(key: str, share: float, *, gpus: int = 1, pool: str = "singles", name: str = "chat") -> Column:
    return Column(key, "m", pool, gpus, ((name, share),))


def family(key: str, load: float, *, gpus: int = 1, pool: str = "singles", miss: float = 0.0) -> OptimisticFamily:
    misses = (("chat", miss),) if miss else ()
    return OptimisticFamily(key, "m", pool, gpus, (("chat", load),), misses)


def programme(*columns: Column, **changes: Any) -> Programme:
    base = Programme(pools=(NODES, SINGLES), columns=columns, families=(), classes=("chat",), quantity="cost")
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("gpus", "node", "slots"),
    [(1, 8, 1), (2, 8, 2), (3, 8, 4), (5, 8, 8), (8, 8, 8), (16, 8, 16), (12, 8, 16), (3, 6, 3), (4, 6, 6)],
)
def test_a_replica_takes_its_devices_and_what_its_size_leaves_unusable(gpus: int, node: int, slots: float) -> None:
    assert slot_gpus(gpus, node) == slots


def test_demand_is_met_by_the_fewest_replicas() -> None:
    found = solve(programme(column("a", 0.3)))  # 3 carry 0.9, 4 carry 1.2
    assert (found.replicas, found.value, found.status) == ({"a": 4}, 4.0, "optimal")


def test_demand_of_every_class_is_met_and_a_column_may_carry_two() -> None:
    both = Column("both", "m", "singles", 2, (("chat", 0.5), ("code", 0.5)))
    data = programme(column("chat", 0.5), column("code", 0.5, name="code"), both, classes=("chat", "code"))
    assert solve(data).value == 4.0  # two of each alone, or two of both: the same
    cheap = programme(replace(both, gpus=1), column("chat", 0.5), classes=("chat", "code"))
    assert solve(cheap).replicas == {"both": 2}


def test_a_share_that_meets_the_demand_only_by_rounding_counts() -> None:
    assert solve(programme(column("a", 1 / 3))).replicas == {"a": 3}


def test_families_are_not_overloaded() -> None:
    """Work of 2.4 replicas needs 3; half of it on a priced column leaves 1.2, so 2."""
    assert solve(programme(families=(family("f", 2.4),))).replicas == {"f": 3}
    pinned = programme(column("a", 0.5), families=(family("f", 2.4),))
    assert solve(pinned).replicas == {"a": 2}
    scarce = replace(pinned, pools=(NODES, replace(SINGLES, devices=3)), columns=(column("a", 0.4),))
    assert solve(scarce).value == 3.0  # any mix of three: 2 x 0.4 + 1 / 2.4, or more


def test_few_requests_are_late_forces_the_faster_family() -> None:
    """30 % of the requests break their limit on `slow` even alone and 10 % may: 20 % must go to `fast`.

    slow takes z <= 0.7 + late, late <= 0.1: at most 0.8 on one replica, so `fast` (3 $/h) is needed for 0.2.
    """
    slow = family("slow", 0.5, miss=0.3)
    fast = family("fast", 0.5, pool="dear")
    dear = Pool("dear", 4, 4, 3.0, "gpu")
    data = programme(families=(slow, fast), pools=(SINGLES, dear), allowed_misses={"chat": 0.1})
    assert solve(data).value == 3.0  # fast alone carries all of it, cheaper than both
    heavy = replace(data, families=(replace(slow, loads=(("chat", 2.0),)), replace(fast, loads=(("chat", 5.0),))))
    assert solve(heavy).replicas == {"slow": 2, "fast": 1}  # 0.8 x 2 -> 2 replicas, 0.2 x 5 -> 1
    lenient = replace(heavy, allowed_misses={"chat": 0.3})
    assert solve(lenient).replicas == {"slow": 2}
    unlimited = replace(heavy, allowed_misses={})  # a class without an SLO is never late
    assert solve(unlimited).replicas == {"slow": 2}
    strict = replace(data, families=(slow,))
    assert solve(strict).status == "infeasible"


def test_replicas_fit_the_devices_of_a_pool() -> None:
    assert solve(programme(column("a", 0.13))).replicas == {"a": 8}
    assert solve(programme(column("a", 0.12))).status == "infeasible"  # 9 of 8 devices
    assert solve(programme(column("a", 0.4, gpus=3))).status == "infeasible"  # 3 of 4 devices fit twice in 8
    assert solve(programme(column("a", 0.5, gpus=3))).replicas == {"a": 2}


def test_a_partly_filled_node_counts_where_devices_are_rented_one_by_one() -> None:
    assert solve(programme(column("a", 0.1), pools=(replace(SINGLES, devices=10),))).replicas == {"a": 10}


def test_whole_nodes_are_paid_where_they_are_rented_so() -> None:
    found = solve(programme(column("a", 0.1, pool="nodes")))  # 10 devices, 2 nodes of 8 at 2 $
    assert (found.replicas, found.nodes, found.value) == ({"a": 10}, {"nodes": 2}, 32.0)
    assert solve(programme(column("a", 0.05, pool="nodes"))).status == "infeasible"  # 20 of 16


def test_models_share_a_rented_node() -> None:
    one = Column("one", "m", "nodes", 4, (("chat", 1.0),))
    other = Column("other", "n", "nodes", 4, (("code", 1.0),))
    found = solve(programme(one, other, classes=("chat", "code")))
    assert (found.value, found.nodes) == (16.0, {"nodes": 1})


def test_devices_instead_of_dollars() -> None:
    small, big = column("small", 0.25), column("big", 1.0, gpus=2)
    assert solve(programme(small, big, quantity="gpus")).replicas == {"big": 1}
    rented = programme(column("small", 0.5), column("big", 1.0, gpus=2, pool="nodes"), quantity="gpus")
    assert solve(rented).replicas == {"small": 2}  # a node counts with all its 8 devices


def test_budget_is_kept_even_when_devices_are_minimised() -> None:
    few_dear = column("dear", 1.0, gpus=1, pool="dear")
    dear = Pool("dear", 4, 4, 9.0, "gpu")
    data = programme(column("cheap", 0.34), few_dear, pools=(SINGLES, dear), quantity="gpus")
    assert solve(data).replicas == {"dear": 1}
    assert solve(replace(data, budget=8.99)).replicas == {"cheap": 3}
    assert solve(replace(data, budget=2.99)).status == "infeasible"
    assert solve(replace(data, budget=3.0)).status == "optimal"


def test_model_gpus_are_kept() -> None:
    data = programme(column("small", 0.25), column("big", 1.0, gpus=2, pool="nodes"))
    assert solve(data).replicas == {"small": 4}
    assert solve(replace(data, model_gpus={"m": 3})).replicas == {"big": 1}
    assert solve(replace(data, model_gpus={"m": 1})).status == "infeasible"
    assert solve(replace(data, model_gpus={"another": 1})).replicas == {"small": 4}


def test_pinned_replicas_are_one_of_the_stated_numbers() -> None:
    data = programme(column("a", 0.5))
    assert solve(replace(data, model_replicas={"m": (3,)})).replicas == {"a": 3}
    assert solve(replace(data, model_replicas={"m": (1,)})).status == "infeasible"
    three = programme(column("a", 0.34), model_replicas={"m": (2, 4)})
    assert solve(three).replicas == {"a": 4}  # three would do, but is not among the stated


def test_scaling_keeps_every_coefficient_of_a_demand_row_at_one_or_more() -> None:
    data = programme(column("tiny", 1e-5), column("big", 0.7), families=(family("f", 2.0),))
    problem, _ = build(data)
    row = problem.constraints["demand_0"]
    assert min(abs(value) for value in row.values()) == pytest.approx(1.0)
    assert -row.constant == pytest.approx(1e5, rel=1e-5)


def test_the_tie_break_fills_paid_nodes_and_is_the_same_every_time() -> None:
    data = programme(column("b", 0.5, gpus=2, pool="nodes"), column("a", 0.25, pool="nodes"))
    first = solve(data, ties="all")
    assert first == solve(data, ties="all")
    assert first.value == 16.0
    carried = 0.5 * first.replicas.get("b", 0) + 0.25 * first.replicas.get("a", 0)
    assert carried == pytest.approx(2.0)  # all 8 devices of the paid node work
    assert first.replicas == {"b": 4}  # and of two ways to do that, the one with fewer replicas


def test_among_equals_the_first_column_wins() -> None:
    data = programme(column("z", 0.5), column("a", 0.5))
    assert solve(data, ties="all").replicas == {"z": 2}
    assert solve(replace(data, columns=data.columns[::-1]), ties="all").replicas == {"a": 2}
