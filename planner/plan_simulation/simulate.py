"""Simulate a plan as its document stands: step times from the facts it embeds, traffic from its spec or another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.admission import admitted
from planner.candidates.enumerate import widest_limits
from planner.candidates.replica import replica_model as replica_of
from planner.candidates.replica import tokens_per_sequence
from planner.cost.margin import margin_note, margin_of
from planner.cost.power_cap import cap_of
from planner.cost.step import step_times
from planner.cost.step_times import StepTimes
from planner.cost.transfer import host_link
from planner.cost.unlike_stages import StageDevice, together, unlike_step_times
from planner.facts import in_pool
from planner.plan_simulation.clients import is_closed_loop, simulate_clients
from planner.plan_simulation.energy import energy_summary
from planner.plan_simulation.links import with_handoffs
from planner.plan_simulation.policies import PLANNED, Policies, changed_limits, with_policies, without_effect
from planner.plan_simulation.traffic import Drawn, planned_seed, planned_workload
from planner.simulate import (
    FleetGroup,
    ReplicaModel,
    Workload,
    chrome_trace,
    result_summary,
    simulate_fleet,
    slos_of,
)
from planner.stage_devices import stage_devices
from planner.stated.replicas import choices_of
from specs.architecture import load_architecture
from specs.deployment import SLO, DeploymentSpec, TraceFormat
from specs.document import write_atomically
from specs.errors import InputError
from specs.handoffs import check_handoffs
from specs.plan import Plan, ReplicaGroup


def simulate_plan(
    plan: Plan,
    base_dir: str | Path,
    *,
    trace: Path | None = None,
    trace_format: TraceFormat | None = None,
    rate_per_s: float | None = None,
    seconds: float | None = None,
    seed: int | None = None,
    workload: Workload | None = None,
    policies: Policies = PLANNED,
    exact: bool = False,
    timeline: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Serve traffic on the plan's replicas; the summary of `planner.simulate` with what was simulated.

    The traffic is that of `planned_workload`, or `workload` as it is. `policies` replace those of the plan.
    `timeline`: a file that takes a Chrome trace of the requests. `progress` is told the share of requests that have
    arrived. Raises `InputError` as `planned_workload` and `with_policies` do, and where the plan's groups contradict
    themselves or have no link between them.
    """
    check_handoffs(plan)
    planned, plan = plan, with_policies(plan, policies)
    seed = planned_seed(plan) if seed is None else seed
    if workload is None and is_closed_loop(plan):
        options = {"--trace": trace, "--rate": rate_per_s, "--seconds": seconds}
        found = simulate_clients(plan, base_dir, _fleet_groups(plan), policies, options, seed, exact, timeline)
        return {**found, "notes": [*margin_notes(plan), *found["notes"]]}
    if workload is None:
        drawn = planned_workload(
            plan,
            base_dir,
            trace=trace,
            trace_format=trace_format,
            rate_per_s=rate_per_s,
            seconds=seconds,
            seed=seed,
        )
    else:
        drawn = Drawn(DeploymentSpec.model_validate(plan.spec), workload, ())
    drawn = replace(drawn, workload=admitted(drawn.workload, plan.admitted))
    fleet = with_handoffs(plan, _fleet_groups(plan), drawn.workload)
    groups, load = fleet.groups, _in_blocks(drawn.workload, fleet.groups)
    started = time.process_time()
    try:
        result = simulate_fleet(
            groups,
            plan.routes,
            load,
            router=plan.router,
            poll_s=policies.poll_s,
            faults=policies.faults,
            links=fleet.links,
            seed=seed,
            exact=exact,
            progress=progress,
        )
    except ValueError as error:
        raise InputError(str(error), expected="groups, routes and options that fit together") from None
    cpu_s = time.process_time() - started
    if timeline is not None:
        write_atomically(timeline, chrome_trace(result, load, groups))
    return {
        **result_summary(result, load, _slos(drawn), groups=groups),
        "closed_loop": None,
        "energy": energy_summary(plan, result, load),
        "notes": [
            *margin_notes(plan),
            *_let_in(plan),
            *changed_limits(planned, plan),
            *without_effect(plan, load),
            *drawn.notes,
            *fleet.notes,
        ],
        "windows": [item.model_dump(mode="json") for item in drawn.windows],
        "simulated_requests": len(load),
        "simulated_s": result.end_s,
        "cpu_s": cpu_s,
    }


def _slos(drawn: Drawn) -> dict[str, SLO]:
    """The promises to the classes that are simulated."""
    return {name: slo for name, slo in slos_of(drawn.spec).items() if name in drawn.workload.classes}


def _let_in(plan: Plan) -> list[str]:
    return [f"{name}: {share:.1%} of its requests are let in, as planned" for name, share in plan.admitted.items()]


def margin_notes(plan: Plan) -> list[str]:
    """What to say of figures that are simulated at the confidence of the plan's spec; empty without one."""
    confidence = DeploymentSpec.model_validate(plan.spec).limits.confidence
    note = margin_note(plan.engines, confidence)
    return [] if note is None else [note]


def _fleet_groups(plan: Plan) -> tuple[FleetGroup, ...]:
    """The plan's groups, without their roles."""
    groups = []
    for index, group in enumerate(plan.groups):
        try:
            groups.append(FleetGroup(group.id, group.replicas, replica_model(plan, group)))
        except ValueError as error:
            raise InputError(
                str(error), field=f"groups[{index}]", expected="limits and a cache that fit together"
            ) from None
    return tuple(groups)


def replica_model(plan: Plan, group: ReplicaGroup, *, central: bool = False) -> ReplicaModel:
    """One replica of a group, from the architecture, device facts and profile that the plan embeds.

    Step times are those that planning works with: of the widest limits that it tries, longer by the margin of the
    spec's confidence; `central`: as the cost model predicts them.
    """
    spec = DeploymentSpec.model_validate(plan.spec)
    pool, limits = spec.hardware.pool(group.pool), group.limits
    speculation = group.scheduling.speculation
    choices = spec.choices.of(group.model)
    rows, tokens = widest_limits(choices_of(limits) if choices.groups else choices, group.layout, speculation)
    ranks = group.layout.attention_data_parallel
    margin = margin_of(plan.engines[group.engine], None if central else spec.limits.confidence)
    rows = max(rows, ranks * limits.max_num_seqs * tokens_per_sequence(speculation))
    tokens = max(tokens, ranks * limits.max_num_batched_tokens)
    if group.stages:
        times = _over_pools(plan, spec, group, rows, tokens)
        return replica_of(
            times.scaled(margin.steps, margin.first_token), group.layout, limits, group.cache, group.scheduling
        )
    device = in_pool(plan.devices[pool.device], pool, spec.hardware)
    times = step_times(
        load_architecture(plan.architectures[group.model]),
        group.layout,
        group.weights_dtype,
        group.cache.kv_dtype,
        device,
        plan.profiles[pool.device],
        plan.engines[group.engine].at(group.engine_version),
        rows,
        tokens,
        expert_skew=None if group.experts is None else group.experts.skew,
        cap=cap_of(pool, device, plan.power.get(pool.device)),
        adapters=spec.models[group.model].adapters,
    )
    memory = group.cache.memory
    link = host_link(device)
    # a batch crosses the stages one after the other, each over the link of its own device
    host_token_s = group.layout.pipeline_parallel * memory.kv_bytes_per_token / link.reached_bytes_per_s
    times = replace(times, host_token_s=host_token_s).scaled(margin.steps, margin.first_token)
    return replica_of(times, group.layout, limits, group.cache, group.scheduling)


def _over_pools(plan: Plan, spec: DeploymentSpec, group: ReplicaGroup, rows: int, tokens: int) -> StepTimes:
    """Step times of a group whose stages stand in several pools, each by the tables of its own device."""
    devices = _devices_of(plan, spec, group)
    times = unlike_step_times(
        load_architecture(plan.architectures[group.model]),
        group.layout,
        group.weights_dtype,
        group.cache.kv_dtype,
        devices,
        plan.engines[group.engine].at(group.engine_version),
        rows,
        tokens,
        expert_skew=None if group.experts is None else group.experts.skew,
    )
    kv_bytes = group.cache.memory.kv_bytes_per_token
    return together(
        tuple(
            replace(stage, host_token_s=kv_bytes / host_link(on.device).reached_bytes_per_s)
            for stage, on in zip(times.stages, devices, strict=True)
        )
    )


def _devices_of(plan: Plan, spec: DeploymentSpec, group: ReplicaGroup) -> tuple[StageDevice, ...]:
    """On what the stages of a group stand that has them in several pools."""
    pools = [spec.hardware.pool(stage.pool) for stage in group.stages]
    ranks = group.layout.tensor_parallel * group.layout.attention_data_parallel
    return stage_devices(pools, ranks, spec.hardware, plan.devices, plan.profiles, plan.power)


def _in_blocks(workload: Workload, groups: tuple[FleetGroup, ...]) -> Workload:
    """The workload with prefixes in units that are whole KV blocks of every group that caches them."""
    sizes = [group.model.block_size_tokens for group in groups if group.model.prefix_caching]
    if workload.prefixes is None or not sizes:
        return workload
    return replace(workload, prefixes=workload.prefixes.units(math.lcm(workload.prefixes.unit_tokens, *sizes)))
