"""What no device can beat: FLOPs at the peak, bytes at the peak of the memory (or, where they fit, of the L2), messages
at that of the link. A floor of predictions, and the reason to refuse measurements that are impossible."""

from __future__ import annotations

import numpy as np

from planner.operators.cores import (
    BMM_ELEMENTS,
    BMM_WIDTHS,
    KV_BYTES,
    MOE_BYTES,
    PEAKS,
    WEIGHT_BYTES,
    OperatorFacts,
)
from planner.operators.grid import Floats, Rows

FLOOR_S = 1e-6  # no launch of the tables is below 1.9 us under CUDA graphs


def least_seconds(family: str, lane: str, rows: Rows, facts: OperatorFacts) -> Floats:
    """Seconds below which no kernel of these shapes can be. Of the `mla` modules and `moe_a2a` only the floor."""
    best = max(facts.flops.values())
    dtype = lane.split("/")[0]
    if family == "gemm":
        m, n, k = rows["m"], rows["n"], rows["k"]
        flops = 2 * m * n * k / facts.flops.get(PEAKS.get(dtype, "bf16"), best)
        moved = n * k * WEIGHT_BYTES[dtype] + (m * k + m * n) * 2
    elif family == "generation_attention":
        keys = np.minimum(rows["keys"], np.where(rows["window"] > 0, rows["window"], np.inf))
        flops = 4 * rows["batch"] * rows["heads"] * keys * rows["head_dim"] / best
        moved = 2 * rows["batch"] * keys * rows["kv_heads"] * rows["head_dim"] * KV_BYTES[dtype]
    elif family == "context_attention":
        new, window = rows["tokens"], rows["window"]
        full = np.where(window > 0, np.minimum(new, window), new)
        pairs = full * (full + 1) / 2 + (new - full) * window
        flops = 4 * rows["batch"] * rows["heads"] * pairs * rows["head_dim"] / best
        moved = 4 * rows["batch"] * new * rows["head_dim"] * rows["heads"]
    elif family == "moe":
        routed = rows["tokens"] * rows["topk"] / rows["moe_ep"]
        local = np.maximum(rows["experts"] / rows["moe_ep"], 1)
        elements = 2.0 * rows["hidden"] * rows["inter"] / rows["moe_tp"]  # two matrices: not every family is gated
        flops = 2 * elements * routed / facts.flops.get(PEAKS.get(dtype, "bf16"), best)
        touched = np.where(rows["law"] == 0, np.minimum(local, routed), np.minimum(1.0, routed))
        moved = elements * MOE_BYTES[dtype] * touched
    elif family in ("nccl", "custom_allreduce"):
        # one pass also for an all-reduce: a reduction in the switch sends a message once, not twice
        wire: Floats = FLOOR_S + (rows["ranks"] - 1) / rows["ranks"] * rows["bytes"] / facts.link_bytes_per_s
        return wire
    elif family == "mla_bmm":
        flops = 2 * rows["tokens"] * rows["heads"] * BMM_ELEMENTS / best
        moved = rows["heads"] * (BMM_ELEMENTS + rows["tokens"] * BMM_WIDTHS) * WEIGHT_BYTES[dtype]
    else:
        return np.full(len(next(iter(rows.values()))), FLOOR_S)
    # a replayed launch finds what fits in the L2 warm, and up to one L2 of what does not
    in_l2 = moved / facts.l2_bytes_per_s
    memory = np.where(moved < 1.5 * facts.l2_bytes, in_l2, (moved - facts.l2_bytes) / facts.hbm_bytes_per_s)
    result: Floats = np.maximum(FLOOR_S, np.maximum(flops, memory))
    return result
