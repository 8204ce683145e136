"""PipeDream's partitions from its published profiles: one JSON line for each number of machines.

    python -m benchmarks.pipeline_partition FILE... [--machines 4 8] [--bandwidth 1e9]

A profile holds a line per operator (`node1 -- name -- forward_compute_time=ms, backward_compute_time=ms,
activation_size=bytes, parameter_size=bytes`) and a line per edge (`node1 -- node2`, indented). Input operators are left
out, as in the published partitions. `bound` is `objective`: dynamic programming looks at every partition.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx

from benchmarks.published import print_timed, run
from planner.optimize.pipeline_partition import Operator, partition
from specs.errors import InputError

FIELDS = {"forward_compute_time", "backward_compute_time", "activation_size", "parameter_size"}
MILLISECONDS = 1e-3


def read_profile(path: Path) -> nx.DiGraph[str]:
    """The operator graph of a profile; raises `InputError` with the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=str(path)) from None
    graph: nx.DiGraph[str] = nx.DiGraph()
    inputs = []
    edges = []
    for index, line in enumerate(lines, 1):
        parts = [part.strip() for part in line.split(" -- ")]
        if not line.strip():
            continue
        try:
            if line.startswith("\t"):
                tail, head = parts
                edges.append((index, tail, head))
            else:
                name, description, fields, *_ = parts  # a stage may follow that an earlier partition chose
                graph.add_node(name, operator=_operator(fields))
                if description.startswith("Input"):
                    inputs.append(name)
        except ValueError:
            raise InputError(f"is neither an operator nor an edge: {line!r:.60}", file=str(path), line=index) from None
    for index, tail, head in edges:
        for end in (tail, head):
            if end not in graph:
                raise InputError(f"edge to unknown operator {end!r}", file=str(path), line=index)
        graph.add_edge(tail, head)
    graph.remove_nodes_from(inputs)
    return graph


def _operator(fields: str) -> Operator:
    """Raises `ValueError` unless each field stands there once with a number, or several sizes in brackets."""
    values = {key: _total(value) for key, value in (field.strip().split("=") for field in fields.split(", "))}
    if values.keys() != FIELDS or not all(0 <= value < float("inf") for value in values.values()):
        raise ValueError
    seconds = (values["forward_compute_time"] + values["backward_compute_time"]) * MILLISECONDS
    return Operator(seconds, values["parameter_size"])


def _total(text: str) -> float:
    """A number, or the sum of `[a; b; ...]`: the sizes of an operator with several outputs."""
    return sum(float(part) for part in text.strip("[]").split(";"))


def answer(path: Path, graph: nx.DiGraph[str], machines: int, bytes_per_s: float) -> dict[str, Any]:
    found = partition(graph, machines, bytes_per_s)
    one = sum(graph.nodes[node]["operator"].compute_s for node in graph)
    return {
        "file": path.name,
        "machines": machines,
        "objective": found.seconds,
        "bound": found.seconds,
        "gap": 0.0,
        "speedup": one / found.seconds if found.seconds else 1.0,
        "stages": [{"range": [stage.first, stage.end], "machines": stage.machines} for stage in found.stages],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--machines", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--bandwidth", type=float, default=1e9, help="bytes/s between machines")
    options = parser.parse_args()
    if min(options.machines) < 1 or not 0 < options.bandwidth < float("inf"):
        raise InputError("--machines and --bandwidth must be positive")
    for path, graph in [(path, read_profile(path)) for path in options.files]:
        for machines in options.machines:
            print_timed(partial(answer, path, graph, machines, options.bandwidth))


if __name__ == "__main__":
    run(main)
