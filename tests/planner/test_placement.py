"""Placement: by hand, by law, and against a search over all ways to fill the nodes."""

from __future__ import annotations

import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.optimize.placement import Demand, place
from planner.optimize.programme import slot_gpus
from specs.plan import ReplicaPlacement


def slots(placement: ReplicaPlacement) -> list[tuple[int, int]]:
    return [(slot.node, slot.device) for slot in placement.slots]


def test_largest_first_then_the_gaps() -> None:
    found = place((Demand("small", 1, 3), Demand("big", 4, 1), Demand("pair", 2, 1)), nodes=2, node_devices=8)
    assert found is not None
    assert slots(found["big"][0]) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert slots(found["pair"][0]) == [(0, 4), (0, 5)]
    assert [slots(item) for item in found["small"]] == [[(0, 6)], [(0, 7)], [(1, 0)]]


def test_a_replica_larger_than_a_node_takes_whole_consecutive_nodes() -> None:
    found = place((Demand("wide", 8, 1), Demand("one", 1, 1)), nodes=3, node_devices=4)
    assert found is not None
    assert slots(found["wide"][0]) == [(node, device) for node in (0, 1) for device in range(4)]
    assert slots(found["one"][0]) == [(2, 0)]
    assert place((Demand("wide", 8, 2),), nodes=3, node_devices=4) is None


def test_ranks_never_spread_over_two_nodes_to_fill_gaps() -> None:
    assert place((Demand("a", 3, 3),), nodes=2, node_devices=4) is None  # 9 devices would be there
    assert place((Demand("a", 3, 2),), nodes=2, node_devices=4) is not None


def test_a_partly_filled_last_node_holds_what_it_has() -> None:
    found = place((Demand("a", 2, 5),), nodes=2, node_devices=8, last_node_devices=3)
    assert found is not None
    assert slots(found["a"][4]) == [(1, 0), (1, 1)]
    assert place((Demand("a", 2, 6),), nodes=2, node_devices=8, last_node_devices=3) is None
    assert place((Demand("a", 1, 11),), nodes=2, node_devices=8, last_node_devices=3) is not None
    assert place((Demand("a", 16, 1),), nodes=2, node_devices=8, last_node_devices=3) is None


def test_nothing_to_place() -> None:
    assert place((), nodes=0, node_devices=8) == {}
    assert place((Demand("a", 1, 1),), nodes=0, node_devices=8) is None


def fits(sizes: tuple[int, ...], nodes: int, node_devices: int) -> bool:
    """Whether the replicas can be put into nodes at all, by trying every node for each."""

    @cache
    def search(left: tuple[int, ...], free: tuple[int, ...]) -> bool:
        if not left:
            return True
        return any(
            search(left[1:], tuple(sorted((*free[:at], room - left[0], *free[at + 1 :]))))
            for at, room in enumerate(free)
            if room >= left[0]
        )

    return search(tuple(sorted(sizes, reverse=True)), (node_devices,) * nodes)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 4, 8]), max_size=9),
    nodes=st.integers(1, 3),
    node_devices=st.sampled_from([4, 8]),
)
def test_sizes_that_divide_the_node_are_placed_exactly_when_they_fit(
    sizes: list[int], nodes: int, node_devices: int
) -> None:
    sizes = [size for size in sizes if size <= node_devices]
    demands = tuple(Demand(f"g{index}", size, 1) for index, size in enumerate(sizes))
    found = place(demands, nodes, node_devices)
    assert (found is not None) == fits(tuple(sizes), nodes, node_devices)
    assert (found is not None) == (sum(sizes) <= nodes * node_devices)  # the count that the programme uses
    if found is not None:
        taken = [slot for replicas in found.values() for replica in replicas for slot in slots(replica)]
        assert len(taken) == len(set(taken)) == sum(sizes)
        assert all(0 <= node < nodes and 0 <= device < node_devices for node, device in taken)
        assert all(len({node for node, _ in slots(r)}) == 1 for replicas in found.values() for r in replicas)
        assert found == place(demands, nodes, node_devices)


@pytest.mark.parametrize("node_devices", [6, 8, 10])
def test_what_the_programme_counts_as_fitting_is_placed_even_at_odd_sizes(node_devices: int) -> None:
    """Two odd sizes at a time, every number of each that the slot count allows."""
    nodes, tried = 2, 0
    for one in range(1, node_devices + 1):
        for other in range(1, one):
            most = math.floor(nodes * node_devices / slot_gpus(one, node_devices) + 1e-9)
            for count in range(most + 1):
                room = nodes * node_devices - count * slot_gpus(one, node_devices)
                rest = math.floor(room / slot_gpus(other, node_devices) + 1e-9)
                found = place((Demand("a", one, count), Demand("b", other, rest)), nodes, node_devices)
                assert found is not None, (one, count, other, rest)
                tried += 1
    assert tried > 50
