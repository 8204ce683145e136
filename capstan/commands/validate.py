"""`capstan validate`: check a spec with everything it names, and show it with all defaults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstan.console import limit_text, out, print_json, progress_line, table, warn
from capstan.input_files import at_its_line, read_spec, warn_of_quantised_names

if TYPE_CHECKING:
    from rich.table import Table

    from planner.problem import Problem
    from specs.deployment import SLO, DeploymentSpec, LengthSpec, TrafficClass


def run_validate(spec: Path, json_output: bool) -> None:
    """Check the file and all that `capstan plan` checks before it plans; print the declaration with its defaults.

    Models, devices and traces are loaded, the traffic is drawn, the configurations are enumerated. `InputError` where
    something is wrong; `NotHonouredError` where the spec declares what this version does not honour. A model that boots
    on nothing declared is warned of: the spec is valid, but has no plan. In the JSON, null is what is not declared.
    """
    from planner.problem import pose

    loaded = read_spec(spec)
    with progress_line("checking"), at_its_line(loaded):
        problem = pose(loaded.spec, loaded.base_dir)
    document = in_effect(problem)
    warn_of_quantised_names(loaded.spec, {name: item.config for name, item in problem.facts.architectures.items()})
    booting = Counter(family.model for family in (*problem.families, *(item.family for item in problem.stated)))
    for name in loaded.spec.models:
        if not booting[name]:
            warn(f"models.{name} boots on none of the declared devices; `capstan plan {spec}` says why")
    if json_output:
        print_json(document)
        return
    _print_yaml(_declared(document))
    console = out()
    console.print()
    for part in _summary(loaded.spec, booting):
        console.print(part)
        console.print()
    console.print(f"[green]valid[/green]: {loaded.spec.objective}; every statement is honoured")


def in_effect(problem: Problem) -> dict[str, Any]:
    """The declaration in plain JSON types with every default written out, those that models and traffic decide too."""
    from planner.candidates.enumerate import model_length
    from planner.problem import longest_request
    from specs.deployment import resolved

    models = {}
    for name, model in problem.spec.models.items():
        architecture = problem.facts.architectures[name]
        longest = longest_request(problem.windows, problem.classes_of[name])
        models[name] = model.model_copy(
            update={
                "weights": model.weights or (architecture.native_weights_dtype,),
                "max_context_tokens": model_length(name, model, architecture, longest),
            }
        )
    return resolved(problem.spec.model_copy(update={"models": models}))


def _declared(value: Any) -> Any:
    """`value` without fields that hold nothing: what is not declared needs no line."""
    if isinstance(value, dict):
        kept = {name: _declared(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item is not None and item != {} and item != []}
    return [_declared(item) for item in value] if isinstance(value, list) else value


def _print_yaml(document: dict[str, object]) -> None:
    import yaml

    console = out()
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
    if not console.is_terminal:
        console.out(text, end="", highlight=False)
        return
    from rich.syntax import Syntax

    console.print(Syntax(text.rstrip(), "yaml", theme="ansi_dark", background_color="default"))


def _summary(spec: DeploymentSpec, booting: Mapping[str, int]) -> Iterator[Table]:
    right = ("GPUs", "nodes", "price")
    pools = table("may be used", ("pool", "device", "GPUs", "nodes", "rent", "price"), right=right)
    for pool in spec.hardware.pools:
        price = "-" if pool.usd_per_gpu_hour is None else f"${pool.usd_per_gpu_hour:,.2f}/h"
        pools.add_row(pool.name, pool.device, str(pool.count), str(pool.nodes), pool.rent, price)
    yield pools
    models = table("may run on it", ("model", "architecture", "configurations"), right=("configurations",))
    for name, model in spec.models.items():
        architecture = model.architecture if isinstance(model.architecture, str) else "inline"
        models.add_row(name, architecture, str(booting[name]))
    yield models
    traffic = table("must be served", ("class", "model", "requests", "prompt", "output", "limits"))
    for item in spec.traffic:
        prompt, output = (_length(length) for length in (item.prompt_tokens, item.output_tokens))
        limits = slo_in_words(item.slo) if item.slo else "-"
        traffic.add_row(item.name, item.model, _requests(item), prompt, output, limits)
    yield traffic


def _requests(item: TrafficClass) -> str:
    if item.trace is not None:
        rate = item.trace.rate_per_s
        return f"{item.trace.format} trace, {f'at {rate:g}/s' if rate else 'as recorded'}"
    if item.sessions is not None:
        return f"{item.sessions.rate_per_s:g}/s sessions of {item.sessions.turns_mean:g} turns"
    if item.arrivals is None:
        return "-"
    swing = f", cv {item.arrivals.cv:g}" if item.arrivals.process == "gamma" else ""
    if item.arrivals.diurnal is not None:
        swing = f", peak {item.arrivals.rate_per_s * item.arrivals.diurnal.peak_to_mean:g}/s"
    return f"{item.arrivals.rate_per_s:g}/s {item.arrivals.process}{swing}"


def _length(length: LengthSpec | None) -> str:
    if length is None:
        return "recorded"
    if length.kind == "fixed":
        return f"{length.tokens:,}"
    if length.kind == "mean":
        return f"mean {length.mean_tokens:,.0f}" + (f", max {length.max_tokens:,}" if length.max_tokens else "")
    if length.kind == "lognormal":
        return f"mean {length.mean_tokens:,.0f}, p99 {length.p99_tokens:,.0f}"
    if length.kind == "uniform":
        return f"{length.low_tokens:,} to {length.high_tokens:,}"
    return "histogram"


def slo_in_words(slo: SLO) -> str:
    """`p90 TTFT <= 1 s, p90 TPOT <= 50 ms`, or `99% of requests: TTFT <= 300 ms, E2E <= 1.5 s`."""
    if slo.joint:
        limits = ", ".join(f"{metric.upper()} <= {limit_text(limit)}" for metric, limit in slo.joint.items())
        return f"{(slo.attainment or 0) * 100:g}% of requests: {limits}"
    return ", ".join(f"p{p.percentile:g} {p.metric.upper()} <= {limit_text(p.limit_s)}" for p in slo.percentiles)
