"""From the planner's own terms to the `Plan` document: groups, predictions, cost, certificate, what was discarded."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Literal

from planner.cost.bound import optimistic_work_s
from planner.cost.energy import grams_co2, grams_co2_per_million_tokens
from planner.cost.latency import borrowed_note, unmeasured_note
from planner.cost.margin import margin_note
from planner.discards import discarded_configurations
from planner.group_power import group_power_w
from planner.network.arrange import arranged
from planner.optimize.certify import recheck
from planner.optimize.master import Bought, Decision, Master, group_id
from planner.optimize.placement import Demand, place
from planner.problem import Problem, longest_request
from planner.simulate import FleetResult, attainment, requirements
from specs.catalog import load_power
from specs.deployment import SLO, resolved
from specs.errors import CapstanError
from specs.plan import (
    Binding,
    Certificate,
    ClassPrediction,
    Cost,
    GroupPrediction,
    Interval,
    Plan,
    Predictions,
    ReplicaGroup,
    ReplicaPlacement,
)

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
NEAR = 0.05  # a limit with less room than this share of itself binds
FEW_LONGEST = 2.0  # a cache that holds fewer of the longest request than this is small,
FEW_SEATS = 4.0  # as is one that fills with mean requests before one seat of so many is taken


def assemble(problem: Problem, master: Master, decision: Decision, version: str) -> Plan:
    """The plan document of a decision. Raises `CapstanError` when its re-check finds a broken law."""
    if problem.declared is not problem.workload:  # planned with headroom: predictions are of the declared traffic
        decision = replace(
            decision, result=master.simulate(decision.bought, decision.routes, workload=problem.declared)
        )
    placement = _placement(problem, decision)
    groups = tuple(_group(index, item, placement[group_id(index)]) for index, item in enumerate(decision.bought))
    predictions = _predictions(problem, decision)
    cost = _cost(problem, decision, predictions)
    discarded = discarded_configurations(problem, master, decision)
    plan = Plan(
        name=problem.spec.name,
        capstan=version,
        groups=groups,
        routes=decision.routes,
        predictions=predictions,
        cost=cost,
        certificate=Certificate(
            objective=str(problem.spec.objective),
            value=decision.value,
            bound=decision.bound,
            gap=_gap(decision.value, decision.bound),
            priced_bound=decision.priced_bound,
            priced_gap=_gap(decision.value, decision.priced_bound),
            solver=decision.solver,
            solver_status=decision.status,
            columns=decision.columns,
            simulations=master.pricer.simulations,
            checks=(),
            windows=problem.windows,
        ),
        binding=_binding(problem, decision, predictions, cost),
        discarded=discarded,
        discarded_counts=dict(sorted(Counter(item.reason for item in discarded).items())),
        spec=resolved(problem.spec),
        traffic_folder=problem.base_dir.as_posix(),
        architectures={name: dict(item.config) for name, item in problem.facts.architectures.items()},
        devices=dict(sorted(problem.facts.devices.items())),
        profiles=dict(sorted(problem.facts.profiles.items())),
        power={name: load_power(facts.name) for name, facts in sorted(problem.facts.devices.items())},
        engines=dict(sorted(problem.facts.engines.items())),
    )
    plan = arranged(plan, problem.spec.hardware)
    checks = recheck(plan)
    broken = [check for check in checks if not check.holds]
    if broken:
        raise CapstanError(
            "the plan failed its own re-check and is not given out: "
            + "; ".join(f"{check.law}: {check.left:g} {check.relation} {check.right:g}" for check in broken)
        )
    certificate = plan.certificate.model_copy(update={"checks": checks})
    return plan.model_copy(update={"certificate": certificate})


def _gap(value: float, bound: float) -> float:
    return max(0.0, (value - bound) / value) if value > 0 else 0.0


def _placement(problem: Problem, decision: Decision) -> dict[str, tuple[ReplicaPlacement, ...]]:
    placed: dict[str, tuple[ReplicaPlacement, ...]] = {}
    for pool in problem.spec.hardware.pools:
        demands = tuple(
            Demand(group_id(index), item.column.family.gpus, item.replicas)
            for index, item in enumerate(decision.bought)
            if item.column.family.pool.name == pool.name
        )
        if not demands:
            continue
        nodes = decision.nodes.get(pool.name, math.ceil(pool.count / pool.gpus_per_node))
        rest = pool.count - (nodes - 1) * pool.gpus_per_node if pool.rent == "gpu" else None
        found = place(demands, nodes, pool.gpus_per_node, rest)
        if found is None:
            raise CapstanError(f"the replicas chosen for pool {pool.name} cannot be placed on {nodes} nodes")
        placed |= found
    return placed


def _group(index: int, item: Bought, placement: tuple[ReplicaPlacement, ...]) -> ReplicaGroup:
    family, variant = item.column.family, item.column.variant
    if variant is None:
        raise CapstanError(f"{family.key} was chosen without limits")
    return ReplicaGroup(
        id=group_id(index),
        model=family.model,
        pool=family.pool.name,
        device=family.device.name,
        engine=family.engine.name,
        layout=family.layout,
        weights_dtype=family.weights_dtype,
        limits=variant.limits,
        cache=variant.cache,
        scheduling=variant.scheduling,
        replicas=item.replicas,
        placement=placement,
    )


def _predictions(problem: Problem, decision: Decision) -> Predictions:
    result, workload = decision.result, problem.declared
    order: dict[str, int] = {"measured": 0, "calibrated": 0, "borrowed": 1}
    used = [item.column.family.profile for item in decision.bought]
    weakest: Literal["measured", "borrowed", "calibrated"] = max(
        (profile.confidence for profile in used), key=lambda confidence: order[confidence]
    )
    devices = {item.column.family.device.name: item.column.family for item in decision.bought}
    sources = [borrowed_note(family.device, family.profile) for family in devices.values()]
    for item in decision.bought:
        family = item.column.family
        sources.append(unmeasured_note(family.device, family.profile, family.weights_dtype))
    sources.append(margin_note(problem.facts.engines, problem.spec.limits.confidence))
    notes = [note for note in dict.fromkeys(sources) if note is not None]
    notes += [f"{window.request_class}: {note}" for window in problem.windows for note in window.notes]
    for index in range(len(decision.bought)):
        notes += _small_cache(problem, decision, index)
    if result.saturated:
        notes.append(
            "the queue grows through the window: at its end "
            f"{result.waiting[1]:,} requests wait for a first token (no limit is broken by that)"
        )
    return Predictions(
        classes=tuple(_class_prediction(problem, result, name) for name in workload.classes),
        groups=tuple(
            GroupPrediction(
                group=load.group,
                utilisation=_work_share(problem, decision, index),
                busy=result.utilisation(index),
                kv_occupancy_peak=load.blocks_peak / load.num_blocks,
                running_peak=load.running_peak,
                preemptions=load.preemptions,
                prompt_tokens_per_s=load.prompt_tokens_per_s,
                output_tokens_per_s=load.output_tokens_per_s,
                power_w=_group_power_w(problem, decision, index),
            )
            for index, load in enumerate(result.groups)
        ),
        confidence=weakest,
        notes=tuple(notes),
    )


def _small_cache(problem: Problem, decision: Decision, index: int) -> list[str]:
    """Warnings where a replica's KV cache holds few requests: the cache, not the seats, then decides what runs."""
    item = decision.bought[index]
    variant = item.column.variant
    sent = problem.declared.select(decision.result.group_index == index)
    if variant is None or len(sent) == 0:
        return []
    tokens, seats = variant.cache.capacity_tokens, variant.limits.max_num_seqs
    lanes = item.column.family.layout.pipeline_parallel
    longest = longest_request(problem.windows, item.column.classes) * lanes
    mean = float((sent.prompt_tokens + sent.output_tokens).mean())
    found = []
    if tokens < FEW_LONGEST * longest:
        found.append(
            f"{group_id(index)}: the KV cache of a replica holds {tokens:,} tokens, {tokens / longest:.1f} times the "
            "longest request: one of them leaves little room to others"
        )
    if tokens < seats / FEW_SEATS * mean:
        found.append(
            f"{group_id(index)}: the KV cache of a replica holds {tokens / mean:.0f} requests of mean length "
            f"({mean:,.0f} tokens), max_num_seqs is {seats}: the cache, not the seats, bounds what runs at once"
        )
    return found


def _group_power_w(problem: Problem, decision: Decision, index: int) -> float:
    """Mean watts of all devices of a group while it serves what was simulated."""
    family = decision.bought[index].column.family
    return group_power_w(
        decision.result,
        problem.declared,
        index,
        family.architecture,
        family.layout,
        family.weights_dtype,
        family.kv_dtype,
        family.device,
        family.profile,
        load_power(family.device.name),
    )


def _work_share(problem: Problem, decision: Decision, index: int) -> float:
    """Share of the time of a group's replicas that its requests would take in the best batches."""
    sent = problem.declared.select(decision.result.group_index == index)
    bought = decision.bought[index]
    work_s = optimistic_work_s(bought.column.family.times, sent.prompt_tokens, sent.output_tokens)
    return work_s / (bought.replicas * problem.declared.horizon_s)


def _class_prediction(problem: Problem, result: FleetResult, name: str) -> ClassPrediction:
    workload = problem.declared
    mask = workload.of_class(name)
    slo = next(traffic.slo for traffic in problem.spec.traffic if traffic.name == name) or SLO()
    asked = {limit.percentile for limit in slo.percentiles}
    if slo.attainment is not None:
        asked.add(100.0 * slo.attainment)
    percentiles = sorted({*PERCENTILES, *asked})
    met = attainment(result, workload, name, slo)
    requests = int(mask.sum())

    def table(metric: Literal["ttft", "tpot", "e2e"]) -> dict[str, float]:
        values = {f"p{rank:g}": result.percentile_s(metric, rank, mask) for rank in percentiles}
        return {key: value for key, value in values.items() if math.isfinite(value)}

    return ClassPrediction(
        request_class=name,
        requests=requests,
        rate_per_s=requests / workload.horizon_s,
        ttft_s=table("ttft"),
        tpot_s=table("tpot"),
        e2e_s=table("e2e"),
        attainment=met.share,
        attainment_interval=Interval(low=met.low, high=met.high),
    )


def _cost(problem: Problem, decision: Decision, predictions: Predictions) -> Cost:
    usd: float | None = 0.0
    working = rented = 0
    nodes: dict[str, int] = {}
    for pool in problem.spec.hardware.pools:
        own = [item for item in decision.bought if item.column.family.pool.name == pool.name]
        if not own:
            continue
        used = sum(item.column.family.gpus * item.replicas for item in own)
        if pool.rent == "node":
            nodes[pool.name] = decision.nodes[pool.name]
            paid = decision.nodes[pool.name] * pool.gpus_per_node
        else:
            nodes[pool.name] = math.ceil(used / pool.gpus_per_node)
            paid = used
        working, rented = working + used, rented + paid
        usd = None if usd is None or pool.usd_per_gpu_hour is None else usd + paid * pool.usd_per_gpu_hour
    # of the mean traffic that is declared: the busiest window would flatter the price of a token
    output = sum(window.mean_output_tokens_per_s or 0.0 for window in problem.windows) * 3600
    every = output + sum(window.mean_prompt_tokens_per_s or 0.0 for window in problem.windows) * 3600
    # watts of the simulated window and what a token takes at its rates, grams where an intensity is declared
    power_w = sum(group.power_w or 0.0 for group in predictions.groups)
    served_output = sum(group.output_tokens_per_s for group in predictions.groups)
    served = served_output + sum(group.prompt_tokens_per_s for group in predictions.groups)
    intensity = problem.spec.hardware.carbon_g_per_kwh
    return Cost(
        usd_per_hour=usd,
        usd_per_million_output_tokens=usd / output * 1e6 if usd is not None and output else None,
        usd_per_million_tokens=usd / every * 1e6 if usd is not None and every else None,
        gpus=working,
        gpus_rented=rented,
        nodes=nodes,
        power_w=power_w,
        joules_per_output_token=power_w / served_output if served_output else None,
        joules_per_token=power_w / served if served else None,
        grams_co2_per_hour=None if intensity is None else float(grams_co2(power_w * 3600.0, intensity)),
        grams_co2_per_million_output_tokens=_grams(power_w, served_output, intensity),
        grams_co2_per_million_tokens=_grams(power_w, served, intensity),
    )


def _grams(power_w: float, tokens_per_s: float, intensity: float | None) -> float | None:
    """Grams of CO2 per million tokens; None where no intensity is declared."""
    return None if intensity is None else grams_co2_per_million_tokens(power_w, tokens_per_s, intensity)


def _binding(problem: Problem, decision: Decision, predictions: Predictions, cost: Cost) -> tuple[Binding, ...]:
    """Statements of the user that leave less than 5 % of room."""
    found = []
    spec, result, workload = problem.spec, decision.result, problem.declared
    for position, traffic in enumerate(spec.traffic):
        if traffic.slo is None:
            continue
        mask = workload.of_class(traffic.name)
        field = f"traffic[{position}] {traffic.name}: slo"
        for limit in traffic.slo.percentiles:
            reached = result.percentile_s(limit.metric, limit.percentile, mask)
            if reached > limit.limit_s * (1 - NEAR):
                found.append(
                    Binding(
                        statement=f"{field}: p{limit.percentile:g} {limit.metric.upper()}",
                        used=f"{reached:.4g} s",
                        limit=f"{limit.limit_s:g} s",
                    )
                )
        if traffic.slo.joint:
            for requirement in requirements(traffic.slo):
                share = attainment(result, workload, traffic.name, traffic.slo).share
                if 1 - share > (1 - requirement.share) * (1 - NEAR):
                    found.append(
                        Binding(
                            statement=f"{field}: {requirement.text}",
                            used=f"{share:.2%}",
                            limit=f"{requirement.share:.2%}",
                        )
                    )
    for position, pool in enumerate(spec.hardware.pools):
        used = sum(
            item.column.family.gpus * item.replicas
            for item in decision.bought
            if item.column.family.pool.name == pool.name
        )
        if used == pool.count:
            found.append(
                Binding(
                    statement=f"hardware.pools[{position}] {pool.name}: count", used=str(used), limit=str(pool.count)
                )
            )
    for model, gpus in sorted(spec.limits.gpus.items()):
        used = sum(i.column.family.gpus * i.replicas for i in decision.bought if i.column.family.model == model)
        if used == gpus:
            found.append(Binding(statement=f"limits.gpus.{model}", used=str(used), limit=str(gpus)))
    budget = spec.limits.budget_usd_per_hour
    if budget is not None and cost.usd_per_hour is not None and cost.usd_per_hour > budget * (1 - NEAR):
        found.append(Binding(statement="limits.budget", used=f"${cost.usd_per_hour:.2f}/h", limit=f"${budget:.2f}/h"))
    stated = spec.limits.utilisation
    for group in predictions.groups:
        if stated is not None and group.utilisation > stated * (1 - NEAR):
            found.append(
                Binding(
                    statement=f"limits.utilisation ({group.group})",
                    used=f"{group.utilisation:.1%}",
                    limit=f"{stated:.0%}",
                )
            )
    return tuple(found)
