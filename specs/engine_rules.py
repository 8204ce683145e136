"""Which rules of service an engine can be told to follow: asked by exports and by codegen, which refuse the others.

A plan may state more (`specs.plan.Scheduling`): the simulator shows what such rules would do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from specs.plan import Cache, Scheduling

_POLICIES = {
    "vllm": ("mixed_chunked",),
    "sglang": ("prefill_first", "mixed_chunked"),
    "capstan": ("mixed_chunked", "prefill_first", "decode_first"),
}
_PREFIX_CACHING = ("vllm", "sglang")
_FOLLOWED = {"sglang": ("output_reserve",), "vllm": ("speculation",)}  # of `Scheduling`, beyond what every engine does
_HOST_TIER = ("vllm",)
_ORDERS = {"vllm": ("fcfs", "priority")}

Capability = Literal[
    "adapters",
    "prefix_caching",
    "host_tier",
    "speculation",
    "priority",
    "attention_data_parallel",
    "disaggregation",
    "unlike_stages",
]
# What the planner lets a replica of an engine do, beyond what every engine does.
_CAPABILITIES: Mapping[str, frozenset[Capability]] = {
    "vllm": frozenset(
        (
            "adapters",
            "prefix_caching",
            "host_tier",
            "speculation",
            "priority",
            "attention_data_parallel",
            "disaggregation",
            "unlike_stages",
        )
    ),
    "sglang": frozenset(("adapters", "prefix_caching", "speculation", "attention_data_parallel", "disaggregation")),
    "trtllm": frozenset(("adapters", "prefix_caching", "speculation", "attention_data_parallel", "disaggregation")),
    "capstan": frozenset(),
}


def capable(engine: str, capability: Capability) -> bool:
    """Whether `engine` can be told to do this; whether an export writes it, the export says."""
    return capability in _CAPABILITIES[engine]


def rules_not_followed(engine: str, scheduling: Scheduling, cache: Cache) -> Iterator[tuple[str, str, str]]:
    """(field of the replica group, why, what is expected) of every stated rule that `engine` would not follow."""
    policies = _POLICIES[engine]
    if scheduling.prefill_policy not in policies:
        yield (
            "scheduling.prefill_policy",
            f"the engine has no {scheduling.prefill_policy} scheduling",
            " or ".join(map(repr, policies)),
        )
    if cache.prefix_caching and engine not in _PREFIX_CACHING:
        yield "cache.prefix_caching", "the engine keeps no prefixes", "false"
    if cache.host_blocks and engine not in _HOST_TIER:
        yield "cache.host_blocks", "no host tier is configured in this version", "0"
    usual = Scheduling()
    reasons: Mapping[str, str] = {
        "order": f"requests are served first come, first served, not by {scheduling.order}",
        "preemption": f"a preempted request is computed anew, there is no {scheduling.preemption}",
        "batch_wait_steps": "a prompt does not wait for company",
        "output_reserve": "no room is kept for outputs",
        "max_waiting_tokens": "no prompt is refused for the length of the queue",
        "speculation": "speculative decoding is not configured in this version",
    }
    for name, reason in reasons.items():
        if name == "order" and scheduling.order in _ORDERS.get(engine, ()):
            continue
        if name not in _FOLLOWED.get(engine, ()) and getattr(scheduling, name) != getattr(usual, name):
            yield f"scheduling.{name}", reason, str(getattr(usual, name))
