"""Placements of mixture-of-experts replicas on published instances: one JSON line a case, in the order of the file.

    python -m benchmarks.expert_placement FILE...

`max_gpu_load` and `bound` are lists by layer: the load of the busiest device, counted again from the placement, and a
load below which no placement can come. `phy2log` lists the expert in each slot, devices in order.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.published import check_keys, gap, integer, print_timed, read_all, run, table
from planner.optimize.expert_placement.instance import ExpertLoads
from planner.optimize.expert_placement.place import place_experts
from specs.errors import InputError

SIZES = ("num_replicas", "num_groups", "num_nodes", "num_gpus")
PUBLISHED = ("expected_phy2log", "expected_logcnt", "max_gpu_load", "mean_gpu_load")


def parse(document: dict[str, Any]) -> list[tuple[str, ExpertLoads]]:
    """The cases of a file with their names."""
    check_keys(document, ["cases"])
    if not isinstance(document["cases"], list) or not document["cases"]:
        raise InputError("must be a list of cases", field="cases")
    cases = []
    for index, case in enumerate(document["cases"]):
        at = f"cases[{index}]"
        check_keys(case, ["weight", *SIZES], PUBLISHED, at=at)
        loads = np.array(table(case["weight"], f"{at}.weight"))
        sizes = [integer(case[key], f"{at}.{key}", low=1) for key in SIZES]
        try:
            cases.append((str(case.get("name", index)), ExpertLoads(loads, *sizes)))
        except InputError as error:
            error.field = f"{at}.{error.field}"
            raise
    return cases


def answer(name: str, instance: ExpertLoads) -> dict[str, Any]:
    found = place_experts(instance)
    return {
        "name": name,
        "max_gpu_load": found.max_load.tolist(),
        "bound": found.bound.tolist(),
        "mean_gpu_load": (instance.loads.sum(axis=1) / instance.devices).tolist(),
        "gap": max(gap(value, bound) for value, bound in zip(found.max_load, found.bound, strict=True)),
        "phy2log": found.experts.reshape(instance.layers, -1).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    for _, cases in read_all(parser.parse_args().files, parse):
        for name, instance in cases:
            print_timed(partial(answer, name, instance))


if __name__ == "__main__":
    run(main)
