"""A plan under a closed loop: so many clients, each of which sends its next request when its last one ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planner.plan_simulation.policies import Policies
from planner.plan_simulation.traffic import trace_folder
from planner.simulate import (
    ClosedLoop,
    DeclaredLoop,
    FleetGroup,
    FleetResult,
    Workload,
    chrome_trace,
    declared_closed_loop,
    result_summary,
    simulate_closed_loop,
    slos_of,
)
from specs.deployment import DeploymentSpec
from specs.document import write_atomically
from specs.errors import InputError
from specs.plan import Plan


def is_closed_loop(plan: Plan) -> bool:
    """Whether clients send the requests of the plan's spec; beside other classes, loops are planned as arrivals."""
    traffic = DeploymentSpec.model_validate(plan.spec).traffic
    loops = [item for item in traffic if item.closed_loop is not None]
    alone = len(traffic) == 1 and len(plan.groups) == 1
    return any(alone or item.arrivals is None for item in loops)


def simulate_clients(
    plan: Plan,
    base_dir: str | Path,
    groups: tuple[FleetGroup, ...],
    policies: Policies,
    options: Mapping[str, object],
    seed: int,
    exact: bool,
    timeline: Path | None,
) -> dict[str, Any]:
    """The summary of `planner.simulate.result_summary` for the counted requests of the loop; without loads of groups.

    `options` and policies that say something which a closed loop has not are refused (`InputError`), as are plans of
    several groups: clients are not split over them.
    """
    _check(groups, policies, options)
    spec = DeploymentSpec.model_validate(plan.spec)
    loop = declared_closed_loop(spec, trace_folder(plan, spec, Path(base_dir)), seed=seed)
    assert loop is not None
    started = time.process_time()
    try:
        run = simulate_closed_loop(
            groups[0].model,
            loop.concurrency,
            loop.prompt_tokens,
            loop.output_tokens,
            warmup=loop.warmup,
            replicas=groups[0].replicas,
            exact=exact,
        )
    except ValueError as error:
        raise InputError(str(error), field="traffic[0]", expected="requests that fit a replica") from None
    cpu_s = time.process_time() - started
    result, load = _as_fleet(spec, loop, run)
    if timeline is not None:
        write_atomically(timeline, chrome_trace(result, load))
    return {
        **result_summary(result, load, slos_of(spec)),
        "closed_loop": {
            "concurrency": loop.concurrency,
            "warmup": loop.warmup,
            "requests_per_s": run.requests_per_s,
            "output_tokens_per_s": run.output_tokens_per_s,
        },
        "energy": None,
        "notes": [],
        "windows": [],
        "simulated_requests": len(loop.prompt_tokens),
        "simulated_s": float(run.sent_s.min()) + run.seconds,
        "cpu_s": cpu_s,
    }


def _check(groups: tuple[FleetGroup, ...], policies: Policies, options: Mapping[str, object]) -> None:
    if len(groups) > 1:
        raise InputError(
            f"the plan has {len(groups)} replica groups",
            field="traffic[0].closed_loop",
            expected="a plan with one group",
        )
    stated = {
        **options,
        "--router": policies.router,
        "--poll": policies.poll_s or None,
        "--fail": policies.faults or None,
    }
    for option, value in stated.items():
        if value is not None:
            raise InputError("does not apply to the clients of a closed loop", field=option, expected="no such option")


def _as_fleet(spec: DeploymentSpec, loop: DeclaredLoop, run: ClosedLoop) -> tuple[FleetResult, Workload]:
    """The counted requests as if they had arrived when they were sent, from the first one on."""
    count = len(run.sent_s)
    nothing = np.zeros(count, np.int64)
    load = Workload(
        (spec.traffic[0].name,),
        nothing,
        np.zeros(count),
        loop.prompt_tokens[loop.warmup :],
        run.output_tokens,
        window_s=run.seconds,
    )
    sent_s = run.sent_s - run.sent_s.min()
    return FleetResult(
        ttft_s=run.ttft_s,
        tpot_s=run.tpot_s,
        e2e_s=run.e2e_s,
        group_index=nothing,
        replica_index=nothing,
        preemptions=nothing,
        rejected=run.refusal > 0,
        refusal=run.refusal,
        groups=(),
        horizon_s=run.seconds,
        end_s=run.seconds,
        events=run.events,
        event_bound_hit=run.event_bound_hit,
        refuted_early=None,
        waiting=(0, 0),
        arrival_s=sent_s,
    ), load
