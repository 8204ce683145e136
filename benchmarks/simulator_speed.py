"""Speed of the compiled simulator beside the oracle, and whether both say the same, bit for bit.

    python -m benchmarks.simulator_speed [--mooncake TRACE] [-o benchmarks/results/cpu/simulator_speed.json]

One run prints requests per CPU second of both on the recorded conversations of Azure (8 replicas), on those of Mooncake
where the file is given (prefix cache, paged blocks, preemption), the cost of a request against the number of replicas
and of requests (each in a process of its own, for its peak memory), and what a first user waits for the compiler.
CPU seconds are the best of three runs, of the oracle one run.

Step times are those of a 70B dense model on four 80 GB devices, near enough: they are stated here, not fitted, so that
the figures do not move with the cost model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from planner.cost.step_times import StepTimes
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, native, simulate_fleet
from specs.plan import Limits, Route, Scheduling
from specs.traffic import Trace, read_trace

AZURE = Path(__file__).parent.parent / "specs" / "examples" / "traces" / "azure_2023_conversation.csv.gz"
ROUTES = (Route(request_class="chat", group="chat", share=1.0),)
UNIT_TOKENS = 512  # of the prefix ids in Mooncake's traces
MOST_EVENTS = 10**12
REPLICAS = (1, 10, 100, 1000)
REQUESTS = (10_000, 100_000, 1_000_000)
COLD_START = """
import resource, time
from planner.simulate import native
start = time.perf_counter()
native.compiled()
compiler = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - start, compiler.ru_utime + compiler.ru_stime)
"""


def replica(max_model_len: int = 32_768, num_blocks: int = 24_000, *, prefix_caching: bool = False) -> ReplicaModel:
    """70B, four devices: 18 ms to stream the weights, 65 us a token of compute once that is more."""
    budget, seats = 2048, 256
    times = StepTimes(
        tokens_s=tuple(max(0.018, 6.5e-5 * tokens + 0.004) for tokens in range(budget + 1)),
        sampled_s=tuple(2e-6 * rows for rows in range(seats + 1)),
        sequence_s=1e-5,
        decode_launch_s=4e-4,
        decode_context_token_s=2.9e-8,
        decode_window_token_s=0.0,
        window_tokens=None,
        prefill_launch_s=4e-4,
        prefill_pair_s=1.2e-9,
        prefill_window_pair_s=0.0,
        prefill_context_token_s=2e-9,
        request_s=0.005,
        lanes=1,
    )
    limits = Limits(max_num_seqs=seats, max_num_batched_tokens=budget, max_model_len=max_model_len)
    return ReplicaModel(times, limits, num_blocks, 16, Scheduling(), prefix_caching)


def workload_of(trace: Trace, *, prefixes: bool = False) -> Workload:
    units = trace.sharing.units(UNIT_TOKENS) if prefixes and trace.sharing is not None else None
    count = np.zeros(len(trace), np.int64)
    return Workload(("chat",), count, trace.arrival_s, trace.prompt_tokens, trace.output_tokens, prefixes=units)


def serve(model: ReplicaModel, replicas: int, workload: Workload, *, exact: bool) -> FleetResult:
    groups = (FleetGroup("chat", replicas, model),)
    return simulate_fleet(groups, ROUTES, workload, exact=exact, max_events=MOST_EVENTS)


def cpu_seconds(run: Callable[[], FleetResult], times: int) -> tuple[FleetResult, float]:
    """The result, and the CPU seconds of the quickest run."""
    best_s = float("inf")
    for _ in range(times):
        start = time.process_time()
        result = run()
        best_s = min(best_s, time.process_time() - start)
    return result, best_s


def equal(left: FleetResult, right: FleetResult) -> bool:
    """Every field, bit for bit."""
    pairs = ((getattr(left, field.name), getattr(right, field.name)) for field in fields(FleetResult))
    return all(np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def compare(name: str, model: ReplicaModel, replicas: int, workload: Workload, *, oracle: bool) -> dict[str, Any]:
    """Both simulators on one workload."""
    compiled, compiled_s = cpu_seconds(lambda: serve(model, replicas, workload, exact=False), 3)
    load = compiled.groups[0]
    row: dict[str, Any] = {
        "workload": name,
        "requests": len(workload),
        "replicas": replicas,
        "steps": load.steps,
        "preemptions": load.preemptions,
        "hit_share": round(load.hit_tokens / max(1, load.looked_up_tokens), 4),
        "compiled_cpu_s": round(compiled_s, 4),
        "compiled_requests_per_s": round(len(workload) / compiled_s),
    }
    if oracle:
        stepped, oracle_s = cpu_seconds(lambda: serve(model, replicas, workload, exact=True), 1)
        row |= {
            "oracle_cpu_s": round(oracle_s, 2),
            "oracle_requests_per_s": round(len(workload) / oracle_s),
            "times_faster": round(oracle_s / compiled_s),
            "equal": equal(compiled, stepped),
        }
    return row


def over_replicas(workload: Workload) -> list[dict[str, Any]]:
    """The same requests on more and more replicas: each decodes alone in the end, so there are more steps."""
    return [compare("azure", replica(), replicas, workload, oracle=False) for replicas in REPLICAS]


def drawn(requests: int, rate_per_s: float = 20.0) -> Workload:
    """Poisson arrivals with the lengths of recorded requests, drawn with replacement."""
    random, trace = np.random.default_rng(1), read_trace(AZURE, "azure")
    rows = random.integers(0, len(trace), requests)
    arrival_s = np.cumsum(random.exponential(1 / rate_per_s, requests))
    count = np.zeros(requests, np.int64)
    return Workload(("chat",), count, arrival_s, trace.prompt_tokens[rows], trace.output_tokens[rows])


def one_size(requests: int) -> dict[str, Any]:
    """One run of so many requests, with the peak memory of this process."""
    workload = drawn(requests)
    start = time.process_time()
    result = serve(replica(), 8, workload, exact=False)
    seconds = time.process_time() - start
    return {
        "requests": requests,
        "steps": result.groups[0].steps,
        "cpu_s": round(seconds, 3),
        "us_per_request": round(1e6 * seconds / requests, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def over_requests() -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.simulator_speed", "--only-requests"]
    runs = (subprocess.run([*command, str(count)], check=True, capture_output=True, text=True) for count in REQUESTS)
    return [json.loads(run.stdout) for run in runs]


def cold_start() -> dict[str, float]:
    """Seconds until the simulator is loaded: the first time, with the compiler, and from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "CAPSTAN_CACHE": folder}
        command = [sys.executable, "-c", COLD_START]
        first, second = (
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
            for _ in range(2)
        )
    return {
        "compile_wall_s": round(float(first[0]), 3),
        "compile_cpu_s": round(float(first[1]), 3),
        "cached_wall_s": round(float(second[0]), 4),
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    for row in rows:
        print(
            "  "
            + ", ".join(f"{key} {value:,}" if type(value) is int else f"{key} {value}" for key, value in row.items())
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mooncake", type=Path, help="Mooncake's conversation trace (JSON lines, or gzipped)")
    parser.add_argument("--no-oracle", action="store_true", help="the compiled simulator only")
    parser.add_argument("--only-requests", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    if options.only_requests:
        print(json.dumps(one_size(options.only_requests)))
        return
    if native.compiled() is None:
        raise SystemExit("there is no compiled simulator to measure")
    azure = workload_of(read_trace(AZURE, "azure"))
    compared = [compare("azure", replica(), 8, azure, oracle=not options.no_oracle)]
    if options.mooncake is not None:
        mooncake = workload_of(read_trace(options.mooncake, "mooncake"), prefixes=True)
        model = replica(160_000, 12_000, prefix_caching=True)  # 12,000 blocks of 16 tokens: little more than one prompt
        compared.append(compare("mooncake", model, 6, mooncake, oracle=not options.no_oracle))
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "compared": compared,
        "over_replicas": over_replicas(azure),
        "over_requests": over_requests(),
        "cold_start": cold_start(),
    }
    show("Compiled and oracle", compared)
    show("Azure's requests on more and more replicas", report["over_replicas"])  # type: ignore[arg-type]
    show("More and more requests on 8 replicas", report["over_requests"])  # type: ignore[arg-type]
    show("Until the simulator is loaded", [report["cold_start"]])  # type: ignore[list-item]
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
