"""Placements of model layers on named machines of published clusters: one JSON line a file.

    python -m benchmarks.layer_placement FILE... [--time-limit 50]

`placement` maps a machine to the layers that it holds, [first, end); `objective` is the maximum flow of that placement
in tokens/s, computed again by networkx; no placement carries more than `bound`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.published import check_keys, gap, integer, number, print_timed, read_all, run
from planner.optimize.layer_placement.instance import LayerInstance
from planner.optimize.layer_placement.place import place_layers
from specs.errors import InputError

KEYS = ("layers", "machine_types", "machines", "links", "source_links", "sink_links")


def parse(document: dict[str, Any]) -> LayerInstance:
    """The instance of a file; raises `InputError` that names the field that is wrong."""
    check_keys(document, KEYS)
    kinds = document["machine_types"]
    if not isinstance(kinds, dict) or not all(isinstance(speeds, dict) for speeds in kinds.values()):
        raise InputError("must map a type to its tokens/s by layers held", field="machine_types")
    if not isinstance(document["machines"], list) or not all(isinstance(x, str) for x in document["machines"]):
        raise InputError("must be a list of machine types", field="machines")
    speeds = {
        kind: {_index(k, f"machine_types.{kind}"): number(x, f"machine_types.{kind}.{k}") for k, x in by_layers.items()}
        for kind, by_layers in kinds.items()
    }
    return LayerInstance(
        layers=integer(document["layers"], "layers", low=1),
        tokens_per_s=speeds,
        types=tuple(document["machines"]),
        links=_links(document["links"]),
        sources=_ends(document["source_links"], "source_links"),
        sinks=_ends(document["sink_links"], "sink_links"),
    )


def _index(text: str, field: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise InputError(f"{text!r:.40} is no whole number", field=field)
    return int(text)


def _links(rows: Any) -> dict[tuple[int, int], float]:
    if not isinstance(rows, list):
        raise InputError("must be a list of [machine, machine, tokens/s]", field="links")
    links: dict[tuple[int, int], float] = {}
    for index, row in enumerate(rows):
        at = f"links[{index}]"
        if not isinstance(row, list) or len(row) != 3:
            raise InputError("must be [machine, machine, tokens/s]", field=at)
        pair = (integer(row[0], at), integer(row[1], at))
        if pair in links:
            raise InputError("joins two machines a second time", field=at)
        capacity = number(row[2], at)
        if pair[0] != pair[1]:  # no machine hands over to itself
            links[pair] = capacity
    return links


def _ends(rows: Any, field: str) -> dict[int, float]:
    if not isinstance(rows, dict):
        raise InputError("must map a machine to tokens/s", field=field)
    return {_index(machine, field): number(capacity, f"{field}.{machine}") for machine, capacity in rows.items()}


def answer(path: Path, instance: LayerInstance, time_limit_s: float) -> dict[str, Any]:
    found = place_layers(instance, time_limit_s=time_limit_s)
    return {
        "file": path.name,
        "objective": found.tokens_per_s,
        "bound": found.bound,
        "gap": gap(found.tokens_per_s, found.bound),
        "placement": {str(machine): list(span) for machine, span in sorted(found.placement.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--time-limit", type=float, default=50.0, help="seconds for each file")
    options = parser.parse_args()
    if not options.time_limit > 0:
        raise InputError("--time-limit must be positive")
    for path, instance in read_all(options.files, parse):
        print_timed(partial(answer, path, instance, options.time_limit))


if __name__ == "__main__":
    run(main)
