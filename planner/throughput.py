"""Classes that state a rate of work instead of latencies: how they are planned for, priced and judged.

`throughput: {at_least: T}` asks for T prompt and output tokens per second. Requests that come by themselves must offer
that much. A closed loop sends as fast as it is answered, so it is planned for as Poisson arrivals of just T tokens/s,
and its clients bound what may be in flight: by Little's law they carry T tokens/s only while requests take no longer
than clients / (requests/s) on average.

A replica's price is that of a loop that keeps it full (or has its part of the clients), tokens/s in the steady state
over those asked for. A whole plan must keep up: after a quarter of the window, requests must be finished as fast as
they come, `KEEPS_UP` of their tokens at least, as a window ends with some in flight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planner.simulate import FleetResult, ReplicaModel, Workload, simulate_closed_loop
from planner.simulate.model import IntArray
from planner.simulate.traffic.declared import class_generator
from planner.simulate.traffic.lengths import at_field, draw_request_lengths
from specs.deployment import ArrivalSpec, DeploymentSpec, ThroughputSpec, TrafficClass
from specs.errors import InputError
from specs.traffic import read_trace

if TYPE_CHECKING:
    from planner.optimize.whole_plan import WholePlan

KEEPS_UP = 0.95
WARM_UP = 0.25  # of a window
LENGTHS = 20_000  # drawn for the mean tokens of a request
ROUNDS, FEWEST = 4, 500  # requests of each client that are counted, and of all of them, at least
MOST_COUNTED = 8_000
_LENGTHS_PURPOSE = 2  # of the class's generator


@dataclass(frozen=True)
class Throughput:
    """What one class states."""

    tokens_per_s: float  # prompt and output
    offered_per_s: float  # tokens that arrive, on average
    clients: int | None = None  # requests in flight, at most; None: they come by themselves


def with_arrivals(spec: DeploymentSpec, base_dir: str | Path) -> DeploymentSpec:
    """The declaration with an arrival rate for every closed loop that states a throughput; others as they are.

    Raises `InputError` for a loop without one: it has no rate to plan for.
    """
    classes = []
    for index, item in enumerate(spec.traffic):
        if item.closed_loop is None or item.arrivals is not None:
            classes.append(item)
            continue
        with at_field(f"traffic[{index}]"):
            if item.throughput is None:
                raise InputError(
                    "a closed loop has no rate to plan for",
                    field="closed_loop",
                    expected="throughput: {at_least: 2000 tokens/s} beside it",
                )
            rate_per_s = item.throughput.at_least_tokens_per_s / _mean_tokens(spec, item, Path(base_dir))
        classes.append(item.model_copy(update={"arrivals": ArrivalSpec(rate_per_s=rate_per_s)}))
    return spec.model_copy(update={"traffic": tuple(classes)}) if classes != list(spec.traffic) else spec


def stated_at(item: TrafficClass, factor: float) -> dict[str, ThroughputSpec]:
    """What changes in a class beside its rate where `factor` times as much of it comes: the throughput that it asks."""
    if item.throughput is None:
        return {}
    return {"throughput": ThroughputSpec(at_least_tokens_per_s=item.throughput.at_least_tokens_per_s * factor)}


def throughputs_of(spec: DeploymentSpec, base_dir: str | Path) -> dict[str, Throughput]:
    """What the classes of a declaration `with_arrivals` state, by class.

    Raises `InputError` where fewer tokens arrive than are to be served, and where the objective may leave some out.
    """
    found = {}
    for index, item in enumerate(spec.traffic):
        if item.throughput is None:
            continue
        asked = item.throughput.at_least_tokens_per_s
        with at_field(f"traffic[{index}]"):
            if spec.objective.quantity in ("throughput", "goodput"):
                raise InputError(
                    f"is stated beside objective: {spec.objective}, which leaves out what does not pay",
                    field="throughput",
                    expected="an objective to minimise, or no throughput",
                )
            offered = _offered(spec, item, Path(base_dir))
            if offered < asked * (1 - 1e-6):
                raise InputError(
                    f"{asked:,.0f} tokens/s are asked for, and {offered:,.0f} arrive",
                    field="throughput.at_least",
                    expected="at most what arrives, or closed_loop in place of the rate",
                )
        clients = item.closed_loop.concurrency if item.closed_loop is not None else None
        found[item.name] = Throughput(asked, offered, clients)
    return found


def _offered(spec: DeploymentSpec, item: TrafficClass, base_dir: Path) -> float:
    """Tokens per second that arrive, on average."""
    if item.trace is not None and item.prompt_tokens is None:
        trace = read_trace(base_dir / item.trace.file, item.trace.format)
        return (item.trace.rate_per_s or trace.rate_per_s) * float((trace.prompt_tokens + trace.output_tokens).mean())
    if item.arrivals is not None:
        return item.arrivals.rate_per_s * _mean_tokens(spec, item, base_dir)
    if item.sessions is not None and not item.sessions.growing_context:
        return item.sessions.rate_per_s * item.sessions.turns_mean * _mean_tokens(spec, item, base_dir)
    raise InputError(
        "prompts that grow make no rate of tokens", field="sessions", expected="a throughput for other arrivals"
    )


def _mean_tokens(spec: DeploymentSpec, item: TrafficClass, base_dir: Path) -> float:
    """Prompt and output tokens of a request, from lengths that are drawn alike every time."""
    context = spec.models[item.model].max_context_tokens
    random = class_generator(0, item, _LENGTHS_PURPOSE)
    prompts, outputs = draw_request_lengths(item, LENGTHS, base_dir, context, random)
    return float((prompts + outputs).mean())


def loop_tokens_per_s(
    model: ReplicaModel, replicas: int, clients: int, prompt_tokens: IntArray, output_tokens: IntArray
) -> float:
    """Tokens/s of `clients` that always have a request each on `replicas`, in the steady state.

    The requests come round again where there are too few of them. The first one of each client warms up; counted is
    what ends until the last one is sent.
    """
    count = clients + min(MOST_COUNTED, max(ROUNDS * clients, FEWEST))
    order = np.arange(count) % len(prompt_tokens)
    prompts, outputs = prompt_tokens[order], output_tokens[order]
    fits = model.can_serve(prompts, outputs)
    if not fits.all():
        return 0.0
    run = simulate_closed_loop(model, clients, prompts, outputs, replicas=replicas)
    end_s, tokens = run.sent_s + run.e2e_s, prompts + outputs
    first_s, last_s = run.sent_s[clients:].min(), run.sent_s.max()
    if not last_s > first_s:
        return float(tokens.sum()) / float(np.nanmax(end_s))
    return float(tokens[(end_s > first_s) & (end_s <= last_s)].sum()) / float(last_s - first_s)


def loop_of(stated: Throughput, share: float, seats: int) -> tuple[int, float]:
    """Clients of a loop that carries `share` of what is stated on `seats` places in batches, and how often it fits in.

    A part of one client is a client that is there for that part of the time.
    """
    if stated.clients is None:
        return max(1, seats), 1.0
    clients = stated.clients * share
    return max(1, min(seats, math.floor(clients))), min(1.0, clients)


def kept_up(result: FleetResult, workload: Workload, name: str) -> float:
    """Tokens that a class finished after the warm-up over those that arrived in that time; infinite if none did."""
    own = workload.of_class(name)
    arrival_s = result.arrivals_s(workload)
    tokens = workload.prompt_tokens + workload.output_tokens
    start_s, end_s = WARM_UP * workload.horizon_s, workload.horizon_s
    came = own & (arrival_s >= start_s) & (arrival_s < end_s)
    ended_s = arrival_s + result.e2e_s  # NaN where a request never ends: then it is not inside
    ended = own & (ended_s >= start_s) & (ended_s < end_s)
    arrived = float(tokens[came].sum())
    return float(tokens[ended].sum()) / arrived if arrived else math.inf


def unsustained(result: FleetResult, workload: Workload, stated: Mapping[str, Throughput]) -> tuple[str, ...]:
    """The stated throughputs that a whole run does not reach, and loops whose clients do not suffice, in words."""
    broken = []
    for name, wanted in stated.items():
        if name not in workload.classes:
            continue
        reached = min(1.0, kept_up(result, workload, name)) * wanted.offered_per_s
        if reached < KEEPS_UP * wanted.tokens_per_s:
            broken.append(f"{name}: throughput >= {wanted.tokens_per_s:,.0f} tokens/s (reaches {reached:,.0f})")
        elif wanted.clients is not None:
            needed = in_flight(result, workload, name)
            if needed > wanted.clients * max(1.0, tokens_per_s(workload, name) / wanted.tokens_per_s):
                broken.append(f"{name}: {wanted.clients} requests in flight (needs {needed:,.0f} on average)")
    return tuple(broken)


def short_loops(whole: WholePlan, workload: Workload, stated: Mapping[str, Throughput]) -> tuple[str, ...]:
    """Closed loops whose clients do not reach their throughput on replicas that serve nothing else, in words.

    Clients are split over groups as requests are. Loops that share replicas are judged as arrivals alone.
    """
    broken = []
    for name, wanted in stated.items():
        own = {route.group: route.share for route in whole.routes if route.request_class == name}
        shared = any(route.group in own for route in whole.routes if route.request_class != name)
        if wanted.clients is None or shared or any(item.role != "unified" for item in whole.bought):
            continue
        mask = workload.of_class(name)
        reached = 0.0
        for index, item in enumerate(whole.bought):
            share = own.get(f"group-{index}", 0.0)
            if share > 0 and item.column.variant is not None:
                replica, clients = item.column.variant.replica, max(1, round(wanted.clients * share))
                tokens = workload.prompt_tokens[mask], workload.output_tokens[mask]
                reached += loop_tokens_per_s(replica, item.replicas, clients, *tokens)
        if reached < KEEPS_UP * wanted.tokens_per_s:
            asked = f"throughput >= {wanted.tokens_per_s:,.0f} tokens/s"
            broken.append(f"{name}: {asked} ({wanted.clients} clients reach {reached:,.0f})")
    return tuple(broken)


def sustained_tokens_per_s(
    spec: DeploymentSpec, base_dir: Path, result: FleetResult, workload: Workload, name: str
) -> float | None:
    """Tokens/s of a class in a whole run, at most what arrives on average; None where it states no throughput."""
    stated = throughputs_of(spec, base_dir).get(name)
    return None if stated is None else min(1.0, kept_up(result, workload, name)) * stated.offered_per_s


def throughput_notes(spec: DeploymentSpec) -> list[str]:
    """How classes without latency limits were planned."""
    found = []
    for item in spec.traffic:
        if item.closed_loop is not None and item.arrivals is not None:
            found.append(
                f"{item.name}: {item.closed_loop.concurrency} requests in flight are planned as arrivals at "
                f"{item.arrivals.rate_per_s:.4g}/s, of which no more than that are there at once on average"
            )
        elif item.slo is None and item.throughput is None:
            found.append(f"{item.name}: best effort: bought by its work alone, nothing is promised")
    return found


def tokens_per_s(workload: Workload, name: str) -> float:
    """Prompt and output tokens of a class that arrive in a second."""
    own = workload.of_class(name)
    return float((workload.prompt_tokens[own] + workload.output_tokens[own]).sum()) / workload.horizon_s


def in_flight(result: FleetResult, workload: Workload, name: str) -> float:
    """Requests of a class that are there at once, on average over the window after the warm-up."""
    own = workload.of_class(name)
    start_s, end_s = WARM_UP * workload.horizon_s, workload.horizon_s
    came = np.clip(result.arrivals_s(workload)[own], start_s, end_s)
    left = np.clip(np.nan_to_num(result.arrivals_s(workload)[own] + result.e2e_s[own], nan=np.inf), start_s, end_s)
    return float((left - came).sum()) / (end_s - start_s)
