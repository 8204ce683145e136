"""From the planner's own terms to the `Plan` document: groups, predictions, cost, certificate, what was discarded."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Literal

import numpy as np

from planner.binding import binding_statements
from planner.candidates.family import Family
from planner.candidates.notes import option_notes
from planner.cost.bound import role_work_s
from planner.cost.energy import grams_co2, grams_co2_per_million_tokens
from planner.cost.latency import borrowed_note, unmeasured_note
from planner.cost.margin import margin_note
from planner.discards import discarded_configurations
from planner.network.arrange import arranged
from planner.optimize.certify import recheck
from planner.optimize.master import Bought, Decision, Master, group_id
from planner.optimize.objectives import gap_of
from planner.optimize.watts import watts_of
from planner.optimize.whole_plan import admitted
from planner.problem import Problem, longest_request
from planner.schedule.slots import changes_over_time
from planner.simulate import BUSIEST_S, FleetResult, Workload, attainment, meets, slos_of
from planner.simulate.model import places_of
from planner.simulate.traffic.window import STAYS, window_s
from planner.throughput import sustained_tokens_per_s, throughput_notes
from specs.catalog import load_power
from specs.deployment import SLO, resolved
from specs.errors import CapstanError
from specs.plan import (
    Certificate,
    ClassPrediction,
    Cost,
    GroupPrediction,
    Interval,
    Plan,
    Predictions,
    ReplicaGroup,
    ReplicaPlacement,
    StageMachine,
)
from specs.profile import DeviceFacts, DeviceProfile

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
FEW_LONGEST = 2.0  # a cache that holds fewer of the longest request than this is small,
FEW_SEATS = 4.0  # as is one that fills with mean requests before one seat of so many is taken


def assemble(problem: Problem, master: Master, decision: Decision, version: str) -> Plan:
    """The plan document of a decision. Raises `CapstanError` when its re-check finds a broken law."""
    plan = certified(arranged(draft(problem, master, decision, version), problem.spec.hardware))
    broken = [check for check in plan.certificate.checks if not check.holds]
    if broken:
        raise CapstanError(
            "the plan failed its own re-check and is not given out: "
            + "; ".join(f"{check.law}: {check.left:g} {check.relation} {check.right:g}" for check in broken)
        )
    return plan


def certified(plan: Plan) -> Plan:
    """The plan with every law of its re-check, whether it holds or not."""
    return plan.model_copy(update={"certificate": plan.certificate.model_copy(update={"checks": recheck(plan)})})


def draft(problem: Problem, master: Master, decision: Decision, version: str) -> Plan:
    """The document of a decision before its nodes are arranged and its laws are checked."""
    with_headroom = problem.declared is not problem.workload
    problem = replace(problem, declared=admitted(problem.declared, decision.served))
    if with_headroom:  # planned with headroom: predictions are of the declared traffic
        decision = replace(
            decision,
            result=master.simulate(
                decision.bought, decision.routes, workload=problem.declared, placement=decision.placement
            ),
        )
    placement = decision.placement
    groups = tuple(
        _group(index, item, placement[group_id(index)], _hands_over_to(item, decision))
        for index, item in enumerate(decision.bought)
    )
    if not decision.priced:
        groups = tuple(group.model_copy(update={"carries": {}}) for group in groups)
    predictions = _predictions(problem, decision)
    cost = _cost(problem, decision, predictions)
    discarded = discarded_configurations(problem, master, decision)
    maximised = problem.spec.objective.sense == "maximise"
    return Plan(
        name=problem.spec.name,
        capstan=version,
        groups=groups,
        routes=decision.routes,
        router=problem.spec.choices.router,
        admitted=dict(decision.served),
        predictions=predictions,
        cost=cost,
        certificate=Certificate(
            objective=str(problem.spec.objective),
            value=decision.value,
            bound=decision.bound,
            gap=gap_of(decision.value, decision.bound, maximised=maximised),
            priced_bound=decision.priced_bound,
            priced_gap=gap_of(decision.value, decision.priced_bound, maximised=maximised),
            solver=decision.solver,
            solver_status=decision.status,
            columns=decision.columns,
            simulations=master.pricer.simulations,
            refuted=decision.refuted,
            checks=(),
            worth=dict(master.template.worth),
            multiple=decision.multiple,
            windows=problem.windows,
            fresh=decision.fresh.evidence if decision.fresh is not None else None,
        ),
        binding=binding_statements(problem, decision, predictions, cost),
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


def _hands_over_to(item: Bought, decision: Decision) -> str | None:
    """Of a prefill group: the decode group that is stated, or the one of its model."""
    if item.role != "prefill":
        return None
    model = item.column.family.model
    decodes = {
        other.column.family.key: group_id(index)
        for index, other in enumerate(decision.bought)
        if other.role == "decode" and other.column.family.model == model
    }
    return decodes.get(item.hands_over_to) or next(iter(decodes.values()))


def _group(
    index: int, item: Bought, placement: tuple[ReplicaPlacement, ...], hands_over_to: str | None
) -> ReplicaGroup:
    family, variant = item.column.family, item.column.variant
    if variant is None:
        raise CapstanError(f"{family.key} was chosen without limits")
    return ReplicaGroup(
        id=group_id(index),
        model=family.model,
        role=item.role,
        hands_over_to=hands_over_to,
        pool=family.pool.name,
        device=family.device.name,
        stages=tuple(
            StageMachine(pool=pool.name, device=stage.device.name)
            for pool, stage in zip(family.stage_pools, family.stage_devices, strict=True)
        ),
        engine=family.engine.name,
        layout=family.layout,
        weights_dtype=family.weights_dtype,
        limits=variant.limits,
        cache=variant.cache,
        scheduling=variant.scheduling,
        experts=family.experts,
        replicas=item.replicas,
        placement=placement,
        carries=dict.fromkeys(item.column.classes, item.column.lower),
    )


def _predictions(problem: Problem, decision: Decision) -> Predictions:
    result, workload = decision.result, problem.declared
    order: dict[str, int] = {"measured": 0, "calibrated": 0, "borrowed": 1}
    used = [source for item in decision.bought for source in _sources(item.column.family)]
    weakest: Literal["measured", "borrowed", "calibrated"] = max(
        (profile.confidence for _, profile in used), key=lambda confidence: order[confidence]
    )
    devices = {device.name: (device, profile) for device, profile in used}
    sources = [borrowed_note(*source) for source in devices.values()]
    for item in decision.bought:
        family = item.column.family
        sources += [unmeasured_note(*source, family.weights_dtype) for source in _sources(family)]
    sources.append(margin_note(problem.facts.engines, problem.spec.limits.confidence))
    notes = [note for note in dict.fromkeys(sources) if note is not None]
    notes += [f"{window.request_class}: {note}" for window in problem.windows for note in window.notes]
    notes += _short_window(problem)
    notes += throughput_notes(problem.spec)
    if changes_over_time(problem.spec):
        notes.append(
            "planned as if all windows were open at once and every rate at its peak; `capstan schedule` plans the day, "
            "and finds the best single plan for it"
        )
    of_groups = _of_groups(problem, decision)
    for index, (item, (own, sent)) in enumerate(zip(decision.bought, of_groups, strict=True)):
        notes += _small_cache(problem, item, index, sent)
        notes += option_notes(sent, item.column.family, group_id(index), index, own)
    notes += decision.notes
    if result.saturated:
        notes.append(_growing_queue(problem, result))
    return Predictions(
        classes=tuple(
            _class_prediction(problem, result.at(places), workload.at(places), name, decision.measured)
            for name, places in zip(workload.classes, workload.places, strict=True)
        ),
        groups=tuple(
            GroupPrediction(
                group=load.group,
                utilisation=_work_share(decision.bought[index], *of_groups[index]),
                busy=result.utilisation(index),
                kv_occupancy_peak=load.blocks_peak / load.num_blocks,
                running_peak=load.running_peak,
                preemptions=load.preemptions,
                prompt_tokens_per_s=load.prompt_tokens_per_s,
                output_tokens_per_s=load.output_tokens_per_s,
                power_w=watts_of(*of_groups[index], index, decision.bought[index].column.family),
            )
            for index, load in enumerate(result.groups)
        ),
        confidence=weakest,
        notes=tuple(notes),
    )


def _sources(family: Family) -> list[tuple[DeviceFacts, DeviceProfile]]:
    """The devices of a family with the profiles that its step times come from."""
    return [(stage.device, stage.profile) for stage in family.stage_devices] or [(family.device, family.profile)]


def _short_window(problem: Problem) -> list[str]:
    """Where so many requests come that fewer minutes than usual were simulated."""
    if window_s(problem.spec, BUSIEST_S) >= BUSIEST_S:
        return []
    seconds = problem.windows[0].end_s - problem.windows[0].start_s
    return [
        f"simulated for {seconds:.0f} s, not {BUSIEST_S:.0f} s: {sum(item.requests for item in problem.windows):,} "
        f"requests come in them, and {STAYS:g} mean stays of the requests that their limits let stay the longest"
    ]


def _of_groups(problem: Problem, decision: Decision) -> list[tuple[FleetResult, Workload]]:
    """What was sent to each group, and what became of it."""
    result, count = decision.result, len(decision.bought)
    if result.decode_group_index is None or not (result.decode_group_index >= 0).any():
        places = places_of(result.group_index, count)
    else:
        places = tuple(np.flatnonzero(result.had(index)) for index in range(count))
    return [(result.at(own), problem.declared.at(own)) for own in places]


def _small_cache(problem: Problem, item: Bought, index: int, sent: Workload) -> list[str]:
    """Warnings where a replica's KV cache holds few requests: the cache, not the seats, then decides what runs."""
    variant = item.column.variant
    if variant is None or len(sent) == 0:
        return []
    ranks = item.column.family.layout.attention_data_parallel
    tokens, seats = ranks * variant.cache.capacity_tokens, ranks * variant.limits.max_num_seqs
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


def _work_share(bought: Bought, result: FleetResult, sent: Workload) -> float:
    """Share of the time of a group's replicas that its requests would take in the best batches."""
    family = bought.column.family
    work_s = role_work_s(
        family.options.role,
        family.times,
        sent.prompt_tokens,
        sent.output_tokens,
        cached_tokens=result.cached_tokens,
        speculation=family.options.speculation,
    )
    return work_s / (bought.replicas * sent.horizon_s)


def _growing_queue(problem: Problem, result: FleetResult) -> str:
    words = f"the queue grows through the window: at its end {result.waiting[1]:,} requests wait for a first token"
    promised = {name: slo for name, slo in slos_of(problem.spec).items() if name in problem.declared.classes}
    misses = meets(result, problem.declared, promised).misses
    return words if misses else f"{words} (no limit on latency is broken by that)"


def _class_prediction(
    problem: Problem, result: FleetResult, workload: Workload, name: str, measured: frozenset[str]
) -> ClassPrediction:
    """Of the requests of one class, which are all that `result` and `workload` hold."""
    slo = next(traffic.slo for traffic in problem.spec.traffic if traffic.name == name) or SLO()
    asked = {limit.percentile for limit in slo.percentiles}
    if slo.attainment is not None:
        asked.add(100.0 * slo.attainment)
    percentiles = sorted({*PERCENTILES, *asked})
    met = attainment(result, workload, name, slo)
    requests = len(workload)

    def table(metric: Literal["ttft", "tpot", "e2e"]) -> dict[str, float]:
        values = {f"p{rank:g}": result.percentile_s(metric, rank) for rank in percentiles}
        return {key: value for key, value in values.items() if math.isfinite(value)}

    return ClassPrediction(
        request_class=name,
        basis="measured" if name in measured else "simulated",
        requests=requests,
        rate_per_s=requests / workload.horizon_s,
        ttft_s=table("ttft"),
        tpot_s=table("tpot"),
        e2e_s=table("e2e"),
        attainment=met.share,
        attainment_interval=Interval(low=met.low, high=met.high),
        tokens_per_s=sustained_tokens_per_s(problem.spec, problem.base_dir, result, workload, name),
    )


def _cost(problem: Problem, decision: Decision, predictions: Predictions) -> Cost:
    usd: float | None = 0.0
    working = rented = 0
    nodes: dict[str, int] = {}
    for pool in problem.spec.hardware.pools:
        used = sum(item.column.family.gpus_in(pool.name) * item.replicas for item in decision.bought)
        if not used:
            continue
        if pool.rent == "node":
            nodes[pool.name] = decision.nodes[pool.name]
            paid = decision.nodes[pool.name] * pool.gpus_per_node
        else:
            nodes[pool.name] = math.ceil(used / pool.gpus_per_node)
            paid = used
        working, rented = working + used, rented + paid
        usd = None if usd is None or pool.usd_per_hour is None else usd + paid * pool.usd_per_hour
    # of the mean traffic that is declared: the busiest window would flatter the price of a token
    let_in = [(window, decision.served.get(window.request_class, 1.0)) for window in problem.windows]
    output = sum((window.mean_output_tokens_per_s or 0.0) * share for window, share in let_in) * 3600
    every = output + sum((window.mean_prompt_tokens_per_s or 0.0) * share for window, share in let_in) * 3600
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
