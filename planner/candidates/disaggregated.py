"""Prefill and decode apart: who may take a role, how each side is priced without the other, how both are simulated.

A prefill replica does with a request what it would do with one of a single output token, so it is priced by such
requests against the limits on TTFT. A decode replica is priced behind a prefill side that costs nothing and hands over
by the ports of the decode replicas, against the limits on TPOT and on the end of the whole. Each price is what a side
could carry beside a perfect other one; what the two break together, the simulation of the whole plan refutes.

Sides that are used together share a channel: the engine, the type of the KV cache, and how it crosses, through the
network or inside the one node of a pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from planner.candidates.family import Family, Variant
from planner.candidates.options import Crossing, Options
from planner.cost.step_times import FREE
from planner.cost.transfer import Reach
from planner.handover import (
    Handover,
    Side,
    beyond_prefill_s,
    decoding,
    handover,
    prefilling,
    reach_between,
    towards,
    waiting,
)
from planner.simulate import FleetGroup, Handoff, Link, ReplicaModel, Workload
from specs.deployment import DeploymentSpec, HardwareSpec
from specs.engine_rules import capable
from specs.errors import InputError
from specs.plan import DeviceSlot, Limits, Route, Scheduling

PROMPTS = "prompts"  # id of the prefill side that costs nothing
ANSWERS_FOR = {  # metrics that replicas of a role can break
    "unified": frozenset(("ttft", "tpot", "e2e")),
    "prefill": frozenset(("ttft", "e2e")),
    "decode": frozenset(("tpot", "e2e")),
}
MOST_AUTO = 200  # families: beyond, `auto` does not ask for roles
MOST_AUTO_TOGETHER = 60  # of several models
_FREE_TOKENS, _FREE_SEATS = 16_384, 4_096
_FREE_S = 1e-9  # a step has to take some time
_LARGEST = 2**31 - 1
_MANY = 1_000_000  # replicas of a side whose ports are never the limit


def by_role(families: Sequence[Family], spec: DeploymentSpec) -> tuple[tuple[Family, ...], tuple[Family, ...]]:
    """Families that do both, and those with a role, as `choices.disaggregation` asks for them.

    `auto` leaves roles out of large spaces, and where nodes may fail: their programmes take minutes. Raises
    `InputError` where a model has to be split and cannot be.
    """
    choice = spec.choices.disaggregation
    large = len(families) > (MOST_AUTO if len(spec.models) == 1 else MOST_AUTO_TOGETHER)
    if choice == "never" or (choice == "auto" and (large or spec.limits.survive_node_failures)):
        return tuple(families), ()
    apart = role_families(families, spec.hardware)
    if choice == "auto":
        return tuple(families), tuple(apart)
    for model in dict.fromkeys(family.model for family in families):
        if not any(family.model == model for family in apart):
            raise InputError(
                f"{model} cannot be served apart: no link leads from one replica to another, or no engine hands over",
                field="choices.disaggregation",
                expected="hardware.network.bandwidth or a node of several devices, and an engine other than capstan",
            )
    return (), tuple(apart)


def role_families(families: Iterable[Family], hardware: HardwareSpec) -> list[Family]:
    """`families` once more as prefill and as decode sides, wherever there is somebody to hand over to.

    Pipeline stages are left out: vLLM's connector refuses them, SGLang's takes few of them. Drafts are made where
    tokens are, so prefill sides have none; prefixes are found where prompts are, so decode sides keep none. Neither has
    a host tier: engines keep one connector for KV caches.
    """
    families = [
        family
        for family in families
        if family.layout.pipeline_parallel == 1 and capable(family.engine.name, "disaggregation")
    ]
    found: dict[str, Family] = {}
    for family in families:
        for crossing in _crossings(family, families, hardware):
            sides = [_decode_options(family.options, crossing)]
            if family.options.speculation is None:
                sides.append(replace(family.options, role="prefill", crossing=crossing, host_blocks=0))
            for options in sides:
                made = family.with_options(options)
                found.setdefault(made.key, made)
    return list(found.values())


def _decode_options(options: Options, crossing: Crossing) -> Options:
    return replace(options, role="decode", crossing=crossing, prefix_caching=False, host_blocks=0)


def _crossings(family: Family, families: Sequence[Family], hardware: HardwareSpec) -> tuple[Crossing, ...]:
    """How a replica of this family can hand over to another one, or take over from it."""
    pool = family.pool
    found: list[Crossing] = []
    if _has_network(family) and (
        pool.nodes > 1
        or any(
            other.pool.name != pool.name and other.model == family.model and _has_network(other) for other in families
        )
    ):
        found.append("network")
    linked = family.device.link_bytes_per_s > 0 or family.device.pcie_bytes_per_s > 0
    if pool.nodes == 1 and pool.count > family.gpus and linked:
        found.append("node")
    return tuple(found)


def _has_network(family: Family) -> bool:
    return family.device.nic_bytes_per_s > 0


@dataclass(frozen=True)
class PricedFleet:
    """What is simulated for the price of the group `index`: `entry` takes the requests of `workload`."""

    groups: tuple[FleetGroup, ...]
    index: int
    entry: str
    links: Mapping[str, Link]
    workload: Workload


def priced_fleet(variant: Variant, replicas: int, workload: Workload) -> PricedFleet:
    """`replicas` replicas of `variant` under `workload`, with a perfect other side where they have a role."""
    role = variant.family.options.role
    group = FleetGroup(id="priced", replicas=replicas, model=variant.replica)
    if role == "prefill":
        alone = replace(workload, output_tokens=np.ones_like(workload.output_tokens))
        tokens, found = _own_ports(variant.family, replicas, workload)
        beyond_s = beyond_prefill_s(group.model.times, tokens, found.alone_s)  # as if the other side were like this one
        return PricedFleet((replace(group, model=waiting(group.model, beyond_s)),), 0, group.id, {}, alone)
    if role == "decode":
        _, found = _own_ports(variant.family, replicas, workload)
        prompts = FleetGroup(
            PROMPTS, 1, _free_prefill(), role="prefill", handoff=Handoff(group.id, found.bytes_per_token, PROMPTS)
        )
        return PricedFleet((prompts, decoding(group)), 1, PROMPTS, {PROMPTS: found.link}, workload)
    return PricedFleet((group,), 0, group.id, {}, workload)


def _own_ports(family: Family, replicas: int, workload: Workload) -> tuple[int, Handover]:
    """Mean prompt tokens, and how they cross where only the ports of these replicas are a limit."""
    reach: Reach = "network" if family.options.crossing == "network" else "domain"
    if reach == "domain" and not family.device.link_bytes_per_s:
        reach = "node"
    tokens = max(1, round(float(workload.prompt_tokens.mean()))) if len(workload) else 1
    own = Side(family.pool.name, family.device, family.layout, replicas)
    other = replace(own, replicas=_MANY)
    return tokens, handover(family.architecture, family.kv_dtype, tokens, other, own, reach)


@cache
def _free_prefill() -> ReplicaModel:
    """A replica that computes any prompt in next to no time and has room for all of them."""
    times = replace(FREE, tokens_s=(0.0,) + (_FREE_S,) * _FREE_TOKENS, sampled_s=(0.0,) * (_FREE_SEATS + 1))
    limits = Limits(max_num_seqs=_FREE_SEATS, max_num_batched_tokens=_FREE_TOKENS, max_model_len=_LARGEST // 2)
    return ReplicaModel(times, limits, num_blocks=_LARGEST, block_size_tokens=16, scheduling=Scheduling())


@dataclass(frozen=True)
class Part:
    """A group of a plan in the making, and the devices it takes."""

    id: str
    variant: Variant
    replicas: int
    slots: tuple[DeviceSlot, ...]
    hands_over_to: str = ""  # key of the decode family, where that is stated

    @property
    def role(self) -> str:
        return self.variant.family.options.role


def whole_fleet(
    parts: Sequence[Part], routes: Sequence[Route], workload: Workload, hardware: HardwareSpec
) -> tuple[tuple[FleetGroup, ...], dict[str, Link]]:
    """The groups of a plan with their roles, and the links from each prefill group to its model's decode group.

    The same law as for plans that are read from documents (`planner.plan_simulation.links`).
    """
    groups, links = [], {}
    for part in parts:
        group = FleetGroup(id=part.id, replicas=part.replicas, model=part.variant.replica)
        target = target_of(part, parts)
        if target is None:
            groups.append(decoding(group) if part.role == "decode" else group)
            continue
        sides = _side(part, target, hardware), _side(target, part, hardware)
        reach = reach_between(*sides, (*part.slots, *target.slots))
        family, tokens = part.variant.family, _mean_prompt(part, routes, workload)
        found = handover(family.architecture, family.kv_dtype, tokens, *sides, reach)
        name = f"{part.id} to {target.id}"
        links[name] = found.link
        beyond_s = beyond_prefill_s(target.variant.replica.times, tokens, found.alone_s)
        groups.append(prefilling(group, Handoff(target.id, found.bytes_per_token, name), beyond_s))
    return tuple(groups), links


def target_of(part: Part, parts: Iterable[Part]) -> Part | None:
    """The decode group that a prefill group hands over to; None for others. Where the stated one is gone, another."""
    if part.role != "prefill":
        return None
    model = part.variant.family.model
    decodes = [other for other in parts if other.role == "decode" and other.variant.family.model == model]
    return next((other for other in decodes if other.variant.family.key == part.hands_over_to), decodes[0])


def _side(part: Part, other: Part, hardware: HardwareSpec) -> Side:
    family, there = part.variant.family, other.variant.family
    device = towards(family.device, hardware, family.pool, there.pool)
    return Side(family.pool.name, device, family.layout, part.replicas)


def _mean_prompt(part: Part, routes: Sequence[Route], workload: Workload) -> int:
    """Mean prompt tokens, at least 1, of the classes that are routed to `part`."""
    routed = {route.request_class for route in routes if route.group == part.id}
    own = np.isin(workload.class_index, [workload.classes.index(name) for name in workload.classes if name in routed])
    return max(1, round(float(workload.prompt_tokens[own].mean()))) if own.any() else 1
