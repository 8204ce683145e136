"""No plan: the statements in the user's words, and mends that, applied, give a plan."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from planning import CHAT, L40S, plan_of, spec_of

from planner.answers import conflict as conflicts
from planner.answers import conflict_search
from planner.answers.conflict import merged_specs
from planner.answers.conflict_search import CUT_SHORT, first_that_holds
from planner.answers.statements import counts
from specs.errors import NoPlanError

LLAMA = "{small: {architecture: meta-llama/Llama-3.1-8B, weights: bf16}}"
BUSY = CHAT.replace("4/s", "20/s")  # takes two L40S
ONE = L40S.replace("count: 8", "count: 1")


def conflict(**parts: Any) -> NoPlanError:
    with pytest.raises(NoPlanError) as caught:
        plan_of(**parts)
    error = caught.value
    assert error.exit_code == 3
    assert str(error).startswith(error.message)
    return error


def mend_of(error: NoPlanError, start: str) -> str:
    """What the mend that starts so says after it."""
    (found,) = [mend for mend in error.mends if mend.startswith(start)]
    return found.removeprefix(start)


WARM = CHAT.replace("4/s", "17/s")  # a little more than one device serves within its limits


def softened(error: NoPlanError, ending: str = "") -> list[str]:
    """`WARM` with the softer limit that each of the mends of an SLO asks for."""
    pattern = re.compile(r"traffic\[0\] chat: slo: \{(ttft|tpot): \{p90: ([^}]+)\}\}" + re.escape(ending))
    found = [match.groups() for mend in error.mends if (match := pattern.fullmatch(mend))]
    assert found
    texts = [re.sub(rf"{metric}: \{{p90: [^}}]+\}}", f"{metric}: {{p90: {limit}}}", WARM) for metric, limit in found]
    assert WARM not in texts
    return texts


def test_too_small_a_pool() -> None:
    parts: dict[str, Any] = {"models": LLAMA, "traffic": BUSY}
    error = conflict(**parts, pools=(ONE,))
    assert "hardware.pools[0] l40s: count: 1" in error.conflict
    assert "traffic: chat 20/s" in error.conflict
    count = int(mend_of(error, "hardware.pools[0] l40s: count: "))
    assert plan_of(**parts, pools=(ONE.replace("count: 1", f"count: {count}"),)).cost.gpus_rented <= count
    conflict(**parts, pools=(ONE.replace("count: 1", f"count: {count - 1}"),))  # and it is the least

    slower = re.fullmatch(r"(\d+)% of the declared rate \(traffic: chat ([\d.]+)/s\)", mend_of(error, "traffic: "))
    assert slower is not None
    share, rate = slower.groups()
    assert float(rate) == pytest.approx(20 * int(share) / 100)
    assert plan_of(models=LLAMA, traffic=CHAT.replace("4/s", f"{rate}/s"), pools=(ONE,)).groups


def test_every_softer_limit_that_is_offered_mends_it() -> None:
    error = conflict(models=LLAMA, traffic=WARM, pools=(ONE,))
    assert any(text.startswith("traffic[0] chat: slo: {tpot") for text in error.conflict)
    for text in softened(error):
        assert plan_of(models=LLAMA, traffic=text, pools=(ONE,)).groups


def test_too_few_whole_nodes() -> None:
    node = "{{name: n, device: l40s, count: {}, gpus_per_node: 2, price: $1/h, rent: node}}"
    parts: dict[str, Any] = {"models": LLAMA, "traffic": CHAT.replace("4/s", "70/s")}
    error = conflict(**parts, pools=(node.format(2),))
    count = int(mend_of(error, "hardware.pools[0] n: count: "))
    assert count % 2 == 0
    assert plan_of(**parts, pools=(node.format(count),)).cost.nodes["n"] * 2 <= count


@pytest.mark.parametrize("objective", ["cost", "gpus"])
def test_too_low_a_budget(objective: str) -> None:
    rest = f"objective: minimise {objective}\nlimits: {{budget: $1.234/h}}"
    error = conflict(models=LLAMA, traffic=BUSY, rest=rest)
    assert "limits.budget: $1.234/h" in error.conflict
    assert not any(text.startswith("hardware") for text in error.conflict)
    budget = mend_of(error, "limits.budget: ")
    assert budget == "$2.00/h"
    mended = plan_of(models=LLAMA, traffic=BUSY, rest=rest.replace("$1.234/h", budget))
    assert mended.cost.usd_per_hour == 2.0


def test_a_budget_is_rounded_up_to_whole_cents() -> None:
    pools = (L40S.replace("$1/h", "$1.0033/h"),)
    budget = mend_of(
        conflict(models=LLAMA, traffic=BUSY, pools=pools, rest="limits: {budget: $1/h}"), "limits.budget: "
    )
    assert budget == "$2.01/h"  # 2.0066
    assert plan_of(models=LLAMA, traffic=BUSY, pools=pools, rest=f"limits: {{budget: {budget}}}").groups


def test_an_impossible_tpot() -> None:
    traffic = CHAT.replace("50ms", "1ms")
    error = conflict(traffic=traffic)
    assert error.conflict == ("traffic[0] chat: slo: {tpot: {p90: 1ms}}",)
    softer = mend_of(error, "traffic[0] chat: slo: {tpot: {p90: ").removesuffix("}}")
    assert plan_of(traffic=traffic.replace("1ms", softer)).groups
    assert len(error.mends) == 1  # no rate and no pool helps


def test_an_impossible_joint_limit() -> None:
    traffic = CHAT.replace("{ttft: {p90: 1s}, tpot: {p90: 50ms}}", "{e2e: 33.3ms, attainment: 90%}")
    error = conflict(traffic=traffic)
    assert error.conflict[0] == "traffic[0] chat: slo: {e2e: 33.3ms}"
    softer = mend_of(error, "traffic[0] chat: slo: {e2e: ").removesuffix("}")
    assert plan_of(traffic=traffic.replace("33.3ms", softer)).groups


def test_too_few_pinned_replicas() -> None:
    rest = "choices: {small: {replicas: 1, pipeline_parallel: 1, tensor_parallel: 1}}"
    error = conflict(models=LLAMA, traffic=BUSY, rest=rest)
    assert "choices.small.replicas: 1" in error.conflict
    count = mend_of(error, "choices.small.replicas: ")
    assert plan_of(models=LLAMA, traffic=BUSY, rest=rest.replace("replicas: 1", f"replicas: {count}")).groups
    stages = mend_of(error, "choices.small.pipeline_parallel: ")
    mended = rest.replace("pipeline_parallel: 1", f"pipeline_parallel: {stages}")
    assert plan_of(models=LLAMA, traffic=BUSY, rest=mended).groups


def test_too_few_gpus_for_a_model() -> None:
    error = conflict(models=LLAMA, traffic=BUSY, rest="limits: {gpus: {small: 1}}")
    assert "limits.gpus.small: 1" in error.conflict
    gpus = mend_of(error, "limits.gpus.small: ")
    plan = plan_of(models=LLAMA, traffic=BUSY, rest=f"limits: {{gpus: {{small: {gpus}}}}}")
    assert plan.cost.gpus <= int(gpus)


def test_headroom_that_the_pool_does_not_have() -> None:
    parts: dict[str, Any] = {"models": LLAMA, "traffic": CHAT.replace("4/s", "8/s"), "pools": (ONE,)}
    assert plan_of(**parts).groups
    error = conflict(**parts, rest="limits: {utilisation: 30%}")
    assert "limits.utilisation: 30%" in error.conflict
    assert "limits.utilisation: 100% (no headroom)" in error.mends


def test_two_statements_that_only_together_are_in_the_way() -> None:
    """One GPU by stock and by budget: neither alone mends it, so neither is offered, and what does is."""
    error = conflict(models=LLAMA, traffic=BUSY, pools=(ONE,), rest="limits: {budget: $1/h}")
    assert not any(mend.startswith(("hardware", "limits")) for mend in error.mends)
    traffic = BUSY.replace("{p90: 50ms}", "{p90: 1ms}").replace("{p90: 1s}", "{p90: 1ms}")
    both = conflict(traffic=traffic)  # TTFT and TPOT: softening one leaves the other, which alone is a conflict
    assert both.conflict == ("traffic[0] chat: slo: {tpot: {p90: 1ms}}",)
    (together,) = both.mends
    factor = float(together.removeprefix("together: every latency limit times "))
    softer = traffic.replace("{p90: 1ms}", f"{{p90: {factor:g}ms}}")
    assert plan_of(traffic=softer).groups


def test_a_model_that_boots_nowhere_names_the_nearest_miss() -> None:
    error = conflict(models="{small: meta-llama/Llama-3.1-405B}")
    assert "models.small boots on none of the declared devices; nearest miss: l40s with TP" in error.message
    assert "GB a device" in error.message
    assert "models.small.architecture: meta-llama/Llama-3.1-405B" in error.conflict[0].replace("Meta-", "")
    assert "hardware.pools: l40s with 8 l40s" in error.conflict


def test_where_a_model_boots_nowhere_promises_are_not_in_the_conflict_and_the_stock_that_boots_is_named() -> None:
    error = conflict(models="{small: meta-llama/Llama-3.1-70B}", pools=(L40S.replace("count: 8", "count: 1"),))
    assert not any("slo" in text for text in error.conflict)
    (mend,) = error.mends
    assert mend.startswith("hardware.pools[0] l40s: count: 4 (then it boots;")
    pinned = conflict(
        models="{small: meta-llama/Llama-3.1-70B}", rest="choices: {small: {tensor_parallel: 1, pipeline_parallel: 1}}"
    )
    assert "choices.small.pipeline_parallel: 1" in pinned.conflict
    assert any(text.startswith("choices.small.tensor_parallel: auto") for text in pinned.mends)


@pytest.mark.parametrize("first", range(9))
def test_bisection_finds_the_first_option_that_holds_in_few_questions(first: int) -> None:
    options, asked = list(range(8)), []

    def holds(option: int) -> bool:
        asked.append(option)
        return option >= first

    assert first_that_holds(options, holds) == (first if first < 8 else None)
    assert len(asked) <= 4
    assert first_that_holds((), holds) is None


def test_counts_are_tried_one_by_one_and_large_ones_in_steps() -> None:
    assert counts(2, 6) == [3, 4, 5]
    found = counts(0, 1000)
    assert found[:20] == list(range(1, 21))
    assert all(after / before <= 1.05 for before, after in itertools.pairwise(found[20:]))


def test_a_search_that_is_cut_short_says_so_and_its_mends_still_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicts, "TO_MEND", 0)
    monkeypatch.setattr(conflicts, "TO_ANSWER", 10)
    monkeypatch.setattr(conflict_search, "TO_ANSWER", 10)  # enough for one question, not for the whole ladder
    error = conflict(models=LLAMA, traffic=WARM, pools=(ONE,))
    for text in softened(error, CUT_SHORT):
        assert plan_of(models=LLAMA, traffic=text, pools=(ONE,)).groups


def test_without_any_simulation_the_statements_are_still_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TO_FIND", "TO_SLOW", "TO_MEND", "TO_ANSWER"):
        monkeypatch.setattr(conflicts, name, 0)
    monkeypatch.setattr(conflict_search, "TO_ANSWER", 0)
    error = conflict(models=LLAMA, traffic=BUSY, pools=(ONE,))
    assert "hardware.pools[0] l40s: count: 1" in error.conflict
    assert error.mends == ()


def test_merged_relaxations_keep_each_other_in_one_section() -> None:
    traffic = CHAT + CHAT.replace("name: chat", "name: more")
    stated = spec_of(traffic=traffic, pools=(L40S, L40S.replace("name: l40s", "name: b")))

    def with_pool(index: int, count: int) -> Any:
        pools = list(stated.hardware.pools)
        pools[index] = pools[index].model_copy(update={"count": count})
        return stated.model_copy(update={"hardware": stated.hardware.model_copy(update={"pools": tuple(pools)})})

    merged = merged_specs(stated, with_pool(0, 64), with_pool(1, 32))
    assert [pool.count for pool in merged.hardware.pools] == [64, 32]
    assert merged_specs(stated, stated, with_pool(1, 32)) == with_pool(1, 32)
    limits = spec_of(rest="limits: {budget: $5/h, gpus: {small: 1}}")
    free = limits.model_copy(update={"limits": limits.limits.model_copy(update={"gpus": {}})})
    unpaid = limits.model_copy(update={"limits": limits.limits.model_copy(update={"budget_usd_per_hour": None})})
    both = merged_specs(limits, free, unpaid).limits
    assert (both.gpus, both.budget_usd_per_hour) == ({}, None)


def test_statements_that_must_give_way_together_are_offered_with_what_a_plan_uses() -> None:
    rest = "limits: {{budget: ${}/h, gpus: {{small: {}}}, power: {}}}"
    parts: dict[str, Any] = {"models": LLAMA, "traffic": BUSY}
    error = conflict(**parts, rest=rest.format(1, 1, "200W"))
    assert error.conflict[0] == "limits.power: 0.2kW"  # one device alone draws more
    found = re.match(
        r"limits\.budget: \$([\d.]+)/h, limits\.gpus\.small: (\d+), limits\.power: ([\d.]+kW)",
        mend_of(error, "together: "),
    )
    assert found is not None
    assert plan_of(**parts, rest=rest.format(*found.groups())).groups


def test_one_gpu_by_stock_and_by_budget_gives_way_together() -> None:
    parts: dict[str, Any] = {"models": LLAMA, "traffic": CHAT.replace("4/s", "80/s")}
    error = conflict(**parts, pools=(ONE,), rest="limits: {budget: $1/h}")
    found = re.match(r"hardware\.pools\[0\] l40s: count: (\d+), limits\.budget: \$(.+)/h", mend_of(error, "together: "))
    assert found is not None
    count, budget = found.groups()
    pools = (ONE.replace("count: 1", f"count: {count}"),)
    assert plan_of(**parts, pools=pools, rest=f"limits: {{budget: ${budget}/h}}").groups


def test_too_little_power_and_its_least_change() -> None:
    parts: dict[str, Any] = {"models": LLAMA, "traffic": BUSY}
    error = conflict(**parts, rest="limits: {power: 400W}")
    assert "limits.power: 0.4kW" in error.conflict
    power = mend_of(error, "limits.power: ")
    assert plan_of(**parts, rest=f"limits: {{power: {power}}}").cost.gpus >= 2


def test_nodes_that_cannot_be_spared() -> None:
    pool = "{name: n, device: l40s, count: 2, gpus_per_node: 1, price: $1/h, rent: node}"
    parts: dict[str, Any] = {"models": LLAMA, "traffic": BUSY, "pools": (pool,)}
    error = conflict(**parts, rest="limits: {survive_node_failures: 2}")
    assert "limits.survive_node_failures: 2" in error.conflict
    count = mend_of(error, "hardware.pools[0] n: count: ")
    mended = (pool.replace("count: 2", f"count: {count}"),)
    assert plan_of(**{**parts, "pools": mended}, rest="limits: {survive_node_failures: 2}").groups


def test_what_is_named_has_a_plan_without_any_one_of_it_and_none_with_all() -> None:
    """The set in conflict is irreducible: of two reasons, one is named, and what has no part in it is not."""
    rest = "limits: {budget: $1/h, confidence: 50%}\nchoices: {small: {pool: l40s}}"
    error = conflict(models=LLAMA, traffic=BUSY, pools=(L40S, L40S.replace("name: l40s", "name: b")), rest=rest)
    assert error.conflict[0] == "limits.budget: $1/h"
    assert not any(text.startswith(("limits.confidence", "choices", "hardware")) for text in error.conflict)


def test_where_one_request_alone_is_too_slow_no_rate_is_offered() -> None:
    error = conflict(traffic=CHAT.replace("50ms", "1us"))
    assert not any(text.startswith("traffic: ") for text in (*error.conflict, *error.mends))
