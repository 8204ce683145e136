"""Sessions, shared prefixes, who asks and how urgent it is: what a declaration becomes, and that it has its statistics.

Tolerances are about four standard errors at the counts drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning import declared

from planner.simulate import Workload, declared_workload
from specs.deployment import (
    SLO,
    ArrivalSpec,
    FixedLength,
    MeanLength,
    PercentileLimit,
    SessionSpec,
    SharedPrefixSpec,
    TraceSpec,
    TrafficClass,
)
from specs.errors import InputError


def talk(rate: float = 2.0, turns: float = 5.0, think_s: float = 20.0, grow: bool = True, **more: Any) -> TrafficClass:
    return TrafficClass(
        name="talk",
        model="m",
        sessions=SessionSpec(rate_per_s=rate, turns_mean=turns, think_time_mean_s=think_s, growing_context=grow),
        prompt_tokens=MeanLength(mean_tokens=100, max_tokens=400),
        output_tokens=MeanLength(mean_tokens=60, max_tokens=300),
    ).model_copy(update=more)


def plain(name: str = "plain", **more: Any) -> TrafficClass:
    return TrafficClass(
        name=name,
        model="m",
        arrivals=ArrivalSpec(rate_per_s=5.0),
        prompt_tokens=FixedLength(tokens=200),
        output_tokens=FixedLength(tokens=10),
    ).model_copy(update=more)


def draw(*traffic: TrafficClass, context: int | None = None, **options: Any) -> Workload:
    options = {"seconds": 2000.0, "seed": 1} | options
    return declared_workload(declared(*traffic, context=context), Path(), **options)[0]


def test_turns_come_at_the_rate_of_conversations_times_turns_from_the_window_s_first_moment_on() -> None:
    drawn = draw(talk())
    per_slice = np.histogram(drawn.arrival_s, bins=10, range=(0, 2000))[0]
    # Turns of one conversation come together: the variance of a count is up to E[T^2] / E[T] = 9 times Poisson's.
    assert len(drawn) == pytest.approx(20_000, abs=4 * 3 * np.sqrt(20_000))
    assert per_slice == pytest.approx(np.full(10, 2000), abs=4 * 3 * np.sqrt(2000))
    assert per_slice[0] > 1500, "the window opens on conversations under way"


def test_conversations_have_their_turns_and_think_times() -> None:
    drawn = draw(talk(rate=0.5), seconds=20_000)
    follows = drawn.after >= 0
    assert (drawn.session[follows] == drawn.session[drawn.after[follows]]).all()
    assert drawn.gap_s[follows].mean() == pytest.approx(20.0, rel=0.03)
    assert drawn.gap_s[follows].std() == pytest.approx(20.0, rel=0.05)  # exponential
    assert (drawn.gap_s[~follows] == 0).all()
    assert drawn.arrival_s[follows] == pytest.approx((drawn.arrival_s[drawn.after] + drawn.gap_s)[follows])
    first = np.unique(drawn.session, return_index=True)[1]
    inside = (drawn.arrival_s[first] > 1000) & (drawn.arrival_s[first] < 19_000)
    turns = np.bincount(drawn.session)[drawn.session[first]][inside]
    assert turns.mean() == pytest.approx(5.0, rel=0.05)
    assert (turns == 1).mean() == pytest.approx(1 / 5, abs=0.02)  # geometric
    assert len(set(zip(drawn.session.tolist(), drawn.after.tolist(), strict=True))) == len(drawn), "one follower each"


def test_a_growing_prompt_is_the_prompt_before_its_answer_and_new_tokens() -> None:
    drawn = draw(talk())
    follows = np.flatnonzero(drawn.after >= 0)
    before = drawn.after[follows]
    new = drawn.prompt_tokens[follows] - drawn.prompt_tokens[before] - drawn.output_tokens[before]
    assert new.min() >= 1
    assert new.max() <= 400
    assert new.mean() == pytest.approx(100, rel=0.05)
    unit = drawn.prefixes.unit_tokens
    assert unit == 16
    for turn, earlier in zip(follows[:300].tolist(), before[:300].tolist(), strict=True):
        repeated = int(drawn.prompt_tokens[earlier] + drawn.output_tokens[earlier]) // unit
        assert drawn.prefixes.of(turn)[:repeated] == drawn.prefixes.of(earlier)
    owners = np.repeat(drawn.session, np.diff(drawn.prefixes.offsets))
    pairs = np.unique(np.stack([drawn.prefixes.ids, owners]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1], "no conversation shares with another"


def test_without_a_growing_context_turns_are_requests_of_their_own() -> None:
    drawn = draw(talk(grow=False))
    assert drawn.prompt_tokens.max() <= 400
    assert drawn.prefixes is None
    assert drawn.after.max() > 0


def test_a_conversation_ends_where_the_context_is_full() -> None:
    drawn = draw(talk(turns=20), context=1000)
    free = draw(talk(turns=20))
    assert (drawn.prompt_tokens + drawn.output_tokens).max() <= 1000
    assert (free.prompt_tokens + free.output_tokens).max() > 1000
    assert 0 < len(drawn) < 0.6 * len(free)
    counts = np.bincount(drawn.session)
    assert counts.max() > 4


def test_one_turn_alone_is_an_open_loop() -> None:
    drawn = draw(talk(turns=1.0))
    assert (drawn.after == -1).all()
    assert len(drawn) == pytest.approx(4000, abs=4 * 63)


def test_too_many_turns_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="too many turns") as caught:
        draw(talk(rate=1000.0, turns=50.0, think_s=3600.0))
    assert caught.value.field == "traffic[0].sessions.rate"
    with pytest.raises(InputError, match="no request arrives"):
        draw(talk(rate=1e-9))


def test_groups_share_the_first_units_of_their_prompts() -> None:
    drawn = draw(plain(shared_prefix=SharedPrefixSpec(tokens=100, groups=4)))
    assert (drawn.session, drawn.after) == (None, None)
    units = [drawn.prefixes.of(request) for request in range(len(drawn))]
    assert {len(own) for own in units} == {200 // 16}
    heads = {own[:6] for own in units}  # 96 of the 100 tokens are whole units
    assert len(heads) == 4
    assert len({own[6:] for own in units}) == len(drawn), "nobody shares the rest"
    counts = np.unique([own[0] for own in units], return_counts=True)[1]
    assert counts / len(drawn) == pytest.approx([0.25] * 4, abs=4 * np.sqrt(0.25 * 0.75 / len(drawn)))


def test_skewed_groups_follow_zipf_s_law() -> None:
    drawn = draw(plain(shared_prefix=SharedPrefixSpec(tokens=100, groups=3, skew=1.0)))
    firsts = [drawn.prefixes.of(request)[0] for request in range(len(drawn))]
    counts = np.unique(firsts, return_counts=True)[1]
    assert counts / len(drawn) == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.03)


def test_conversations_of_a_group_begin_alike() -> None:
    drawn = draw(talk(shared_prefix=SharedPrefixSpec(tokens=64, groups=2)), seconds=200)
    heads: dict[int, set[int]] = {}
    for request, session in enumerate(drawn.session.tolist()):
        if units := drawn.prefixes.of(request):
            heads.setdefault(session, set()).add(units[0])
    assert all(len(own) == 1 for own in heads.values())
    assert len({head for own in heads.values() for head in own}) == 2


def test_prompts_that_share_nothing_have_ids_of_their_own_beside_those_that_do() -> None:
    drawn = draw(plain("a"), plain("b", shared_prefix=SharedPrefixSpec(tokens=160)))
    alone = [drawn.prefixes.of(request) for request in np.flatnonzero(drawn.of_class("a")).tolist()]
    ids = [unit for own in alone for unit in own]
    assert len(set(ids)) == len(ids) == len(alone) * 12
    assert not set(ids) & {u for r in np.flatnonzero(drawn.of_class("b")).tolist() for u in drawn.prefixes.of(r)}


def test_sessions_of_two_classes_are_different_and_other_requests_are_sessions_of_one() -> None:
    drawn = draw(talk(), talk(name="more"), plain(), seconds=100)
    by_class = [set(drawn.session[drawn.of_class(name)].tolist()) for name in ("talk", "more", "plain")]
    assert not by_class[0] & by_class[1]
    assert not by_class[1] & by_class[2]
    assert len(by_class[2]) == drawn.of_class("plain").sum()
    assert (drawn.after[drawn.of_class("plain")] == -1).all()
    follows = drawn.after >= 0
    assert (drawn.class_index[follows] == drawn.class_index[drawn.after[follows]]).all()


def test_who_asks_and_how_urgent_it_is() -> None:
    slo = SLO(
        percentiles=(
            PercentileLimit(metric="ttft", percentile=90, limit_s=1.0),
            PercentileLimit(metric="ttft", percentile=99, limit_s=3.0),
            PercentileLimit(metric="e2e", percentile=90, limit_s=0.5),
        )
    )
    joint = SLO(joint={"ttft": 0.25, "e2e": 9.0}, attainment=0.99)
    drawn = draw(
        plain("a", priority="low", slo=slo), plain("b", priority="high", tenant="team", slo=joint),
        plain("c", tenant="team"),
    )  # fmt: skip
    of = [drawn.of_class(name) for name in ("a", "b", "c")]
    assert drawn.tenants == ("a", "team")
    assert [set(drawn.tenant_index[mask].tolist()) for mask in of] == [{0}, {1}, {1}]
    assert [set(drawn.priority[mask].tolist()) for mask in of] == [{2}, {0}, {1}]
    wait_s = drawn.deadline_s - drawn.arrival_s
    assert wait_s[of[0]] == pytest.approx(1.0)
    assert wait_s[of[1]] == pytest.approx(0.25)
    assert np.isinf(wait_s[of[2]]).all()
    alone = draw(plain())
    assert (alone.tenants, alone.tenant_index, alone.priority, alone.deadline_s) == ((), None, None, None)


def test_a_trace_says_itself_who_asks_and_what_is_shared(tmp_path: Path) -> None:
    header = "arrival_s,prompt_tokens,output_tokens,tenant,priority,session,prefix,prefix_tokens\n"
    rows = "0,100,1,blue,high,s1,system,64\n1,100,1,red,low,s1,system,64\n2,50,1,blue,,,,\n"
    (tmp_path / "t.csv").write_text(header + rows)
    traffic = TrafficClass(name="t", model="m", trace=TraceSpec(file="t.csv"), priority="low")
    drawn, _ = declared_workload(declared(traffic), tmp_path)
    assert drawn.tenants == ("blue", "red")
    assert drawn.tenant_index.tolist() == [0, 1, 0]
    assert drawn.priority.tolist() == [0, 2, 1]
    assert drawn.session[0] == drawn.session[1] != drawn.session[2]
    assert drawn.after is None, "recorded times stay"
    assert drawn.prefixes.of(0)[:4] == drawn.prefixes.of(1)[:4]
    doubled = traffic.model_copy(update={"shared_prefix": SharedPrefixSpec(tokens=16)})
    with pytest.raises(InputError, match="says itself what its prompts share") as caught:
        declared_workload(declared(doubled), tmp_path)
    assert caught.value.field == "traffic[0].trace"


def test_predictions_err_as_much_as_stated_and_only_when_asked_for() -> None:
    traffic = plain(output_tokens=FixedLength(tokens=10_000))
    assert draw(traffic).predicted_tokens is None
    exact, rough = (draw(traffic, predictor_error=error) for error in (0.0, 0.5))
    assert exact.predicted_tokens.tolist() == exact.output_tokens.tolist()
    logs = np.log(rough.predicted_tokens / rough.output_tokens)
    assert logs.std() == pytest.approx(0.5, rel=0.04)
    assert logs.mean() == pytest.approx(0.0, abs=0.03)
    assert rough.arrival_s.tolist() == exact.arrival_s.tolist()
    tiny = draw(plain(output_tokens=FixedLength(tokens=1)), predictor_error=3.0)
    assert tiny.predicted_tokens.min() == 1


def everything() -> tuple[TrafficClass, ...]:
    return (
        talk(shared_prefix=SharedPrefixSpec(tokens=64, groups=9)),
        plain(shared_prefix=SharedPrefixSpec(tokens=64, groups=9), priority="high"),
    )


def test_the_same_seed_gives_the_same_bytes_and_classes_do_not_disturb_each_other() -> None:
    one, two = (draw(*everything(), predictor_error=0.3) for _ in range(2))
    for name in ("arrival_s", "prompt_tokens", "session", "after", "gap_s", "priority", "predicted_tokens"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()
    assert one.prefixes.ids.tobytes() == two.prefixes.ids.tobytes()
    alone = draw(everything()[0], predictor_error=0.3)
    mask = one.of_class("talk")
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "gap_s", "predicted_tokens"):
        assert getattr(one, name)[mask].tobytes() == getattr(alone, name).tobytes()
    other = draw(*everything(), seed=2)
    assert other.gap_s.tobytes() != one.gap_s.tobytes()


def test_not_coupled_the_same_requests_depend_on_nothing() -> None:
    coupled, free = draw(*everything()), draw(*everything(), coupled=False)
    assert (free.session, free.after, free.gap_s, free.prefixes) == (None, None, None, None)
    assert free.arrival_s.tobytes() == coupled.arrival_s.tobytes()
    assert free.prompt_tokens.tobytes() == coupled.prompt_tokens.tobytes()
    assert free.priority is not None
