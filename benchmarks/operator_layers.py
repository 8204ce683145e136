"""Error of a whole layer's time: its operators' predicted seconds added, against the measured ones.

Predictions come from two further fits: one saw none of the `rows` that the layers use, the other no row of their
`shapes` (widths, head configurations, experts, message sizes). A shape that no table holds is replaced by the nearest
measured one on both sides; a layer with an operator far from every row is not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.operator_tables import SHAPE, Mask
from planner.operators.calibrate import fit_part, measured
from planner.operators.cores import OperatorFacts
from planner.operators.grid import Floats
from planner.operators.tables import OperatorTable

FAR = 2.0  # sum of |log2(row / wanted)| over the columns from which no row stands for a shape any more
BATCHES = (1, 4, 16, 64, 256)
CONTEXTS = (1024, 4096, 8192)
CHUNKS = (512, 2048, 8192)
RANKS = (1, 2, 4, 8)
ROUTER = 1.01  # skew of the router: the tables' power law of 1.01
SPLITS = ("rows", "shapes")
COLLECTIVES = ("nccl", "custom_allreduce")


@dataclass(frozen=True)
class Model:
    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int  # of the dense MLP, or of one expert
    experts: int = 0
    topk: int = 0


MODELS = (
    Model("Llama-3.1-70B", 8192, 64, 8, 128, 28672),
    Model("Qwen3-32B", 5120, 64, 8, 128, 25600),
    Model("Qwen3-235B-A22B", 4096, 64, 4, 128, 1536, 128, 8),
)


@dataclass(frozen=True)
class Part:
    """One operator of a layer: the family, the lane and the wanted columns."""

    family: str
    lane: str
    wanted: Mapping[str, float]


def layer(model: Model, ranks: int, dtype: str, batch: int, new: int, keys: int) -> Iterator[Part]:
    """Operators of one layer of one rank: `new` tokens of each of `batch` sequences over `keys` in all."""
    tokens = batch * new
    heads, kv_heads = model.heads // ranks, max(1, model.kv_heads // ranks)
    qkv = (heads + 2 * kv_heads) * model.head_dim
    yield Part("gemm", dtype, {"m": tokens, "n": qkv, "k": model.hidden})
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": model.head_dim, "window": 0}
    cache = f"{dtype}/full"
    if new == 1:
        yield Part("generation_attention", cache, {**shape, "batch": batch, "keys": keys})
    else:
        yield Part("context_attention", cache, {**shape, "batch": batch, "tokens": new, "prefix": 0})
    yield Part("gemm", dtype, {"m": tokens, "n": model.hidden, "k": heads * model.head_dim})
    reduce = {"bytes": tokens * model.hidden * 2, "ranks": ranks, "kind": 0}
    if ranks > 1:
        yield Part("custom_allreduce", f"vllm_graph/{ranks}", reduce)
    if model.experts:
        expert = {"hidden": model.hidden, "inter": model.inter, "topk": model.topk, "experts": model.experts}
        yield Part("moe", dtype, {**expert, "moe_tp": ranks, "moe_ep": 1, "law": ROUTER, "tokens": tokens})
    else:
        yield Part("gemm", dtype, {"m": tokens, "n": 2 * model.inter // ranks, "k": model.hidden})
        yield Part("gemm", dtype, {"m": tokens, "n": model.hidden, "k": model.inter // ranks})
    if ranks > 1:
        yield Part("custom_allreduce", f"vllm_graph/{ranks}", reduce)


@dataclass(frozen=True)
class Case:
    """One layer: `phase` is "decode" (`size` sequences, the mean over `CONTEXTS`) or "prefill" (`size` new tokens)."""

    model: str
    dtype: str
    ranks: int
    phase: str
    size: int


def cases() -> Iterator[tuple[Case, list[Part]]]:
    for model in MODELS:
        for dtype in ("bfloat16", "fp8"):
            for ranks in RANKS:
                for batch in BATCHES:
                    for keys in CONTEXTS:
                        yield (
                            Case(model.name, dtype, ranks, "decode", batch),
                            list(layer(model, ranks, dtype, batch, 1, keys)),
                        )
                for chunk in CHUNKS:
                    yield (
                        Case(model.name, dtype, ranks, "prefill", chunk),
                        list(layer(model, ranks, dtype, 1, chunk, chunk)),
                    )


def layer_errors(tables: Mapping[str, OperatorTable], facts: OperatorFacts) -> dict[Case, dict[str, float]]:
    """Error of the layer's time by case and split: the mean of |predicted / measured - 1| over contexts."""
    found = [(case, rows) for case, parts in cases() if (rows := _rows(parts, tables)) is not None]
    used: dict[tuple[str, str], set[int]] = defaultdict(set)
    for _, rows in found:
        for family, lane, row in rows:
            used[family, lane].add(row)
    predicted = {key: _predicted(tables[key[0]], key[1], sorted(rows), facts) for key, rows in used.items()}
    errors: dict[Case, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case, rows in found:
        measured_s = sum(_seconds(tables[family])[row] for family, _, row in rows)
        for split in SPLITS:
            total = sum(predicted[family, lane][split][row] for family, lane, row in rows)
            errors[case][split].append(abs(total / measured_s - 1.0))
    return {case: {split: float(np.mean(of)) for split, of in splits.items()} for case, splits in errors.items()}


def _rows(parts: list[Part], tables: Mapping[str, OperatorTable]) -> list[tuple[str, str, int]] | None:
    """(family, lane, nearest row) of every operator; None where one has none."""
    found = []
    for part in parts:
        row = _nearest(tables[part.family], part) if part.family in tables else None
        if row is None:
            return None
        found.append((part.family, part.lane, row))
    return found


def _nearest(table: OperatorTable, part: Part) -> int | None:
    places = np.flatnonzero(table.lanes == part.lane)
    if not len(places):
        return None
    distance = np.zeros(len(places))
    for name, wanted in part.wanted.items():
        distance += np.abs(np.log2(table.rows[name][places] + 0.01) - np.log2(wanted + 0.01))
    best = int(np.argmin(distance))
    return int(places[best]) if distance[best] < FAR else None


def _predicted(table: OperatorTable, lane: str, rows: list[int], facts: OperatorFacts) -> dict[str, dict[int, float]]:
    """Seconds of the rows by split, each from a fit that did not see them."""
    of_lane = table.lanes == lane
    part, _ = measured(table, _mask(rows, table))
    if table.family in COLLECTIVES:  # a lane has about twenty sizes: each is left out alone
        alone = {}
        for place, row in enumerate(rows):
            fitted = fit_part(table, lane, of_lane & ~_same_shapes(table, _mask([row], table)), facts)
            alone[row] = float(fitted.seconds({name: values[[place]] for name, values in part.items()}, facts)[0])
        return dict.fromkeys(SPLITS, alone)
    unseen = {"rows": _mask(rows, table), "shapes": _same_shapes(table, _mask(rows, table))}
    result = {}
    for split, out in unseen.items():
        fitted = fit_part(table, lane, of_lane & ~out, facts)
        result[split] = dict(zip(rows, fitted.seconds(part, facts).tolist(), strict=True))
    return result


def _mask(rows: list[int], table: OperatorTable) -> Mask:
    chosen = np.zeros(len(table.lanes), bool)
    chosen[rows] = True
    return chosen


def _same_shapes(table: OperatorTable, chosen: Mask) -> Mask:
    key = np.stack([table.rows[name] for name in SHAPE[table.family]])
    _, index = np.unique(key, axis=1, return_inverse=True)
    index = index.ravel()
    result: Mask = np.isin(index, index[chosen])
    return result


def _seconds(table: OperatorTable) -> Floats:
    return measured(table, np.ones(len(table.lanes), bool))[1]
