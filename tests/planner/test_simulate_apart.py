"""Parts of a fleet that share nothing, simulated one by one, give what all at once gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from simulation_cases import busy_model

from planner.simulate import FleetGroup, Workload, simulate_fleet
from planner.simulate.apart import _parts, only, simulate_parts
from planner.simulate.model import places_of
from specs.deployment import SLO
from specs.plan import Route, Scheduling

ROUTES = (
    Route(request_class="a", group="one", share=0.5),
    Route(request_class="a", group="two", share=0.5),
    Route(request_class="b", group="two", share=1.0),
    Route(request_class="c", group="three", share=1.0),
)


PLAIN = dataclasses.replace(busy_model(), scheduling=Scheduling())  # drafts would be drawn anew


def groups(replicas: int) -> tuple[FleetGroup, ...]:
    return tuple(FleetGroup(id=name, replicas=replicas, model=PLAIN) for name in ("one", "two", "three"))


def workload(requests: int = 900) -> Workload:
    draw = np.random.default_rng(4)
    return Workload(
        classes=("c", "a", "b"),
        class_index=draw.integers(0, 3, requests),
        arrival_s=np.sort(draw.uniform(0, 20, requests)),
        prompt_tokens=draw.integers(1, 60, requests),
        output_tokens=draw.integers(1, 20, requests),
        window_s=20.0,
    )


@pytest.mark.parametrize("replicas", [1, 40])
def test_parts_give_the_result_of_the_whole(replicas: int) -> None:
    whole = simulate_fleet(groups(replicas), ROUTES, workload())
    parts = simulate_parts(groups(replicas), ROUTES, workload())
    for field in dataclasses.fields(whole):
        one, other = getattr(whole, field.name), getattr(parts, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=field.name)
        elif field.name != "events":
            assert one == other, field.name


def test_groups_that_share_a_class_stay_together() -> None:
    assert sorted(_parts(groups(1), ROUTES), key=lambda part: part[0]) == [([0, 1], {"a", "b"}), ([2], {"c"})]


def test_a_broken_limit_ends_the_run_and_is_named() -> None:
    slos = {"c": SLO(joint={"ttft": 1e-9}, attainment=0.9), "a": SLO(joint={"ttft": 1000.0}, attainment=0.9)}
    found = simulate_parts(groups(40), ROUTES, workload(), refute=slos)
    assert found.refuted_early is not None
    assert found.refuted_early.startswith("c:")


def test_only_keeps_the_requests_of_its_classes() -> None:
    part = only(workload(), ("c", "b"))
    assert part.classes == ("c", "b")
    assert part.horizon_s == 20.0
    whole = workload()
    assert part.prompt_tokens.sum() == whole.prompt_tokens[whole.of_class("c") | whole.of_class("b")].sum()
    assert (part.of_class("b")).sum() == whole.of_class("b").sum()


def test_places_are_those_of_each_number_in_order() -> None:
    index = np.array([2, -1, 0, 2, 0, 0, -1])
    assert [part.tolist() for part in places_of(index, 4)] == [[2, 4, 5], [], [0, 3], []]
    assert [part.tolist() for part in places_of(np.array([0, -1, 0]), 1)] == [[0, 2]]
    whole = workload()
    for name, places in zip(whole.classes, whole.places, strict=True):
        np.testing.assert_array_equal(places, np.flatnonzero(whole.of_class(name)))


def test_some_requests_are_those_under_the_mask_and_their_predecessors_move_along() -> None:
    whole = dataclasses.replace(workload(6), after=np.array([-1, 0, -1, 1, 2, 3]), gap_s=np.zeros(6))
    some = whole.at(np.array([0, 1, 3, 5]))
    assert some.after is not None
    assert some.after.tolist() == [-1, 0, 1, 2]
    assert whole.at(np.array([1, 4])).after.tolist() == [-1, -1]  # type: ignore[union-attr]
    result = simulate_fleet(groups(2), ROUTES, whole)
    part = result.at(np.array([1, 4]))
    assert part.e2e_s.tolist() == result.e2e_s[[1, 4]].tolist()
    assert part.groups == result.groups
