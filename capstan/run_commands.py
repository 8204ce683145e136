"""Commands that compile, serve, calibrate and verify; each imports its room only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capstan.app import (
    EngineProfileOption,
    JsonOption,
    Live,
    PlanArgument,
    SpecArgument,
    Traffic,
    app,
    ends_with_code,
)


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
