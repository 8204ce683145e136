"""`capstan`: the commands, their options and examples. Each imports its room only when it runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

import capstan
from capstan.console import guarded

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Plan LLM serving from a declaration: which GPUs, how many, which layout and limits, for traffic and SLOs "
        "that you can state; certified, simulated, exported for the engine you run.\n\n"
        "Start with:  [bold]capstan plan specs/examples/chat-70b.yaml[/bold]  or  "
        "[bold]capstan init -o spec.yaml[/bold]\n\n"
        "Exit codes: 0 done, 1 unexpected failure, 2 the input is wrong, 3 no plan satisfies the spec."
    ),
)

SpecArgument = Annotated[Path, typer.Argument(help="deployment spec (YAML)", metavar="SPEC")]
PlanArgument = Annotated[Path, typer.Argument(help="plan.json written by `capstan plan`", metavar="PLAN")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, nothing else")]
ProfileOption = Annotated[Path | None, typer.Option(help="profile of a device, written by `capstan calibrate`")]
EngineProfileOption = Annotated[
    Path | None, typer.Option(help="of a live server, written by `capstan calibrate --url`", metavar="FILE")
]
SeedOption = Annotated[int, typer.Option(min=0, help="seed of drawn arrivals and lengths")]
AlternativesOption = Annotated[int, typer.Option(metavar="N", help="the N next-best different plans")]
FrontierOption = Annotated[bool, typer.Option("--frontier", help="the price of latency, along a ladder of limits")]
VaryOption = Annotated[
    str | None, typer.Option(metavar="METRIC", help="the frontier of ttft, tpot or e2e alone; else of all limits")
]
PlotOption = Annotated[Path | None, typer.Option(metavar="FILE", help="the frontier as a picture (SVG)")]
Traffic = functools.partial(typer.Option, rich_help_panel="Traffic")
Policy = functools.partial(typer.Option, rich_help_panel="Policies, in place of the plan's")
Live = functools.partial(typer.Option, rich_help_panel="A live server")
Parameters = ParamSpec("Parameters")


def ends_with_code(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """The command with its errors as one message and the documented exit code, before typer has a word in it."""

    @functools.wraps(command)
    def ended(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        code = guarded(lambda: command(*args, **kwargs))
        if code:
            raise typer.Exit(code)

    return ended


def _version(value: bool) -> None:
    if value:
        typer.echo(f"capstan {capstan.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    pass


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


@app.command(rich_help_panel="Deploy", epilog="Example:  capstan export plan.json --to vllm -o deploy/")
@ends_with_code
def export(
    plan: PlanArgument,
    to: Annotated[str, typer.Option("--to", help="vllm | kubernetes")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write", metavar="DIR")],
    force: Annotated[bool, typer.Option("--force", help="write into a folder that capstan did not write")] = False,
    json: JsonOption = False,
) -> None:
    """Write the plan for an engine or a cluster that you run."""
    from capstan.commands.export import run_export

    run_export(plan, to, output, force, json)


@app.command(
    rich_help_panel="Declare",
    epilog="Example:  capstan init -o spec.yaml --model Qwen/Qwen3-32B --device h100-sxm --gpus 8 --rate 10/s",
)
@ends_with_code
def init(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file to write; stdout without it")] = None,
    model: Annotated[str | None, typer.Option(help="catalogue name, or a path to a config.json")] = None,
    device: Annotated[str | None, typer.Option(help="GPU; `capstan catalog devices` lists them")] = None,
    gpus: Annotated[int | None, typer.Option(help="how many of them may be used")] = None,
    price: Annotated[
        str | None, typer.Option(help="per GPU, such as '$2.90/h'; without it the fewest GPUs win")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="requests, such as 5/s")] = None,
    prompt_tokens: Annotated[str | None, typer.Option(help="mean prompt tokens of a request")] = None,
    output_tokens: Annotated[str | None, typer.Option(help="mean output tokens of a request")] = None,
    ttft: Annotated[str | None, typer.Option(help="time to first token that 90 % keep, such as 1s")] = None,
    tpot: Annotated[str | None, typer.Option(help="time per further token that 90 % keep, such as 50ms")] = None,
    engine: Annotated[str | None, typer.Option(help="vllm | sglang | trtllm | capstan")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite the file")] = False,
) -> None:
    """A commented starter spec, by flags; asked at a terminal without any."""
    from capstan.commands.init import run_init

    run_init(output, force, model, device, gpus, price, rate, prompt_tokens, output_tokens, ttft, tpot, engine)


@app.command(rich_help_panel="Declare", epilog="Example:  capstan validate specs/examples/chat-70b.yaml")
@ends_with_code
def validate(spec: SpecArgument, json: JsonOption = False) -> None:
    """Check a spec and show it with all defaults."""
    from capstan.commands.validate import run_validate

    run_validate(spec, json)


@app.command(rich_help_panel="Declare", epilog="Example:  capstan schema deployment > deployment.schema.json")
@ends_with_code
def schema(
    document: Annotated[
        str, typer.Argument(help="deployment | plan | schedule | bundle | measurements | profile | engine | device")
    ] = "deployment",
) -> None:
    """Print the JSON schema of a document, for editors and other programs."""
    from capstan.commands.schema import run_schema

    run_schema(document)


@app.command(rich_help_panel="Declare", epilog="Example:  capstan catalog devices h100-sxm")
@ends_with_code
def catalog(
    kind: Annotated[str, typer.Argument(help="models | devices | nodes | engines")] = "devices",
    name: Annotated[str | None, typer.Argument(help="show one entry with its sources")] = None,
    json: JsonOption = False,
) -> None:
    """The facts that Capstan ships: models, devices, nodes, engines."""
    from capstan.commands.catalog import run_catalog

    run_catalog(kind, name, json)


@app.command(
    rich_help_panel="Run",
    epilog=(
        "Example:  capstan compile compiled.json -o bundle/ --target sm_90,gfx942  "
        "# after: capstan plan specs/examples/chat-70b-compiled.yaml -o compiled.json"
    ),
)
@ends_with_code
def compile(
    plan: PlanArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write", metavar="DIR")],
    target: Annotated[
        list[str] | None, typer.Option(help="sm_80 | sm_90 | gfx942 | cpu ...; default: the plan's devices")
    ] = None,
    group: Annotated[list[str] | None, typer.Option(help="only these replica groups")] = None,
    json: JsonOption = False,
) -> None:
    """Compile the plan's `engine: capstan` groups: programs, Triton kernels, binaries, resources. Needs no GPU."""
    from capstan.commands.compile import run_compile

    run_compile(plan, output, target, group, json)


@app.command(rich_help_panel="Run", epilog="Example:  capstan serve bundle/ --group group-0 --port 8000")
@ends_with_code
def serve(
    bundle: Annotated[Path, typer.Argument(help="folder written by `capstan compile`", metavar="BUNDLE")],
    group: Annotated[str | None, typer.Option(help="replica group; needed where the bundle has several")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on")] = None,
    model: Annotated[Path | None, typer.Option(help="checkpoint folder (config, safetensors, tokenizer)")] = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda")] = "auto",
    drain: Annotated[float, typer.Option(help="seconds that running requests get when stopped")] = 30.0,
) -> None:
    """Serve one replica of a bundle here: the OpenAI protocol, the plan's limits enforced."""
    from capstan.commands.serve import run_serve

    run_serve(bundle, group, host, port, model, device, drain)


@app.command(rich_help_panel="Run", epilog="Example:  capstan up specs/examples/quickstart.yaml --smoke")
@ends_with_code
def up(
    spec: SpecArgument,
    model: Annotated[Path | None, typer.Option(help="your checkpoint folder, in place of the spec's model")] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="port to listen on (default 8000; any free one with --smoke)")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="start, send requests, check them, stop")] = False,
    profile: Annotated[Path | None, typer.Option(help="profile written by `capstan calibrate`")] = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda")] = "auto",
    seed: Annotated[int, typer.Option(help="seed of a model made on the spot")] = 0,
    drain: Annotated[float, typer.Option(help="seconds that running requests get when stopped")] = 30.0,
) -> None:
    """Plan, compile and serve a one-model spec of `engine: capstan` on this machine in one go."""
    from capstan.commands.up import run_up

    run_up(spec, model, host, port, smoke, profile, device, seed, drain)


@app.command(
    rich_help_panel="Plan",
    epilog=(
        "Examples:\n\n  capstan estimate points.csv -o predicted.csv --explain 1\n\n"
        "  capstan estimate --operators gemm_perf.parquet --device h100_sxm -o predicted.csv"
    ),
)
@ends_with_code
def estimate(
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write")],
    points: Annotated[
        Path | None, typer.Argument(help="deployments: model, gpu, engine, layout, isl, osl, concurrency")
    ] = None,
    operators: Annotated[
        Path | None, typer.Option(help="kernel table instead (parquet or CSV): gemm, attention, moe, nccl ...")
    ] = None,
    device: Annotated[str | None, typer.Option(help="GPU of --operators; `capstan catalog devices` lists them")] = None,
    explain: Annotated[int | None, typer.Option(help="row of POINTS whose time is shown by operator and phase")] = None,
    client: Annotated[
        str | None,
        typer.Option(
            help="who sends the requests of POINTS: published (default), inferencex or exact; see docs/estimate.md"
        ),
    ] = None,
    profile: ProfileOption = None,
    json: JsonOption = False,
) -> None:
    """Predict TTFT, TPOT and throughput of every deployment in a table, or every row of a kernel table."""
    from capstan.commands.estimate import run_estimate_command

    run_estimate_command(points, operators, device, output, json, profile, explain, client)


@app.command(
    rich_help_panel="Run",
    epilog=(
        "Examples:\n\n  capstan calibrate  (the GPU here, else the CPU)\n\n"
        "  capstan calibrate --device cuda --seconds 300 --tables tables/ -o profile.json\n\n"
        "  capstan calibrate --from tables/ --device h100-sxm -o profile.json  (needs no GPU)\n\n"
        "  capstan calibrate --url http://HOST:8000 --plan plan.json -o engine.json"
    ),
)
@ends_with_code
def calibrate(
    tables_from: Annotated[
        list[Path] | None,
        typer.Option("--from", help="fit these tables (parquet, CSV or a folder; repeatable); nothing is measured"),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto | cpu | cuda, or the catalogue name of the GPU (auto with --from: as tables say)")
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="profile to write (default: the user's configuration folder)")
    ] = None,
    measurements: Annotated[Path | None, typer.Option(help="also write what was measured (JSON)")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="also write it as kernel tables (CSV) to this folder; GPU")
    ] = None,
    l2: Annotated[str, typer.Option(help="cold | warm: whether repetitions find operands in the cache; GPU")] = "cold",
    seconds: Annotated[float, typer.Option(help="time to measure for; GPU")] = 180.0,
    url: Annotated[
        str | None, Live(help="an OpenAI-compatible server that runs --plan: fit its engine's host times instead")
    ] = None,
    plan: Annotated[Path | None, Live(help="plan that the server was set up by", metavar="PLAN")] = None,
    minutes: Annotated[float, Live(help="length of the designed load; 2 will do for a tiny model")] = 10.0,
    result: Annotated[Path | None, Live(help="fit these measurements again; nothing is sent")] = None,
    group: Annotated[str | None, Live(help="the URL is one replica of this group")] = None,
    model: Annotated[str | None, Live(help="name of the model on the server, where it has several")] = None,
    api: Annotated[str, Live(help="auto | completions | chat")] = "auto",
    api_key_env: Annotated[
        str | None, Live(help="environment variable that holds the key; it is never stored", metavar="NAME")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure this machine's GPU or CPU, a live server, or fit tables: a profile, so that predictions are of it."""
    if url is not None or result is not None:
        from capstan.commands.calibrate_url import run_calibrate_url

        run_calibrate_url(url, plan, result, output, measurements, json, minutes, group, model, api, api_key_env)
        return
    from capstan.commands.calibrate import run_calibrate

    run_calibrate(output, measurements, json, device, tuple(tables_from or ()), tables, l2, seconds)


@app.command(
    rich_help_panel="Run",
    epilog=(
        "Examples:\n\n  capstan verify bundle/ --seconds 60  (served here for the time of the run)\n\n"
        "  capstan verify --url http://HOST:8000 --plan plan.json --scale 0.5 -o measurements.json\n\n"
        "  capstan verify --result benchmarks.json --plan plan.json  (of guidellm or `vllm bench serve`)"
    ),
)
@ends_with_code
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="folder written by `capstan compile`", metavar="BUNDLE")] = None,
    url: Annotated[str | None, typer.Option(help="OpenAI-compatible server that is running")] = None,
    plan: Annotated[Path | None, typer.Option(help="plan that it was set up by", metavar="PLAN")] = None,
    result: Annotated[
        Path | None, typer.Option(help="compare these measurements: of verify, guidellm or `vllm bench serve`")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="where the measurements are written")] = Path(
        "measurements.json"
    ),
    seconds: Annotated[float, Traffic(help="length of the busiest window that is sent")] = 120.0,
    rate: Annotated[float | None, Traffic(help="requests/s that every class is rescaled to, in total")] = None,
    scale: Annotated[float | None, Traffic(help="or: times the declared rate")] = None,
    concurrency: Annotated[int | None, Traffic(help="a closed loop of so many clients in place of the times")] = None,
    traffic: Annotated[Path | None, Traffic(help="another spec, whose traffic is sent instead", metavar="SPEC")] = None,
    seed: Annotated[int | None, Traffic(min=0, help="another seed of drawn arrivals, lengths and prompts")] = None,
    group: Annotated[
        str | None, typer.Option(help="the URL is one replica of this group, not the front of all")
    ] = None,
    model: Annotated[str | None, typer.Option(help="name of the model on the server, where it has several")] = None,
    api: Annotated[str, typer.Option(help="auto | completions | chat")] = "auto",
    api_key_env: Annotated[
        str | None, typer.Option(help="environment variable that holds the key; it is never stored", metavar="NAME")
    ] = None,
    timeout: Annotated[float, typer.Option(help="seconds that one request may take")] = 300.0,
    engine_profile: EngineProfileOption = None,
    weights: Annotated[Path | None, typer.Option(help="checkpoint folder of a BUNDLE that names none")] = None,
    device: Annotated[str, typer.Option(help="of a BUNDLE: auto | cpu | cuda")] = "auto",
    json: JsonOption = False,
) -> None:
    """Send the plan's traffic to a live server: measured TTFT, TPOT and goodput beside the predicted ones."""
    from capstan.commands.verify import VerifyOptions, run_verify

    asked = VerifyOptions(
        output=output,
        group=group,
        rate=rate,
        scale=scale,
        seconds=seconds,
        concurrency=concurrency,
        traffic=traffic,
        seed=seed,
        model=model,
        api=api,
        api_key_env=api_key_env,
        timeout=timeout,
        engine_profile=engine_profile,
        weights=weights,
        device=device,
    )
    run_verify(bundle, url, plan, result, json, asked)


def main() -> None:
    """Run the command line. A reader of stdout that has gone (`capstan --help | head -1`) is no failure."""
    try:
        app()
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # which typer ends with 1
            raise
        sys.exit(0)


if __name__ == "__main__":
    main()
