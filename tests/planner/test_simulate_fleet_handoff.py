"""Prefill and decode on different replicas: timelines worked by hand; requests, tokens and blocks are conserved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulate_fleet_faults import some
from test_simulate_laws import replica, workload

from planner.simulate import Fault, FleetGroup, FleetResult, Handoff, Link, ReplicaModel, Workload, simulate_fleet
from planner.simulate.arrivals import OpenArrivals
from planner.simulate.result import REFUSALS
from planner.simulate.run import Conditions, FleetRun
from specs.plan import Route, RouterName
from specs.service import ROUTERS

FLAT = replica(flat_s=1.0)  # 8 seats, 16 tokens a step, steps of 1 s
ROUTES = (Route(request_class="a", group="p", share=1.0),)
AT_ONCE = Link(math.inf)


def pools(
    prefill: ReplicaModel = FLAT, decode: ReplicaModel = FLAT, replicas: tuple[int, int] = (1, 1), token: float = 10.0
) -> tuple[FleetGroup, FleetGroup]:
    """A prefill group that hands over to a decode group, `token` bytes a token."""
    return (
        FleetGroup("p", replicas[0], prefill, role="prefill", handoff=Handoff("d", token, "nic")),
        FleetGroup("d", replicas[1], decode, role="decode"),
    )


def simulate(
    load: Workload, link: Link, groups: Sequence[FleetGroup] | None = None, *faults: Fault, **options: Any
) -> FleetResult:
    links = {"nic": link}
    return simulate_fleet(groups or pools(), ROUTES, load, exact=True, links=links, faults=faults, **options)


def finish_s(load: Workload, result: FleetResult) -> list[float]:
    return (result.arrivals_s(load) + result.e2e_s).tolist()  # type: ignore[no-any-return]


def test_a_link_that_takes_no_time_and_an_idle_decode_side_by_hand() -> None:
    """The first token at 1 is the prefill side's, then one a step on the decode side, from the context 4 on."""
    decode = replica()  # 1.1 s + 0.512 s for one token, and 1 ms for each token of context
    load = workload([(0.0, 4, 4)])
    result = simulate(load, AT_ONCE, pools(decode=decode))
    assert result.ttft_s.tolist() == [1.0]
    assert result.e2e_s[0] == pytest.approx(1.0 + 3 * 1.612 + 0.001 * (5 + 6 + 7))
    prefill, other = result.groups
    assert (prefill.steps, other.steps) == (1, 3)
    assert (prefill.prompt_tokens, other.prompt_tokens) == (4, 0)
    assert (prefill.output_tokens, other.output_tokens) == (1, 3)
    assert (prefill.requests, other.requests) == (1, 1)
    assert result.group_index.tolist() == [0]
    assert result.decode_group_index is not None
    assert result.decode_group_index.tolist() == [1]
    assert result.decode_replica_index is not None
    assert result.decode_replica_index.tolist() == [0]


def test_two_transfers_contend_for_a_link() -> None:
    """Both prompts end at 1. 40 bytes at 100 bytes/s: sent 1.0 to 1.4 and 1.4 to 1.8, there 0.1 s later.

    The first decodes from 1.5; the second, there at 1.9, joins the step at 2.5.
    """
    load = workload([(0.0, 4, 3), (0.0, 4, 2)], window_s=10.0)
    result = simulate(load, Link(100.0, 0.1))
    assert result.ttft_s.tolist() == [1.0, 1.0]
    assert result.e2e_s.tolist() == pytest.approx([3.5, 3.5])
    (carried,) = result.links
    assert (carried.name, carried.transfers, carried.moved_bytes) == ("nic", 2, 80.0)
    assert carried.busy_s == pytest.approx(0.8)
    assert result.groups[1].busy_s == pytest.approx((2.0,))


def test_groups_share_a_link() -> None:
    """Prefill groups p and q end at 1; p's request is the later one in the workload and goes second."""
    first, second = pools()
    groups = (first, replace(first, id="q"), second)
    load = replace(workload([(0.0, 4, 2), (0.0, 4, 2)]), classes=("b", "a"), class_index=np.array([0, 1]))
    routes = (*ROUTES, Route(request_class="b", group="q", share=1.0))
    result = simulate_fleet(groups, routes, load, links={"nic": Link(100.0)}, exact=True)
    assert result.e2e_s.tolist() == pytest.approx([2.4, 3.4])  # there at 1.4; at 1.8, when a step is under way


def test_one_token_ends_on_the_prefill_side() -> None:
    result = simulate(workload([(0.0, 4, 1)]), Link(1.0))
    assert result.e2e_s.tolist() == [1.0]
    assert result.decode_group_index is not None
    assert result.decode_group_index.tolist() == [-1]
    assert result.links[0].transfers == 0


def test_blocks_are_held_until_the_transfer_ends() -> None:
    """One prefill block: the second prompt cannot begin before the first one's cache has crossed, from 1 to 5."""
    prefill = replica(flat_s=1.0, blocks=1, block_size=4)
    result = simulate(workload([(0.0, 4, 2), (0.0, 4, 2)]), Link(10.0), pools(prefill))
    assert result.ttft_s.tolist() == [1.0, 6.0]
    assert result.e2e_s.tolist() == [6.0, 11.0]


def test_a_seat_is_free_as_soon_as_the_prompt_is_done() -> None:
    prefill = replica(flat_s=1.0, seats=1)
    assert simulate(workload([(0.0, 4, 2), (0.0, 4, 2)]), Link(10.0), pools(prefill)).ttft_s.tolist() == [1.0, 2.0]


def test_a_full_decode_side_makes_requests_wait() -> None:
    """One seat: the second request, there at 1 as well, gets it when the first one ends at 4."""
    result = simulate(workload([(0.0, 4, 4), (0.0, 4, 2)]), AT_ONCE, pools(decode=replica(flat_s=1.0, seats=1)))
    assert result.e2e_s.tolist() == [4.0, 5.0]


def test_a_request_that_arrives_computed_decodes_beside_others_and_is_no_prompt() -> None:
    """Prefill-first would put a prompt into a step of its own; this one shares the step at 2 with the other decode."""
    decode = replica(flat_s=1.0)
    decode = replace(decode, scheduling=decode.scheduling.model_copy(update={"prefill_policy": "prefill_first"}))
    result = simulate(workload([(0.0, 16, 6), (0.0, 16, 3)]), AT_ONCE, pools(decode=decode))
    assert result.e2e_s.tolist() == [6.0, 4.0]
    assert result.groups[1].steps == 5


def test_a_request_lost_while_decoding_goes_back_to_prefill() -> None:
    """Tokens at 1, 2 and 3; lost at 3.5. Prefill computes 4 + 3 tokens until 4.5; two more follow at 5.5 and 6.5."""
    groups = pools(replicas=(1, 2))
    load = workload([(0.0, 4, 6)])
    result = simulate(load, AT_ONCE, groups, Fault("d", 0, 3.5))
    assert result.ttft_s.tolist() == [1.0]
    assert result.e2e_s.tolist() == [6.5]
    assert result.decode_replica_index is not None
    assert result.decode_replica_index.tolist() == [1]
    assert [group.steps for group in result.groups] == [2, 2 + 2 + 1]  # the third step of the lost replica is in vain
    assert [group.lost for group in result.groups] == [0, 1]


def test_a_transfer_is_lost_with_its_source_and_the_link_goes_on() -> None:
    """Prefill replicas 0 and 1 end at 1; the link sends 0's cache from 1 to 5 and then 1's. Replica 0 fails at 2.

    So 1's cache is sent from 2 to 6, and 0's request is computed anew on replica 1: 4 + 1 tokens, the second at 3.
    """
    load = workload([(0.0, 4, 3), (0.0, 4, 2)], window_s=100.0)
    result = simulate(load, Link(10.0), pools(replicas=(2, 1)), Fault("p", 0, 2.0))
    assert result.ttft_s.tolist() == [1.0, 1.0]
    assert result.e2e_s.tolist() == [12.0, 7.0]  # five tokens cross from 6 to 11
    assert result.replica_index.tolist() == [1, 1]
    assert result.links[0].busy_s == 1.0 + 4.0 + 5.0
    assert result.links[0].moved_bytes == 90.0
    assert result.groups[0].lost == 1


def test_while_no_decode_replica_is_up_requests_wait_for_one() -> None:
    load = workload([(0.0, 4, 2), (3.0, 4, 2)])
    result = simulate(load, AT_ONCE, pools(), Fault("d", 0, 0.0, 9.0))
    assert finish_s(load, result) == [10.0, 10.0]
    assert result.ttft_s.tolist() == [1.0, 1.0]
    never = simulate(load, AT_ONCE, pools(), Fault("d", 0, 0.0))
    assert never.refusal is not None
    assert [REFUSALS[reason] for reason in never.refusal] == ["no replica up"] * 2


def test_what_either_side_can_never_hold_is_refused_at_the_door() -> None:
    """The prefill side needs blocks for the prompt only, the decode side for all."""
    prefill, decode = replica(flat_s=1.0, blocks=2, block_size=4), replica(flat_s=1.0, blocks=4, block_size=4)
    load = workload([(0.0, 8, 9), (0.0, 9, 1), (0.0, 8, 10), (0.0, 8, 1)])
    result = simulate(load, AT_ONCE, pools(prefill, decode))
    assert result.rejected.tolist() == [False, True, True, False]
    assert result.group_index.tolist() == [0, 0, 0, 0]
    assert result.groups[0].steps == 2


def test_what_grew_too_long_for_the_prefill_side_is_refused_when_it_is_lost() -> None:
    """Eight tokens fit a prefill replica; after five more were sampled the request cannot be computed anew there."""
    prefill = replica(flat_s=1.0, blocks=2, block_size=4)
    result = simulate(workload([(0.0, 8, 9)]), AT_ONCE, pools(prefill, replicas=(1, 2)), Fault("d", 0, 5.5))
    assert result.refusal is not None
    assert [REFUSALS[reason] for reason in result.refusal] == ["larger than the KV cache"]
    assert np.isnan(result.ttft_s).all()


def test_pipelined_prefill_replicas_hand_over_too() -> None:
    """Two lanes in two stages: prompts end at 1 and 1.5. Each lane has one block, held until 5 and 9."""
    prefill = replica(seats=2, lanes=2, blocks=2, block_size=4, flat_s=1.0)
    load = workload([(0.0, 4, 2)] * 4)
    result = simulate(load, Link(10.0), pools(prefill))
    assert result.ttft_s.tolist() == [1.0, 1.5, 6.0, 10.0]
    # caches cross from 1 to 5, from 5 to 9, from 9 to 13 (there since 6), from 13 to 17
    assert result.e2e_s.tolist() == [6.0, 10.0, 14.0, 18.0]


def test_a_session_goes_on_when_the_decode_side_is_done() -> None:
    load = replace(workload([(0.0, 4, 3), (0.0, 4, 2)]), after=np.array([-1, 0]), gap_s=np.array([0.0, 2.0]))
    result = simulate(load, Link(40.0))
    assert result.arrival_s is not None
    assert result.arrival_s.tolist() == [0.0, 6.0]  # 1 + 1 on the link + 2 steps + the gap
    assert result.e2e_s.tolist() == [4.0, 3.0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(ROUTERS), st.booleans())
def test_requests_tokens_and_blocks_are_conserved(seed: int, router: RouterName, fails: bool) -> None:
    random = np.random.default_rng(seed)
    load, model = some(random)
    groups = pools(model, some(random)[1], (2, 2))
    faults = []
    for _ in range(4 * fails):
        from_s = round(float(random.random()) * 25, 1)
        until_s = math.inf if random.random() < 0.2 else from_s + round(float(random.random()) * 8 + 0.1, 1)
        faults.append(Fault(str(random.choice(["p", "d"])), int(random.integers(0, 2)), from_s, until_s))
    links = {"nic": Link(float(random.choice([20.0, 200.0, math.inf])), float(random.choice([0.0, 0.3])))}
    conditions = Conditions(router, float(random.choice([0.0, 2.0])), tuple(faults), links)
    run = FleetRun(groups, ROUTES, load, OpenArrivals(load), conditions, max_events=10**6)
    result = run.result()
    done = ~np.isnan(result.e2e_s)
    assert (done ^ result.rejected).all()
    assert sum(group.output_tokens for group in result.groups) == load.output_tokens[done].sum()
    assert sum(group.prompt_tokens for group in result.groups) == load.prompt_tokens[done].sum()
    for group in run.groups:
        assert [replica.blocks_in_use for replica in group.replicas] == [0, 0]  # type: ignore[union-attr]
    if not fails:
        assert result.decode_group_index is not None
        handed = result.decode_group_index >= 0
        np.testing.assert_array_equal(handed[done], load.output_tokens[done] > 1)
        assert result.links[0].transfers == handed.sum()
        assert result.links[0].moved_bytes == 10.0 * load.prompt_tokens[handed].sum()


def test_handoffs_that_do_not_fit_are_refused() -> None:
    load, (first, second) = workload([(0.0, 1, 1)]), pools()
    with pytest.raises(ValueError, match="hands over to 'e', which is not a decode group"):
        simulate(load, AT_ONCE, (replace(first, handoff=Handoff("e", 1.0, "nic")), second))
    with pytest.raises(ValueError, match="hands over to 'd', which is not a decode group"):
        simulate(load, AT_ONCE, (first, replace(second, role="unified")))
    with pytest.raises(ValueError, match=r"by link 'nic'; there are \['other'\]"):
        simulate_fleet((first, second), ROUTES, load, links={"other": AT_ONCE})
    for group in (first, second):
        with pytest.raises(ValueError, match="a prefill group states its handoff, and no other group does"):
            replace(group, role="unified" if group is first else "prefill")
    with pytest.raises(ValueError, match="takes handoffs only"):
        simulate_fleet((first, second), (Route(request_class="a", group="d", share=1.0),), load, links={"nic": AT_ONCE})
    for bytes_per_s, latency_s in ((0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (1.0, -1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="no link carries"):
            Link(bytes_per_s, latency_s)
    with pytest.raises(ValueError, match="finite number of bytes"):
        Handoff("d", -1.0, "nic")
