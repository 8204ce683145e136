"""Commands that plan, explain, simulate and estimate; each imports its room only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capstan.app import (
    AlternativesOption,
    EngineProfileOption,
    FrontierOption,
    JsonOption,
    PlanArgument,
    PlotOption,
    Policy,
    ProfileOption,
    SeedOption,
    SpecArgument,
    Traffic,
    VaryOption,
    app,
    ends_with_code,
)


@app.command(rich_help_panel="Plan", epilog="Example:  capstan plan specs/examples/chat-70b.yaml -o plan.json")
@ends_with_code
def plan(
    spec: SpecArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="where the plan is written")] = Path("plan.json"),
    seed: SeedOption = 0,
    profile: ProfileOption = None,
    engine_profile: EngineProfileOption = None,
    time_limit: Annotated[
        str,
        typer.Option(metavar="TIME", help="then stop improving: the best certified plan so far, with its gap"),
    ] = "2min",
    alternatives: AlternativesOption = 0,
    frontier: FrontierOption = False,
    vary: VaryOption = None,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Choose a plan, certify and simulate it; print the decision and write plan.json."""
    from capstan.commands.answers import Answers
    from capstan.commands.plan import run_plan

    answers = Answers(alternatives=alternatives, frontier=frontier, vary=vary, plot=plot)
    run_plan(spec, output, seed, json, profile, engine_profile, answers, time_limit)


@app.command(
    rich_help_panel="Plan",
    epilog="Example:  capstan schedule specs/examples/day-and-night.yaml -o schedule.json --plans plans/",
)
@ends_with_code
def schedule(
    spec: SpecArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="where the schedule is written")] = Path(
        "schedule.json"
    ),
    plans: Annotated[Path | None, typer.Option(help="folder for each plan as a file", metavar="DIR")] = None,
    seed: SeedOption = 0,
    profile: ProfileOption = None,
    engine_profile: EngineProfileOption = None,
    json: JsonOption = False,
) -> None:
    """Plan every part of a day whose traffic changes, and the cheapest way through it; changes are paid for."""
    from capstan.commands.schedule import run_schedule

    run_schedule(spec, output, plans, seed, json, profile, engine_profile)


@app.command(
    rich_help_panel="Plan",
    epilog="Example:  capstan explain plan.json  # --what-if, --alternatives 3 and --frontier solve again",
)
@ends_with_code
def explain(
    plan: PlanArgument,
    what_if: Annotated[
        bool,
        typer.Option("--what-if", help="solve again with more hardware, more traffic, other SLOs, dearer hardware"),
    ] = False,
    alternatives: AlternativesOption = 0,
    frontier: FrontierOption = False,
    vary: VaryOption = None,
    plot: PlotOption = None,
    json: JsonOption = False,
) -> None:
    """Why this plan: what binds, why each other GPU lost, the nearest misses; what else would change it."""
    from capstan.commands.answers import Answers
    from capstan.commands.explain import run_explain

    run_explain(plan, json, Answers(what_if, alternatives, frontier, vary, plot))


@app.command(rich_help_panel="Plan", epilog="Example:  capstan diff plan.json other.json")
@ends_with_code
def diff(
    old: Annotated[Path, typer.Argument(help="the plan to compare from", metavar="OLD")],
    new: Annotated[Path, typer.Argument(help="the plan to compare to", metavar="NEW")],
    json: JsonOption = False,
) -> None:
    """What differs between two plans, such as those of a spec before and after a change."""
    from capstan.commands.diff import run_diff

    run_diff(old, new, json)


@app.command(
    rich_help_panel="Plan",
    epilog=(
        "Example:  capstan simulate plan.json --rate 25  # a quarter more traffic than chat-70b declares\n\n"
        "capstan simulate plan.json --order srpt --predictor-error 0.5 --router power_of_two --poll 200ms\n\n"
        "capstan simulate plan.json --prefix-caching --host-blocks 20000 --preemption swap\n\n"
        "capstan simulate plan.json --fail group-0:0@60s-3min  # without 3min it never comes back\n\n"
        "capstan simulate plan.json --speculate 4:0.7:2ms --timeline run.json"
    ),
)
@ends_with_code
def simulate(
    plan: PlanArgument,
    traffic: Annotated[
        Path | None,
        Traffic("--traffic", metavar="SPEC", help="the traffic of another spec: sessions, priorities, prefixes, ..."),
    ] = None,
    trace: Annotated[Path | None, Traffic(help="another trace for the plan's traffic (one class)")] = None,
    trace_format: Annotated[
        str | None,
        Traffic("--format", help="of --trace: csv | azure | burstgpt | mooncake | sharegpt; else as the plan's own"),
    ] = None,
    rate: Annotated[float | None, Traffic(help="requests/s that every class is rescaled to, in total")] = None,
    seconds: Annotated[
        float | None, Traffic(help="length of the busiest window that is simulated; else as it was planned")
    ] = None,
    seed: Annotated[int | None, Traffic(min=0, help="another seed of drawn arrivals and lengths")] = None,
    order: Annotated[str | None, Policy(help="fcfs | priority | edf | sjf | srpt | mlfq | vtc")] = None,
    prefill_policy: Annotated[str | None, Policy(help="mixed_chunked | prefill_first | decode_first")] = None,
    preemption: Annotated[str | None, Policy(help="recompute | swap (with --host-blocks)")] = None,
    prefix_caching: Annotated[
        bool | None, Policy("--prefix-caching/--no-prefix-caching", help="reuse prefixes")
    ] = None,
    host_blocks: Annotated[int | None, Policy(help="KV blocks of a replica in host memory")] = None,
    max_waiting_tokens: Annotated[int | None, Policy(help="refuse prompts beyond so many waiting tokens")] = None,
    predictor_error: Annotated[
        float | None, Policy(help="of output lengths, for sjf and srpt: standard deviation of the logarithm")
    ] = None,
    speculate: Annotated[
        str | None, Policy(metavar="K:ACCEPTANCE[:TIME]", help="draft K tokens a step; TIME: that drafting takes")
    ] = None,
    router: Annotated[
        str | None,
        Policy(help="round_robin | least_outstanding | least_kv | power_of_two | prefix_aware | sticky"),
    ] = None,
    poll: Annotated[str | None, Policy(metavar="TIME", help="the router sees loads as of its last poll")] = None,
    fail: Annotated[
        list[str] | None,
        Policy(metavar="GROUP:REPLICA@FROM-UNTIL", help="a replica is down; without UNTIL for good; repeatable"),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="the oracle, step by step in Python: slower, never different")
    ] = False,
    timeline: Annotated[Path | None, typer.Option(help="write the requests as a Chrome trace (JSON)")] = None,
    engine_profile: EngineProfileOption = None,
    json: JsonOption = False,
) -> None:
    """Simulate a plan: percentiles, attainment, utilisation; other traffic, other policies, failures."""
    from capstan.commands.simulate import run_simulate
    from capstan.commands.simulate_policies import policies_of

    policies = policies_of(
        order=order,
        prefill_policy=prefill_policy,
        preemption=preemption,
        prefix_caching=prefix_caching,
        host_blocks=host_blocks,
        max_waiting_tokens=max_waiting_tokens,
        predictor_error=predictor_error,
        speculate=speculate,
        router=router,
        poll=poll,
        fail=fail or [],
    )
    run_simulate(
        plan,
        traffic=traffic,
        trace=trace,
        trace_format=trace_format,
        rate=rate,
        seconds=seconds,
        seed=seed,
        policies=policies,
        exact=exact,
        timeline=timeline,
        json_output=json,
        engine_profile=engine_profile,
    )


@app.command(
    rich_help_panel="Plan",
    epilog=(
        "Examples:\n\n  capstan estimate existing.yaml -o plan.json\n\n"
        "  capstan estimate points.csv -o predicted.csv --explain 1\n\n"
        "  capstan estimate --operators gemm_perf.parquet --device h100_sxm -o predicted.csv"
    ),
)
@ends_with_code
def estimate(
    points: Annotated[
        Path | None,
        typer.Argument(help="SPEC.yaml whose deployment is stated, or a table of deployments: model, gpu, engine, ..."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV to write; plan to write, of a SPEC (default: none)")
    ] = None,
    operators: Annotated[
        Path | None, typer.Option(help="kernel table instead (parquet or CSV): gemm, attention, moe, nccl ...")
    ] = None,
    device: Annotated[str | None, typer.Option(help="GPU of --operators; `capstan catalog devices` lists them")] = None,
    explain: Annotated[
        int | None, typer.Option(help="row of POINTS, or group of SPEC, whose time is shown by operator and phase")
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(
            help="who sends the requests of POINTS: published (default), inferencex or exact; see docs/estimate.md"
        ),
    ] = None,
    profile: ProfileOption = None,
    json: JsonOption = False,
) -> None:
    """Predict what a stated deployment does, or every deployment of a table, or every row of a kernel table."""
    from capstan.commands.estimate import run_estimate_command

    run_estimate_command(points, operators, device, output, json, profile, explain, client)
