"""Random fleets, workloads and conditions over every rule of the simulator: tight caches, few seats, exact ties."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planner.cost.pieces import ChunkTable, DecodeTable
from planner.cost.step_times import FREE, StepTimes
from planner.simulate import FleetGroup, ReplicaModel, Workload
from planner.simulate.faults import Fault
from planner.simulate.links import Handoff, Link
from planner.simulate.model import Prefixes
from specs.deployment import SLO, PercentileLimit
from specs.plan import Limits, Route, Scheduling, Speculation
from specs.service import ROUTERS

UNIT_TOKENS = 16
Random = np.random.Generator


@dataclass(frozen=True)
class Case:
    """What `simulate_fleet` is given."""

    groups: tuple[FleetGroup, ...]
    routes: tuple[Route, ...]
    workload: Workload
    options: dict[str, Any]


def random_case(seed: int) -> Case:
    random = np.random.default_rng(seed)
    groups, routes = _fleet(random)
    longest = int(max(model.limits.max_model_len for group in groups for model in group.models or (group.model,)))
    return Case(groups, routes, random_workload(random, longest), _options(random, groups))


def crowded_case(seed: int) -> Case:
    """Many requests with prefixes on one or two replicas whose caches hold a few of them: units are evicted all the
    time, also while the head of the queue counts on them."""
    random = np.random.default_rng(seed)
    model = random_model(random)
    rules = model.scheduling
    if random.random() < 0.6:
        rules = Scheduling(
            prefill_policy=rules.prefill_policy,
            preemption=rules.preemption,
            order=rules.order if random.random() < 0.5 else "fcfs",
        )
    host_blocks, longest = int(random.choice([0, 5, 60])), model.limits.max_model_len
    blocks = int(longest * random.uniform(1, 6)) // model.block_size_tokens * model.times.lanes
    blocks = max(model.times.lanes, blocks)
    model = replace(model, prefix_caching=True, host_blocks=host_blocks, scheduling=rules, num_blocks=blocks)
    count = 250
    prompt = random.integers(1, max(2, int(longest * 0.7)), count)
    output = random.integers(1, max(2, int(longest * 0.3)), count)
    workload = Workload(
        ("a",),
        np.zeros(count, np.int64),
        np.cumsum(random.exponential(1 / random.choice([1.0, 5.0, 20.0]), count)),
        prompt,
        output,
        tenants=("x", "y"),
        tenant_index=random.integers(0, 2, count),
        priority=random.integers(0, 3, count),
        predicted_tokens=random.integers(1, 60, count),
        prefixes=_prefixes(random, prompt + output),
    )
    groups = (FleetGroup("g", int(random.integers(1, 3)), model),)
    return Case(groups, (Route(request_class="a", group="g", share=1.0),), workload, {"max_events": 20_000_000})


def decode_table(random: Random, seats: int) -> DecodeTable:
    """Seconds that grow with the keys, at knots inside what the requests reach."""
    sequences = np.array([1.0, max(2, seats // 2), max(3, seats)])
    keys = np.cumsum([1, *random.integers(1, 60, 3)]).astype(np.float64)
    return DecodeTable(sequences, keys, np.cumsum(random.random((3, 4)), axis=1) * 1e-3)


def random_model(random: Random) -> ReplicaModel:
    """A cache of one to three of the longest sequences in each lane."""
    scheduling = _scheduling(random)
    seats = int(random.integers(1, 13))
    drafts = scheduling.speculation.draft_tokens if scheduling.speculation else 0
    budget = int(random.integers(seats * (1 + drafts), 200))
    lanes = int(random.choice([1, 1, 1, 2, 4]))
    longest, block = int(random.integers(60, 400)), int(random.choice([1, 4, 8, 16]))
    times = _times(random, seats * (1 + drafts), budget, lanes)
    return ReplicaModel(
        times=_on_unlike_machines(random.spawn(1)[0], times, budget),
        limits=Limits(max_num_seqs=seats * lanes, max_num_batched_tokens=budget, max_model_len=longest),
        num_blocks=lanes * max(1, int(longest * random.uniform(0.7, 3)) // block),
        block_size_tokens=block,
        scheduling=scheduling,
        prefix_caching=bool(random.random() < 0.6),
        host_blocks=int(random.choice([0, 0, 20, 200, 1000])) // block,
    )


def _scheduling(random: Random) -> Scheduling:
    """Every rule, most of them off most of the time."""

    def seldom(value: Any, otherwise: Any) -> Any:
        return value if random.random() < 0.15 else otherwise

    drafts = Speculation(draft_tokens=int(random.integers(1, 5)), acceptance=0.7, draft_s=0.001)
    return Scheduling(
        order=str(random.choice(["fcfs", "fcfs", "fcfs", "priority", "edf", "sjf", "srpt", "mlfq", "vtc"])),
        prefill_policy=str(random.choice(["mixed_chunked", "mixed_chunked", "prefill_first", "decode_first"])),
        preemption=str(random.choice(["recompute", "swap"])),
        batch_wait_steps=seldom(int(random.integers(1, 9)), 0),
        output_reserve=seldom(float(random.choice([0.3, 1.0])), 0.0),
        max_waiting_tokens=seldom(int(random.integers(1, 800)), None),
        mlfq_quantum_tokens=int(random.choice([1, 7, 64])),
        speculation=seldom(drafts, None),
    )  # type: ignore[arg-type]


def _times(random: Random, rows: int, budget: int, lanes: int) -> StepTimes:
    """Irregular step times with windows, tables and stages; or round ones, where many events fall on one instant."""
    window = int(random.integers(1, 80)) if random.random() < 0.5 else None
    stages = random.random(lanes) + 0.1
    scale = float(random.choice([0.0, 1e-5, 1e-3]))  # contexts matter not at all, a little, most
    slopes = random.random(9) * scale
    tables = random.random(3) < random.choice([0.0, 0.7])
    irregular = 0.0 if scale == 0.0 and random.random() < 0.5 else 1.0
    new = np.array([1.0, max(2, budget // 2), max(3, budget)])
    return StepTimes(
        tokens_s=tuple((0.01 + irregular * 1e-4 * np.cumsum(random.random(budget + 1))).tolist()),
        sampled_s=tuple((irregular * 1e-4 * random.random(rows + 1)).tolist()),
        sequence_s=float(slopes[0]),
        decode_launch_s=float(irregular * random.random() * 1e-3),
        decode_context_token_s=float(slopes[1]),
        decode_window_token_s=float(slopes[2]),
        window_tokens=window,
        prefill_launch_s=float(slopes[3]),
        prefill_pair_s=float(slopes[4]) / 100,
        prefill_window_pair_s=float(slopes[5]) / 100,
        prefill_context_token_s=float(slopes[6]),
        request_s=float(random.choice([0.0, 0.0037, 0.4])),
        lanes=lanes,
        stage_shares=tuple((stages / stages.sum()).tolist()) if random.random() < 0.5 else (),
        decode_table=decode_table(random, rows) if tables[0] else None,
        decode_window_table=decode_table(random, rows) if tables[1] and window else None,
        chunk_table=ChunkTable(new, np.array([0.0, 20.0, 90.0]), random.random((3, 3)) * 1e-2) if tables[2] else None,
        prefill_step_s=float(random.random() * 1e-2) if tables[2] else 0.0,
        host_token_s=float(slopes[7]),
        eager_s=float(random.random() * 0.05) if tables[2] else 0.0,
    )


def _on_unlike_machines(random: Random, times: StepTimes, budget: int) -> StepTimes:
    """Often, where there are stages, each with times of its own; what is drawn beside stays as it is without."""
    if times.lanes == 1 or random.random() < 0.4:
        return times
    stages = []
    for _ in range(times.lanes):
        stage = replace(_times(random, len(times.sampled_s) - 1, budget, 1), window_tokens=times.window_tokens)
        if times.window_tokens is None:
            stage = replace(stage, decode_window_token_s=0.0, decode_window_table=None)
        stages.append(stage)
    return replace(times, stages=tuple(stages))


def busy_model() -> ReplicaModel:
    """Every step of 512 speculating sequences is formed anew."""
    times = replace(FREE, tokens_s=(0.01,) * 1025, sampled_s=(0.0,) * 1025)
    limits = Limits(max_num_seqs=512, max_num_batched_tokens=1024, max_model_len=10_000)
    drafts = Speculation(draft_tokens=1, acceptance=0.5)
    return ReplicaModel(times, limits, 10**7, 16, Scheduling(speculation=drafts))


def random_workload(random: Random, longest: int) -> Workload:
    """Requests of two classes of up to `longest` tokens; some arrive together, where ties are exact."""
    count = int(random.integers(1, 80))
    arrivals = np.cumsum(random.exponential(1 / float(random.choice([0.5, 5.0, 50.0])), count))
    if random.random() < 0.5:
        arrivals = np.round(arrivals, 2)
    arrivals[: random.integers(0, count + 1)] = 0.0
    prompt = random.integers(1, max(2, int(longest * random.choice([0.1, 0.5, 0.9]))), count)
    output = random.integers(1, max(2, int(longest * random.choice([0.05, 0.3, 0.6]))), count)
    says, dependent = random.random() < 0.7, random.random() < 0.3
    return Workload(
        ("a", "b"),
        random.integers(0, 2, count),
        arrivals,
        prompt,
        output,
        random.choice([None, 1.0, 1e4]),
        tenants=("x", "y", "z") if says else (),
        tenant_index=random.integers(0, 3, count) if says else None,
        priority=random.integers(0, 3, count) if says else None,
        deadline_s=arrivals + np.round(random.random(count), 1) if says else None,
        predicted_tokens=random.integers(1, 100, count) if says else None,
        prefixes=_prefixes(random, prompt + output) if random.random() < 0.8 else None,
        session=random.integers(-1, 8, count) if says else None,
        after=np.maximum(-1, np.arange(count) - random.integers(1, 6, count)) if dependent else None,
        gap_s=np.round(random.exponential(0.5, count), 1) if dependent else None,
    )


def _prefixes(random: Random, tokens: Any) -> Prefixes:
    """Chains of units that begin alike and part later, over a part of prompt and output."""
    known: dict[tuple[int, ...], int] = {}
    chains = []
    for count in tokens.tolist():
        chain: tuple[int, ...] = ()
        for _ in range(int(random.integers(0, count // UNIT_TOKENS + 1))):
            chain = (*chain, int(random.random() < 0.2))
            known.setdefault(chain, len(known))
        chains.append([known[chain[: depth + 1]] for depth in range(len(chain))])
    offsets = np.concatenate(([0], np.cumsum([len(chain) for chain in chains]))).astype(np.int64)
    return Prefixes(UNIT_TOKENS, offsets, np.array([unit for chain in chains for unit in chain], dtype=np.int64))


def _fleet(random: Random) -> tuple[tuple[FleetGroup, ...], tuple[Route, ...]]:
    """One group, two between which class b is split, or two with a decode group behind the second."""
    share = float(random.choice([0.5, 0.3, 0.9]))
    kind = random.choice(["one", "two", "disaggregated"])
    groups = [_group(random, "g0", "unified")]
    shares = [("a", "g0", 1.0), ("b", "g0", 1.0 if kind == "one" else share)]
    if kind != "one":
        groups.append(_group(random, "g1", "unified" if kind == "two" else "prefill"))
        shares.append(("b", "g1", 1 - share))
    if kind == "disaggregated":
        groups.append(_group(random, "d", "decode"))
    return tuple(groups), tuple(Route(request_class=name, group=group, share=part) for name, group, part in shares)


def _group(random: Random, name: str, role: str) -> FleetGroup:
    model, replicas, models = random_model(random), int(random.integers(1, 4)), None
    if random.random() < 0.2:
        others = (model, random_model(random))
        models = tuple(others[int(random.integers(0, 2))] for _ in range(replicas))
    weights = tuple(random.uniform(0.5, 3, replicas).tolist()) if random.random() < 0.2 else None
    handoff = Handoff("d", float(random.choice([0.0, 1.0, 50.0])), "wire") if role == "prefill" else None
    return FleetGroup(name, replicas, model, models, weights, role, handoff)  # type: ignore[arg-type]


def _options(random: Random, groups: tuple[FleetGroup, ...]) -> dict[str, Any]:
    faults = []
    for _ in range(int(random.choice([0, 0, 0, 1, 4]))):
        group, from_s = groups[random.integers(0, len(groups))], float(random.choice([0.0, 0.05, 0.1, 1.0, 1.5, 7.0]))
        until_s = from_s + float(random.choice([0.05, 0.5, 3.0, np.inf]))
        faults.append(Fault(group.id, int(random.integers(0, group.replicas)), from_s, until_s))
    weighted = any(group.weights for group in groups)
    routers = [router for router in ROUTERS if not weighted or router not in ("round_robin", "sticky")]
    wire = Link(float(random.choice([1e3, 1e5, np.inf])), float(random.choice([0.0, 0.01])))
    return {
        "router": str(random.choice(["least_outstanding", *routers])),
        "poll_s": float(random.choice([0.0, 0.0, 0.1, 1.0])),
        "faults": tuple(faults),
        "links": {"wire": wire} if any(group.handoff for group in groups) else {},
        "seed": int(random.integers(-5, 2**40)),
        "refute": _objectives(random) if random.random() < 0.3 else {},
        "max_events": int(random.choice([20_000_000] * 6 + [1, 50, 300])),
    }


def _objectives(random: Random) -> dict[str, SLO]:
    if random.random() < 0.2:
        return {"b": SLO(joint={"ttft": 1.0, "tpot": 0.05}, attainment=0.9)}
    return {
        str(name): SLO(
            percentiles=tuple(
                PercentileLimit(
                    metric=str(metric),  # type: ignore[arg-type]
                    percentile=float(random.choice([50, 90, 99])),
                    limit_s=float(random.choice([0.02, 0.3, 2.0, 20.0])),
                )
                for metric in random.choice(["ttft", "tpot", "e2e"], 2)
            )
        )
        for name in random.choice(["a", "b"], int(random.integers(1, 3)), replace=False)
    }
