"""Split and mixed pools of A100 and H100: Splitwise (Patel et al., ISCA 2024), figure 18, from its own profile.

BLOOM-176B on 8-GPU servers; prompt and token times from `splitwise_perf_model.csv` (its power-capped rows are copies,
and are not used). The nine limits of table VI are slowdowns against an empty A100 server.
Lengths are those of Azure's conversation trace, which the paper drew from, with Poisson arrivals. Costs and power per
server are the simulator's own of the paper. The paper's mixed pool, to which idle servers of the split move, is not
simulated: pools here are fixed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulator.capacity import arriving, at_rate, largest_rate
from benchmarks.simulator.table import Row
from benchmarks.simulator.token_gaps import logged, token_gaps_s
from planner.cost.step_times import FREE
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, simulate_fleet
from planner.simulate.links import Handoff, Link
from specs.plan import Limits, Route, Scheduling
from specs.traffic import read_trace

MODEL = "bloom-176b"
A100, H100 = "a100-80gb", "h100-80gb"
COST = {A100: 2.21, H100: 4.76}  # the paper's simulator: only the ratio counts
POWER = {A100: 24.8, H100: 44.0}  # units of a server
KV_TOKENS = int((640e9 * 0.9 - 352e9) / (2 * 70 * 14336 * 2))  # 70 layers of 14,336, FP16
BATCH_TOKENS = 2048  # of prompts in one batch
SEATS = 64  # the largest batch that was profiled
MIXED = 1.1  # a step with prompts and decodes over one with prompts
LINKS = {"infiniband": Link(inf, 0.008)}  # what layer-wise transfer does not hide (figure 14, A100)
SLOWDOWNS = {"ttft": (2, 3, 6), "tpot": (1.25, 1.5, 5), "e2e": (1.25, 1.5, 5)}  # at P50, P90, P99
SECONDS = 60.0  # of arrivals, after which the pools are judged


@dataclass(frozen=True)
class Times:
    """Seconds of one kind of server."""

    data: Path
    device: str

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        with (self.data / "profiles/splitwise_perf_model.csv").open() as lines:
            return [
                row
                for row in csv.DictReader(lines)
                if (row["model"], row["hardware"], row["tensor_parallel"]) == (MODEL, self.device, "8")
            ]

    def _mean(self, key: str, value: str, **fixed: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means over the repetitions, in seconds."""
        found: dict[int, list[float]] = {}
        for row in self._rows:
            if all(row[name] == wanted for name, wanted in fixed.items()):
                found.setdefault(int(row[key]), []).append(float(row[value]) / 1e3)
        knots = sorted(found)
        return np.array(knots, float), np.array([np.mean(found[knot]) for knot in knots])

    @cached_property
    def prompt_s(self) -> NDArray[np.float64]:
        """By prompt tokens in the batch; below the smallest profile in proportion."""
        tokens, seconds = self._mean("prompt_size", "prompt_time", batch_size="1", token_size="128")
        return np.interp(np.arange(BATCH_TOKENS + 1), tokens, seconds)

    @cached_property
    def token_s(self) -> NDArray[np.float64]:
        """By sequences."""
        batch, seconds = self._mean("batch_size", "token_time", prompt_size="512", token_size="128")
        return np.interp(np.arange(SEATS + 1), batch, seconds)

    def prompts(self) -> ReplicaModel:
        return self._replica(self.prompt_s)

    def tokens(self) -> ReplicaModel:
        return self._replica(np.concatenate([self.token_s, np.full(BATCH_TOKENS - SEATS, self.token_s[-1])]))

    def both(self) -> ReplicaModel:
        """A step of more tokens than seats holds prompts."""
        return self._replica(
            np.concatenate([self.token_s, np.maximum(self.token_s[-1], MIXED * self.prompt_s[SEATS + 1 :])])
        )

    def _replica(self, seconds: NDArray[np.float64]) -> ReplicaModel:
        return ReplicaModel(
            times=replace(FREE, tokens_s=tuple(seconds.tolist()), sampled_s=(0.0,) * (SEATS + 1)),
            limits=Limits(max_num_seqs=SEATS, max_num_batched_tokens=BATCH_TOKENS, max_model_len=KV_TOKENS),
            num_blocks=KV_TOKENS // 16,
            block_size_tokens=16,
            scheduling=Scheduling(),
        )


@dataclass(frozen=True)
class Design:
    """Servers by kind; without token servers all do both."""

    name: str
    prompt: tuple[str, int]
    token: tuple[str, int] | None = None

    @property
    def cost(self) -> float:
        return sum(COST[device] * count for device, count in self._pools())

    @property
    def power(self) -> float:
        return sum(POWER[device] * count for device, count in self._pools())

    def _pools(self) -> Iterable[tuple[str, int]]:
        return (self.prompt,) if self.token is None else (self.prompt, self.token)

    def groups(self, times: dict[str, Times]) -> tuple[FleetGroup, ...]:
        device, count = self.prompt
        if self.token is None:
            return (FleetGroup("all", count, times[device].both()),)
        handoff = Handoff("token", 0.0, "infiniband")
        return (
            FleetGroup("prompt", count, times[device].prompts(), role="prefill", handoff=handoff),
            FleetGroup("token", self.token[1], times[self.token[0]].tokens(), role="decode"),
        )

    def fifth(self) -> Design:
        """A fifth of the servers, rounded."""
        pools = [(device, round(count / 5)) for device, count in self._pools()]
        return Design(self.name, pools[0], pools[1] if len(pools) > 1 else None)

    def __str__(self) -> str:
        return " + ".join(str(count) for _, count in self._pools())


def serve(groups: tuple[FleetGroup, ...], workload: Workload, *, exact: bool = False) -> FleetResult:
    routes = (Route(request_class="all", group=groups[0].id, share=1.0),)
    return simulate_fleet(groups, routes, workload, links=LINKS, exact=exact)


def meets(slowdown: dict[str, NDArray[np.float64]]) -> bool:
    """The nine limits: P50, P90 and P99 of each metric's slowdown."""
    return all(
        (np.percentile(slowdown[metric][~np.isnan(slowdown[metric])], (50, 90, 99)) <= limits).all()
        for metric, limits in SLOWDOWNS.items()
    )


def slowdowns(result: FleetResult, workload: Workload, empty: Times) -> dict[str, NDArray[np.float64]]:
    """By request, against an empty server; a prompt beyond a batch takes as many batches."""
    batches = np.maximum(1.0, workload.prompt_tokens / BATCH_TOKENS)
    prompt_s = empty.prompt_s[np.minimum(workload.prompt_tokens, BATCH_TOKENS)] * batches
    token_s = empty.token_s[1]
    return {
        "ttft": result.ttft_s / prompt_s,
        "tpot": result.tpot_s / token_s,
        "e2e": result.e2e_s / (prompt_s + (workload.output_tokens - 1) * token_s),
    }


@dataclass(frozen=True)
class Bench:
    """One recorded trace, from which lengths are drawn, and the servers' times."""

    trace: str
    data: Path

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        trace = read_trace(self.data / f"traces/azure_2023_{self.trace}.csv", "azure")
        return np.stack([trace.prompt_tokens, trace.output_tokens])

    @cached_property
    def times(self) -> dict[str, Times]:
        return {device: Times(self.data, device) for device in COST}

    def workload(self, rate: float) -> Workload:
        """`SECONDS` of Poisson arrivals; a higher rate goes on with the same draws."""
        rows = np.random.Generator(np.random.PCG64(1)).integers(0, self.lengths.shape[1], round(rate * SECONDS))
        return at_rate(arriving(*self.lengths[:, rows]), rate)

    def throughput(self, design: Design, start: float) -> float:
        """Largest rate that the design serves within the limits, a request's TBT being its mean."""
        empty, groups = self.times[A100], design.groups(self.times)

        def holds(rate: float) -> bool:
            workload = self.workload(rate)
            return meets(slowdowns(serve(groups, workload), workload, empty))

        return largest_rate(holds, start, tolerance=0.02)

    def throughput_of_gaps(self, design: Design, start: float) -> float:
        """The same with the limits on TBT over all gaps between tokens."""
        empty, plain = self.times[A100], design.groups(self.times)

        def holds(rate: float) -> bool:
            workload, groups = self.workload(rate), tuple(logged(group) for group in plain)
            slowdown = slowdowns(serve(groups, workload, exact=True), workload, empty)
            return meets({**slowdown, "tpot": token_gaps_s(groups[-1]) / empty.token_s[1]})

        return largest_rate(holds, start, tolerance=0.04)

    def best(self, designs: list[Design], start: float) -> tuple[Design, float]:
        """The design with the largest throughput."""
        rates = [self.throughput(design, start) for design in designs]
        chosen = int(np.argmax(rates))
        return designs[chosen], rates[chosen]


def split(prompt: str, token: str, budget: float, price: dict[str, float]) -> list[Design]:
    """Every tenth of the budget for prompt servers, the rest for token servers."""
    designs = []
    for tenth in range(1, 8):
        prompts = round(budget * tenth / 10 / price[prompt])
        tokens = int((budget - prompts * price[prompt]) / price[token])
        if prompts > 0 and tokens > 0:
            designs.append(Design("split", (prompt, prompts), (token, tokens)))
    return designs


def rows(data: Path) -> list[Row]:
    """Figure 18 and the abstract; the limits on TBT over a request's mean, then over every gap."""
    old, new = Design("mixed A100", (A100, 70)), Design("mixed H100", (H100, 40))  # the same power
    bench, code = Bench("conversation", data), Bench("code", data)
    claims = [
        ("A100 + A100, same power and cost (figure 18a)", 2.15, bench, old, split(A100, A100, old.power, POWER)),
        ("A100 + A100, same cost (figure 18b)", 1.4, bench, new, split(A100, A100, new.cost, COST)),
        ("H100 + A100, same power (section 6.2)", 1.18, bench, new, split(H100, A100, new.power, POWER)),
        ("A100 + A100, 20 % cheaper (abstract)", 1.4, bench, new, split(A100, A100, 0.8 * new.cost, COST)),
        ("H100 + A100, 20 % cheaper (abstract)", 1.4, bench, new, split(H100, A100, 0.8 * new.cost, COST)),
        ("code, A100 + A100, same power and cost (abstract)", 2.35, code, old, split(A100, A100, old.power, POWER)),
    ]
    table = []
    for claim, published, traffic, mixed, designs in claims:
        design, rate = traffic.best(designs, 40.0)
        ratio = rate / traffic.throughput(mixed, 40.0)
        by_gap = [traffic.throughput_of_gaps(each.fifth(), 8.0) for each in (design, mixed)]
        what = f"Splitwise, {claim}: {design} over {mixed} {mixed.name}, times"
        table += [
            Row(f"{what}; TBT by request", published, ratio),
            Row(f"{what}; TBT by token, a fifth of the servers", published, by_gap[0] / by_gap[1]),
        ]
    return table
