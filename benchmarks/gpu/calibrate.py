"""Measures this machine's GPU as `capstan calibrate` does, cold and warm, and judges the catalogue by what was seen.

    python -m benchmarks.gpu.calibrate -o DIR [--seconds 180]

DIR gets, for each of `cold` and `warm`, the profile, the measurements and the kernel tables, and `errors.json`: median
and p90 of |predicted / measured - 1| by family, predicted from the catalogue alone (torch's kernels are not those that
its tables measure). Exits 2 without CUDA. Not run yet: no machine with a GPU was at hand when this was written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from capstan.commands.calibrate import run_calibrate
from capstan.console import guarded
from capstan.table_files import read_table_file, table_paths
from planner.cost.calibration import read_profile
from planner.operators import device_model, predict, read_columns


def errors(tables: Path, device: str) -> dict[str, dict[str, float]]:
    """Errors of the catalogue's predictions of the kernel tables in a folder, by family."""
    result = {}
    for path in table_paths([tables]):
        columns, first_line = read_table_file(path)
        table = read_columns(columns, str(path), first_line)
        seconds, _ = predict(table, device_model(device), str(path))
        error = np.abs(seconds / table.seconds - 1.0)
        result[table.family] = {
            "rows": len(error),
            "p50": round(float(np.median(error)), 4),
            "p90": round(float(np.quantile(error, 0.9)), 4),
        }
    return result


def measure(output: Path, seconds: float) -> None:
    """Both states of the L2, one after the other."""
    found = {}
    for l2 in ("cold", "warm"):
        tables, profile = output / l2, output / f"{l2}-profile.json"
        run_calibrate(profile, output / f"{l2}-measurements.json", device="cuda", tables=tables, l2=l2, seconds=seconds)
        found[l2] = errors(tables, read_profile(profile).device)
    (output / "errors.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=180.0, help="for each of cold and warm")
    options = parser.parse_args()
    return guarded(lambda: measure(options.output, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
