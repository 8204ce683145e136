"""Routers: hand-worked choices, and what each of them promises."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specs.plan import RouterName
from specs.service import (
    ROUTERS,
    LeastKV,
    LeastOutstanding,
    PowerOfTwo,
    PrefixAware,
    RequestKey,
    RoundRobin,
    Sticky,
    View,
    make_router,
    splitmix64,
)


def view(*outstanding: int, up: list[int] | None = None, kv: list[int] | None = None) -> View:
    count = len(outstanding)
    return View(list(outstanding), kv or [0] * count, range(count) if up is None else up)


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs of the reference implementation seeded with 0: states are multiples of the golden gamma."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [splitmix64(step * gamma) for step in range(3)] == outputs


def test_every_declared_router_can_be_made() -> None:
    assert set(get_args(RouterName)) == set(ROUTERS)
    for name in ROUTERS:
        assert make_router(name).choose(view(3, 1, 2, up=[2]), RequestKey(0)) == 2
    with pytest.raises(ValueError, match="no router 'random'; there are least_outstanding, "):
        make_router("random")


@given(st.sampled_from(ROUTERS), st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_only_replicas_that_are_up_are_chosen(name: str, loads: list[int], data: st.DataObject) -> None:
    router = make_router(name, seed=3)
    for number in range(10):
        up = sorted(data.draw(st.sets(st.integers(0, len(loads) - 1), min_size=1)))
        weights = data.draw(st.sampled_from([(), tuple(range(1, len(loads) + 1))]))
        key = RequestKey(number, number % 3 - 1, (number % 4, 7))
        assert router.choose(View(loads, loads, up, weights), key) in up


def test_least_outstanding_passes_over_what_is_down() -> None:
    assert LeastOutstanding().choose(view(0, 2, 2, up=[1, 2]), RequestKey(0)) == 1


def test_round_robin_passes_over_what_is_down_and_comes_back() -> None:
    turn = RoundRobin()
    up = [[0, 1, 2], [0, 2], [0, 1, 2], [0, 1, 2], [2]]
    assert [turn.choose(view(0, 0, 0, up=those), RequestKey(0)) for those in up] == [0, 2, 0, 1, 2]


def test_weights_are_kept_to() -> None:
    """Capacities 1 and 3: the second takes three of four in turn, and as many before its load per capacity is equal."""
    turn = RoundRobin()
    looks = View([0, 0], [0, 0], range(2), weights=(1.0, 3.0))
    assert Counter(turn.choose(looks, RequestKey(0)) for _ in range(40)) == {0: 10, 1: 30}
    least = LeastOutstanding()
    outstanding = [0, 0]
    chosen = []
    for _ in range(8):
        chosen.append(least.choose(View(outstanding, [], range(2), weights=(1.0, 3.0)), RequestKey(0)))
        outstanding[chosen[-1]] += 1
    assert Counter(chosen) == {0: 2, 1: 6}
    assert LeastKV().choose(View([0, 0], [10, 20], range(2), weights=(1.0, 3.0)), RequestKey(0)) == 1


def test_least_kv_breaks_ties_by_requests_then_by_index() -> None:
    router = LeastKV()
    assert router.choose(view(0, 9, 9, kv=[5, 4, 5]), RequestKey(0)) == 1
    assert router.choose(view(2, 1, 1, kv=[4, 4, 4]), RequestKey(0)) == 1
    assert router.choose(view(1, 1, 1, kv=[4, 4, 4]), RequestKey(0)) == 0


def test_power_of_two_takes_the_better_of_two_different_ones() -> None:
    """Never the worst replica; all others are drawn; the seed decides which."""
    loads = view(*range(8))
    chosen = [PowerOfTwo(1).choose(loads, RequestKey(number)) for number in range(400)]
    assert max(chosen) == 6
    assert set(chosen) == set(range(7))
    share = sum(replica == 0 for replica in chosen) / 400
    assert share == pytest.approx(2 / 8, abs=0.07)  # the best of 8 is among two with probability 2 / 8
    assert chosen != [PowerOfTwo(2).choose(loads, RequestKey(number)) for number in range(400)]


def test_prefix_aware_follows_what_it_sent() -> None:
    router = PrefixAware(imbalance=2)
    assert router.choose(view(0, 0), RequestKey(0, units=(1, 2, 3))) == 0
    assert router.choose(view(1, 0), RequestKey(1, units=(9,))) == 1  # unknown: least outstanding
    assert router.choose(view(2, 0), RequestKey(2, units=(1, 2, 4))) == 0  # two units match, 2 above the least
    assert router.choose(view(3, 0), RequestKey(3, units=(1, 2, 3))) == 1  # 3 above: too loaded
    assert router.choose(view(3, 3), RequestKey(4, units=(1, 2, 4))) == 0  # three units against two
    assert router.choose(view(4, 3), RequestKey(5, units=(1, 2, 3))) == 1  # both were sent it: the smaller load
    router.forget(1)
    assert router.choose(view(1, 0), RequestKey(6, units=(9,))) == 1  # by load
    router.forget(1)
    assert router.choose(view(0, 1), RequestKey(7, units=(9,))) == 0  # nobody is known to have it


def test_prefix_aware_forgets_the_ends_of_what_it_sent_first() -> None:
    router = PrefixAware(max_units=3)
    router.choose(view(0, 5), RequestKey(0, units=(1, 2)))
    router.choose(view(0, 5), RequestKey(1, units=(1, 3, 4)))  # four units are known: 2, the oldest end, goes
    assert router.choose(view(5, 0), RequestKey(2, units=(1, 3, 4))) == 0
    router = PrefixAware(max_units=2)
    router.choose(view(0, 5), RequestKey(0, units=(1, 2, 3)))
    assert router.choose(view(5, 0), RequestKey(1, units=(1, 9))) == 0
    router = PrefixAware(max_units=2)
    router.choose(view(0, 5), RequestKey(0, units=(1,)))
    router.choose(view(0, 5), RequestKey(1, units=(5, 6)))
    assert router.choose(view(5, 0), RequestKey(2, units=(1,))) == 1  # pushed out


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(0, 7), st.integers(0, 2**40))
def test_a_lost_replica_moves_only_its_own_sessions(replicas: int, lost: int, first: int) -> None:
    """And where it returns, they return."""
    lost %= replicas
    router = Sticky()
    everyone = view(*[0] * replicas)
    without = view(*[0] * replicas, up=[replica for replica in range(replicas) if replica != lost])
    for session in range(first, first + 40):
        home = router.choose(everyone, RequestKey(0, session))
        moved = router.choose(without, RequestKey(1, session))
        assert (moved == home) if home != lost else (moved != lost)
        assert router.choose(everyone, RequestKey(2, session)) == home


def test_sticky_spreads_sessions_by_weight_and_single_requests_evenly() -> None:
    router = Sticky()
    plain, weighted = view(0, 0, 0, 0), View([0] * 4, [], range(4), weights=(1.0, 1.0, 1.0, 5.0))
    sessions = Counter(router.choose(plain, RequestKey(0, session)) for session in range(4000))
    alone = Counter(router.choose(plain, RequestKey(number)) for number in range(4000))
    heavy = Counter(router.choose(weighted, RequestKey(0, session)) for session in range(4000))
    for count in (*sessions.values(), *alone.values()):
        assert count == pytest.approx(1000, abs=110)  # four standard deviations
    assert heavy[3] == pytest.approx(2500, abs=125)


@pytest.mark.parametrize("arguments", [(-1, 10), (1, 0)])
def test_a_prefix_router_of_nothing_is_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="make no router"):
        PrefixAware(*arguments)
