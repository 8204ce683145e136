"""Plans by hand whose prefill groups hand over to decode groups, for tests of exports."""

from __future__ import annotations

from typing import Any

from plan_fixture import chat_group, engine, packed, plan_of

from specs.plan import Plan, ReplicaGroup, Route

SGLANG = {"engine": "sglang", "scheduling__prefill_policy": "prefill_first", "scheduling__output_reserve": 0.7}


def sglang_group(**changes: Any) -> ReplicaGroup:
    """`chat_group` as SGLang runs it."""
    return chat_group(**{**SGLANG, **changes})


def split_plan(engine_name: str = "vllm", **changes: Any) -> Plan:
    """Two prefill replicas of four devices on node 0 and one decode replica of four on node 1."""
    own = SGLANG if engine_name == "sglang" else {}
    prefill = chat_group(
        id="chat-prefill", role="prefill", hands_over_to="chat-decode", replicas=2, placement=packed(2, 4), **own
    )
    decode = chat_group(id="chat-decode", role="decode", replicas=1, placement=packed(1, 4, first_device=8), **own)
    version = {"vllm": "0.24.0", "sglang": "0.5.9"}[engine_name]
    engines = {engine_name: engine(engine_name, version=version).model_dump()}
    routes = (Route(request_class="all", group="chat-prefill", share=1.0),)
    return plan_of((prefill, decode), routes, engines=engines, **changes)
