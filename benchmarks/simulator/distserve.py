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
from benchmarks.simulator.table import Row
from planner.cost.pieces import DecodeTable
from planner.cost.step_times import FREE, StepTimes
from planner.simulate import FleetGroup, ReplicaModel, Workload, simulate_fleet
from planner.simulate.links import Handoff, Link
from specs.plan import Limits, Route, Scheduling
from specs.traffic import read_trace

LONGEST = 2048  # of OPT; also the prompt tokens of one batch
SEATS = 256
ATTAINMENT = 0.9
LARGE_BATCH = 95  # decode coefficients change there
NOISE = 0.07  # 1,000 and 2,000 requests differ by as much; placements within it of the best are ties
NODE = 8  # GPUs
BLOCK = 16
THEIR_DECODE_TOKENS = 50_000  # that the artifact's simulator gives to every decode instance
LINKS = {"nvlink": Link(inf)}
ROUTES = (Route(request_class="all", group="prefill", share=1.0),)
Shape = tuple[int, int]  # tensor parallel, pipeline stages


@dataclass(frozen=True)
class Case:
    """Limits of the chat application (table 1 and the artifact), published placement, and how its profile is found."""

    name: str
    model: str
    ttft_s: float
    tpot_s: float
    published: tuple[Shape, Shape]
    most_gpus: int
    profile: str
    products: float = 1.0  # matrix products and weights, times those of the profile's model: layers x width^2
    attention: float = 1.0  # layers x width


CASES = (
    Case("OPT-13B", "opt-13b", 0.25, 0.1, ((2, 1), (1, 1)), 4, "opt-13b"),
    Case("OPT-66B", "opt-66b", 0.4, 0.1, ((4, 1), (2, 2)), 8, "opt-66b"),
    Case(
        "OPT-175B (scaled)", "opt-175b", 4.0, 0.2, ((3, 3), (4, 3)), 24, "opt-66b", 96 * 12288**2 / (64 * 9216**2), 2.0
    ),
)


@dataclass(frozen=True)
class Profile:
    """Coefficients in milliseconds by tensor parallelism, and KV tokens by shape."""

    data: Path
    case: Case

    @cached_property
    def coefficients(self) -> dict[int, dict[str, list[float]]]:
        document = json.loads((self.data / "profiles/distserve_a100_80g.json").read_text())
        return {int(tensor): found for tensor, found in document[f"facebook/{self.case.profile}"].items()}

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

    def _replica(self, shape: Shape, times: StepTimes) -> ReplicaModel:
        return ReplicaModel(
            times=replace(times, sampled_s=(0.0,) * (SEATS + 1), lanes=shape[1]),
            limits=Limits(max_num_seqs=SEATS, max_num_batched_tokens=LONGEST, max_model_len=LONGEST),
            num_blocks=self.tokens[shape] // BLOCK,
            block_size_tokens=BLOCK,
            scheduling=Scheduling(),
        )


def chat(data: Path, requests: int, seed: int) -> Workload:
    """Azure's conversation trace without what OPT cannot hold: 748 prompt and 236 output tokens on average.

    That is near the ShareGPT that DistServe samples (figure 7); `sharegpt_lengths_10k.csv` is another ShareGPT, with
    prompts of a third of that length.
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
        return f"({self.prefill[0]},{self.prefill[1]})+({self.decode[0]},{self.decode[1]})"


def gpus(*shapes: Shape) -> int:
    return sum(tensor * stages for tensor, stages in shapes)


def within_nodes(prefill: Shape, decode: Shape) -> bool:
    """Algorithm 2: stages that exchange KV caches share a node, so both sides consist of equally many segments."""
    return any(
        prefill[1] % segments == 0 and decode[1] % segments == 0 and gpus(prefill, decode) <= NODE * segments
        for segments in range(1, NODE + 1)
    )


def search(profile: Profile, workload: Workload, decode_tokens: int | None = None) -> list[Placement]:
    """Placements of algorithm 2 on the case's GPUs, best first. `decode_tokens`: KV tokens of every decode side."""
    case, shapes = profile.case, list(profile.tokens)
    prefills, decodes = ({s: side(s) for s in shapes} for side in (profile.prefill, profile.decode))
    if decode_tokens is not None:
        decodes = {s: replace(model, num_blocks=decode_tokens // BLOCK) for s, model in decodes.items()}
    found = [
        Placement(p, d, goodput(prefills[p], decodes[d], workload, case))
        for p, d in product(shapes, shapes)
        if within_nodes(p, d) and gpus(p, d) <= case.most_gpus
    ]
    return sorted(found, key=lambda placement: -placement.per_gpu)


def of_published(found: list[Placement], case: Case) -> Placement:
    return next(placement for placement in found if (placement.prefill, placement.decode) == case.published)


def rows(data: Path, requests: int = 2000) -> list[Row]:
    """By model: the published placement's rate per GPU beside the best one's, and the ties of the best."""
    table = []
    for case in CASES:
        profile, workload = Profile(data, case), chat(data, requests, 1)
        found = search(profile, workload)
        published = of_published(found, case)
        ties = [placement for placement in found if placement.per_gpu >= (1 - NOISE) * found[0].per_gpu]
        name = f"DistServe, {case.name}"
        table += [
            Row(f"{name}: {len(found)} placements on up to {case.most_gpus} GPUs; best {found[0]}, requests/s and GPU",
                None, found[0].per_gpu),
            Row(f"{name}: within {NOISE:.0%} of it: {' '.join(map(str, ties))}", None, len(ties)),
            Row(f"{name}: published {published} over the best", 1.0, published.per_gpu / found[0].per_gpu),
        ]  # fmt: skip
    case = CASES[0]
    profile, workload = Profile(data, case), chat(data, requests, 1)
    capped = search(profile, workload, THEIR_DECODE_TOKENS)
    share = of_published(capped, case).per_gpu / capped[0].per_gpu
    law = f"DistServe, {case.name}, {THEIR_DECODE_TOKENS:,} KV tokens for any decode side: published over {capped[0]}"
    table.append(Row(law, 1.0, share))
    prefill, decode = case.published
    rate = goodput(profile.prefill(prefill), profile.decode(decode), workload, replace(case, ttft_s=0.2))
    law = f"DistServe, {case.name}, 0.2 s and 0.1 s: published placement (its README), requests/s and GPU"
    table.append(Row(law, 1.56, rate / gpus(prefill, decode)))
    return table
