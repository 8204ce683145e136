"""A lane: what one device does for one family and element type. Lanes are made here, by name; profiles fill them.

Lane names: gemm `DTYPE`; attention `KV_DTYPE/full|window`; moe `DTYPE[/unaligned]`; nccl `OPERATION/RANKS`;
custom_allreduce `BACKEND/RANKS`; mla modules `GEMM_DTYPE/KV_DTYPE`; mla_bmm `DTYPE/OPERATION`; moe_a2a `BACKEND/PHASE`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from planner.operators import cores, knots
from planner.operators.bound import least_seconds
from planner.operators.cores import Core, OperatorFacts, Parameter
from planner.operators.grid import Axes, Floats, Grid, Rows


@dataclass(frozen=True)
class Kind:
    """What the lanes of a family share."""

    name: str
    parameters: tuple[Parameter, ...]
    axes: tuple[Axes, ...]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("gemm", cores.GEMM, knots.GEMM_AXES),
        Kind("context_attention", cores.PREFILL, knots.PREFILL_AXES),
        Kind("generation_attention", cores.DECODE, knots.DECODE_AXES),
        Kind("moe", cores.MOE, knots.MOE_AXES),
        Kind("nccl", cores.COLLECTIVE, knots.COLLECTIVE_AXES),
        Kind("custom_allreduce", cores.COLLECTIVE, knots.COLLECTIVE_AXES),
        Kind("mla_context_module", cores.MLA, knots.MLA_AXES),
        Kind("mla_generation_module", cores.MLA, knots.MLA_AXES),
        Kind("mla_bmm", cores.BMM, knots.BMM_AXES),
        Kind("moe_a2a", cores.DISPATCH, knots.DISPATCH_AXES),
    )
}
PASSES = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "alltoall": 1.0}
Coordinates = Callable[[Rows, OperatorFacts], Rows]


@dataclass(frozen=True)
class Lane:
    """seconds = max(bound, core(shape; facts, parameters) * exp(sum of grids))."""

    kind: Kind
    name: str
    core: Core
    coordinates: Coordinates
    parameters: Floats
    grids: tuple[Grid, ...] = ()

    def physical(self, rows: Rows, facts: OperatorFacts) -> Floats:
        """Seconds of the core alone."""
        return self.core(rows, facts, self.parameters)

    def seconds(self, rows: Rows, facts: OperatorFacts, correction: float = 1.0) -> Floats:
        """Seconds per row; `correction` is the share of the grids that is applied (less than 1 when borrowed)."""
        log = np.log(self.physical(rows, facts))
        coordinates = self.coordinates(rows, facts)
        for grid in self.grids:
            log = log + correction * grid(coordinates)
        result: Floats = np.maximum(np.exp(log), least_seconds(self.kind.name, self.name, rows, facts))
        return result


def new_lane(family: str, name: str) -> Lane:
    """An unfitted lane. Attention over an fp8 cache computes in 16 bit: so do all kernels of the tables."""
    kind = KINDS[family]
    start = np.array([parameter.start for parameter in kind.parameters])
    first, _, second = name.partition("/")
    peak = cores.PEAKS.get(first, "bf16")
    if family == "gemm":
        core, coordinates = cores.gemm_core(cores.WEIGHT_BYTES[first], peak), _gemm_coordinates
    elif family in ("context_attention", "generation_attention"):
        make = cores.prefill_core if family == "context_attention" else cores.decode_core
        size = cores.KV_BYTES[first]
        core = make(size)
        coordinates = partial(_attention_coordinates, kv_bytes=size)
    elif family == "moe":
        size = cores.MOE_BYTES[first]
        core, coordinates = cores.moe_core(size, peak), partial(_moe_coordinates, weight_bytes=size)
    elif family in ("nccl", "custom_allreduce"):
        core = cores.collective_core(PASSES[first] if family == "nccl" else 2.0)
        coordinates = _as_they_are
    elif family == "mla_bmm":
        core, coordinates = cores.bmm_core(cores.WEIGHT_BYTES[first], peak), _as_they_are
    elif family == "moe_a2a":
        core, coordinates = cores.dispatch_core(), _as_they_are
    else:
        decode = family == "mla_generation_module"
        core = cores.mla_core(cores.WEIGHT_BYTES[first], cores.KV_BYTES[second], peak, decode)
        coordinates = _as_they_are
    return Lane(kind, name, core, coordinates, start)


def _as_they_are(rows: Rows, facts: OperatorFacts) -> Rows:
    return rows


def _gemm_coordinates(rows: Rows, facts: OperatorFacts) -> Rows:
    m = rows["m"]
    return {"m": m, "n": rows["n"], "k": rows["k"], "aligned": (m % 16 == 0).astype(np.float64)}


def _attention_coordinates(rows: Rows, facts: OperatorFacts, kv_bytes: float) -> Rows:
    length = rows["keys"] if "keys" in rows else rows["tokens"]
    batch, kv_heads = rows["batch"], rows["kv_heads"]
    seen = np.minimum(length, np.where(rows["window"] > 0, rows["window"], 1e12))
    return {
        "sequences": batch * kv_heads,
        "length": length,
        "read": seen * batch * kv_heads * rows["head_dim"] * 2.0 * kv_bytes / facts.l2_bytes,
        "batch": batch,
        "group": rows["heads"] / kv_heads,
        "head_dim": rows["head_dim"],
        "window": np.maximum(rows["window"], 1.0),
    }


def _moe_coordinates(rows: Rows, facts: OperatorFacts, weight_bytes: float) -> Rows:
    tokens, experts, topk, ranks = rows["tokens"], rows["experts"], rows["topk"], rows["moe_ep"]
    inter = rows["inter"] / rows["moe_tp"]
    touched = np.maximum(np.minimum(tokens * topk / ranks, experts / ranks), 1.0)
    width = inter.astype(np.int64)
    return {
        "tokens": tokens,
        "per_expert": tokens * topk / experts,
        "local": np.maximum(experts / ranks, 1.0),
        "inter_rank": inter,
        "inter": rows["inter"],
        "hidden": rows["hidden"],
        "experts": experts,
        "ep": ranks,
        "tp": rows["moe_tp"],
        "law": rows["law"],
        "align": (width & -width).astype(np.float64),  # the largest power of two that divides the width
        "gate": touched * inter * rows["hidden"] * 3.0 * weight_bytes / facts.l2_bytes,
        "topk": topk,
    }
