"""Prefix hits on Mooncake's conversation trace (Qin et al., FAST 2025), with an unlimited cache and with limited ones.

The share of prompt blocks (512 tokens) that some earlier request had computed. Steps cost next to nothing here, so that
one replica can hold the whole fleet's cache, as the paper's pool does, without a queue.
"""

from __future__ import annotations

import gzip
import json
import math
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.simulator.servers import replica
from benchmarks.simulator.table import Row
from planner.cost.step_times import FREE
from planner.simulate import FleetGroup, FleetResult, Workload, simulate_fleet
from specs.plan import Route
from specs.traffic import Prefixes

UNIT = 512
TRACE = Path("traces/mooncake_conversation.jsonl.gz")
POOLED = (1_000, 10_000, 30_000, 50_000, 100_000)  # blocks, as in table 1 of the arXiv version (on another trace)
Router = Literal["round_robin", "least_outstanding", "prefix_aware"]


def read(data: Path) -> Workload:
    """The requests with the ids of the whole blocks of their prompts; a block that is not full is never shared."""
    with gzip.open(data / TRACE, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    ids = [row["hash_ids"][: row["input_length"] // UNIT] for row in rows]
    offsets = np.concatenate(([0], np.cumsum([len(units) for units in ids])))
    return Workload(
        ("all",),
        np.zeros(len(rows), np.int64),
        np.array([row["timestamp"] / 1000 for row in rows]),
        np.array([row["input_length"] for row in rows]),
        np.array([max(1, row["output_length"]) for row in rows]),
        prefixes=Prefixes(UNIT, offsets, np.array([unit for units in ids for unit in units])),
    )


def counted(workload: Workload, capacity: float = math.inf) -> float:
    """By counting: blocks of which all up to there are known from earlier requests, over all blocks of prompts.

    Beyond `capacity` blocks the least recently used is forgotten, a request's last before its first; nothing is timed.
    """
    assert workload.prefixes is not None
    known: OrderedDict[int, None] = OrderedDict()
    hits = blocks = 0
    for request, prompt in enumerate(workload.prompt_tokens.tolist()):
        units = workload.prefixes.of(request)
        found = next((count for count, unit in enumerate(units) if unit not in known), len(units))
        hits += min(found, (prompt - 1) // UNIT)  # the last token is computed in any case
        blocks += -(-prompt // UNIT)
        for unit in reversed(units):
            known[unit] = None
            known.move_to_end(unit)
        while len(known) > capacity:
            known.popitem(last=False)
    return hits / blocks


def served(workload: Workload, blocks: int, replicas: int = 1, router: Router = "round_robin") -> FleetResult:
    """`blocks` of each replica."""
    times = replace(FREE, tokens_s=tuple(1e-5 + 1e-8 * n for n in range(131_073)))
    model = replace(replica(times, 512, blocks=blocks, block_size=UNIT), prefix_caching=True)
    routes = (Route(request_class="all", group="one", share=1.0),)
    return simulate_fleet((FleetGroup("one", replicas, model),), routes, workload, router=router)


def hit_rate(result: FleetResult, workload: Workload) -> float:
    """Blocks found over blocks of prompts that were served."""
    assert result.cached_tokens is not None
    done = ~np.isnan(result.e2e_s)
    return float((result.cached_tokens[done] // UNIT).sum() / (-(-workload.prompt_tokens[done] // UNIT)).sum())


def rows(data: Path, replicas: int = 8) -> list[Row]:
    """Unlimited, by capacity of one pool, and for the same capacity in as many replicas."""
    workload = read(data)
    everything = int(len(workload) + (workload.prompt_tokens + workload.output_tokens).sum() // UNIT)
    unlimited = hit_rate(served(workload, everything), workload)
    name = "Mooncake conversation"
    table = [
        Row(f"{name}: cache ratio, table 2", 0.40, unlimited),
        Row(f"{name}: the same beside a count over the file", counted(workload), unlimited),
    ]
    for blocks in POOLED:
        found = hit_rate(served(workload, blocks), workload)
        table.append(Row(f"{name}: one pool of {blocks:,} blocks, beside a count", counted(workload, blocks), found))
    each = POOLED[-1] // replicas
    for router in ("round_robin", "least_outstanding", "prefix_aware"):
        rate = hit_rate(served(workload, each, replicas, router), workload)
        table.append(
            Row(
                f"Mooncake conversation: {replicas} replicas of {each:,} blocks each, {router.replace('_', ' ')}",
                None,
                rate,
            )
        )
    return table
