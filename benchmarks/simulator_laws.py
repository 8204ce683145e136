"""The simulator beside laws of queues that are known in closed form; prints the table of `docs/simulation.md`.

    python -m benchmarks.simulator_laws [--requests 200000] [-o benchmarks/results/cpu/simulator_laws.json]

A replica with flat step times is a queue of theory: a request of `n` output tokens holds its seat for n steps of one
length (`benchmarks/simulator/servers.py`). Everything is seeded; expectations are for the sizes and the rate drawn.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.simulator.balance import (
    balance_rows,
    block_rows,
    coverage_row,
    fairness_rows,
    routing_rows,
    work_rows,
)
from benchmarks.simulator.table import Row, markdown, write_json
from benchmarks.simulator.waits import first_come_rows, many_servers_row, ordered_rows, sharing_rows


def rows(requests: int) -> list[Row]:
    """Every law; `requests` of the longest runs."""
    return [
        *first_come_rows(requests),
        many_servers_row(requests),
        *sharing_rows(requests),
        *ordered_rows(requests),
        *balance_rows(requests),
        *work_rows(requests // 10),
        *block_rows(),
        *fairness_rows(),
        *routing_rows(requests),
        coverage_row(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    start = time.process_time()
    table = rows(options.requests)
    print(markdown(table))
    if options.output is not None:
        write_json(table, options.output, requests=options.requests, cpu_s=round(time.process_time() - start, 1))


if __name__ == "__main__":
    main()
