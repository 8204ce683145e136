"""The application that commands are added to, the options that several share, and how commands end."""

from __future__ import annotations

import functools
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
