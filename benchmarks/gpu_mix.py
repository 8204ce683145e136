"""The cheapest mix of device types on published histograms: one JSON line for each point, in the order of the file.

    python -m benchmarks.gpu_mix FILE...

`cost` is that of the best mix with buckets split at will, and no mix costs less than `bound`; `routing` gives the share
of each bucket that each type serves. A file without points is one point.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.published import check_keys, gap, integer, number, print_timed, read_all, run, table
from planner.optimize.gpu_mix import DeviceType, MixInstance, cheapest_mix
from specs.errors import InputError


def parse(document: dict[str, Any]) -> list[tuple[float, MixInstance]]:
    """(request rate, instance) of each point."""
    check_keys(document, ["input"], ["points"])
    data = document["input"]
    check_keys(data, ["gpu_info", "workload_distribution"], ["total_request_rate", "slice_factor"], at="input")
    shares = table(data["workload_distribution"], "input.workload_distribution")
    if not isinstance(data["gpu_info"], dict):
        raise InputError("must be an object of device types", field="input.gpu_info")
    types = tuple(_device_type(name, entry, shares) for name, entry in data["gpu_info"].items())
    points = document.get("points", [data])
    if not isinstance(points, list) or not points:
        raise InputError("must be a list of points", field="points")
    found = []
    for index, point in enumerate(points):
        at = f"points[{index}]" if "points" in document else "input"
        if isinstance(point, dict) and "total_request_rate" in data:
            point = {"total_request_rate": data["total_request_rate"], **point}
        if not isinstance(point, dict) or "total_request_rate" not in point:
            raise InputError("needs a total_request_rate", field=at)
        if "points" in document:
            alone = [f"only_{kind.name}" for kind in types]
            check_keys(point, ["total_request_rate"], ["slice_factor", "expected", "solve_s", *alone], at=at)
        rate = number(point["total_request_rate"], f"{at}.total_request_rate")
        if "slice_factor" in point:
            integer(point["slice_factor"], f"{at}.slice_factor", low=1)
        found.append((rate, MixInstance(tuple(rate * share for row in shares for share in row), types)))
    return found


def _device_type(name: str, entry: Any, shares: list[list[float]]) -> DeviceType:
    at = f"input.gpu_info.{name}"
    check_keys(entry, ["cost", "tputs"], ["inventory"], at=at)
    throughputs = table(entry["tputs"], f"{at}.tputs")
    if [len(row) for row in throughputs] != [len(row) for row in shares]:
        raise InputError("must have the shape of workload_distribution", field=f"{at}.tputs")
    most = entry.get("inventory")
    return DeviceType(
        name=name,
        cost=number(entry["cost"], f"{at}.cost"),
        throughputs=tuple(cell for row in throughputs for cell in row),
        most=None if most is None else integer(most, f"{at}.inventory"),
    )


def answer(rate: float, instance: MixInstance, time_limit_s: float) -> dict[str, Any]:
    found = cheapest_mix(instance, time_limit_s=time_limit_s)
    return {
        "total_request_rate": rate,
        "cost": found.cost,
        "bound": found.bound,
        "gap": gap(found.cost, found.bound),
        "counts": found.counts,
        "routing": found.shares,
        "solver": found.solver,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--time-limit", type=float, default=30.0, help="seconds for each point")
    options = parser.parse_args()
    for _, points in read_all(options.files, parse):
        for rate, instance in points:
            print_timed(partial(answer, rate, instance, options.time_limit))


if __name__ == "__main__":
    run(main)
