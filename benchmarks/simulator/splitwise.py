"""Split and mixed pools of A100 and H100: Splitwise (Patel et al., ISCA 2024), figure 18, from its own profile.

BLOOM-176B on 8-GPU servers; prompt and token times from `splitwise_perf_model.csv` (its power-capped rows are copies and
are not used). The nine limits of table VI are slowdowns against an empty A100 server; TBT is a request's mean here.
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
from benchmarks.simulator.servers import FREE
from benchmarks.simulator.table import Row
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, simulate_fleet
from planner.simulate.links import Handoff, Link
from specs.plan import Limits, Route, Scheduling
from specs.traffic import read_trace

MODEL = "bloom-176b"
COST = {"a100-80gb": 2.21 * 8, "h100-80gb": 4.76 * 8}  # $/h of a server
POWER = {"a100-80gb": 24.8, "h100-80gb": 44.0}
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

    def serve(self, workload: Workload, times: dict[str, Times]) -> FleetResult:
        device, count = self.prompt
        if self.token is None:
            groups = (FleetGroup("all", count, times[device].both()),)
            return simulate_fleet(groups, (Route(request_class="all", group="all", share=1.0),), workload)
        groups = (
            FleetGroup(
                "prompt", count, times[device].prompts(), role="prefill", handoff=Handoff("token", 0.0, "infiniband")
            ),
            FleetGroup("token", self.token[1], times[self.token[0]].tokens(), role="decode"),
        )
        routes = (Route(request_class="all", group="prompt", share=1.0),)
        return simulate_fleet(groups, routes, workload, links=LINKS)


def meets(result: FleetResult, workload: Workload, empty: Times) -> bool:
    """The nine limits: P50, P90 and P99 of each metric's slowdown against an empty A100 server."""
    prompt_s = empty.prompt_s[np.minimum(workload.prompt_tokens, BATCH_TOKENS)] * np.maximum(
        1.0, workload.prompt_tokens / BATCH_TOKENS
    )
    alone = {
        "ttft": prompt_s,
        "tpot": np.full(len(workload), empty.token_s[1]),
        "e2e": prompt_s + (workload.output_tokens - 1) * empty.token_s[1],
    }
    for metric, limits in SLOWDOWNS.items():
        slowdown = result.metric_s(metric) / alone[metric]  # type: ignore[arg-type]
        values = np.percentile(slowdown[~np.isnan(slowdown)], (50, 90, 99))
        if (values > limits).any():
            return False
    return True


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
        """Largest rate that the design serves within the limits."""

        def holds(rate: float) -> bool:
            workload = self.workload(rate)
            return meets(design.serve(workload, self.times), workload, self.times["a100-80gb"])

        return largest_rate(holds, start, tolerance=0.02)

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
    """Figure 18, and the abstract's claims."""
    a100, h100 = "a100-80gb", "h100-80gb"
    old, new = Design("mixed", (a100, 70)), Design("mixed", (h100, 40))  # the same power
    bench = Bench("conversation", data)
    base_old, base_new = bench.throughput(old, 40.0), bench.throughput(new, 40.0)
    table = [
        Row("Splitwise, conversation: 70 mixed A100 servers, requests/s", None, base_old),
        Row("40 mixed H100 servers (the same power), requests/s", None, base_new),
    ]
    claims = [
        ("A100 and A100 over mixed A100, same power and cost, times (figure 18a)", 2.15, base_old,
         split(a100, a100, old.power, POWER)),
        ("A100 and A100 over mixed H100, same cost, times (figure 18b)", 1.4, base_new, split(a100, a100, new.cost, COST)),
        ("H100 and A100 over mixed H100, same power, times (section 6.2)", 1.18, base_new,
         split(h100, a100, new.power, POWER)),
        ("over mixed H100 at 20 % lower cost, A100 and A100, times (abstract)", 1.4, base_new,
         split(a100, a100, 0.8 * new.cost, COST)),
        ("over mixed H100 at 20 % lower cost, H100 and A100, times (abstract)", 1.4, base_new,
         split(h100, a100, 0.8 * new.cost, COST)),
    ]  # fmt: skip
    for claim, published, base, designs in claims:
        design, rate = bench.best(designs, 40.0)
        assert design.token is not None
        table.append(Row(f"{claim}: {design.prompt[1]} + {design.token[1]}", published, rate / base))
    code = Bench("code", data)
    design, rate = code.best(split(a100, a100, old.power, POWER), 40.0)
    assert design.token is not None
    ratio = rate / code.throughput(old, 40.0)
    what = f"code: A100 and A100 over mixed A100, same power and cost, times (abstract): {design.prompt[1]} + "
    table.append(Row(f"{what}{design.token[1]}", 2.35, ratio))
    return table
