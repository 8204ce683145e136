"""Routing of a mixture of experts: softmax and top-k, then assignments sorted by expert, cut into tiles of equal
height.

Three small kernels. No atomics, so the order of assignments inside an expert is that of the tokens, always. Counting
reads all assignments once per expert: 128 experts and 65,536 assignments are 32 MB out of the L2 cache, some ten
microseconds.
"""

from __future__ import annotations

from codegen.kernels.base import GeneratedKernel, generate, next_power_of_two, pointer, scalar, warps_for
from specs.kernels import KernelArgument, KernelSpec

ASSIGNMENTS_AT_ONCE = 1024

TOPK = """EXPERTS = tl.constexpr({{ experts }})
EXPERTS_PER_TOKEN = tl.constexpr({{ chosen }})


{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    token = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, EXPERTS_PADDED)
    scores = tl.load(logits + token * EXPERTS + experts, mask=experts < EXPERTS, other=-float("inf")).to(tl.float32)
    scores = tl.exp(scores - tl.max(scores, axis=0))
    probabilities = scores / tl.sum(scores, axis=0)

    ranks = tl.arange(0, CHOSEN_PADDED)
    chosen_weights = tl.zeros([CHOSEN_PADDED], tl.float32)
    chosen_ids = tl.zeros([CHOSEN_PADDED], tl.int32)
    left = tl.where(experts < EXPERTS, probabilities, -1.0)
    for rank in tl.static_range(EXPERTS_PER_TOKEN):
        best = tl.argmax(left, axis=0)  # ties: the lowest expert
        chosen_weights = tl.where(ranks == rank, tl.max(left, axis=0), chosen_weights)
        chosen_ids = tl.where(ranks == rank, best, chosen_ids)
        left = tl.where(experts == best, -1.0, left)
{% if renormalise %}
    chosen_weights = chosen_weights / tl.sum(chosen_weights, axis=0)
{% endif %}
    inside = ranks < EXPERTS_PER_TOKEN
    tl.store(weights + token * EXPERTS_PER_TOKEN + ranks, chosen_weights, mask=inside)
    tl.store(ids + token * EXPERTS_PER_TOKEN + ranks, chosen_ids, mask=inside)
"""

COUNT = """{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    expert = tl.program_id(0)
    positions = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_assignments, BLOCK):
        inside = start + positions < num_assignments
        assigned = tl.load(ids + start + positions, mask=inside, other=-1)
        count += (assigned == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(count, axis=0))
"""

SORT = """EXPERTS = tl.constexpr({{ experts }})
BLOCK_ROWS = tl.constexpr({{ block_rows }})  # height of a tile of the grouped product


{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    expert = tl.program_id(0)
    experts = tl.arange(0, EXPERTS_PADDED)
    before = tl.load(counts + experts, mask=(experts < expert) & (experts < EXPERTS), other=0)
    first = tl.sum(before, axis=0)
    first_tile = tl.sum((before + BLOCK_ROWS - 1) // BLOCK_ROWS, axis=0)
    if expert == EXPERTS:  # the last program marks the tiles that nothing uses
        for start in range(first_tile, num_tiles, BLOCK):
            tiles = start + tl.arange(0, BLOCK)
            tl.store(tile_expert + tiles, tl.full([BLOCK], -1, tl.int32), mask=tiles < num_tiles)
        return

    positions = tl.arange(0, BLOCK)
    written = first
    for start in range(0, num_assignments, BLOCK):
        inside = start + positions < num_assignments
        assigned = tl.load(ids + start + positions, mask=inside, other=-1)
        mine = (assigned == expert).to(tl.int32)
        places = written + tl.cumsum(mine, axis=0) - 1
        tl.store(sorted_rows + places, start + positions, mask=mine > 0)
        written += tl.sum(mine, axis=0)

    for tile in range((written - first + BLOCK_ROWS - 1) // BLOCK_ROWS):
        tl.store(tile_expert + first_tile + tile, expert)
        tl.store(tile_start + first_tile + tile, first + tile * BLOCK_ROWS)
        tl.store(tile_end + first_tile + tile, tl.minimum(first + (tile + 1) * BLOCK_ROWS, written))
"""

IDS = pointer("ids", "i32", "[num_assignments], expert of each assignment (token * experts_per_token + rank)")
COUNTS = pointer("counts", "i32", "[experts], assignments of each")
NUM_ASSIGNMENTS = scalar("num_assignments", "i32", "T * experts_per_token")


def build(spec: KernelSpec) -> GeneratedKernel:
    """Shapes: experts, experts_per_token; part sort: block_rows; part topk has the flag renormalise."""
    experts, chosen = spec.shapes["experts"], spec.shapes["experts_per_token"]
    constants = {"BLOCK": ASSIGNMENTS_AT_ONCE}
    arguments: list[KernelArgument]
    values: dict[str, object] = {"experts": experts, "chosen": chosen}
    if spec.part == "topk":
        renormalise = spec.flags.get("renormalise", False)
        constants = {"EXPERTS_PADDED": next_power_of_two(experts), "CHOSEN_PADDED": next_power_of_two(chosen)}
        arguments = [
            pointer("weights", "fp32", "[T, experts_per_token]"),
            pointer("ids", "i32", "[T, experts_per_token]"),
            pointer("logits", spec.dtype, "[T, experts]"),
        ]
        formula = "p = softmax(logits); the experts_per_token largest, " + (
            "divided by their sum." if renormalise else "as they are."
        )
        return generate(
            spec,
            entry="moe_topk",
            title="Router of a mixture of experts.",
            formula=formula,
            template=TOPK,
            arguments=arguments,
            constants=constants,
            warps=warps_for(next_power_of_two(experts), spec.target, per_thread=4, most=4),
            stages=1,
            grid="(num_tokens,)",
            values={**values, "renormalise": renormalise},
        )
    if spec.part == "count":
        return generate(
            spec,
            entry="moe_count",
            title="Assignments of each expert.",
            formula="counts[e] = number of i with ids[i] = e.",
            template=COUNT,
            arguments=[COUNTS, IDS, NUM_ASSIGNMENTS],
            constants=constants,
            warps=4,
            stages=1,
            grid=f"({experts},)",
        )
    return generate(
        spec,
        entry="moe_sort",
        title="Assignments sorted by expert, and the tiles of the grouped product.",
        formula="sorted_rows holds the assignments of expert 0, then of 1, ...; each expert's are cut into tiles.",
        template=SORT,
        arguments=[
            pointer("sorted_rows", "i32", "[num_assignments]"),
            pointer("tile_expert", "i32", "[num_tiles], -1 for a tile that nothing uses"),
            pointer("tile_start", "i32", "[num_tiles], first of the tile in sorted_rows"),
            pointer("tile_end", "i32", "[num_tiles], end of the tile in sorted_rows"),
            IDS,
            COUNTS,
            NUM_ASSIGNMENTS,
            scalar("num_tiles", "i32", "moe_tiles(num_assignments, experts, block_rows)"),
        ],
        constants={**constants, "EXPERTS_PADDED": next_power_of_two(experts)},
        warps=4,
        stages=1,
        grid=f"({experts + 1},)",
        values={**values, "block_rows": spec.shapes["block_rows"]},
    )


def moe_tiles(num_assignments: int, experts: int, block_rows: int) -> int:
    """Tiles that are enough for any routing: every expert may leave one tile unfilled, and no tile is empty."""
    return min(num_assignments, num_assignments // block_rows + experts)
