"""Kernels in Triton's interpreter against torch, on the CPU. Run by test_kernels_numerics.py in a process of its own,
because TRITON_INTERPRET must be set before Triton is imported: `python interpreted_cases.py` prints one JSON line a
case.

float32 and float16 only: `tl.dot` over bfloat16 is silently wrong in the interpreter (Triton issues 11584 and 11585),
so bfloat16 is compared on a GPU (tests/gpu) and nowhere else.
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor

from codegen.kernels import moe_tiles, reference, render
from runtime.launch import JitLauncher, LaunchCounts
from specs.document import DType
from specs.kernels import KernelBinary, KernelSpec

TORCH = {DType.FP32: torch.float32, DType.FP16: torch.float16}
TOLERANCE = {DType.FP32: 2e-6, DType.FP16: 2e-3}  # of the largest value; roundings of about two units in the last place
FOLDER = Path(tempfile.mkdtemp(prefix="capstan-kernels-"))
CASES: dict[str, Callable[[], None]] = {}


def case(*parameters: object) -> Callable:
    """Register a function once for each tuple of parameters, under a name that shows them."""

    def register(function: Callable) -> Callable:
        for values in parameters or ((),):
            values = values if isinstance(values, tuple) else (values,)
            CASES["-".join([function.__name__, *map(str, values)])] = lambda f=function, v=values: f(*v)
        return function

    return register


def kernel(
    family: str, shapes: dict, part: str = "", dtype: DType = DType.FP32, kv_dtype: DType | None = None, **flags
):
    """A launcher for the rendered kernel."""
    spec = KernelSpec(
        family=family, part=part, target="sm_90", dtype=dtype, kv_dtype=kv_dtype, shapes=shapes, flags=flags
    )
    made = render(spec)
    path = FOLDER / f"{made.name}.py"
    path.write_text(made.source)
    record = KernelBinary(
        name=made.name, family=family, part=part, target="sm_90", entry=made.entry, arguments=made.arguments,
        constants=made.constants, warps=made.warps, stages=made.stages, shared_memory_bytes=0, registers=0,
        spilled_bytes=0, occupancy=0, occupancy_limit="warps", triton="", source_sha256=made.source_sha256,
        binary_sha256="",
    )  # fmt: skip
    return JitLauncher(record, path, LaunchCounts())


def near(found: Tensor, wanted: Tensor, dtype: DType = DType.FP32, slack: float = 1.0) -> None:
    """`found` equals `wanted` but for rounding; NaN is never near."""
    worst = float((found.float() - wanted.float()).abs().max())
    limit = slack * TOLERANCE[dtype] * max(1.0, float(wanted.abs().max()))
    if not worst <= limit:
        raise AssertionError(f"off by {worst:.3g}, allowed {limit:.3g}")


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def untouched(*shape: int, dtype: DType = DType.FP32) -> Tensor:
    """Memory that a kernel must write: NaN until then."""
    return torch.full(shape, float("nan"), dtype=TORCH[dtype])


@case((DType.FP32, 64), (DType.FP32, 48), (DType.FP16, 96), (DType.FP16, 1))
def add_rms_norm(dtype: DType, hidden: int) -> None:
    x, residual = (torch.randn(3, hidden).to(TORCH[dtype]) for _ in range(2))
    weight = torch.randn(hidden).to(TORCH[dtype])
    out = untouched(3, hidden, dtype=dtype)
    kernel("add_rms_norm", {"hidden_size": hidden}, dtype=dtype)((3,), out, x, weight, 1e-5)
    near(out, reference.rms_norm(x, weight, 1e-5), dtype)
    wanted, summed = reference.add_rms_norm(x, residual, weight, 1e-5)
    kernel("add_rms_norm", {"hidden_size": hidden}, dtype=dtype, residual=True)((3,), x, x, residual, weight, 1e-5)
    near(x, wanted, dtype)  # in place
    assert torch.equal(residual, summed)


@case((DType.FP32, 40), (DType.FP16, 1500))
def swiglu(dtype: DType, size: int) -> None:
    gate_up = torch.randn(3, 2 * size).to(TORCH[dtype])
    out = untouched(3, size, dtype=dtype)
    kernel("swiglu", {"intermediate_size": size}, dtype=dtype)(
        lambda meta: (3, cdiv(size, meta["BLOCK"])), out, gate_up
    )
    near(out, reference.swiglu(gate_up), dtype, slack=2)


@case(
    (DType.FP32, DType.FP32, 4, 4, False),
    (DType.FP32, DType.FP32, 8, 2, True),
    (DType.FP16, DType.FP16, 8, 1, True),
    (DType.FP32, DType.FP16, 6, 2, False),  # a group of three is padded
)
def rope_kv_write(dtype: DType, kv_dtype: DType, heads: int, kv_heads: int, qk_norm: bool) -> None:
    tokens, head_dim, block_size = 4, 32, 4
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(TORCH[dtype])
    caches = [torch.randn(6, block_size, kv_heads, head_dim).to(TORCH[kv_dtype]) for _ in range(2)]
    wanted_caches = [cache.clone() for cache in caches]
    slots = torch.tensor([21, 0, -1, 7])  # the third token writes nothing
    angles = torch.rand(tokens, head_dim // 2) * 6
    cosines, sines = angles.cos(), angles.sin()
    norms = [torch.randn(head_dim).to(TORCH[dtype]) for _ in range(2)]
    out = untouched(tokens, heads * head_dim, dtype=dtype)
    shapes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "block_size": block_size}
    extra = (*norms, 1e-6) if qk_norm else ()
    launcher = kernel("rope_kv_write", shapes, dtype=dtype, kv_dtype=kv_dtype, qk_norm=qk_norm)
    launcher((tokens, kv_heads), out, qkv, *caches, slots, cosines, sines, *extra)
    wanted = reference.rope_kv_write(
        qkv, *wanted_caches, slots, cosines, sines, heads=heads, norms=(*norms, 1e-6) if qk_norm else None
    )
    near(out, wanted, dtype, slack=2)
    for cache, wanted_cache in zip(caches, wanted_caches, strict=True):
        near(cache, wanted_cache, kv_dtype, slack=2)


def attention_batch(queries: list[int], lengths: list[int], heads: int, kv_heads: int, dtype: DType, kv_dtype: DType):
    """A batch over a cache whose unused memory is NaN, with blocks in random order."""
    head_dim, block_size = 16, 4
    width = cdiv(max(lengths), block_size) + 1
    used = [cdiv(length, block_size) for length in lengths]
    order = torch.randperm(sum(used) + 3)
    tables = torch.zeros(len(lengths), width, dtype=torch.int32)
    caches = [torch.full((len(order), block_size, kv_heads, head_dim), float("nan")).to(TORCH[kv_dtype]) for _ in "kv"]
    taken = 0
    for sequence, (length, count) in enumerate(zip(lengths, used, strict=True)):
        blocks = order[taken : taken + count]
        taken += count
        tables[sequence, :count] = blocks
        at = torch.arange(length)
        for cache in caches:
            cache[blocks[at // block_size], at % block_size] = torch.randn(length, kv_heads, head_dim).to(cache.dtype)
    start = torch.tensor([0, *queries]).cumsum(0).int()
    query = torch.randn(sum(queries), heads * head_dim).to(TORCH[dtype])
    shapes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "block_size": block_size}
    return shapes, query, caches, tables, start, torch.tensor(lengths).int()


MIXED = ([1, 9, 1, 5, 17], [1, 9, 70, 23, 33])  # a prompt of one, a prompt, a decode, two chunks of longer prompts


@case(
    *((part, 4, 4 // group, 0, DType.FP32) for part in ("prefill", "decode") for group in (1, 4)),
    ("prefill", 8, 1, 0, DType.FP32),
    ("decode", 8, 1, 0, DType.FP16),
    ("decode", 6, 2, 0, DType.FP32),  # groups of three do not fill the rows of a tile
    ("prefill", 4, 2, 6, DType.FP32),
    ("decode", 4, 2, 1, DType.FP32),  # a window of the token itself
    ("prefill", 4, 2, 40, DType.FP16),
)
def attention_mixed(part: str, heads: int, kv_heads: int, window: int, dtype: DType) -> None:
    shapes, query, caches, tables, start, lengths = attention_batch(*MIXED, heads, kv_heads, dtype, dtype)
    out = untouched(*query.shape, dtype=dtype)
    launcher = kernel("paged_attention", shapes | ({"window": window} if window else {}), part, dtype=dtype)
    launcher(
        lambda meta: (len(query) // meta["BLOCK_Q"] + len(lengths), kv_heads),
        out, query, *caches, tables, start, lengths, 0.25, len(lengths), tables.shape[1],
    )  # fmt: skip
    wanted = reference.paged_attention(query, *caches, tables, start, lengths, scale=0.25, window=window)
    near(out, wanted, dtype, slack=2)


@case()
def attention_tile_borders() -> None:
    """Lengths around the key tile (64) and query pieces around BLOCK_Q, each the whole of a sequence or its end."""
    queries, lengths = [1, 1, 1, 63, 64, 65], [63, 64, 65, 63, 64, 65]
    shapes, query, caches, tables, start, kv = attention_batch(queries, lengths, 4, 1, DType.FP32, DType.FP32)
    out = untouched(*query.shape)
    kernel("paged_attention", shapes, "prefill")(
        lambda meta: (len(query) // meta["BLOCK_Q"] + 6, 1), out, query, *caches, tables, start, kv, 0.25, 6,
        tables.shape[1],
    )  # fmt: skip
    near(out, reference.paged_attention(query, *caches, tables, start, kv, scale=0.25), slack=2)


@case("prefill", "split")
def attention_window_begins_later(part: str) -> None:
    """Queries of one tile whose windows begin after the first key tile: it holds no visible key for them."""
    queries, lengths = ([50], [100]) if part == "prefill" else ([1], [100])
    shapes, query, caches, tables, start, kv = attention_batch(queries, lengths, 4, 2, DType.FP32, DType.FP32)
    if part == "split":
        out = split_attention(shapes, query, caches, tables, kv, 6, 64, 0, DType.FP32)
    else:
        out = untouched(*query.shape)
        kernel("paged_attention", shapes | {"window": 6}, part)(
            lambda meta: (len(query) // meta["BLOCK_Q"] + 1, 2), out, query, *caches, tables, start, kv, 0.25, 1,
            tables.shape[1],
        )  # fmt: skip
    near(out, reference.paged_attention(query, *caches, tables, start, kv, scale=0.25, window=6), slack=2)


@case()
def attention_many_sequences() -> None:
    """Forty sequences: the bisection finds each one."""
    queries = [1 + (7 * i) % 3 for i in range(40)]
    lengths = [q + (5 * i) % 11 for i, q in enumerate(queries)]
    shapes, query, caches, tables, start, kv = attention_batch(queries, lengths, 2, 2, DType.FP32, DType.FP32)
    out = untouched(*query.shape)
    kernel("paged_attention", shapes, "decode")(
        lambda meta: (len(query) // meta["BLOCK_Q"] + 40, 2), out, query, *caches, tables, start, kv, 0.25, 40,
        tables.shape[1],
    )  # fmt: skip
    near(out, reference.paged_attention(query, *caches, tables, start, kv, scale=0.25), slack=2)


@case()
def attention_kv_half() -> None:
    """A float16 cache under float32 activations."""
    shapes, query, caches, tables, start, kv = attention_batch(*MIXED, 4, 2, DType.FP32, DType.FP16)
    out = untouched(*query.shape)
    kernel("paged_attention", shapes, "prefill", kv_dtype=DType.FP16)(
        lambda meta: (len(query) // meta["BLOCK_Q"] + 5, 2), out, query, *caches, tables, start, kv, 0.25, 5,
        tables.shape[1],
    )  # fmt: skip
    near(out, reference.paged_attention(query, *caches, tables, start, kv, scale=0.25), slack=2)


def split_attention(
    shapes, query, caches, tables, lengths, window: int, chunk: int, spare: int, dtype: DType
) -> Tensor:
    """Split, then reduce, over `spare` more chunks than the longest sequence has."""
    heads, kv_heads, head_dim = shapes["heads"], shapes["kv_heads"], shapes["head_dim"]
    shapes = shapes | {"chunk_tokens": chunk} | ({"window": window} if window else {})
    sequences, chunks = len(lengths), cdiv(int(lengths.max()), chunk) + spare
    out = untouched(*query.shape, dtype=dtype)
    partial_out, partial_lse = untouched(sequences, heads, chunks, head_dim), untouched(sequences, heads, chunks)
    kernel("paged_attention", shapes, "split", dtype=dtype)(
        (sequences, kv_heads, chunks), partial_out, partial_lse, query, *caches, tables, lengths, 0.25,
        tables.shape[1], chunks,
    )  # fmt: skip
    kernel("paged_attention", shapes, "reduce", dtype=dtype)(
        (sequences, heads), out, partial_out, partial_lse, lengths, chunks
    )
    return out


@case(
    (4, 1, 0, 0, DType.FP32),
    (4, 4, 0, 2, DType.FP32),  # chunks past the end of every sequence
    (6, 2, 0, 0, DType.FP16),
    (4, 2, 5, 0, DType.FP32),  # chunks wholly before the window
    (4, 2, 16, 1, DType.FP32),
)
def attention_split(heads: int, kv_heads: int, window: int, spare: int, dtype: DType) -> None:
    lengths = [1, 15, 16, 17, 70]  # around the chunk of 16
    shapes, query, caches, tables, start, kv = attention_batch([1] * 5, lengths, heads, kv_heads, dtype, dtype)
    out = split_attention(shapes, query, caches, tables, kv, window, 16, spare, dtype)
    wanted = reference.paged_attention(query, *caches, tables, start, kv, scale=0.25, window=window)
    near(out, wanted, dtype, slack=2)


@case()
def attention_split_invariance() -> None:
    """A sequence's result has the same bits alone and beside a far longer one."""
    shapes, query, caches, tables, _, lengths = attention_batch([1, 1], [37, 290], 4, 2, DType.FP32, DType.FP32)
    both = split_attention(shapes, query, caches, tables, lengths, 0, 16, 0, DType.FP32)
    alone = split_attention(shapes, query[:1], caches, tables[:1], lengths[:1], 0, 16, 0, DType.FP32)
    assert torch.equal(both[:1], alone)


@case("prefill", "split")
def attention_far_block(part: str) -> None:
    """Element offsets beyond 2^31: block 33,600 of a cache with 64 Ki elements a block, backed by sparse memory."""
    heads, kv_heads, head_dim, block_size, blocks = 16, 16, 256, 16, 33_600
    shapes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "block_size": block_size}
    row = block_size * kv_heads * head_dim
    assert (blocks - 1) * row > 2**31
    with tempfile.TemporaryFile() as file:
        file.truncate(blocks * row * 2)  # a hole: takes no disk until it is written
        file.flush()
        name = f"/proc/self/fd/{file.fileno()}"
        flat = torch.from_file(name, shared=True, size=blocks * row, dtype=torch.float16)
        cache = flat.view(blocks, block_size, kv_heads, head_dim)
        cache[-1, :3] = torch.randn(3, kv_heads, head_dim).half()
        query = torch.randn(1, heads * head_dim).half()
        tables = torch.tensor([[blocks - 1]]).int()
        start, lengths = torch.tensor([0, 1]).int(), torch.tensor([3]).int()
        if part == "split":
            out = split_attention(shapes, query, (cache, cache), tables, lengths, 0, 16, 0, DType.FP16)
        else:
            out = untouched(1, heads * head_dim, dtype=DType.FP16)
            kernel("paged_attention", shapes, part, dtype=DType.FP16)(
                (1, kv_heads), out, query, cache, cache, tables, start, lengths, 0.25, 1, 1
            )
        wanted = reference.paged_attention(query, cache, cache, tables, start, lengths, scale=0.25)
        near(out, wanted, DType.FP16, slack=2)


@case((8, 2, True, DType.FP32), (6, 3, False, DType.FP16), (4, 4, True, DType.FP32), (130, 8, True, DType.FP32))
def moe_topk(experts: int, chosen: int, renormalise: bool, dtype: DType) -> None:
    logits = torch.randn(4, experts).to(TORCH[dtype])
    logits[0] = 0.5  # all equal: the lowest experts
    weights, ids = torch.zeros(4, chosen), torch.zeros(4, chosen, dtype=torch.int32)
    shapes = {"experts": experts, "experts_per_token": chosen}
    kernel("moe_route", shapes, "topk", dtype=dtype, renormalise=renormalise)((4,), weights, ids, logits)
    wanted_weights, wanted_ids = reference.moe_topk(logits, chosen, renormalise=renormalise)
    assert torch.equal(ids, wanted_ids)
    assert ids[0].tolist() == list(range(chosen))
    near(weights, wanted_weights)


def route(ids: Tensor, experts: int, block_rows: int) -> tuple[Tensor, ...]:
    """counts and sort; memory that they must write starts as nonsense."""
    assignments = ids.numel()
    shapes = {"experts": experts, "experts_per_token": ids.shape[1]}
    tiles = moe_tiles(assignments, experts, block_rows)
    counts = torch.full((experts,), -7, dtype=torch.int32)
    rows = torch.full((assignments,), -7, dtype=torch.int32)
    tile_expert, tile_start, tile_end = (torch.full((tiles,), -7, dtype=torch.int32) for _ in range(3))
    kernel("moe_route", shapes, "count")((experts,), counts, ids, assignments)
    assert counts.tolist() == torch.bincount(ids.flatten(), minlength=experts).tolist()
    kernel("moe_route", shapes | {"block_rows": block_rows}, "sort")(
        (experts + 1,), rows, tile_expert, tile_start, tile_end, ids, counts, assignments, tiles
    )
    return rows, tile_expert, tile_start, tile_end


@case((1, 8), (700, 6), (3, 5))
def moe_sort(tokens: int, experts: int) -> None:
    """Experts 0 and the last receive no token where that is possible; more assignments than one pass reads."""
    ids = torch.randint(1, experts - 1, (tokens, 2), dtype=torch.int32)
    rows, tile_expert, tile_start, tile_end = route(ids, experts, 16)
    wanted_rows, wanted_tiles = reference.moe_sort(ids, experts, 16)
    assert torch.equal(rows, wanted_rows)
    used = len(wanted_tiles)
    found = [*zip(tile_expert.tolist(), tile_start.tolist(), tile_end.tolist(), strict=True)]
    assert found[:used] == wanted_tiles
    assert tile_expert[used:].tolist() == [-1] * (len(tile_expert) - used)


@case((True, DType.FP32, 24), (False, DType.FP32, 32), (True, DType.FP16, 64))
def moe_products(fused: bool, dtype: DType, hidden: int) -> None:
    """The whole layer, with experts that receive nothing and sizes that fill no tile."""
    tokens, experts, chosen, inner, block_rows = 21, 5, 2, 40, 16
    x = torch.randn(tokens, hidden).to(TORCH[dtype])
    up = (torch.randn(experts, 2 * inner, hidden) / 8).to(TORCH[dtype])
    down = (torch.randn(experts, hidden, inner) / 8).to(TORCH[dtype])
    ids = torch.stack([torch.randperm(3)[:chosen] + 1 for _ in range(tokens)]).int()
    weights = torch.rand(tokens, chosen)
    routing = route(ids, experts, block_rows)
    tiles = len(routing[1])
    shapes = {"experts": experts, "experts_per_token": chosen, "block_rows": block_rows}
    width = inner if fused else 2 * inner
    middle = untouched(tokens * chosen, width, dtype=dtype)
    kernel("grouped_gemm", shapes | {"in_features": hidden, "out_features": width}, "gate_up", dtype, swiglu=fused)(
        lambda meta: (tiles, cdiv(width, meta["BLOCK_N"])), middle, x, up, *routing
    )
    near(middle, reference.moe_gate_up(x, up, ids, fused=fused), dtype, slack=4)
    inside = middle if fused else reference.swiglu(middle).to(TORCH[dtype])
    rows = untouched(tokens * chosen, hidden, dtype=dtype)
    kernel("grouped_gemm", shapes | {"in_features": inner, "out_features": hidden}, "down", dtype)(
        lambda meta: (tiles, cdiv(hidden, meta["BLOCK_N"])), rows, inside, down, weights, *routing
    )
    near(rows, reference.moe_down(inside, down, weights, ids), dtype, slack=4)
    out = untouched(tokens, hidden, dtype=dtype)
    kernel("grouped_gemm", {"experts_per_token": chosen, "out_features": hidden}, "combine", dtype)(
        lambda meta: (tokens, cdiv(hidden, meta["BLOCK"])), out, rows
    )
    near(out, reference.moe_combine(rows, chosen), dtype)


SETTINGS = [  # temperature, top_k, top_p, seed, position
    (0.0, 0, 1.0, 1, 0),
    (0.0, 5, 0.5, 2, 0),  # greedy reads nothing else
    (1.0, 0, 1.0, 3, 0),
    (0.7, 5, 1.0, 4, 9),
    (1.0, 1, 1.0, 5, 9),
    (1.3, 0, 0.9, 2**40 + 6, 9),
    (1.0, 50, 0.5, -7, 9),
    (0.6, 20, 0.95, 8, 2**31),
    (1.0, 0, 1e-6, 9, 3),
    (2.0, 10_000, 1.0, 10, 3),  # more than there are
    (1e-5, 0, 1.0, 11, 3),  # too cold for noise: greedy
    (2.0**-16, 0, 0.9, 12, 3),
    (100.0, 0, 0.99999, -(2**63), 2**32 - 1),
]


@case((700, DType.FP32), (5000, DType.FP32), (33, DType.FP16))
def sample(vocab_size: int, dtype: DType) -> None:
    """The kernel draws the very tokens of the rule in plain torch, row by row."""
    logits = (torch.randn(len(SETTINGS), vocab_size) * 2).to(TORCH[dtype])
    columns = [*zip(*SETTINGS, strict=True)]
    temperatures, top_p = (torch.tensor(columns[i], dtype=torch.float32) for i in (0, 2))
    seeds, positions = (torch.tensor(columns[i], dtype=torch.int64) for i in (3, 4))
    tokens, logprobs = torch.full((len(SETTINGS),), -1), untouched(len(SETTINGS))
    kernel("sample", {"vocab_size": vocab_size}, dtype=dtype)(
        (len(SETTINGS),),
        tokens,
        logprobs,
        logits,
        temperatures,
        torch.tensor(columns[1]).int(),
        top_p,
        seeds,
        positions,
    )
    wanted = [reference.sample(row, *setting) for row, setting in zip(logits, SETTINGS, strict=True)]
    assert tokens.tolist() == [token for token, _ in wanted]
    near(logprobs, torch.tensor([logprob for _, logprob in wanted]), slack=2)


@case()
def sample_ties() -> None:
    """Equal logits at the k-th place are all kept; -inf is never drawn; greedy takes the lowest of equals."""
    logits = torch.full((40, 20), -float("inf"))
    logits[:, 3:7] = 1.0
    logits[:, 8] = 0.5
    temperatures = torch.ones(40)
    temperatures[0] = 0.0
    tokens, logprobs = torch.zeros(40, dtype=torch.int64), torch.zeros(40)
    kernel("sample", {"vocab_size": 20})(
        (40,), tokens, logprobs, logits, temperatures, torch.full((40,), 2).int(), torch.ones(40),
        torch.arange(40), torch.zeros(40, dtype=torch.int64),
    )  # fmt: skip
    assert tokens[0] == 3
    assert set(tokens[1:].tolist()) == {3, 4, 5, 6}


@case()
def sample_odd_rows() -> None:
    """Both zeros are one value at the k-th place; a share that is met exactly is met; a row of -inf; NaN and +inf."""
    rows = 41
    logits = torch.full((rows, 8), -2.0)
    logits[:-4, :2] = torch.tensor([0.0, -0.0])
    logits[-4, :3] = torch.tensor([0.5, 0.3, 0.2]).log() + 7
    logits[-4, 3:] = -float("inf")
    logits[-3] = -float("inf")
    logits[-2, 5] = float("nan")
    logits[-1, 5] = float("inf")
    top_k, top_p = torch.ones(rows).int(), torch.ones(rows)
    top_k[-4:], top_p[-4] = 0, 0.5
    tokens, logprobs = torch.full((rows,), -1), torch.zeros(rows)
    kernel("sample", {"vocab_size": 8})(
        (rows,), tokens, logprobs, logits, torch.ones(rows), top_k, top_p, torch.arange(rows),
        torch.zeros(rows, dtype=torch.int64),
    )  # fmt: skip
    assert set(tokens[:-4].tolist()) == {0, 1}
    assert tokens[-4:-2].tolist() == [0, 0]
    assert logprobs.isnan().tolist() == [False] * (rows - 3) + [True] * 3


def main() -> None:
    """Run every case; one line each: name and what went wrong, or null."""
    for name, function in CASES.items():
        torch.manual_seed(0)
        problem = None
        try:
            function()
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps({"case": name, "problem": problem}), flush=True)


if __name__ == "__main__":
    main()
