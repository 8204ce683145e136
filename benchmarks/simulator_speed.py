"""Speed of the fast simulator beside the oracle, on a recorded trace; both in this run, both on the same requests.

    python benchmarks/simulator_speed.py TRACE [--format azure] [--rate 20] [--seconds 600] [--replicas 4 8]

Step times are those of a 70B dense model on four 80 GB devices, near enough: they are stated here, not fitted, so that
the figures do not move with the cost model. Prints CPU seconds (best of `--repeat` for the fast path, one run of the
oracle), requests per CPU second, and the largest difference between the two.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from planner.cost.step_times import StepTimes
from planner.simulate import FleetGroup, FleetResult, ReplicaModel, Workload, simulate_fleet
from specs.deployment import SLO, PercentileLimit
from specs.plan import Limits, Route, Scheduling
from specs.traffic import read_trace

SLO_CHAT = SLO(
    percentiles=(
        PercentileLimit(metric="ttft", percentile=90, limit_s=1.0),
        PercentileLimit(metric="tpot", percentile=90, limit_s=0.05),
    )
)


def replica(window_tokens: int | None = None) -> ReplicaModel:
    """70B, four devices: 18 ms to stream the weights, 65 us a token of compute once that is more."""
    budget, seats = 2048, 256
    times = StepTimes(
        tokens_s=tuple(max(0.018, 6.5e-5 * tokens + 0.004) for tokens in range(budget + 1)),
        sampled_s=tuple(2e-6 * rows for rows in range(seats + 1)),
        sequence_s=1e-5,
        decode_launch_s=4e-4,
        decode_context_token_s=2.9e-8,
        decode_window_token_s=0.0 if window_tokens is None else 2.9e-8,
        window_tokens=window_tokens,
        prefill_launch_s=4e-4,
        prefill_pair_s=1.2e-9,
        prefill_window_pair_s=0.0 if window_tokens is None else 1.2e-9,
        prefill_context_token_s=2e-9,
        request_s=0.005,
        lanes=1,
    )
    limits = Limits(max_num_seqs=seats, max_num_batched_tokens=budget, max_model_len=32768)
    return ReplicaModel(times, limits, num_blocks=24_000, block_size_tokens=16, scheduling=Scheduling())


def run(workload: Workload, replicas: int, *, exact: bool, refute: bool) -> tuple[FleetResult, float]:
    """The result and the CPU seconds it took."""
    groups = (FleetGroup("chat", replicas, replica()),)
    routes = (Route(request_class="chat", group="chat", share=1.0),)
    start = time.process_time()
    result = simulate_fleet(groups, routes, workload, exact=exact, refute={"chat": SLO_CHAT} if refute else None)
    return result, time.process_time() - start


def difference(left: FleetResult, right: FleetResult) -> float:
    """Largest relative difference between two results, over TTFT and end-to-end time of every request."""
    return max(
        float(np.nanmax(np.abs(a - b) / np.maximum(np.abs(a), 1e-12)))
        for a, b in ((left.ttft_s, right.ttft_s), (left.e2e_s, right.e2e_s))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--format", default="azure", choices=("azure", "mooncake", "sharegpt", "csv"))
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--replicas", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-oracle", action="store_true", help="the fast path only")
    options = parser.parse_args()

    start = time.process_time()
    trace = read_trace(options.trace, options.format).scaled(options.rate).busiest(options.seconds)
    count = len(trace)
    print(f"{count} requests, read, scaled and cut in {time.process_time() - start:.3f} s CPU")
    workload = Workload(
        ("chat",), np.zeros(count, np.int64), trace.arrival_s, trace.prompt_tokens, trace.output_tokens, options.seconds
    )
    for replicas in options.replicas:
        for refute in (False, True):
            runs = [run(workload, replicas, exact=False, refute=refute) for _ in range(options.repeat)]
            fast, fast_s = min(runs, key=lambda pair: pair[1])
            p90 = (
                "refuted: " + fast.refuted_early
                if fast.refuted_early
                else (
                    f"p90 TTFT {fast.percentile_s('ttft', 90):.3f} s, "
                    f"p90 TPOT {1e3 * fast.percentile_s('tpot', 90):.1f} ms, "
                    f"utilisation {fast.utilisation(0):.2f}, preemptions {fast.groups[0].preemptions}"
                )
            )
            print(
                f"{replicas} replicas{', with limits' if refute else ''}: fast {fast_s:.3f} s CPU, "
                f"{count / fast_s:,.0f} requests/s, {fast.events} jumps for {fast.groups[0].steps} steps; {p90}"
            )
        if not options.no_oracle:
            oracle, oracle_s = run(workload, replicas, exact=True, refute=False)
            plain, plain_s = run(workload, replicas, exact=False, refute=False)
            print(
                f"{replicas} replicas: oracle {oracle_s:.2f} s CPU ({oracle_s / plain_s:.0f}x the fast path), "
                f"largest relative difference {difference(oracle, plain):.1e}"
            )


if __name__ == "__main__":
    main()
