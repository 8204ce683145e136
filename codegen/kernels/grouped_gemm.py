"""Products of a mixture of experts over assignments sorted by expert: gate_up (with SwiGLU), down, and the sum over
experts.

One program computes one tile of `block_rows` assignments, all of one expert, by BLOCK_N outputs, with fp32
accumulation. Tiles of an expert follow each other in axis 0, so that neighbouring programs read the same piece of its
weight.
"""

from __future__ import annotations

from codegen.kernels.base import GeneratedKernel, generate, is_amd, next_power_of_two, pointer, warps_for
from specs.document import DType
from specs.kernels import KernelSpec

GEMM = """EXPERTS_PER_TOKEN = tl.constexpr({{ chosen }})
IN_FEATURES = tl.constexpr({{ in_features }})
OUT_FEATURES = tl.constexpr({{ out_features }})
BLOCK_ROWS = tl.constexpr({{ block_rows }})


{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile).to(tl.int64)
    if expert < 0:
        return
    places = tl.load(tile_start + tile) + tl.arange(0, BLOCK_ROWS)
    live = places < tl.load(tile_end + tile)
    assignments = tl.load(sorted_rows + places, mask=live, other=0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < OUT_FEATURES
    features = tl.arange(0, BLOCK_K)

    x_tile = x + {{ row_of }}[:, None] * IN_FEATURES + features[None, :]
    expert_weight = weight + expert * ({{ weight_rows }} * IN_FEATURES)
    weight_tile = expert_weight + columns[None, :].to(tl.int64) * IN_FEATURES + features[:, None]
    sums = tl.zeros([BLOCK_ROWS, BLOCK_N], tl.float32)
{% if swiglu %}
    up_sums = tl.zeros([BLOCK_ROWS, BLOCK_N], tl.float32)
{% endif %}
    for start in range(0, IN_FEATURES, BLOCK_K):
{% if even %}
        x_part = tl.load(x_tile + start, mask=live[:, None], other=0.0)
        weight_part = tl.load(weight_tile + start, mask=inside[None, :], other=0.0)
{% else %}
        left = features < IN_FEATURES - start
        x_part = tl.load(x_tile + start, mask=live[:, None] & left[None, :], other=0.0)
        weight_part = tl.load(weight_tile + start, mask=inside[None, :] & left[:, None], other=0.0)
{% endif %}
        sums = tl.dot(x_part, weight_part, sums{{ precision }})
{% if swiglu %}
        up_tile = weight_tile + OUT_FEATURES * IN_FEATURES + start
        up_part = tl.load(up_tile, mask=inside[None, :]{% if not even %} & left[:, None]{% endif %}, other=0.0)
        up_sums = tl.dot(x_part, up_part, up_sums{{ precision }})
{% endif %}

{% if swiglu %}
    sums = sums / (1.0 + tl.exp(-sums)) * up_sums
{% endif %}
{% if routed %}
    sums = sums * tl.load(routing_weights + assignments, mask=live, other=0.0)[:, None]
{% endif %}
    outputs = out + assignments[:, None] * OUT_FEATURES + columns[None, :]
    tl.store(outputs, sums.to(out.dtype.element_ty), mask=live[:, None] & inside[None, :])
"""

COMBINE = """EXPERTS_PER_TOKEN = tl.constexpr({{ chosen }})
OUT_FEATURES = tl.constexpr({{ out_features }})


{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < OUT_FEATURES
    total = tl.zeros([BLOCK], tl.float32)
    for rank in tl.static_range(EXPERTS_PER_TOKEN):
        row = rows + (token * EXPERTS_PER_TOKEN + rank) * OUT_FEATURES
        total += tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * OUT_FEATURES + columns, total.to(out.dtype.element_ty), mask=inside)
"""


def build(spec: KernelSpec) -> GeneratedKernel:
    """Shapes: experts_per_token, out_features; gate_up and down: experts, in_features, block_rows; flag swiglu."""
    out_features, chosen = spec.shapes["out_features"], spec.shapes["experts_per_token"]
    if spec.part == "combine":
        block = min(1024, next_power_of_two(out_features))
        return generate(
            spec,
            entry="moe_combine",
            title="Sum over the experts of a token.",
            formula="out[t] = sum over r of rows[t * experts_per_token + r], in order, in fp32.",
            template=COMBINE,
            arguments=[
                pointer("out", spec.dtype, "[T, out_features]"),
                pointer("rows", spec.dtype, "[T * experts_per_token, out_features]"),
            ],
            constants={"BLOCK": block},
            warps=warps_for(block, spec.target),
            stages=1,
            grid=f'(num_tokens, cdiv({out_features}, meta["BLOCK"]))',
            values={"chosen": chosen, "out_features": out_features},
        )
    in_features, block_rows = spec.shapes["in_features"], spec.shapes["block_rows"]
    gate_up = spec.part == "gate_up"
    swiglu = gate_up and spec.flags.get("swiglu", False)
    block_n, block_k, warps, stages = _tiles(spec, block_rows, swiglu)
    weight_rows = "(2 * OUT_FEATURES)" if swiglu else "OUT_FEATURES"
    rows = "T, one of each token" if gate_up else "T * experts_per_token, one of each assignment"
    arguments = [
        pointer("out", spec.dtype, "[T * experts_per_token, out_features]"),
        pointer("x", spec.dtype, f"[{rows}; in_features]"),
        pointer("weight", spec.dtype, f"[experts, {'2 * ' if swiglu else ''}out_features, in_features]"),
        *([] if gate_up else [pointer("routing_weights", "fp32", "[T * experts_per_token]")]),
        pointer("sorted_rows", "i32", "[T * experts_per_token], assignments by expert"),
        pointer("tile_expert", "i32", "[tiles], -1 for a tile that nothing uses"),
        pointer("tile_start", "i32", "[tiles]"),
        pointer("tile_end", "i32", "[tiles]"),
    ]
    formula = {
        (True, True): "out[a] = silu(G x[t]) * (U x[t]), G and U of a's expert, t = a's token.",
        (True, False): "out[a] = W x[t], W of a's expert, t = a's token.",
        (False, False): "out[a] = routing_weights[a] * W x[a], W of a's expert.",
    }[gate_up, swiglu]
    return generate(
        spec,
        entry="moe_gate_up" if gate_up else "moe_down",
        title="Grouped product of a mixture of experts.",
        formula=formula,
        template=GEMM,
        arguments=arguments,
        constants={"BLOCK_N": block_n, "BLOCK_K": block_k},
        warps=warps,
        stages=stages,
        grid=f'(num_tiles, cdiv({out_features}, meta["BLOCK_N"]))',
        values={
            "chosen": chosen,
            "in_features": in_features,
            "out_features": out_features,
            "block_rows": block_rows,
            "weight_rows": weight_rows,
            "row_of": "(assignments // EXPERTS_PER_TOKEN)" if gate_up else "assignments",
            "swiglu": swiglu,
            "routed": not gate_up,
            "even": in_features % block_k == 0,
            # Without it fp32 operands would be rounded to TF32.
            "precision": ', input_precision="ieee"' if spec.dtype is DType.FP32 else "",
        },
    )


def _tiles(spec: KernelSpec, block_rows: int, swiglu: bool) -> tuple[int, int, int, int]:
    """(BLOCK_N, BLOCK_K, warps, stages). Predicted, not measured.

    Few rows: the product streams weights, so tiles are narrow and many loads are in flight. Many rows: 128 outputs and
    eight warps, as wide as 100 KB of shared memory (sm_86, sm_89, sm_120) lets three stages of operands be. SwiGLU
    holds two weight tiles and two accumulators, so it takes half the width.
    """
    wide = min(128, max(16, next_power_of_two(spec.shapes["out_features"])))
    block_n = min(wide, 64) if block_rows <= 32 or swiglu else wide
    block_k = 32 if spec.dtype is DType.FP32 else 64
    block_k = min(block_k, max(16, next_power_of_two(spec.shapes["in_features"])))
    if is_amd(spec.target):  # 64 KiB of local memory on gfx942; the compiler pipelines over registers
        return block_n, block_k, 4, 2
    element = int(spec.dtype.bytes)
    stage_bytes = block_k * (block_rows + block_n * (2 if swiglu else 1)) * element
    stages = max(2, min(4, 96 * 1024 // stage_bytes))
    return block_n, block_k, 8 if block_rows >= 128 else 4, stages


def moe_block_rows(num_tokens: int, experts: int, experts_per_token: int) -> int:
    """Tile height for a bucket of `num_tokens`: the mean assignments of an expert, from 16 (least of `tl.dot`) to 128.

    A tile higher than that computes padding; a lower one reads an expert's weight more often. Predicted, not measured.
    """
    mean = max(1, num_tokens * experts_per_token // experts)
    return min(128, max(16, next_power_of_two(mean)))
