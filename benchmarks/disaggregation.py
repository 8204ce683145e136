"""What planning makes of prefill and decode apart, beside what papers publish: devices and dollars for one traffic.

    python -m benchmarks.disaggregation DATA [--only distserve splitwise] [-o RESULTS.json]

DATA is a folder with `traces/azure_2023_conversation.csv`. Every case is planned three times: together (`never`), apart
(`always`) and free (`auto`), by the planner's own cost model, engine profile and simulation; no result of a paper is an
input. DistServe's replicas are its own engine on A100-80GB with pipeline stages, which no connector of today's engines
hands over between; so its placements are shown beside those that are planned, not planned themselves.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.plan import make_plan
from specs.deployment import parse_deployment
from specs.errors import NoPlanError
from specs.plan import Plan
from specs.traffic import read_trace

LONGEST = 2048  # of OPT: prompt and output
REQUESTS = 4000
CHOICES = ("never", "always", "auto")
A100 = "{name: a100, device: a100-sxm, count: 256, gpus_per_node: 8, price: $2.2/h, rent: gpu}"
H100 = "{name: h100, device: h100-sxm, count: 256, gpus_per_node: 8, price: $4.75/h, rent: gpu}"


@dataclass(frozen=True)
class Case:
    """One traffic of one model. `published`: what the paper says of it, in words."""

    paper: str
    model: str
    pools: tuple[str, ...]
    rate: float
    slo: str
    objective: str
    published: str


# DistServe: limits of its chatbot (table 1) at 90 % of requests, placements of table 3. Splitwise: prices of CoreWeave
# (its table 1) per device; limits as multiples of its reference are its own, so round ones stand here.
CASES = (
    Case(
        "distserve",
        "facebook/opt-13b",
        (A100,),
        40.0,
        "{ttft: 250ms, tpot: 100ms, attainment: 90%}",
        "gpus",
        "(2,1) prefill, (1,1) decode; up to 4.48 x the rate of colocated serving",
    ),
    Case(
        "distserve",
        "facebook/opt-66b",
        (A100,),
        10.0,
        "{ttft: 400ms, tpot: 100ms, attainment: 90%}",
        "gpus",
        "(4,1) prefill, (2,2) decode",
    ),
    Case(
        "distserve",
        "facebook/opt-175b",
        (A100,),
        4.0,
        "{ttft: 4s, tpot: 200ms, attainment: 90%}",
        "gpus",
        "(3,3) prefill, (4,3) decode",
    ),
    *(
        Case(
            "splitwise",
            "meta-llama/Llama-2-70b-hf",
            pools,
            30.0,
            "{ttft: {p90: 1s}, tpot: {p90: 40ms}}",
            "cost",
            "H100 for prompts and A100 for tokens: 1.4 x the throughput at 20 % lower cost than A100 alone",
        )
        for pools in ((A100,), (H100,), (H100, A100))
    ),
)


def spec_text(case: Case, choice: str) -> str:
    pools = "".join(f"    - {pool}\n" for pool in case.pools)
    return (
        f"models: {{m: {case.model}}}\nhardware:\n  pools:\n{pools}traffic:\n  - name: chat\n    model: m\n"
        f"    trace: {{file: chat.csv, rate: {case.rate}/s}}\n    slo: {case.slo}\n"
        f"objective: minimise {case.objective}\nchoices: {{disaggregation: {choice}}}\n"
    )


def write_chat(data: Path, folder: Path, seed: int = 0) -> None:
    """Conversations of Azure that OPT can hold, at Poisson arrivals: 748 prompt, 236 output tokens in the mean."""
    trace = read_trace(data / "traces/azure_2023_conversation.csv", "azure")
    random = np.random.Generator(np.random.PCG64(seed))
    rows = random.choice(np.flatnonzero(trace.prompt_tokens + trace.output_tokens <= LONGEST), REQUESTS, replace=False)
    arrivals = np.cumsum(random.exponential(1.0, REQUESTS))
    with (folder / "chat.csv").open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(("arrival_s", "prompt_tokens", "output_tokens"))
        for at_s, row in zip(arrivals, rows, strict=True):
            table.writerow((f"{at_s:.6f}", trace.prompt_tokens[row], trace.output_tokens[row]))


def in_words(plan: Plan) -> str:
    found = []
    for group in sorted(plan.groups, key=lambda group: (group.role != "prefill", group.pool)):
        shape = f"({group.layout.tensor_parallel},{group.layout.pipeline_parallel})"
        found.append(f"{group.replicas} x {shape} {group.role} {group.pool}")
    return " + ".join(found)


def planned(case: Case, choice: str, folder: Path) -> dict[str, Any]:
    """One plan in figures."""
    started = time.process_time()
    found: dict[str, Any] = {"disaggregation": choice}
    try:
        plan = make_plan(parse_deployment(spec_text(case, choice)).spec, folder)
    except NoPlanError as error:
        return found | {"plan": None, "why": error.message.splitlines()[0]}
    return found | {
        "plan": in_words(plan),
        "devices": plan.cost.gpus,
        "usd_per_hour": plan.cost.usd_per_hour,
        "requests_per_s_and_device": round(case.rate / plan.cost.gpus, 3),
        "attainment": round(plan.predictions.classes[0].attainment, 4),
        "bound": plan.certificate.bound,
        "cpu_s": round(time.process_time() - started, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=("distserve", "splitwise"), default=("distserve", "splitwise"))
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        write_chat(options.data, Path(scratch))
        for case in CASES:
            if case.paper not in options.only:
                continue
            pools = " and ".join(pool.split("device: ")[1].split(",")[0] for pool in case.pools)
            row = {"paper": case.paper, "model": case.model, "pools": pools, "rate_per_s": case.rate, "slo": case.slo}
            row["published"] = case.published
            row["plans"] = [planned(case, choice, Path(scratch)) for choice in CHOICES]
            print(json.dumps(row), flush=True)
            rows.append(row)
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
