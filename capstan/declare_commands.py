"""Commands around the documents: exports, starter specs, checks, schemas, the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capstan.app import (
    JsonOption,
    PlanArgument,
    SpecArgument,
    app,
    ends_with_code,
)


@app.command(rich_help_panel="Deploy", epilog="Example:  capstan export plan.json --to vllm -o deploy/")
@ends_with_code
def export(
    plan: PlanArgument,
    to: Annotated[str, typer.Option("--to", help="vllm | sglang | kubernetes")],
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
