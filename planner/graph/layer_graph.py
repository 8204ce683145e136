"""Which operators of a layer run as one kernel.

Cost counts launches and needs only their order: `launches` gives a plain tuple. `as_networkx` gives the same as a
directed graph with the residual edges, for those who look at or transform the layer; networkx takes longer to import
than a plan takes to cost, so it is imported there and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from specs.architecture.layer import Layer
from specs.architecture.operators import (
    AllReduce,
    Elementwise,
    Experts,
    IndexScores,
    LatentPagedAttention,
    Linear,
    Operator,
    PagedAttention,
    RecurrentScan,
)


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the operators that it fuses, in order."""

    name: str
    kind: str  # gemm | attention | experts | elementwise | all_reduce | scan
    operators: tuple[Operator, ...]


_KINDS: dict[type, str] = {
    Linear: "gemm",
    PagedAttention: "attention",
    LatentPagedAttention: "attention",
    IndexScores: "attention",
    Experts: "experts",
    Elementwise: "elementwise",
    AllReduce: "all_reduce",
    RecurrentScan: "scan",
}
# Elementwise operators that engines run inside a neighbour: the choice of experts inside the grouped kernels that
# follow it, whose measured floor (`moe_launch_s`) holds it. Everything else is a launch of its own, as in the engines'
# default kernels: QKV is already one product, gate and up another, residual add is part of the norm, and rotary
# embedding, q/k norms and the cache write are one.
_INSIDE_EXPERTS = "top_k"


@lru_cache(maxsize=256)
def launches(layer: Layer) -> tuple[Launch, ...]:
    """The launches of one layer in order; all-reduces are there even where one rank will skip them."""
    found: list[Launch] = []
    waiting: list[Operator] = []
    for operator in layer.operators():
        if isinstance(operator, Elementwise) and operator.name == _INSIDE_EXPERTS:
            waiting.append(operator)
            continue
        kind = _KINDS[type(operator)]
        inside = tuple(waiting) if kind == "experts" else ()
        if inside:
            waiting.clear()
        found.append(Launch(getattr(operator, "name", kind), kind, (*inside, operator)))
    return tuple(found)


def as_networkx(layer: Layer) -> Any:
    """A `networkx.DiGraph` of the same launches: nodes by position with `name`, `kind`, `operators`; an edge to the
    next launch, and `residual` edges from each norm (which adds the residual) to the next one."""
    graph = import_module("networkx").DiGraph()
    norm: int | None = None
    for index, launch in enumerate(launches(layer)):
        graph.add_node(index, name=launch.name, kind=launch.kind, operators=launch.operators)
        if index:
            graph.add_edge(index - 1, index, residual=False)
        if launch.name in ("mixer_norm", "mlp_norm"):
            if norm is not None:
                graph.add_edge(norm, index, residual=True)
            norm = index
    return graph
