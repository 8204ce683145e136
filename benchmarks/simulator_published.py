"""The simulator beside what papers report, from inputs that they published; prints the tables of `docs/simulation.md`.

    python -m benchmarks.simulator_published DATA [--only orca sarathi] [-o RESULTS.json]

DATA is a folder with `profiles/` (DistServe's and Splitwise's own) and `traces/` (Azure 2023, Mooncake conversation).
No result of a paper is an input; rows without a published figure say what led to the next one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.simulator import distserve, mooncake, orca, sarathi, splitwise
from benchmarks.simulator.table import PUBLISHED_HEADER, Row, markdown, write_json

PAPERS: dict[str, Callable[[Path], list[Row]]] = {
    "orca": lambda data: orca.rows(),
    "sarathi": lambda data: sarathi.rows(),
    "distserve": distserve.rows,
    "splitwise": splitwise.rows,
    "mooncake": mooncake.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(PAPERS), default=tuple(PAPERS))
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    table: list[Row] = []
    cpu_s: dict[str, float] = {}
    for name in options.only:
        start = time.process_time()
        rows = PAPERS[name](options.data)
        cpu_s[name] = round(time.process_time() - start, 1)
        print(markdown(rows, PUBLISHED_HEADER), flush=True)
        print(f"\n{name}: {cpu_s[name]} CPU seconds\n", flush=True)
        table += rows
    if options.output is not None:
        write_json(table, options.output, cpu_s=cpu_s)


if __name__ == "__main__":
    main()
