"""`capstan plan`: choose and certify a plan, print the decision, write plan.json."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import capstan
from capstan.commands.answers import Answers
from capstan.console import count_text, facts, limit_text, out, print_json, progress_line, seconds_text, table
from capstan.input_files import at_its_line, read_spec, refuse_unwritable, warn_of_quantised_names
from specs.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from planner.answers.resolve import Solved
    from specs.deployment import SLO, DeploymentSpec
    from specs.plan import ClassPrediction, Cost, FreshSeeds, GroupPrediction, Plan, ReplicaGroup

SHOWN = ("p50", "p90", "p99")
MOST_COLUMNS, MOST_CLASSES, MOST_ROWS = 5, 12, 40  # shown of groups and classes
Metrics = tuple[tuple[str, str, dict[str, float]], ...]  # field of an SLO, what people call it, percentiles in seconds


def run_plan(
    spec: Path,
    output: Path,
    seed: int,
    json_output: bool,
    profile: Path | None = None,
    engine_profile: Path | None = None,
    answers: Answers | None = None,
    time_limit: str | None = None,
) -> None:
    """Plan `spec` and write the plan to `output`; the decision as a table, or the plan itself as JSON on stdout.

    With `answers` to further questions, the JSON is an object of the plan and of each answer. `InputError` (exit 2) for
    wrong input, `NoPlanError` (exit 3) where nothing satisfies the spec; then nothing is written.
    """
    refuse_unwritable(output)
    answers = answers or Answers()
    answers.check()
    if answers.asked:
        _refuse_stated(spec)
    started = time.perf_counter()
    plan, found = plan_and_search(spec, seed, profile, engine_profile, _time_limit_s(time_limit))
    # relative to the plan, so that both may be moved together and the bytes do not depend on the current folder
    folder = os.path.relpath(spec.resolve().parent, output.resolve().parent)
    plan = plan.model_copy(update={"traffic_folder": Path(folder).as_posix()})
    plan.write(output)
    answers.find(found)
    if json_output:
        document = plan.model_dump(mode="json")
        print_json({"plan": document, **answers.json()} if answers.asked else document)
        return
    print_decision(plan)
    answers.print()
    console = out()
    simulations = count_text(plan.certificate.simulations, "simulation")
    console.print(f"wrote {output}  ({simulations}, {time.perf_counter() - started:.1f} s)", markup=False)
    console.print(f"next: capstan explain {output}", markup=False)
    engines = {group.engine for group in plan.groups}
    if engines <= {"vllm", "sglang"}:
        to = engines.pop() if len(engines) == 1 else "kubernetes"
        console.print(f"      capstan export {output} --to {to} -o deploy/", markup=False)


def _refuse_stated(spec: Path) -> None:
    """`InputError` where the replicas of a model are stated: no other plans are looked for."""
    from specs.deployment.stated import refuse_stated

    loaded = read_spec(spec)
    with at_its_line(loaded):
        refuse_stated(loaded.spec, "this question")


def _time_limit_s(written: str | None) -> float | None:
    """Seconds of `1s`, `500ms`, `2min`. `InputError` otherwise."""
    from specs.quantities import parse_seconds

    if written is None:
        return None
    try:
        return parse_seconds(written)
    except InputError as error:
        raise InputError(error.message, field="--time-limit", expected="a time such as 10s") from None


def planned(spec: Path, seed: int = 0, profile: Path | None = None, engine_profile: Path | None = None) -> Plan:
    """The plan of a spec file, as `plan_and_search` makes it."""
    return plan_and_search(spec, seed, profile, engine_profile)[0]


def plan_and_search(
    spec: Path,
    seed: int = 0,
    profile: Path | None = None,
    engine_profile: Path | None = None,
    time_limit_s: float | None = None,
) -> tuple[Plan, Solved]:
    """The plan of a spec file and the search behind it; errors carry the line of the statement they are about.

    `profile`, `engine_profile`: what `capstan calibrate` wrote, in the place of the catalogue's for its device and
    its engine.
    """
    from capstan.commands.machine import machine_of_profile, with_engine
    from planner import plan as planner
    from specs.compilable import refuse_uncompilable

    loaded = read_spec(spec)
    machine = None if profile is None else machine_of_profile(profile, loaded.spec)
    if engine_profile is not None:
        machine = with_engine(machine, engine_profile, loaded.spec)
    with progress_line("planning") as progress, at_its_line(loaded), uncollected():
        refuse_uncompilable(loaded.spec, loaded.base_dir)
        plan, found = planner.plan_and_search(
            loaded.spec,
            loaded.base_dir,
            seed=seed,
            progress=progress,
            version=capstan.__version__,
            machine=machine,
            time_limit_s=time_limit_s,
        )
    warn_of_quantised_names(loaded.spec, plan.architectures)
    return plan, found


@contextmanager
def uncollected() -> Iterator[None]:
    """No cyclic garbage collection: planning makes many objects and few cycles; looking for them takes 7 % of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def print_decision(plan: Plan) -> None:
    """What to run, what it will do, what it costs, how good it is proven to be."""
    console = out()
    console.print(f"\n{plan.name}: {plan.certificate.objective}\n", markup=False, style="bold")
    for part in (groups_table(plan), classes_table(plan), facts(list(summary(plan)))):
        console.print(part)
        console.print()


def groups_table(plan: Plan) -> Table:
    """One column a replica group, one row a figure; one row a group where there are many."""
    if len(plan.groups) > MOST_COLUMNS:
        return _many_groups(plan)
    made = table("what to run", ["", *(group.id for group in plan.groups)])
    loads = {load.group: load for load in plan.predictions.groups}
    rows: dict[str, list[str]] = {}
    for group in plan.groups:
        for name, value in _group_rows(plan, group, loads[group.id]):
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        made.add_row(name, *values)
    return made


def _many_groups(plan: Plan) -> Table:
    from planner.layout_words import group_options, layout_words, pools_words

    made = table("what to run", ("group", "model", "replicas", "on", "weights, KV", "utilisation"))
    loads = {load.group: load for load in plan.predictions.groups}
    for group in plan.groups[:MOST_ROWS]:
        role = "" if group.role == "unified" else f"{group.role} "
        options = "".join(f", {option}" for option in group_options(group))
        made.add_row(
            group.id,
            group.model,
            f"{group.replicas} x {role}{layout_words(group.layout)}{options}",
            pools_words(group),
            f"{group.weights_dtype}, {group.cache.kv_dtype}",
            f"{loads[group.id].utilisation:.0%}",
        )
    _rest(made, len(plan.groups), "groups")
    return made


def _rest(made: Table, count: int, nouns: str) -> None:
    """A last row that says how many are left out."""
    if count > MOST_ROWS:
        made.add_row(f"and {count - MOST_ROWS:,} {nouns} more in the plan", *("" for _ in made.columns[1:]))


def _group_rows(plan: Plan, group: ReplicaGroup, load: GroupPrediction) -> Iterator[tuple[str, str]]:
    from planner.layout_words import group_options, layout_words, stages_words

    layout, limits, cache = group.layout, group.limits, group.cache
    cut = stages_words(group) or f"{', '.join(map(str, layout.pipeline_stages))} layers"
    stages = f", stages of {cut}" if layout.pipeline_parallel > 1 else ""
    yield "model", group.model
    if len(plan.spec["traffic"]) > 1:
        yield "requests", _shares(plan, group.id)
    if any(other.role != "unified" for other in plan.groups):
        yield "role", group.role if group.hands_over_to is None else f"{group.role}, for {group.hands_over_to}"
    yield "engine", group.engine
    yield "hardware", " + ".join(_hardware(group))
    yield "replicas", f"{group.replicas} of {count_text(layout.gpus, _noun(plan, group))}"
    yield "layout", layout_words(layout, always=("TP", "PP"), between=", ") + stages
    if any(group_options(other) for other in plan.groups):
        yield "options", ", ".join(group_options(group)) or "-"
    yield "weights", str(group.weights_dtype)
    yield "KV cache", f"{cache.kv_dtype}, {cache.num_blocks:,} blocks of {cache.block_size_tokens}"
    yield "max sequences", f"{limits.max_num_seqs:,}"
    yield "token budget", f"{limits.max_num_batched_tokens:,}"
    yield "max length", f"{limits.max_model_len:,}"
    yield "utilisation", f"{load.utilisation:.0%} of the best batches' capacity"
    yield "at the peak", f"{count_text(load.running_peak, 'sequence')}, {load.kv_occupancy_peak:.0%} of the blocks"
    yield "preemptions", f"{load.preemptions:,}"


def _hardware(group: ReplicaGroup) -> Iterator[str]:
    """`4 x l40s on 1 node of new`, for each pool that the group takes devices of."""
    devices = {stage.pool: stage.device for stage in group.machines}
    for pool, gpus in group.gpus_by_pool.items():
        nodes = {slot.node for replica in group.placement for name, slot in group.places(replica) if name == pool}
        yield f"{gpus * group.replicas} x {devices[pool]} on {count_text(len(nodes), 'node')} of {pool}"


def _shares(plan: Plan, group_id: str) -> str:
    own = [route for route in plan.routes if route.group == group_id]
    return ", ".join(f"{route.share:.0%} of {route.request_class}" for route in own) or "-"


def _noun(plan: Plan, group: ReplicaGroup) -> str:
    """GPU, or CPU where the pool's device is one."""
    pool = next(pool for pool in plan.spec["hardware"]["pools"] if pool["name"] == group.pool)
    return "CPU" if plan.devices[pool["device"]].vendor == "cpu" else "GPU"


def classes_table(plan: Plan) -> Table:
    """Per request class: percentiles, what was reached of each limit, and the attainment with its 95 % interval.

    Of many classes those that meet their limits for the fewest requests.
    """
    if len(plan.predictions.classes) > MOST_CLASSES:
        return _many_classes(plan)
    made = table("what it will do (simulated)", ("class", "metric", *SHOWN, "reached of promised"), right=SHOWN)
    slos = {traffic.name: traffic.slo for traffic in embedded_spec(plan).traffic}
    for prediction in plan.predictions.classes:
        slo = slos[prediction.request_class]
        first = (prediction.request_class, f"{prediction.rate_per_s:.3g}/s", "")
        for label, (metric, name, values) in zip(first, metrics_of(prediction), strict=True):
            shown = (seconds_text(values.get(rank)) for rank in SHOWN)
            made.add_row(label, name, *shown, "\n".join(_limits(slo, metric, values)))
        promise = f" of {100 * slo.attainment:g}%" if slo is not None and slo.attainment is not None else ""
        interval = prediction.attainment_interval
        met = f"{prediction.attainment:.2%}{promise}\n({interval.low:.2%} to {interval.high:.2%})"
        if slo is None:
            met = _work(plan, prediction)
        made.add_row("", "all limits" if slo is not None else "throughput", *("" for _ in SHOWN), met, end_section=True)
    return made


def _work(plan: Plan, prediction: ClassPrediction) -> str:
    """What a class without latency limits is promised, and what is reached of it."""
    traffic = next(item for item in embedded_spec(plan).traffic if item.name == prediction.request_class)
    if traffic.throughput is None or prediction.tokens_per_s is None:
        return "best effort"
    return f"{prediction.tokens_per_s:,.0f} of {traffic.throughput.at_least_tokens_per_s:,.0f} tokens/s"


def _many_classes(plan: Plan) -> Table:
    made = table("what it will do (simulated)", ("class", "rate", "p90 TTFT", "p90 TPOT", "all limits"))
    ranked = sorted(plan.predictions.classes, key=lambda item: (item.attainment, item.request_class))
    for item in ranked[:MOST_ROWS]:
        made.add_row(
            item.request_class,
            f"{item.rate_per_s:.3g}/s",
            seconds_text(item.ttft_s.get("p90")),
            seconds_text(item.tpot_s.get("p90")),
            f"{item.attainment:.2%}",
        )
    _rest(made, len(ranked), "classes")
    return made


def embedded_spec(plan: Plan) -> DeploymentSpec:
    """The spec that the plan was made for."""
    from specs.deployment import DeploymentSpec

    return DeploymentSpec.model_validate(plan.spec)


def metrics_of(prediction: ClassPrediction) -> Metrics:
    return (
        ("ttft", "TTFT", prediction.ttft_s),
        ("tpot", "TPOT", prediction.tpot_s),
        ("e2e", "end to end", prediction.e2e_s),
    )


def _limits(slo: SLO | None, metric: str, values: dict[str, float]) -> Iterator[str]:
    """Per limit of one metric: what the asked percentile reached, of what was promised."""
    if slo is None:
        return
    for limit in slo.percentiles:
        if limit.metric == metric:
            rank = f"p{limit.percentile:g}"
            yield f"{rank}: {seconds_text(values.get(rank))} of {limit_text(limit.limit_s)}"
    for name, seconds in slo.joint.items():
        if name == metric:
            yield f"within {limit_text(seconds)}"


def summary(plan: Plan) -> Iterator[tuple[str, str]]:
    """Label and sentence: hardware, cost, throughput, proof, what was simulated, confidence, what binds."""
    cost, certificate = plan.cost, plan.certificate
    nouns = {_noun(plan, group) for group in plan.groups}
    noun = nouns.pop() if len(nouns) == 1 else "device"
    nodes = ", ".join(f"{count_text(count, 'node')} of {pool}" for pool, count in cost.nodes.items())
    idle = f", {cost.gpus_rented - cost.gpus} of them idle" if cost.gpus_rented > cost.gpus else ""
    yield "hardware", f"{count_text(cost.gpus_rented, noun)} on {nodes}{idle}"
    yield "energy", "; ".join(_energy(cost))
    if cost.usd_per_hour is not None:
        each = f"${cost.usd_per_hour:,.2f}/h"
        if cost.usd_per_million_tokens is not None and cost.usd_per_million_output_tokens is not None:
            each += (
                f"; ${cost.usd_per_million_tokens:.3f} per million tokens, "
                f"${cost.usd_per_million_output_tokens:.2f} per million output tokens, at the mean of the traffic"
            )
        yield "cost", each
    prompt = sum(group.prompt_tokens_per_s for group in plan.predictions.groups)
    output = sum(group.output_tokens_per_s for group in plan.predictions.groups)
    yield "throughput", f"{prompt:,.0f} prompt and {output:,.0f} output tokens/s (simulated)"
    yield from _proof(plan, noun)
    for window in certificate.windows[:MOST_CLASSES]:
        yield (
            "simulated",
            f"{window.request_class}: {count_text(window.requests, 'request')}, "
            f"{window.start_s:.0f} to {window.end_s:.0f} s of {window.source}",
        )
    if len(certificate.windows) > MOST_CLASSES:
        requests = sum(window.requests for window in certificate.windows)
        yield "", f"and {len(certificate.windows) - MOST_CLASSES} classes more: {requests:,} requests in all"
    if certificate.fresh is not None and certificate.fresh.limits:
        yield "fresh seeds", _fresh_text(certificate.fresh)
    yield "confidence", f"step costs predicted, fit {plan.predictions.confidence}{_errors_text(plan)}"
    for note in plan.predictions.notes:
        yield "", note
    for binding in plan.binding:
        yield "binding", f"{binding.statement}: {binding.used} of {binding.limit}"


def _energy(cost: Cost) -> Iterator[str]:
    """Watts of the devices, joules of a token, grams where the spec declares an intensity."""
    yield f"{cost.power_w / 1000:.1f} kW (predicted, devices only)"
    if cost.joules_per_token is not None and cost.joules_per_output_token is not None:
        yield f"{cost.joules_per_token:.2g} J per token, {cost.joules_per_output_token:.2g} J per output token"
    if cost.grams_co2_per_hour is not None and cost.grams_co2_per_million_tokens is not None:
        grams = cost.grams_co2_per_million_tokens
        yield f"{cost.grams_co2_per_hour / 1000:,.2f} kg CO2/h, {grams:,.0f} g per million tokens"


def _proof(plan: Plan, noun: str) -> Iterator[tuple[str, str]]:
    from planner.amounts import amount as amount_text
    from planner.explain import refuted_words, stated_words

    certificate = plan.certificate

    def amount(value: float) -> str:
        return amount_text(plan.spec["objective"]["quantity"], value, noun)

    beyond = "above" if plan.spec["objective"]["sense"] == "maximise" else "below"
    holding = sum(check.holds for check in certificate.checks)
    if certificate.is_stated:
        yield "proof", stated_words(certificate, amount(certificate.bound), beyond)
        yield "", f"{holding} of {len(certificate.checks)} laws hold in the re-check"
        return
    yield (
        "proof",
        f"gap {certificate.priced_gap:.1%}: no mix of the {count_text(certificate.columns, 'configuration')} is "
        f"{beyond} {amount(certificate.priced_bound)} at the loads that simulation allows{refuted_words(certificate)}",
    )
    yield (
        "",
        f"gap {certificate.gap:.1%}: none is {beyond} {amount(certificate.bound)} under this cost model, even if "
        "nothing ever queued",
    )
    yield (
        "",
        f"{certificate.solver}: {certificate.solver_status}; {holding} of {len(certificate.checks)} laws hold in the "
        "re-check without it",
    )


def _fresh_text(fresh: FreshSeeds) -> str:
    """What the sequential test on unseen traffic found."""
    verdicts = [limit.verdict for limit in fresh.limits]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    return (
        f"{counts} of {count_text(len(verdicts), 'limit')} on {fresh.requests:,} requests of "
        f"{count_text(len(fresh.seeds), 'other seed')} (sequential test, errors of {fresh.error:.0%})"
    )


def _errors_text(plan: Plan) -> str:
    """Median errors of single kernels on rows that no fit saw, over the families of kernels; of borrowed ones nothing
    is known."""
    from planner.cost.latency import kernel_errors

    found = []
    pools = {pool["name"]: pool["device"] for pool in plan.spec["hardware"]["pools"]}
    for stage in dict.fromkeys(stage for group in plan.groups for stage in group.machines):
        device = pools[stage.pool]
        errors = kernel_errors(plan.devices[device], plan.profiles[device])
        if not errors:
            found.append(f"{stage.device} unknown")
            continue
        low, high = min(errors.values()), max(errors.values())
        found.append(f"{stage.device} {low:.0%}" + (f" to {high:.0%}" if f"{high:.0%}" != f"{low:.0%}" else ""))
    if not found:
        return ""
    return "; median error of single kernels, by family, on held-out rows: " + ", ".join(dict.fromkeys(found))
