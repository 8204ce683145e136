"""The day cut where rates and windows change; the shortest way through it against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import CHAT, night, spec_of

from planner.schedule.path import cheapest_cycle
from planner.schedule.slots import changes_over_time, cycle_s, slots
from specs.deployment import unhonoured_statements
from specs.errors import InputError

DAY = CHAT.replace("arrivals: 4/s", "arrivals: {rate: 4/s, process: diurnal, peak_to_mean: 1.5, peak_at: 14h}")
NIGHT = night("22:00-02:00", 500)


def rates_of(traffic: str, rest: str = "") -> list[tuple[float, float, dict[str, float]]]:
    """(from, to in hours, rates by class) of the slots of a spec."""
    found = []
    for slot in slots(spec_of(traffic=traffic, rest=rest)):
        classes = slot.spec.traffic if slot.spec is not None else ()
        rates = {item.name: item.arrivals.rate_per_s for item in classes if item.arrivals is not None}
        found.append((slot.start_s / 3600, slot.end_s / 3600, rates))
    return found


def test_a_window_past_midnight_cuts_the_day_in_three() -> None:
    both, alone = {"chat": 4.0, "night": 2.0}, {"chat": 4.0}
    assert rates_of(CHAT + NIGHT) == [(0, 2, both), (2, 22, alone), (22, 24, both)]
    assert rates_of(NIGHT.replace("22:00-02:00", "09:00-17:00")) == [(0, 9, {}), (9, 17, {"night": 2.0}), (17, 24, {})]


def test_a_swing_is_cut_around_its_peak_and_each_piece_holds_its_highest_rate() -> None:
    found = rates_of(DAY, "schedule: {slot: 4h}")
    assert [(start, end) for start, end, _ in found] == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 24)]
    # the trough is at 2: mean 4, swing 2, a cosine about the peak at 14
    highest = [4 + 2 * math.cos(2 * math.pi * (moment - 14) / 24) for moment in (4, 8, 12, 14, 16, 20)]
    assert [rates["chat"] for _, _, rates in found] == pytest.approx(highest, rel=1e-5)
    assert found[2][2] == found[4][2], "left and right of the peak are equal to the bit"
    for start, end, rates in found:
        within = [4 + 2 * math.cos(2 * math.pi * (start + (end - start) * k / 50 - 14) / 24) for k in range(51)]
        assert rates["chat"] >= max(within) * (1 - 1e-5)


def test_only_what_changes_is_cut_and_the_models_of_silent_classes_are_left_out() -> None:
    assert not changes_over_time(spec_of(traffic=CHAT))
    flat = DAY.replace("peak_to_mean: 1.5", "peak_to_mean: 1")
    assert not changes_over_time(spec_of(traffic=flat))
    other = NIGHT.replace("model: small", "model: other")
    spec = spec_of(
        models="{small: Qwen/Qwen3-0.6B, other: Qwen/Qwen3-1.7B}",
        traffic=CHAT + other,
        rest="limits: {gpus: {other: 2}}\nchoices: {other: {tensor_parallel: 1}}",
    )
    day, night = slots(spec)[1].spec, slots(spec)[0].spec
    assert day is not None
    assert night is not None
    assert (list(day.models), day.limits.gpus, day.choices.models) == (["small"], {}, {})
    assert list(night.models) == ["small", "other"]
    assert all(item.window is None for item in night.traffic)


def test_the_declaration_of_a_slot_is_honoured_by_every_command() -> None:
    spec = spec_of(traffic=DAY + NIGHT, rest="schedule: {slot: 6h, switching: {start: 1min}}")
    host = spec.hardware.host.model_copy(update={"nvme_bytes_per_s": 1e9})
    spec = spec.model_copy(update={"hardware": spec.hardware.model_copy(update={"host": host})})
    assert unhonoured_statements(spec) == ()
    for slot in slots(spec):
        assert slot.spec is not None
        assert unhonoured_statements(slot.spec) == ()


def test_the_cycle_is_a_day_or_the_period_of_the_only_swing() -> None:
    hourly = DAY.replace("peak_at: 14h", "peak_at: 10min, period: 1h")
    assert cycle_s(spec_of(traffic=hourly)) == 3600
    assert cycle_s(spec_of(traffic=hourly + NIGHT)) == 86_400
    thirds = slots(spec_of(traffic=hourly, rest="schedule: {slot: 20min}"))
    assert [slot.end_s for slot in thirds] == [1200, 3600]  # around the peak, and the two alike beside it
    odd = DAY.replace("peak_at: 14h", "peak_at: 10min, period: 7h")
    found = rates_of(odd + NIGHT)
    assert {rates["chat"] for _, _, rates in found} == {
        4.0
    }  # 7 h do not fill a day; drawn around its peak when planned
    assert all(slot.spec and slot.spec.traffic[0].arrivals.diurnal for slot in slots(spec_of(traffic=odd + NIGHT)))  # type: ignore[union-attr]


def test_too_many_slots_are_refused() -> None:
    with pytest.raises(InputError, match="cuts the day into"):
        slots(spec_of(traffic=DAY, rest="schedule: {slot: 1min}"))


PLANS = "abc"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_way_through_is_that_of_brute_force(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    amount = st.integers(0, 20)
    values = [
        {name: float(data.draw(amount)) for name in data.draw(st.sets(st.sampled_from(PLANS), min_size=1))}
        for _ in range(count)
    ]
    changes = {pair: data.draw(st.none() | amount) for pair in itertools.permutations(PLANS, 2)}

    def total(way: tuple[str, ...]) -> float:
        found = sum(slot[name] for slot, name in zip(values, way, strict=True))
        for before, after in zip((way[-1], *way), way, strict=False):
            price = 0 if before == after else changes[before, after]
            found += math.inf if price is None else price
        return found

    best = min(total(way) for way in itertools.product(*(sorted(slot) for slot in values)))
    way = cheapest_cycle([dict(sorted(slot.items())) for slot in values], lambda before, after: changes[before, after])
    assert (way is None) == (best == math.inf)
    if way is not None:
        assert total(way) == best


def test_of_equal_ways_the_one_that_changes_less_is_taken() -> None:
    values = [{"a": 1.0, "b": 1.0}, {"b": 1.0}, {"a": 1.0, "b": 1.0}]
    assert cheapest_cycle(values, lambda before, after: 0.0) == ("b", "b", "b")
