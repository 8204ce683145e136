"""Placements of DistServe (Zhong et al., OSDI 2024) from its own profile: coefficients of step times on A100-80GB.

A placement is one prefill and one decode instance, each (tensor parallel, pipeline stages); the best has the largest
rate per GPU at which 90 % of the requests meet both limits (tables 1 and 3). KV transfers take no time there, and none
here. OPT-175B has no coefficients in the profile; those of OPT-66B are scaled by layers and widths, and said to be.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import inf
from pathlib import Path

import numpy as np

from benchmarks.simulator.capacity import arriving, at_rate, largest_rate
from benchmarks.simulator.servers import FREE
from benchmarks.simulator.table import Row
from planner.cost.pieces import DecodeTable
from planner.cost.step_times import StepTimes
from planner.simulate import FleetGroup, ReplicaModel, Workload, simulate_fleet
from planner.simulate.links import Handoff, Link
from specs.plan import Limits, Route, Scheduling
from specs.traffic import read_trace

LONGEST = 2048  # of OPT; also the prompt tokens of one batch
SEATS = 256
ATTAINMENT = 0.9
LARGE_BATCH = 95  # decode coefficients change there
NOISE = 0.05  # placements within this share of the best are ties: two seeds of 1,000 requests differ by as much
LINKS = {"nvlink": Link(inf)}
ROUTES = (Route(request_class="all", group="prefill", share=1.0),)
Shape = tuple[int, int]  # tensor parallel, pipeline stages


@dataclass(frozen=True)
class Case:
    """Limits of the chat application (table 1 and the artifact), published placement, and how its profile is found."""

    model: str
    ttft_s: float
    tpot_s: float
    published: tuple[Shape, Shape]
    most_gpus: int
    profile: str
    products: float = 1.0  # matrix products and weights, times those of the profile's model: layers x width^2
    attention: float = 1.0  # layers x width


CASES = (
    Case("opt-13b", 0.25, 0.1, ((2, 1), (1, 1)), 8, "facebook/opt-13b"),
    Case("opt-66b", 0.4, 0.1, ((4, 1), (2, 2)), 16, "facebook/opt-66b"),
    Case("opt-175b", 4.0, 0.2, ((3, 3), (4, 3)), 24, "facebook/opt-66b", 96 * 12288**2 / (64 * 9216**2), 2.0),
)


@dataclass(frozen=True)
class Profile:
    """Coefficients in milliseconds by tensor parallelism, and KV tokens by shape."""

    data: Path
    case: Case

    @cached_property
    def coefficients(self) -> dict[int, dict[str, list[float]]]:
        document = json.loads((self.data / "profiles/distserve_a100_80g.json").read_text())
        return {int(tensor): found for tensor, found in document[self.case.profile].items()}

    @cached_property
    def tokens(self) -> dict[Shape, int]:
        """KV tokens of every shape that fits and has coefficients."""
        with (self.data / "profiles/distserve_max_num_tokens.csv").open() as lines:
            rows = [row for row in csv.DictReader(lines) if row["model"] == f"facebook/{self.case.model}"]
        shapes = {(int(row["tp"]), int(row["pp"])): int(row["max_num_tokens"]) for row in rows}
        most = self.case.most_gpus
        return {s: tokens for s, tokens in shapes.items() if s[0] in self.coefficients and gpus(s) < most}

    def prefill(self, shape: Shape) -> ReplicaModel:
        """a + b tokens + c sum of squares: a prompt has (n^2 + n) / 2 pairs of query and key."""
        a, b, c = self.coefficients[shape[0]]["prefill"]
        a, b, c = a * self.case.products / 1e3, b * self.case.products / 1e3, c * self.case.attention / 1e3
        tokens_s = tuple(a + (b - c) * n for n in range(LONGEST + 1))
        return self._replica(shape, replace(FREE, tokens_s=tokens_s, prefill_pair_s=2 * c))

    def decode(self, shape: Shape) -> ReplicaModel:
        """a + b context + c batch, with other coefficients from 95 sequences on."""
        found = self.coefficients[shape[0]]
        small, large = found["decoding_smallbs"], found["decoding_largebs"]
        products, attention = self.case.products / 1e3, self.case.attention / 1e3
        chosen = [small if n < LARGE_BATCH else large for n in range(LONGEST + 1)]
        slope = min(small[1], large[1]) * attention
        knots = np.array([1.0, LARGE_BATCH - 1, LARGE_BATCH, SEATS])
        beyond = np.array([(chosen[int(n)][1] * attention - slope) * n for n in knots])
        keys = np.array([0.0, LONGEST])
        times = replace(
            FREE,
            tokens_s=tuple((a + c * n) * products for n, (a, _, c) in enumerate(chosen)),
            decode_context_token_s=slope,
            decode_table=DecodeTable(knots, keys, np.outer(beyond, keys)),
        )
        return self._replica(shape, times)

    def at_once(self) -> ReplicaModel:
        """A side that takes next to no time and holds as much as the largest shape."""
        largest = max(self.tokens, key=lambda shape: self.tokens[shape])
        return self._replica(largest, replace(FREE, tokens_s=(1e-9,) * (LONGEST + 1)))

    def _replica(self, shape: Shape, times: StepTimes) -> ReplicaModel:
        return ReplicaModel(
            times=replace(times, sampled_s=(0.0,) * (SEATS + 1), lanes=shape[1]),
            limits=Limits(max_num_seqs=SEATS, max_num_batched_tokens=LONGEST, max_model_len=LONGEST),
            num_blocks=self.tokens[shape] // 16,
            block_size_tokens=16,
            scheduling=Scheduling(),
        )


def chat(data: Path, requests: int, seed: int) -> Workload:
    """Azure's conversation trace without what OPT cannot hold: 748 prompt and 236 output tokens on average.

    That is near the ShareGPT that DistServe samples (figure 7); the lengths in `sharegpt_lengths_10k.csv` are of another
    ShareGPT, with a third of the prompts' length.
    """
    trace = read_trace(data / "traces/azure_2023_conversation.csv", "azure")
    fits = np.flatnonzero(trace.prompt_tokens + trace.output_tokens <= LONGEST)
    rows = np.random.Generator(np.random.PCG64(seed)).choice(fits, requests, replace=False)
    return arriving(trace.prompt_tokens[rows], trace.output_tokens[rows], seed)


def attained(workload: Workload, case: Case, prefill: ReplicaModel, decode: ReplicaModel) -> bool:
    """Whether 90 % of the requests meet both limits."""
    groups = (
        FleetGroup("prefill", 1, prefill, role="prefill", handoff=Handoff("decode", 0.0, "nvlink")),
        FleetGroup("decode", 1, decode, role="decode"),
    )
    result = simulate_fleet(groups, ROUTES, workload, links=LINKS)
    good = result.within("ttft", case.ttft_s) & result.within("tpot", case.tpot_s)
    return float(good.mean()) >= ATTAINMENT


def goodput(prefill: ReplicaModel, decode: ReplicaModel, workload: Workload, case: Case) -> float:
    """Largest rate of one instance of each."""
    return largest_rate(lambda rate: attained(at_rate(workload, rate), case, prefill, decode), 4.0, tolerance=0.015)


@dataclass(frozen=True)
class Placement:
    """What a pair of shapes carries."""

    prefill: Shape
    decode: Shape
    rate: float

    @property
    def per_gpu(self) -> float:
        return self.rate / gpus(self.prefill, self.decode)

    def __str__(self) -> str:
        return f"({self.prefill[0]},{self.prefill[1]}|{self.decode[0]},{self.decode[1]})"


def gpus(*shapes: Shape) -> int:
    return sum(tensor * stages for tensor, stages in shapes)


def search(profile: Profile, workload: Workload) -> list[Placement]:
    """Placements that are no worse than the best by more than the noise, best first, and the published one.

    What one side carries beside a side that takes no time bounds every pair; pairs are tried by that bound until it
    falls below the best by twice the noise.
    """
    case = profile.case
    idle = profile.at_once()
    shapes = list(profile.tokens)
    prefills, decodes = {s: profile.prefill(s) for s in shapes}, {s: profile.decode(s) for s in shapes}
    first = {s: goodput(prefills[s], idle, workload, case) for s in shapes}
    second = {s: goodput(idle, decodes[s], workload, case) for s in shapes}
    pairs = [pair for pair in product(shapes, shapes) if gpus(*pair) <= case.most_gpus]
    pairs.sort(key=lambda pair: -min(first[pair[0]], second[pair[1]]) / gpus(*pair))
    found: list[Placement] = []
    for prefill, decode in pairs:
        best = max((placement.per_gpu for placement in found), default=0.0)
        bound = min(first[prefill], second[decode]) / gpus(prefill, decode)
        if bound < best * (1 - 2 * NOISE) and (prefill, decode) != case.published:
            continue
        found.append(Placement(prefill, decode, goodput(prefills[prefill], decodes[decode], workload, case)))
    return sorted(found, key=lambda placement: -placement.per_gpu)


def rows(data: Path, requests: int = 1000) -> list[Row]:
    """By model: the published placement's rate per GPU over the best one's, and how many are ties."""
    table = []
    for case in CASES:
        found = search(Profile(data, case), chat(data, requests, 1))
        best, published = found[0], next(p for p in found if (p.prefill, p.decode) == case.published)
        ties = [placement for placement in found if placement.per_gpu >= (1 - NOISE) * best.per_gpu]
        name = case.model.upper() + (" (scaled from OPT-66B)" if case.products != 1 else "")
        table += [
            Row(f"DistServe {name}: best placement {best}, requests/s and GPU", None, best.per_gpu),
            Row(f"published {published}, requests/s and GPU", None, published.per_gpu),
            Row(f"ties within {NOISE:.0%}: {' '.join(map(str, ties[:6]))}", None, len(ties)),
            Row("published over best", 1.0, published.per_gpu / best.per_gpu),
        ]
    return table
