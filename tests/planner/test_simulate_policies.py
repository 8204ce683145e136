"""Policies in place of a plan's own: which field each replaces, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning import planned

from planner.plan_simulation.policies import Policies, changed_limits, with_policies, without_effect
from planner.plan_simulation.simulate import replica_model, simulate_plan
from planner.plan_simulation.traffic import with_traffic
from planner.simulate import Workload
from planner.simulate.faults import Fault
from specs.deployment import DeploymentSpec, resolved
from specs.errors import InputError
from specs.plan import Plan, Speculation

DRAFT = Speculation(draft_tokens=2, acceptance=0.5)
SPEC = """\
models:
  chat: Qwen/Qwen3-0.6B
hardware:
  pools:
    - {name: l40s, device: l40s, count: 2, price: $1.10/h, rent: gpu}
traffic:
  - name: chat
    arrivals: 1/s
    prompt_tokens: 300
    output_tokens: 20
    slo: {ttft: {p90: 1s}}
choices: {engine: vllm, chat: {max_num_seqs: 16, max_num_batched_tokens: 512}}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(SPEC, tmp_path_factory.mktemp("spec"))


def test_nothing_stated_changes_nothing(plan: Plan) -> None:
    assert with_policies(plan, Policies()) == plan


@pytest.mark.parametrize(
    ("policies", "field", "value"),
    [
        ({"order": "srpt"}, "order", "srpt"),
        ({"prefill_policy": "decode_first"}, "prefill_policy", "decode_first"),
        ({"preemption": "swap", "host_blocks": 10}, "preemption", "swap"),
        ({"max_waiting_tokens": 7}, "max_waiting_tokens", 7),
        ({"predictor_error": 0.5}, "predictor_error", 0.5),
        ({"speculation": DRAFT}, "speculation", DRAFT),
    ],
)
def test_scheduling_is_replaced_and_nothing_else(plan: Plan, policies: dict[str, Any], field: str, value: Any) -> None:
    changed = with_policies(plan, Policies(**policies))
    model = replica_model(changed, changed.groups[0])
    assert getattr(model.scheduling, field) == value
    same = plan.groups[0].scheduling.model_copy(update={field: value})
    assert model.scheduling == same


def test_drafts_take_seats_where_a_step_holds_too_few_tokens(plan: Plan) -> None:
    """A step of 512 tokens holds 10 sequences of 1 + 49; sampled rows then go up to 500."""
    planned = plan.groups[0].limits
    assert (planned.max_num_seqs, planned.max_num_batched_tokens) == (16, 512)
    changed = with_policies(plan, Policies(speculation=Speculation(draft_tokens=49, acceptance=0.5)))
    model = replica_model(changed, changed.groups[0])
    assert model.limits.max_num_seqs == 10
    assert len(model.times.sampled_s) == 501
    assert changed_limits(plan, changed) == [
        "group-0: speculation leaves 10 of 16 sequences at once, as a step computes at most 512 tokens"
    ]
    assert changed_limits(plan, with_policies(plan, Policies(speculation=DRAFT))) == []


def test_the_cache_and_the_router_are_replaced(plan: Plan) -> None:
    changed = with_policies(plan, Policies(prefix_caching=True, host_blocks=12, router="round_robin"))
    model = replica_model(changed, changed.groups[0])
    assert (model.prefix_caching, model.host_blocks, changed.router) == (True, 12, "round_robin")
    off = with_policies(changed, Policies(prefix_caching=False))
    assert not replica_model(off, off.groups[0]).prefix_caching
    assert off.groups[0].cache.host_blocks == 12


def test_moving_a_token_costs_its_bytes_over_the_host_link(plan: Plan) -> None:
    """112 KiB a token in 28 layers of 8 heads of 128 in 16 bit, over 32 GB/s of PCIe of which 85 % are reached."""
    assert replica_model(plan, plan.groups[0]).times.host_token_s == pytest.approx(
        28 * 2 * 8 * 128 * 2 / (32e9 * 0.85), rel=1e-6
    )


@pytest.mark.parametrize(
    ("policies", "says"),
    [
        ({"order": "srtp"}, "--order: 'srtp' is none of them; expected fcfs | .*did you mean 'srpt'"),
        ({"prefill_policy": "x"}, "--prefill-policy: .*mixed_chunked"),
        ({"preemption": "swop"}, "did you mean 'swap'"),
        ({"preemption": "swap"}, "--preemption: there are no host blocks to swap to; expected --host-blocks N"),
        ({"router": "least_outstandin"}, "--router: .*did you mean 'least_outstanding'"),
        ({"host_blocks": -1}, "--host-blocks: -1 is out of range; expected 0 to 1,000,000,000"),
        ({"max_waiting_tokens": 0}, "--max-waiting-tokens: 0 is out of range; expected 1 to 1,000,000,000"),
        ({"speculation": Speculation(draft_tokens=600, acceptance=0.5)}, "--speculate: .*at most 511 draft tokens"),
        ({"predictor_error": float("nan")}, "--predictor-error: nan is out of range"),
        ({"faults": (Fault("group-9", 0, 1.0),)}, "--fail: the plan has no group 'group-9'; expected group-0"),
        ({"faults": (Fault("group-0", 5, 1.0),)}, "--fail: group-0 has no replica 5; expected 0, its only one"),
    ],
)
def test_what_cannot_be_is_refused(plan: Plan, policies: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        with_policies(plan, Policies(**policies))


@pytest.mark.parametrize(
    ("policies", "says"),
    [
        ({"prefix_caching": True}, "prefix caching finds nothing"),
        ({"order": "priority"}, "all requests have one priority"),
        ({"order": "edf"}, "no class states a limit of TTFT"),
        ({"order": "vtc"}, "there is one tenant"),
    ],
)
def test_what_has_no_effect_is_said(plan: Plan, policies: dict[str, Any], says: str) -> None:
    load = Workload(("chat",), np.zeros(2, np.int64), np.arange(2.0), np.ones(2, np.int64), np.ones(2, np.int64))
    assert [note for note in without_effect(with_policies(plan, Policies(**policies)), load) if says in note]
    assert without_effect(plan, load) == []


def test_other_classes_go_where_the_plan_sends_those_of_their_model(plan: Plan, tmp_path: Path) -> None:
    """Two models in the plan: a class of an unknown model is refused, one of a known model follows its first class."""
    own = DeploymentSpec.model_validate(plan.spec)
    traffic = own.traffic[0]
    spec = own.model_copy(update={"models": {**own.models, "draw": own.models["chat"]}})
    two = plan.model_copy(
        update={
            "spec": resolved(
                spec.model_copy(
                    update={"traffic": (traffic, traffic.model_copy(update={"name": "draw", "model": "draw"}))}
                )
            ),
            "routes": (*plan.routes, plan.routes[0].model_copy(update={"request_class": "draw", "share": 0.25})),
        }
    )
    other = own.model_copy(
        update={"traffic": tuple(traffic.model_copy(update={"name": name, "model": "draw"}) for name in ("x", "draw"))}
    )
    changed, notes = with_traffic(two, other, tmp_path)
    assert [(route.request_class, route.share) for route in changed.routes] == [("x", 0.25), ("draw", 0.25)]
    assert notes == ["class x goes where the plan sends draw"]
    assert changed.traffic_folder == str(tmp_path)
    stranger = own.model_copy(update={"traffic": (traffic.model_copy(update={"model": "drow"}),)})
    with pytest.raises(InputError, match=r"traffic\[0\].model: the plan serves no model 'drow'.*did you mean 'draw'"):
        with_traffic(two, stranger, tmp_path)


def test_progress_ascends_to_the_last_arrival(plan: Plan) -> None:
    shares: list[float] = []
    simulate_plan(plan, ".", rate_per_s=20.0, seconds=100, exact=True, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] > 0.7
    assert max(shares) <= 1.0
