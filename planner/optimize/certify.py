"""The re-check of a plan, row by row, from the `Plan` document alone: no solver, no simulator, no shared arithmetic."""

from __future__ import annotations

import math
from collections import Counter

from planner.network.laws import cables_carry_the_plan
from planner.optimize.handover_laws import handovers_fit
from planner.optimize.laws import check as _check
from planner.optimize.objective_laws import bound_is_a_bound, capacity_suffices, cost_adds_up, power_is_kept
from planner.optimize.stage_laws import memory_of, stages_fit
from planner.optimize.stated_laws import groups_stand_as_stated, is_stated
from specs.architecture import Architecture, load_architecture
from specs.architecture.weights import Ranks
from specs.errors import InputError
from specs.plan import Check, Plan, ReplicaGroup, StageMachine

WEIGHTS_TOLERANCE = 0.01
KEEPS_UP = 0.95  # of a stated throughput: a window ends with some requests in flight


def recheck(plan: Plan) -> tuple[Check, ...]:
    """Every law that a plan must obey, with both sides. `holds` is false where one is broken."""
    return (
        *_routes_carry_every_class(plan),
        *_devices_are_there_and_used_once(plan),
        *_memory_fits(plan),
        *stages_fit(plan),
        *_limits_are_consistent(plan),
        *_layouts_are_whole(plan),
        *_statements_hold(plan),
        *groups_stand_as_stated(plan),
        *cost_adds_up(plan),
        *power_is_kept(plan),
        *capacity_suffices(plan),
        *_objectives_are_met(plan),
        *_fresh_seeds_agree(plan),
        *cables_carry_the_plan(plan),
        *handovers_fit(plan),
        *bound_is_a_bound(plan),
    )


def _routes_carry_every_class(plan: Plan) -> list[Check]:
    models = {group.id: group.model for group in plan.groups}
    found = []
    for traffic in plan.spec["traffic"]:
        own = [route for route in plan.routes if route.request_class == traffic["name"]]
        whole = 1.0 if plan.admitted.get(traffic["name"], 1.0) > 0 else 0.0  # nothing of it is let in
        found.append(_check(f"the shares of {traffic['name']} add up", sum(route.share for route in own), "==", whole))
        strays = sum(1 for route in own if models.get(route.group) != traffic["model"])
        found.append(_check(f"{traffic['name']} goes to replicas of its own model only", strays, "==", 0))
    return found


def _devices_are_there_and_used_once(plan: Plan) -> list[Check]:
    found = []
    for pool in plan.spec["hardware"]["pools"]:
        slots = Counter(
            (slot.node, slot.device)
            for group in plan.groups
            for replica in group.placement
            for name, slot in group.places(replica)
            if name == pool["name"]
        )
        found.append(_check(f"{pool['name']}: devices used are in stock", len(slots), "<=", pool["count"]))
        found.append(_check(f"{pool['name']}: no device is used twice", max(slots.values(), default=0), "<=", 1))
        highest = max((device for _, device in slots), default=-1)
        found.append(_check(f"{pool['name']}: devices exist in their node", highest, "<=", pool["gpus_per_node"] - 1))
        last = max((node for node, _ in slots), default=-1) + 1
        found.append(
            _check(f"{pool['name']}: nodes used are in stock", last, "<=", -(-pool["count"] // pool["gpus_per_node"]))
        )
        if slots and pool["rent"] == "node":
            nodes = plan.cost.nodes.get(pool["name"], 0)
            used = len({node for node, _ in slots})
            found.append(_check(f"{pool['name']}: nodes used are rented", used, "<=", nodes))
            found.append(
                _check(
                    f"{pool['name']}: nodes rented are in stock", nodes, "<=", pool["count"] // pool["gpus_per_node"]
                )
            )
    devices = {pool["name"]: pool["device"] for pool in plan.spec["hardware"]["pools"]}
    for group in plan.groups:
        own = all(_same_device(plan, stage.device, devices.get(stage.pool)) for stage in _stood_on(group))
        found.append(_check(f"{group.id}: its device is that of its pool", float(own), "==", 1.0))
        found.append(_check(f"{group.id}: every replica is placed", len(group.placement), "==", group.replicas))
        odd = sum(len(replica.slots) != group.layout.gpus for replica in group.placement)
        found.append(_check(f"{group.id}: replicas have all their ranks", odd, "==", 0))
        found.append(_check(f"{group.id}: tensor-parallel ranks share a node", _torn_ranks(group), "==", 0))
    return found


def _stood_on(group: ReplicaGroup) -> set[StageMachine]:
    """The pools of a group with the devices that it says they hold."""
    return {StageMachine(pool=group.pool, device=group.device), *group.stages}


def _same_device(plan: Plan, device: str, pool_device: str | None) -> bool:
    """Whether a group's device is the pool's (None: there is none), whose name in the spec may be an alias of it."""
    return device == pool_device or (pool_device in plan.devices and plan.devices[pool_device].name == device)


def _torn_ranks(group: ReplicaGroup) -> int:
    """Tensor-parallel groups of ranks that lie on more than one node."""
    size = group.layout.tensor_parallel
    return sum(
        len({slot.node for slot in replica.slots[first : first + size]}) > 1
        for replica in group.placement
        for first in range(0, len(replica.slots), size)
    )


def _memory_fits(plan: Plan) -> list[Check]:
    found = []
    for group in plan.groups:
        budget = group.cache.memory
        parts = (
            budget.weights_bytes
            + budget.activation_bytes
            + budget.context_bytes
            + budget.collective_bytes
            + budget.graph_bytes
            + budget.state_bytes
            + budget.adapter_bytes
            + budget.draft_bytes
            + budget.kv_bytes
        )
        found.append(_check(f"{group.id}: the parts of memory fit", parts, "<=", budget.available_bytes))
        found.append(
            _check(
                f"{group.id}: available memory is on the device",
                budget.available_bytes,
                "<=",
                _device_bytes(plan, group),
            )
        )
        off = _weights_error(plan, group)
        law = f"{group.id}: weights of a device are those of the architecture, to {WEIGHTS_TOLERANCE:.0%}"
        found.append(_check(law, off, "<=", WEIGHTS_TOLERANCE))
        blocks = group.cache.capacity_tokens * budget.kv_bytes_per_token
        found.append(_check(f"{group.id}: KV blocks fit their memory", blocks, "<=", budget.kv_bytes))
    return found


def _weights_error(plan: Plan, group: ReplicaGroup) -> float:
    """How far, as a share, the stated weights of the fullest device are from those of the nearest pipeline stage.

    Infinite where the plan's own config describes no model, or the layout cuts it in a way that it cannot be cut.
    """
    try:
        architecture = load_architecture(plan.architectures.get(group.model, {}), name=group.model)
    except InputError:
        return math.inf
    layout, stated = group.layout, group.cache.memory.weights_bytes
    ranks = layout.tensor_parallel * layout.attention_data_parallel
    if ranks % layout.expert_parallel or sum(layout.pipeline_stages) != len(architecture.layers):
        return math.inf
    return min(abs(stated - expected) / expected for expected in _weights_by_stage(architecture, group))


def _weights_by_stage(architecture: Architecture, group: ReplicaGroup) -> list[float]:
    """Weight bytes of one rank, by pipeline stage, added up tensor by tensor."""
    layout, dtype = group.layout, group.weights_dtype
    ranks = layout.tensor_parallel * layout.attention_data_parallel
    cut = Ranks(layout.tensor_parallel, layout.expert_parallel, ranks // layout.expert_parallel)
    stage_of = [stage for stage, layers in enumerate(layout.pipeline_stages) for _ in range(layers)]
    last = layout.pipeline_parallel - 1
    found = [0.0] * layout.pipeline_parallel
    for tensor in architecture.weights():
        per_element = architecture.weight_bytes_per_element(dtype) if tensor.quantised else max(2.0, dtype.bytes)
        size = tensor.rank_elements(cut) * per_element
        if tensor.expert_axis:
            size *= 1.0 + layout.redundant_experts / tensor.experts
        if tensor.stage == "layer":
            found[stage_of[tensor.layer or 0]] += size
        else:
            found[0 if tensor.stage == "embedding" else last] += size
        is_table = tensor.stage == "embedding" and tensor.shard_axis is not None
        if is_table and architecture.tied_embeddings and last:
            found[last] += size  # the head of the last stage is a copy of the table
    return found


def _device_bytes(plan: Plan, group: ReplicaGroup) -> int:
    """Memory of the device in the group's pool, or of the stage whose budget is stated; 0 where there is no such."""
    sizes = [memory_of(plan, stage.pool) for stage in group.machines]
    stated = group.cache.memory.device_bytes
    return stated if group.stages and stated in sizes else sizes[0]


def _limits_are_consistent(plan: Plan) -> list[Check]:
    found = []
    for group in plan.groups:
        limits = group.limits
        found.append(
            _check(
                f"{group.id}: the longest request fits the cache",
                limits.max_model_len,
                "<=",
                group.cache.capacity_tokens,
            )
        )
        found.append(
            _check(
                f"{group.id}: the token budget reaches all sequences",
                limits.max_num_batched_tokens,
                ">=",
                limits.max_num_seqs,
            )
        )
    return found


def _layouts_are_whole(plan: Plan) -> list[Check]:
    found = []
    for group in plan.groups:
        config = plan.architectures.get(group.model, {})
        layers = config.get("num_hidden_layers")
        if isinstance(layers, int):
            found.append(
                _check(f"{group.id}: pipeline stages hold every layer", sum(group.layout.pipeline_stages), "==", layers)
            )
        heads = config.get("num_attention_heads")
        if isinstance(heads, int):
            found.append(
                _check(
                    f"{group.id}: tensor parallelism divides the heads", heads % group.layout.tensor_parallel, "==", 0
                )
            )
    return found


def _statements_hold(plan: Plan) -> list[Check]:
    found = []
    limits = plan.spec["limits"]
    if limits["budget_usd_per_hour"] is not None and plan.cost.usd_per_hour is not None:
        found.append(_check("limits.budget", plan.cost.usd_per_hour, "<=", limits["budget_usd_per_hour"]))
    for model, most in limits["gpus"].items():
        used = sum(group.layout.gpus * group.replicas for group in plan.groups if group.model == model)
        found.append(_check(f"limits.gpus.{model}", used, "<=", most))
    if limits["utilisation"] is not None:
        for prediction in plan.predictions.groups:
            found.append(
                _check(f"limits.utilisation ({prediction.group})", prediction.utilisation, "<=", limits["utilisation"])
            )
    pools = {pool["name"] for pool in plan.spec["hardware"]["pools"]}
    for group in plan.groups:
        model = plan.spec["models"].get(group.model, {"weights": [], "kv_cache": []})
        allowed = {
            # nothing listed: the checkpoint's own type
            "weights": not model["weights"] or group.weights_dtype.value in model["weights"],
            "kv_cache": not model["kv_cache"] or group.cache.kv_dtype.value in model["kv_cache"],
            "engine": group.engine in plan.spec["choices"]["engine"] or is_stated(plan, group),
            "pool": all(stage.pool in pools for stage in group.machines),
        }
        found += [_check(f"{name} of {group.id} is declared", float(kept), "==", 1.0) for name, kept in allowed.items()]
    for model, choices in plan.spec["choices"]["models"].items():
        groups = [group for group in plan.groups if group.model == model]
        if choices["replicas"]:
            count = sum(group.replicas for group in groups)
            found.append(_check(f"choices.{model}.replicas are kept", float(count in choices["replicas"]), "==", 1.0))
        for group in groups:
            pins = {
                "tensor_parallel": group.layout.tensor_parallel,
                "pipeline_parallel": group.layout.pipeline_parallel,
                "max_num_seqs": group.limits.max_num_seqs,
                "max_num_batched_tokens": group.limits.max_num_batched_tokens,
                "pool": group.pool,
            }
            if group.stages and not choices.get("groups"):  # stated ones stand as they are stated
                del pins["pool"]
                within = {stage.pool for stage in group.stages} <= set(choices.get("stages_over") or ())
                found.append(_check(f"choices.{model}.stages_over is kept by {group.id}", float(within), "==", 1.0))
            for name, value in pins.items():
                if choices[name]:
                    law = f"choices.{model}.{name} is kept by {group.id}"
                    found.append(_check(law, float(value in choices[name]), "==", 1.0))
    return found


def _objectives_are_met(plan: Plan) -> list[Check]:
    found = []
    predictions = {prediction.request_class: prediction for prediction in plan.predictions.classes}
    for traffic in plan.spec["traffic"]:
        slo, prediction = traffic["slo"], predictions.get(traffic["name"])
        if plan.admitted.get(traffic["name"], 1.0) <= 0:
            continue
        found.append(_check(f"{traffic['name']}: is predicted", float(prediction is not None), "==", 1.0))
        if traffic["throughput"] is not None and prediction is not None:
            reached, asked = prediction.tokens_per_s or 0.0, traffic["throughput"]["at_least_tokens_per_s"]
            law = f"{traffic['name']}: throughput (simulated, to {1 - KEEPS_UP:.0%})"
            found.append(_check(law, reached, ">=", KEEPS_UP * asked))
        if slo is None or prediction is None or prediction.basis == "measured":
            continue
        for limit in slo["percentiles"]:
            table = {"ttft": prediction.ttft_s, "tpot": prediction.tpot_s, "e2e": prediction.e2e_s}[limit["metric"]]
            name = f"p{limit['percentile']:g}"
            # Nothing to measure (every request one token long) counts as attained.
            reached = table.get(name, 0.0 if limit["metric"] == "tpot" else math.inf)
            found.append(
                _check(
                    f"{traffic['name']}: {name} {limit['metric'].upper()} (simulated)", reached, "<=", limit["limit_s"]
                )
            )
        if slo["joint"]:
            found.append(
                _check(
                    f"{traffic['name']}: joint attainment (simulated)",
                    prediction.attainment,
                    ">=",
                    slo["attainment"] if slo["attainment"] is not None else 1.0,
                )
            )
    return found


def _fresh_seeds_agree(plan: Plan) -> list[Check]:
    """On traffic that planning did not see, no limit was refuted (`planner/optimize/fresh_seeds.py`)."""
    fresh = plan.certificate.fresh
    if fresh is None:
        return []
    refuted = sum(limit.verdict.startswith("broken") for limit in fresh.limits)
    return [_check("limits refuted on fresh seeds", refuted, "==", 0)]
