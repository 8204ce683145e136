"""Schedules: every slot served, changes paid for and fitting the pools, never worse than one plan, laws that bite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planning import CHAT, L40S, night, spec_of

from planner.plan_simulation.simulate import simulate_plan
from planner.schedule.document import recheck_schedule
from planner.schedule.make import make_schedule
from planner.schedule.switching import ENGINE_START_S, switch
from specs.document import DType
from specs.errors import InputError, NoPlanError
from specs.plan import Plan
from specs.schedule import Schedule

LLAMA = "{small: meta-llama/Llama-3.1-8B}"
DAY = CHAT.replace("arrivals: 4/s", "arrivals: {rate: 12/s, process: diurnal, peak_to_mean: 1.9, peak_at: 12h}")
NIGHT = night("00:00-06:00", 2000)
PIN = "choices: {small: {tensor_parallel: 1, pipeline_parallel: 1, max_num_seqs: 256, max_num_batched_tokens: 512}}\n"
SWING: dict[str, Any] = {"models": LLAMA, "traffic": DAY, "rest": PIN + "schedule: {slot: 6h}"}


def schedule_of(**parts: Any) -> Schedule:
    return make_schedule(spec_of(**parts), Path(), version="test")


@pytest.fixture(scope="module")
def swing() -> Schedule:
    return schedule_of(**SWING)


def test_a_day_costs_what_its_slots_and_changes_do_and_less_than_one_plan(swing: Schedule) -> None:
    assert [slot.start_s / 3600 for slot in swing.slots] == [0, 3, 9, 15, 21]
    hours = [3, 6, 6, 6, 3]
    cost = [
        slot.value_per_hour * hour + change
        for slot, hour, change in zip(swing.slots, hours, itertools.repeat(0), strict=False)
    ]
    assert swing.value == pytest.approx(sum(cost) + sum(change.value for change in swing.switches))
    assert swing.bound <= swing.value < swing.flat_value  # type: ignore[operator]
    assert swing.flat_value == pytest.approx(24 * max(slot.value_per_hour for slot in swing.slots))
    assert len(swing.switches) == 2
    assert all(check.holds for check in swing.checks)


def test_every_plan_keeps_its_promises_in_its_slot(swing: Schedule) -> None:
    for slot in swing.slots:
        assert slot.plan is not None
        plan = swing.plans[slot.plan]
        assert simulate_plan(plan, ".")["verdict"]["holds"]
        assert plan.certificate.fresh is not None
        assert slot.requests_per_s["chat"] == pytest.approx(plan.spec["traffic"][0]["arrivals"]["rate_per_s"], rel=0.1)
    assert swing.plan_at(13 * 3600) == swing.plans[swing.slots[2].plan]  # type: ignore[index]
    assert swing.plan_at(37 * 3600) == swing.plan_at(13 * 3600)


def test_the_schedule_is_the_cheapest_of_all_ways_through_its_own_plans(swing: Schedule) -> None:
    """Brute force: any plan of the schedule in any slot whose traffic is no more than it was planned for."""
    spec = spec_of(**SWING)
    rates = {name: plan.spec["traffic"][0]["arrivals"]["rate_per_s"] for name, plan in swing.plans.items()}
    asked = [rates[slot.plan] for slot in swing.slots if slot.plan is not None]
    hours = [(slot.end_s - slot.start_s) / 3600 for slot in swing.slots]

    def total(way: tuple[str, ...]) -> float:
        found = 0.0
        for index, (name, rate, hour) in enumerate(zip(way, asked, hours, strict=True)):
            before = way[index - 1]
            change = switch((swing.plans[before], swing.plans[name]), (before, name), spec, 0.0)
            if rates[name] < rate or change is None:
                return math.inf
            found += swing.plans[name].certificate.value * hour + change.value
        return found

    assert swing.value == pytest.approx(min(map(total, itertools.product(swing.plans, repeat=len(hours)))))


def test_the_same_spec_gives_the_same_bytes_and_the_document_survives_its_file(swing: Schedule, tmp_path: Path) -> None:
    swing.write(tmp_path / "schedule.json")
    assert Schedule.read(tmp_path / "schedule.json") == swing
    assert schedule_of(**SWING).to_json() == swing.to_json()


def test_a_dear_change_is_not_made_and_replicas_that_stay_cost_nothing(swing: Schedule) -> None:
    dear = schedule_of(**SWING | {"rest": PIN + "schedule: {slot: 6h, switching: {cost: $1000}}"})
    assert dear.switches == ()
    assert dear.value == pytest.approx(dear.flat_value)
    assert dear.value > swing.value
    grows, shrinks = swing.switches
    assert grows.kept == shrinks.kept > 0
    assert (grows.stopped, shrinks.started) == (0, 0)
    assert grows.start_s > ENGINE_START_S
    assert grows.drain_s == shrinks.start_s == 0 < shrinks.drain_s
    assert grows.value == pytest.approx(grows.started * grows.start_s / 3600, rel=1e-6)  # at $1/h a device


def test_the_start_is_as_stated_or_by_nvme() -> None:
    stated = schedule_of(**SWING | {"rest": PIN + "schedule: {slot: 6h, switching: {start: 10min, cost: $0.25}}"})
    grows = stated.switches[0]
    assert grows.start_s == 600
    assert grows.value == pytest.approx(grows.started * (600 / 3600 + 0.25))
    nvme = spec_of(**SWING).model_copy(
        update={"hardware": spec_of(**SWING).hardware.model_copy(update={"host": _host(nvme_bytes_per_s=1e9)})}
    )
    plan = stated.plans[stated.slots[2].plan]  # type: ignore[index]
    change = switch((None, plan), (None, "peak"), nvme, 0.0)
    assert change is not None
    weights_bytes = plan.groups[0].cache.memory.weights_bytes * plan.groups[0].layout.gpus
    assert change.start_s == pytest.approx(weights_bytes / 1e9 + ENGINE_START_S)


def _host(**values: float) -> Any:
    from specs.deployment import HostSpec

    return HostSpec(**values)  # type: ignore[arg-type]


def test_what_a_pool_cannot_hold_beside_the_old_plan_is_no_change(swing: Schedule) -> None:
    spec = spec_of(**SWING)
    small, large = (swing.plans[swing.slots[index].plan] for index in (0, 2))  # type: ignore[index]
    other = small.model_copy(
        update={"groups": tuple(group.model_copy(update={"weights_dtype": DType.FP8}) for group in small.groups)}
    )
    used = small.cost.gpus
    change = switch((other, large), (None, None), spec, 0.0)  # another configuration on the same devices
    assert change is not None
    assert change.kept == 0
    assert change.devices == {"l40s": used + large.cost.gpus}
    pool = spec.hardware.pools[0].model_copy(update={"count": used + large.cost.gpus - 1})
    tight = spec.model_copy(update={"hardware": spec.hardware.model_copy(update={"pools": (pool,)})})
    assert switch((other, large), (None, None), tight, 0.0) is None
    assert switch((small, large), (None, None), tight, 0.0) is not None


def test_a_class_of_the_night_runs_on_what_it_needs_and_nothing_runs_for_nobody() -> None:
    alone = schedule_of(models=LLAMA, traffic=NIGHT)
    assert [slot.plan is None for slot in alone.slots] == [False, True]
    assert alone.slots[1].value_per_hour == 0
    assert alone.value < alone.flat_value  # type: ignore[operator]
    assert [change.after is None for change in alone.switches] == [False, True]
    both = schedule_of(models=LLAMA, traffic=CHAT.replace("4/s", "12/s") + NIGHT)
    night, day = both.slots
    assert sorted(night.requests_per_s) == ["chat", "night"]
    assert list(day.requests_per_s) == ["chat"]
    assert day.value_per_hour <= night.value_per_hour


def test_slots_that_cannot_be_served_at_once_are_served_in_turn() -> None:
    """Two models that fill the pool one after the other: no single plan, and nothing to overlap within the day."""
    pool = L40S.replace("count: 8, gpus_per_node: 4", "count: 1, gpus_per_node: 1")
    models = "{small: {architecture: meta-llama/Llama-3.1-8B, weights: bf16}, other: meta-llama/Llama-3.1-8B}"
    first = NIGHT
    second = first.replace("name: night", "name: noon").replace("00:00-06:00", "12:00-18:00")
    found = schedule_of(models=models, pools=(pool,), traffic=first + second.replace("model: small", "model: other"))
    assert found.flat_plan is None
    assert found.flat_value is None
    assert [slot.plan is None for slot in found.slots] == [False, True, False, True]
    with pytest.raises(NoPlanError, match=r"^00:00 to 06:00: no plan satisfies") as caught:
        schedule_of(models=LLAMA, pools=(pool,), traffic=NIGHT.replace("arrivals: 2/s", "arrivals: 400/s"))
    assert caught.value.conflict


def test_a_day_without_changes_or_an_objective_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(InputError, match="one plan serves all day"):
        schedule_of()
    with pytest.raises(InputError, match="over a day"):
        schedule_of(traffic=DAY, rest="objective: maximise traffic")


def changed(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        place: Any = data
        for part in parents:
            place = place[part]
        place[last] = value(place[last]) if callable(value) else value

    return change


MUTATIONS = [
    ("slots/1/start_s", lambda old: old + 1, "slots follow each other without gaps"),
    ("slots/0/start_s", 1.0, "the first slot begins with the cycle"),
    ("cycle_s", 90_000.0, "the last slot ends with the cycle"),
    ("plans/plan-0/certificate/bound", 1e6, "plan-0: laws that its own re-check finds broken"),
    ("slots/0/value_per_hour", lambda old: old - 0.5, "slot 0: its value is that of its plan"),
    ("slots/0/requests_per_s", {}, "slot 0: its plan is for the classes that are asked for"),
    ("spec/hardware/pools/0/count", 1, "change at 32400 s: pools hold both plans"),
    ("switches/0/value", 0.0, "change at 10800 s: is as its plans say"),
    ("switches", [], "change at 10800 s: is as its plans say"),
    ("value", lambda old: old - 1, "the value adds up"),
    ("bound", lambda old: old - 1, "the bound adds up"),
    ("bound", lambda old: 10 * old, "the bound is not above the value"),
    ("flat_value", lambda old: old - 1, "the flat value is that of its plan all the time"),
    ("flat_value", 1.0, "no single plan is better"),
]


@pytest.mark.parametrize(("path", "value", "law"), MUTATIONS, ids=[f"{law}-{path}" for path, _, law in MUTATIONS])
def test_a_schedule_that_breaks_a_law_is_caught_by_it(swing: Schedule, path: str, value: Any, law: str) -> None:
    data = swing.model_dump(mode="json")
    changed(path, value)(data)
    assert law in {check.law for check in recheck_schedule(Schedule.model_validate(data)) if not check.holds}


def test_plans_of_a_schedule_are_plans(swing: Schedule, tmp_path: Path) -> None:
    for name, plan in swing.plans.items():
        plan.write(tmp_path / f"{name}.json")
        assert Plan.read(tmp_path / f"{name}.json") == plan
