"""Physical cores: seconds of one operator from bytes, FLOPs, tiles, waves, caches and launches, a few parameters each.

Notation in the formulas: `tick` = 2 GHz / the device's clock (time of dependent instructions), `max4` a smooth maximum,
`rate` the bandwidth for a working set replayed while the L2 is warm (`memory_rate`). Rows are columns of floats.
Parameters are fitted by `fit.py`; those with `low == high` are not identified by the tables and stay at that value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from planner.operators.grid import Floats, Rows
from specs.document import DType
from specs.profile import DeviceFacts

WEIGHT_BYTES = {
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8": 1.0,
    "int8_wo": 1.0,
    "int4_wo": 0.52,
    "nvfp4": 0.5625,  # scales included
}
PEAKS = {"fp8": "fp8", "fp8_block": "fp8", "int8": "int8", "nvfp4": "fp4"}  # others compute in 16 bit
KV_BYTES = {"bfloat16": 2.0, "fp8": 1.0}
MOE_BYTES = {"bfloat16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "w4a16_mxfp4": 0.53, "int4_wo": 0.52, "nvfp4": 0.5625}
FP32_FLOPS_PER_CLOCK = {"sm_80": 128.0, "others": 256.0}  # of one multiprocessor
WARP_GROUP_TARGETS = ("sm_90", "sm_100", "sm_103")  # tensor cores fed by warp groups: larger tiles, other kernels
BMM_ELEMENTS, BMM_WIDTHS = 128.0 * 512.0, 128.0 + 512.0  # of DeepSeek's latent heads
# GEMM tiles that the core chooses from: rows, columns, splits of k
GEMM_TILES = ((64, 64, 1), (64, 64, 4), (128, 64, 1), (128, 128, 1), (128, 128, 4), (128, 256, 1))


@dataclass(frozen=True)
class OperatorFacts:
    """What the cores need from a datasheet. `flops` are dense peaks by element type."""

    name: str
    hbm_bytes_per_s: float
    l2_bytes: float
    multiprocessors: int
    flops: dict[str, float]
    link_bytes_per_s: float
    pcie: bool  # links through the host, which the ranks share
    clock_hz: float  # highest clock of the multiprocessors
    target: str  # architecture: sm_90, gfx942

    @property
    def tick(self) -> float:
        """Seconds here per second at 2 GHz, for what waits for dependent instructions and not for bandwidth."""
        return 2e9 / self.clock_hz

    @property
    def l2_bytes_per_s(self) -> float:
        """64 bytes per clock into each multiprocessor."""
        return 64.0 * self.multiprocessors * self.clock_hz

    @property
    def generation(self) -> str:
        """Devices of one generation run the same kernels: `warp_group` (Hopper, Blackwell) or `warp` (before them)."""
        return "warp_group" if self.target in WARP_GROUP_TARGETS else "warp"

    @property
    def attention_tile(self) -> float:
        """Query and key rows of a prefill attention tile: 128 in FlashAttention-3, 64 in FlashAttention-2."""
        return 128.0 if self.generation == "warp_group" else 64.0

    def peak(self, dtype: str) -> float:
        """FLOP/s of `dtype`; those of bf16 where the device has no such units."""
        return self.flops.get(dtype, self.flops["bf16"])

    def link_rate(self, ranks: Floats) -> Floats:
        """Bytes per second of each rank's link.

        Over PCIe more than a pair of ranks share the host's memory, through which messages pass twice, and then the
        link between its sockets: 1/4 of the link for four ranks, 1/16 for eight. Written with the tables of the only
        measured PCIe device at hand.
        """
        shared = np.maximum(ranks / 2.0, 1.0) ** 2 if self.pcie else np.ones_like(ranks)
        result: Floats = self.link_bytes_per_s / shared
        return result


def clock_hz(device: DeviceFacts) -> float:
    """Highest clock of the multiprocessors: peak FP32 FLOP/s / (multiprocessors x FP32 FLOPs per clock of each).

    Makers state the vector peak at the highest clock (that of tensor units is stated at a lower one on Hopper). FLOPs
    per clock: twice the FP32 results of the CUDA C++ Programming Guide's throughput table, and of AMD's CDNA papers.
    """
    per_clock = FP32_FLOPS_PER_CLOCK.get(device.target, FP32_FLOPS_PER_CLOCK["others"])
    return device.flops[DType.FP32] / (device.multiprocessors * per_clock)


def operator_facts(device: DeviceFacts) -> OperatorFacts:
    """From the catalogue's facts."""
    return OperatorFacts(
        device.name,
        device.hbm_bytes_per_s,
        float(device.l2_bytes),
        device.multiprocessors,
        {dtype.value: flops for dtype, flops in device.flops.items()},
        device.link_bytes_per_s,
        device.link == "pcie",
        clock_hz(device),
        device.target,
    )


def without_l2(facts: OperatorFacts) -> OperatorFacts:
    """The device with a cache that holds nothing."""
    return replace(facts, l2_bytes=1.0)


@dataclass(frozen=True)
class Parameter:
    """A positive parameter of a core: where its fit starts and may end. `low == high`: fixed, not identified."""

    name: str
    start: float
    low: float
    high: float


Core = Callable[[Rows, OperatorFacts, Floats], Floats]


def smooth_max(a: Floats, b: Floats, power: float = 4.0) -> Floats:
    """(a^power + b^power)^(1/power), without overflow."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    result: Floats = high * (1.0 + (low / high) ** power) ** (1.0 / power)
    return result


def memory_rate(working_set: Floats, facts: OperatorFacts, share: float, l2_share: float, l2_keep: float) -> Floats:
    """Bytes per second: 1 / (miss / (share HBM) + (1 - miss) / (l2_share L2)), miss = 1 / (1 + (keep L2 / set)^6).

    A working set that is read again in a circle thrashes as soon as it exceeds the cache, hence the steep power.
    """
    miss = 1.0 / (1.0 + (l2_keep * facts.l2_bytes / np.maximum(working_set, 1.0)) ** 6.0)
    memory = facts.hbm_bytes_per_s * share
    rate: Floats = 1.0 / (miss / memory + (1.0 - miss) / max(facts.l2_bytes_per_s * l2_share, memory))
    return rate


GEMM = (
    Parameter("start_s", 3e-6, 1e-6, 4e-4),
    Parameter("memory_share", 0.85, 0.3, 1.0),
    Parameter("l2_share", 0.3, 0.05, 1.0),
    Parameter("compute_share", 0.8, 0.05, 1.0),
    Parameter("k_step_s", 6e-8, 6e-8, 6e-8),  # of one 64-deep step of k; not identified
    Parameter("fill", 0.5, 0.05, 1.0),  # share of the multiprocessors that fills the memory; not identified
    Parameter("l2_keep", 0.7, 0.2, 1.5),
    Parameter("tile_cost", 3000.0, 10.0, 5e4),  # elements that a tile costs beyond its own
    Parameter("row_s", 1e-9, 1e-12, 1e-7),  # of quantising one row of activations
)


def gemm_core(weight_bytes: float, peak: str) -> Core:
    """y[m,n] = x[m,k] W[n,k]^T. tick start + min over tiles of max4(compute, moved / (rate busy)) + m row_s;
    compute = waves k/split max(2 (tile + tile_cost) / SM FLOPs, tick k_step / 64), waves = ceil(blocks / SMs)."""

    def core(rows: Rows, facts: OperatorFacts, p: Floats) -> Floats:
        start, share, l2_share, compute_share, k_step, fill, l2_keep, tile_cost, row = (float(v) for v in p)
        m, n, k = rows["m"], rows["n"], rows["k"]
        flops = facts.peak(peak) * compute_share / facts.multiprocessors
        moved = n * k * weight_bytes + m * k * weight_bytes + m * n * 2.0
        rate = memory_rate(moved, facts, share, l2_share, l2_keep)
        best = np.full(m.shape, np.inf)
        for tile_rows, tile_columns, split in GEMM_TILES:
            blocks = np.ceil(m / tile_rows) * np.ceil(n / tile_columns) * split
            waves = np.ceil(blocks / facts.multiprocessors)
            step = max(2.0 * (tile_rows * tile_columns + tile_cost) / flops, facts.tick * k_step / 64.0)
            busy = np.minimum(1.0, blocks / (facts.multiprocessors * fill))
            seconds = smooth_max(waves * (k / split) * step, moved / (rate * busy))
            if split > 1:  # partial sums are written, read and added
                seconds = seconds + m * n * 8.0 * split / rate + 1e-6
            best = np.minimum(best, seconds)
        result: Floats = facts.tick * start + best + m * row
        return result

    return core


DECODE = (
    Parameter("start_s", 8e-6, 2e-6, 1e-4),
    Parameter("memory_share", 0.85, 0.3, 1.0),
    Parameter("l2_share", 0.3, 0.05, 1.0),
    Parameter("l2_keep", 0.7, 0.2, 1.5),
    Parameter("wave_s", 1e-6, 1e-8, 1e-4),  # per wave of (sequence, KV head) at head_dim 128
    Parameter("compute_share", 0.5, 0.02, 1.0),
    Parameter("chunk_s", 4e-7, 1e-9, 1e-5),  # per 128 keys of one block
    Parameter("split_keys", 256.0, 32.0, 4096.0),  # keys from which a sequence is split over blocks
    Parameter("merge_s", 3e-6, 1e-8, 3e-5),
    Parameter("window_waste", 1e-2, 1e-5, 1.0),  # share of the keys outside the window that are read all the same
    Parameter("unpacked", 0.1, 1e-3, 1.0),  # 0: the query heads of a KV head share a block; 1: one block each
)


def decode_core(kv_bytes: float) -> Core:
    """One query token per sequence over `keys` cached tokens.
    tick (start + wave_s waves + merge) + max4(KV bytes / rate, compute, the longest chain of key chunks)."""

    def core(rows: Rows, facts: OperatorFacts, p: Floats) -> Floats:
        start, share, l2_share, l2_keep, wave, compute_share, chunk, split_keys, merge, waste, unpacked = map(float, p)
        batch, heads, kv_heads, dim = rows["batch"], rows["heads"], rows["kv_heads"], rows["head_dim"]
        every, window = rows["keys"], rows["window"]
        keys = np.where((window > 0) & (every > window), window + waste * (every - window), every)
        group = heads / kv_heads
        moved = batch * (keys * 2.0 * kv_heads * kv_bytes + 4.0 * heads) * dim
        rate = memory_rate(moved, facts, share, l2_share, l2_keep)
        padded = np.ceil(group / 16.0) * 16.0  # rows of a tensor-core tile
        compute = 4.0 * batch * kv_heads * padded * keys * dim / (facts.peak("bf16") * compute_share)
        blocks = batch * kv_heads
        splits = np.clip(facts.multiprocessors / blocks, 1.0, np.maximum(keys / split_keys, 1.0))
        chain = np.ceil(keys / 128.0 / splits) * chunk * dim / 128.0
        waves = np.ceil(blocks * group**unpacked / facts.multiprocessors)
        latency = start + wave * waves * dim / 128.0 + merge * (keys > split_keys)
        result: Floats = facts.tick * latency + smooth_max(moved / rate, smooth_max(compute, facts.tick * chain))
        return result

    return core


PREFILL = (
    Parameter("start_s", 1e-5, 2e-6, 1e-4),
    Parameter("compute_share", 0.6, 0.05, 1.0),
    Parameter("memory_share", 0.7, 0.1, 1.0),
    Parameter("step_s", 3e-7, 3e-7, 3e-7),  # per tile of keys of one block; not identified
    Parameter("wave_s", 1e-6, 1e-8, 2e-5),
    Parameter("l2_share", 0.2, 0.05, 1.0),
    Parameter("l2_keep", 0.7, 0.2, 1.5),
)


def seen_tiles(new: Floats, prefix: Floats, window: Floats, tile: float) -> Floats:
    """Key tiles that all query tiles of a causal prefill see: the sum over query tiles of min(tiles so far, window)."""
    count, before = np.ceil(new / tile), np.ceil(prefix / tile)
    reach = np.where(window > 0, np.ceil(window / tile) + 1.0, 1e12)
    full = np.clip(reach - before, 0.0, count)  # query tiles that still see everything before them
    total: Floats = full * before + full * (full + 1) / 2 + (count - full) * reach
    return total


def prefill_core(kv_bytes: float) -> Core:
    """Causal attention of `tokens` new tokens over `prefix` cached ones (no table has a prefix: untested).
    tick (start + wave_s waves) + max4(max3(tiles at a share of the peak, the longest block), bytes / rate)."""

    def core(rows: Rows, facts: OperatorFacts, p: Floats) -> Floats:
        start, compute_share, share, step, wave, l2_share, l2_keep = (float(v) for v in p)
        batch, heads, kv_heads, dim = rows["batch"], rows["heads"], rows["kv_heads"], rows["head_dim"]
        new, prefix, window = rows["tokens"], rows["prefix"], rows["window"]
        tile = facts.attention_tile
        flops = facts.peak("bf16") * compute_share
        packed = np.ceil(new * (heads / kv_heads) / tile) * kv_heads  # short prompts: heads share a tile
        blocks = batch * np.minimum(heads * np.ceil(new / tile), packed)
        long = heads * seen_tiles(new, prefix, window, tile)
        tiles = batch * np.where(new <= tile, packed * np.ceil((new + prefix) / tile), long)
        compute = tiles * 4.0 * tile * tile * dim / flops
        last = np.where(window > 0, np.minimum(new + prefix, window + tile), new + prefix)
        of_one_block = 4.0 * tile * tile * dim / (flops / facts.multiprocessors)
        chain = np.ceil(last / tile) * np.maximum(facts.tick * step * dim / 128.0, of_one_block)
        moved = batch * (new * heads * 4.0 + (new + prefix) * kv_heads * 2.0 * kv_bytes) * dim
        waves = np.ceil(blocks / facts.multiprocessors)
        work = smooth_max(smooth_max(compute, chain, 3.0), moved / memory_rate(moved, facts, share, l2_share, l2_keep))
        result: Floats = facts.tick * (start + wave * waves) + work
        return result

    return core


MOE = (
    Parameter("start_s", 3e-5, 5e-6, 4e-4),
    Parameter("memory_share", 0.8, 0.02, 1.0),
    Parameter("compute_share", 0.6, 0.001, 1.0),
    Parameter("row_s", 1e-12, 1e-14, 1e-10),  # per routed row and hidden element: permute, quantise
    Parameter("skew", 0.3, 1e-2, 1.0),  # load of the hottest rank = ranks^(skew law)
    Parameter("ramp_rows", 16.0, 1.0, 256.0),  # rows that a touched expert costs beyond its own
    Parameter("expert_s", 1e-8, 1e-10, 1e-6),  # per local expert; not identified
    Parameter("spread", 0.5, 0.05, 3.0),  # draws per expert that a skewed router is worth
    Parameter("l2_share", 0.3, 0.05, 1.0),  # not identified
    Parameter("l2_keep", 0.7, 0.2, 1.5),
)


def moe_core(weight_bytes: float, peak: str) -> Core:
    """Routed experts of one rank; `tokens` before the split over ranks, `law` the router's skew (0: balanced).
    tick (start + expert_s local) + max3(compute with a ramp per expert, touched weights / rate) + rows hidden row_s."""

    def core(rows: Rows, facts: OperatorFacts, p: Floats) -> Floats:
        start, share, compute_share, row, skew, ramp, expert, spread, l2_share, l2_keep = (float(v) for v in p)
        tokens, hidden, experts, topk = rows["tokens"], rows["hidden"], rows["experts"], rows["topk"]
        inter, ranks, law = rows["inter"] / rows["moe_tp"], rows["moe_ep"], rows["law"]
        local = np.maximum(experts / ranks, 1.0)
        skewed = law > 0
        load = np.where(skewed, ranks ** (skew * law), 1.0)
        routed = np.minimum(tokens * topk / ranks * load, tokens * np.minimum(topk, local))
        draws = np.where(skewed, routed / local * spread, 1e9)
        touched = np.where(skewed, local * -np.expm1(-draws), np.minimum(local, routed))
        touched = np.maximum(np.minimum(touched, routed), np.minimum(1.0, local))
        elements = 3.0 * hidden * inter
        per_expert = routed / touched
        busy_rows = np.maximum(per_expert + ramp * per_expert / (per_expert + ramp), 1.0)
        compute = 2.0 * elements * touched * busy_rows / (facts.peak(peak) * compute_share)
        moved = touched * elements * weight_bytes + routed * (2.0 * hidden + 3.0 * inter) * 2.0
        busy = np.minimum(1.0, touched * np.ceil(inter / 64.0) / facts.multiprocessors)
        memory = moved / (memory_rate(moved, facts, share, l2_share, l2_keep) * busy)
        launch = facts.tick * (start + expert * local)
        result: Floats = launch + smooth_max(compute, memory, 3.0) + routed * hidden * row
        return result

    return core


COLLECTIVE = (
    Parameter("start_s", 8e-6, 1e-6, 3e-4),
    Parameter("link_share", 0.6, 0.005, 1.0),
    Parameter("fill_s", 5e-6, 1e-8, 1e-3),  # of filling the pipeline, reached at ...
    Parameter("fill_bytes", 1e6, 1e3, 1e8),  # ... half of it at this size
)


def collective_core(passes: float) -> Core:
    """tick start + fill_s size / (size + fill_bytes) + passes (ranks - 1) / ranks size / (share link)."""

    def core(rows: Rows, facts: OperatorFacts, p: Floats) -> Floats:
        start, share, fill_s, fill_bytes = (float(v) for v in p)
        size, ranks = rows["bytes"], rows["ranks"]
        wire = passes * (ranks - 1.0) / ranks * size / (facts.link_rate(ranks) * share)
        result: Floats = facts.tick * start + fill_s * size / (size + fill_bytes) + wire
        return result

    return core


MLA = (
    Parameter("start_s", 6e-5, 1e-5, 4e-4),
    Parameter("memory_share", 0.7, 0.2, 1.0),
    Parameter("gemm_share", 0.5, 0.05, 1.0),
    Parameter("attention_share", 0.5, 0.02, 1.0),
    Parameter("sequence_s", 1e-7, 1e-9, 1e-5),
)


def mla_core(weight_bytes: float, kv_bytes: float, peak: str, decode: bool) -> Core:
    """The whole latent-attention block of DeepSeek-V3 (its widths are in the formula): projections, then attention.
    tick start + max4(projection FLOPs, their weights) + max4(attention FLOPs, its bytes) + sequence_s batch."""

    def core(rows: Rows, facts: OperatorFacts, p: Floats) -> Floats:
        start, share, gemm_share, attention_share, sequence = (float(v) for v in p)
        batch, heads, length = rows["batch"], rows["heads"], rows["length"]
        tokens = batch if decode else batch * length
        elements = 7168 * (1536 + 576) + heads * (1536 * 192 + 512 * 256 + 128 * 7168)
        memory = facts.hbm_bytes_per_s * share
        project = smooth_max(
            2.0 * elements * tokens / (facts.peak(peak) * gemm_share), elements * weight_bytes / memory
        )
        flops = facts.peak("bf16") * attention_share
        if decode:
            work = 2.0 * batch * length * np.maximum(heads, 16.0) * (576 + 512) / flops
            read = batch * length * 576 * kv_bytes / memory
        else:
            work = 2.0 * batch * heads * (length * (length + 128.0) / 2) * (192 + 128) / flops
            read = tokens * heads * (192 * 2 + 128 * 2) * 2.0 / memory
        result: Floats = facts.tick * start + project + smooth_max(work, read) + sequence * batch
        return result

    return core


BMM = (
    Parameter("start_s", 4e-6, 1e-6, 4e-5),
    Parameter("memory_share", 0.8, 0.2, 1.0),
    Parameter("l2_share", 0.3, 0.05, 1.0),
    Parameter("l2_keep", 0.7, 0.2, 1.5),
    Parameter("compute_share", 0.6, 0.05, 1.0),
)


def bmm_core(element_bytes: float, peak: str) -> Core:
    """One small product per head, [tokens, 128] x [128, 512] or its transpose (DeepSeek's absorbed projections).
    tick start + max4(FLOPs with tokens in tiles of 64 / (peak share), bytes / rate)."""

    def core(rows: Rows, facts: OperatorFacts, p: Floats) -> Floats:
        start, share, l2_share, l2_keep, compute_share = (float(v) for v in p)
        tokens, heads = rows["tokens"], rows["heads"]
        padded = np.ceil(tokens / 64.0) * 64.0
        compute = 2.0 * padded * heads * BMM_ELEMENTS / (facts.peak(peak) * compute_share)
        moved = heads * (BMM_ELEMENTS + tokens * BMM_WIDTHS) * element_bytes
        rate = memory_rate(moved, facts, share, l2_share, l2_keep)
        result: Floats = facts.tick * start + smooth_max(compute, moved / rate)
        return result

    return core


DISPATCH = (
    Parameter("start_s", 1e-4, 5e-6, 2e-3),
    Parameter("link_share", 0.5, 0.01, 4.0),  # above 1: fewer bytes than 16 bit for every copy of a token
    Parameter("fill_s", 1e-5, 1e-8, 2e-3),
    Parameter("fill_bytes", 1e6, 1e3, 1e8),
)


def dispatch_core() -> Core:
    """Tokens to the ranks of their experts, or back: a rank gets each of its tokens once per rank that needs it.
    start + fill_s size / (size + fill_bytes) + size / (share link), where
    size = 2 tokens hidden (ranks - 1) (1 - (1 - 1 / ranks)^topk)."""

    def core(rows: Rows, facts: OperatorFacts, p: Floats) -> Floats:
        start, share, fill_s, fill_bytes = (float(v) for v in p)
        ranks = rows["ranks"]
        copies = (ranks - 1.0) * -np.expm1(rows["topk"] * np.log1p(-1.0 / np.maximum(ranks, 1.0 + 1e-9)))
        size = rows["tokens"] * rows["hidden"] * 2.0 * copies
        wire = size / (facts.link_rate(ranks) * share)
        result: Floats = start + fill_s * size / (size + fill_bytes) + wire
        return result

    return core
