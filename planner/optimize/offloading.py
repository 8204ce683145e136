"""Where weights, KV cache and activations lie while one device serves a model that it cannot hold (FlexGen's problem).

A block of n batches of b sequences goes through the model layer by layer: a layer's weights are brought once for the
whole block, and while one batch computes, the next ones' data move. Layers are taken as equal.

Sets
    tiers: device, host, disk; a cache on the host may also be attended to by the host's processors ("attended")
Parameters
    w            bytes of a layer's weights; L layers;  fixed: embedding and head, which stay on the device
    kv(x), act   bytes of a sequence of x tokens in a layer's cache; of a token between two layers
    s, o         prompt and output tokens;  B = b n sequences;  x = s + o/2 tokens kept on average while decoding
    gemm, attention seconds of a batch in a layer, from the planner's own operators, for prefill and for decoding
    rates        device from host, host from device, disk reads, disk writes, the host's own attention
Variables
    weights[tier], cache[tier], activations[tier] in [0, 1], each family summing to 1
    prefill_s, decode_s >= 0    seconds of a layer for the block
Laws
    compute and every link overlap: a layer takes as long as the slowest of compute, device from host, host from device,
    disk reads and disk writes, each linear in the shares
    device, host and disk hold what lies there, the device also buffers, peaks of activations and the context
Objective
    minimise L (prefill_s + (o - 1) decode_s)

b and n are enumerated outside; for each the linear programme is solved to the optimum, so no policy of the batches and
blocks tried is faster. Seconds that no policy can save (compute) bound those that were not worth a programme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pulp

from planner.cost.latency import OperatorLatency, latency_of
from planner.cost.memory import memory_budget
from planner.cost.operations import operations
from planner.cost.roofline import ACTIVATION_BYTES
from planner.cost.step_work import StepShape, measure
from planner.cost.transfer import host_link
from planner.optimize.solve import minimise
from specs.architecture.model import Architecture
from specs.architecture.sharding import weight_bytes_per_rank
from specs.catalog import NodeFacts
from specs.document import DType
from specs.errors import InputError, NoPlanError
from specs.plan import Layout, Limits
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile

BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16)
SECONDS = 10.0  # for one programme, which takes hundredths
DISK_WRITE_SHARE = 0.5  # of the reading rate, where no other is stated: data-centre drives write at about half of it

Tier = Literal["device", "host", "attended", "disk"]
Shares = Mapping[str, float]


@dataclass(frozen=True)
class HostFacts:
    """What lies below the device: this device's part of it. Zero disk bytes: none is used.

    `attention_bytes_per_s`: KV bytes that the host's processors attend to in a second; zero: they do not compute.
    """

    memory_bytes: float
    disk_bytes: float = 0.0
    disk_read_bytes_per_s: float = 0.0
    disk_write_bytes_per_s: float = 0.0
    attention_bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        """Raises `InputError` for figures that cannot be."""
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0:
                raise InputError("must be finite and not negative", field=f"host.{name}")
        if self.disk_bytes and not (self.disk_read_bytes_per_s and self.disk_write_bytes_per_s):
            raise InputError("a disk needs rates to read and to write", field="host.disk_bytes")

    @classmethod
    def of_node(cls, node: NodeFacts, devices: int | None = None) -> HostFacts:
        """One device's part of a node whose `devices` (None: all of them) offload at once."""
        sharers = devices or node.gpus
        return cls(
            memory_bytes=node.host_memory_bytes / sharers,
            disk_bytes=node.nvme_bytes / sharers if node.nvme_bytes_per_s else 0.0,
            disk_read_bytes_per_s=node.nvme_bytes_per_s / sharers,
            disk_write_bytes_per_s=node.nvme_bytes_per_s * DISK_WRITE_SHARE / sharers,
        )


@dataclass(frozen=True)
class Workload:
    """Sequences of one shape, as many as wanted; tokens of each."""

    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise InputError("prompt and output need at least 1 token", field="workload")

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True)
class OffloadingPolicy:
    """Shares by tier (`cache` also by "attended": on the host and attended to there) and what they come to.

    All seconds are predicted. `binds` names the slowest part of a layer in either phase.
    """

    gpu_batch: int
    batches: int
    weights: Shares
    cache: Shares
    activations: Shares
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    bound_tokens_per_s: float
    binds: Mapping[str, str]

    @property
    def block(self) -> int:
        return self.gpu_batch * self.batches

    @property
    def seconds(self) -> float:
        """From the first prompt to the last token of a block."""
        return self.prefill_s + self.decode_s


@dataclass(frozen=True)
class LayerCosts:
    """Of one layer and one batch of `gpu_batch` sequences: seconds on the device, bytes everywhere."""

    gpu_batch: int
    layers: int
    prefill_compute_s: float
    prefill_attention_s: float
    decode_compute_s: float
    decode_attention_s: float
    weight_bytes: float
    prompt_kv_bytes: float  # of one sequence
    mean_kv_bytes: float  # of one sequence, half of its output written
    last_kv_bytes: float  # of one sequence at its end
    token_kv_bytes: float  # written for each further token
    activation_bytes: float  # of a token, between two layers
    fixed_bytes: float  # of the device: embedding, head, context
    prefill_peak_bytes: float
    decode_peak_bytes: float


def best_policy(
    architecture: Architecture,
    device: DeviceFacts,
    profile: DeviceProfile,
    engine: EngineProfile,
    host: HostFacts,
    workload: Workload,
    *,
    weights_dtype: DType | None = None,
    kv_dtype: DType | None = None,
    batches: Iterable[int] = BATCHES,
    blocks: Iterable[int] = BLOCKS,
    latency: OperatorLatency | None = None,
) -> OffloadingPolicy:
    """The policy with the most output tokens/s among the sizes of batches and blocks.

    `blocks`: numbers of batches in a block. `latency` None: the best source there is for the device. Raises
    `NoPlanError` where no policy of them fits into the tiers.
    """
    weights = weights_dtype or architecture.native_weights_dtype
    kv = kv_dtype or (DType.FP16 if weights == DType.FP16 else DType.BF16)
    blocks = sorted(set(blocks))
    source = latency_of(device, profile) if latency is None else latency
    costs = [
        layer_costs(architecture, device, profile, engine, source, workload, b, weights, kv)
        for b in sorted(set(batches))
    ]
    waiting = sorted(((fastest(cost, n, workload), cost, n) for cost in costs for n in blocks), key=_promise)
    best: OffloadingPolicy | None = None
    for bound, cost, n in waiting:
        if best is not None and bound <= best.tokens_per_s:
            break
        if best is None or bound > best.tokens_per_s:
            found = solve_shares(cost, n, device, engine, host, workload)
            if found is not None and (best is None or found.tokens_per_s > best.tokens_per_s):
                best = found
    if best is None:
        needed = costs[0].layers * costs[0].weight_bytes + costs[0].fixed_bytes
        raise NoPlanError(
            f"no share of the tiers holds weights, cache and activations; weights alone take {needed / 1e9:.1f} GB",
            conflict=(f"device: {device.memory_bytes / 1e9:.1f} GB", f"host: {host.memory_bytes / 1e9:.1f} GB"),
            mends=("give the host more memory, or a disk", "smaller batches or blocks"),
        )
    return best


def _promise(entry: tuple[float, LayerCosts, int]) -> tuple[float, int, int]:
    return -entry[0], entry[1].gpu_batch, entry[2]


def fastest(cost: LayerCosts, n: int, workload: Workload) -> float:
    """Output tokens/s that no policy passes with this batch and block: the device's own work, but for attention."""
    decodes = workload.output_tokens - 1
    seconds = cost.layers * n * (cost.prefill_compute_s + cost.prefill_attention_s + decodes * cost.decode_compute_s)
    return cost.gpu_batch * n * workload.output_tokens / seconds


def layer_costs(
    architecture: Architecture,
    device: DeviceFacts,
    profile: DeviceProfile,
    engine: EngineProfile,
    latency: OperatorLatency,
    workload: Workload,
    gpu_batch: int,
    weights_dtype: DType,
    kv_dtype: DType,
) -> LayerCosts:
    """What the planner's cost model says of one device; every layer the mean one."""
    layers = len(architecture.layers)
    layout = Layout(pipeline_stages=(layers,))
    every = operations(architecture, layout, weights_dtype, kv_dtype, device, profile, latency)
    attention = tuple(operation for operation in every if operation.kind == "attention")
    others = tuple(operation for operation in every if operation.kind != "attention")
    mean = workload.prompt_tokens + max(1, workload.output_tokens // 2)
    window = architecture.window_tokens
    prefill = StepShape.of(chunks=gpu_batch, new=workload.prompt_tokens, window=window)
    decode = StepShape.of(decodes=gpu_batch, keys=mean, window=window)

    def seconds(part: tuple[Any, ...], shape: StepShape, overhead_s: float = 0.0) -> float:
        return (float(np.sum(measure(part, shape).seconds)) + overhead_s) / layers

    def kept(tokens: int) -> float:
        return architecture.sequence_bytes(tokens, kv_dtype, 1) / layers

    whole = weight_bytes_per_rank(architecture, weights_dtype, 1)
    inside = weight_bytes_per_rank(architecture, weights_dtype, 1, first=False, last=False)
    peaks = [
        memory_budget(
            architecture,
            layout,
            weights_dtype,
            kv_dtype,
            device,
            engine,
            Limits(max_num_seqs=gpu_batch, max_num_batched_tokens=tokens, max_model_len=workload.tokens),
        )
        for tokens in (gpu_batch * workload.prompt_tokens, gpu_batch)
    ]
    return LayerCosts(
        gpu_batch=gpu_batch,
        layers=layers,
        prefill_compute_s=seconds(others, prefill, engine.step_overhead_s),
        prefill_attention_s=seconds(attention, prefill),
        decode_compute_s=seconds(others, decode, engine.step_overhead_s),
        decode_attention_s=seconds(attention, decode),
        weight_bytes=inside / layers,
        prompt_kv_bytes=kept(workload.prompt_tokens),
        mean_kv_bytes=kept(mean),
        last_kv_bytes=kept(workload.tokens),
        token_kv_bytes=kept(workload.tokens) - kept(workload.tokens - 1),
        activation_bytes=architecture.hidden_size * ACTIVATION_BYTES,
        fixed_bytes=float(whole - inside + peaks[0].context_bytes),
        prefill_peak_bytes=float(peaks[0].activation_bytes),
        decode_peak_bytes=float(peaks[1].activation_bytes),
    )


@dataclass(frozen=True)
class _Families:
    """The variables: shares of weights, cache and activations by tier."""

    weights: dict[str, Any]
    cache: dict[str, Any]
    activations: dict[str, Any]


def solve_shares(
    cost: LayerCosts, n: int, device: DeviceFacts, engine: EngineProfile, host: HostFacts, workload: Workload
) -> OffloadingPolicy | None:
    """The optimal shares for blocks of n batches; None where nothing fits."""
    shares = _shares(host)
    problem = pulp.LpProblem("offloading", pulp.LpMinimize)
    prefill_s, decode_s = (pulp.LpVariable(name, lowBound=0) for name in ("prefill_s", "decode_s"))
    problem += prefill_s + (workload.output_tokens - 1) * decode_s
    for family in (shares.weights, shares.cache, shares.activations):
        problem += pulp.lpSum(family.values()) == 1
    parts = {
        "prefill": prefill_parts(cost, n, device, host, workload, shares),
        "decode": decode_parts(cost, n, device, host, shares),
    }
    for phase, variable in (("prefill", prefill_s), ("decode", decode_s)):
        for seconds in parts[phase].values():
            problem += variable >= seconds
    for held, room in tiers_hold_their_parts(cost, n, device, engine, host, workload, shares):
        problem += held <= room / GIGA
    _, status, _ = minimise(problem, SECONDS)
    if status != "optimal":
        return None
    layers, decodes = cost.layers, workload.output_tokens - 1
    block = cost.gpu_batch * n
    seconds = layers * float(pulp.value(problem.objective))
    rate = block * workload.output_tokens / seconds
    return OffloadingPolicy(
        gpu_batch=cost.gpu_batch,
        batches=n,
        weights=_values(shares.weights),
        cache=_values(shares.cache),
        activations=_values(shares.activations),
        prefill_s=layers * float(prefill_s.varValue or 0.0),
        decode_s=layers * decodes * float(decode_s.varValue or 0.0),
        tokens_per_s=rate,
        bound_tokens_per_s=rate,
        binds={phase: max(by, key=lambda name: float(pulp.value(by[name]))) for phase, by in parts.items()},
    )


def _shares(host: HostFacts) -> _Families:
    tiers = ["device", "host", *(["disk"] if host.disk_bytes else [])]
    attended = ["attended"] if host.attention_bytes_per_s else []

    def family(name: str, members: list[str]) -> dict[str, Any]:
        return {tier: pulp.LpVariable(f"{name}_{tier}", lowBound=0, upBound=1) for tier in members}

    return _Families(family("weights", tiers), family("cache", tiers + attended), family("activations", tiers))


def prefill_parts(
    cost: LayerCosts, n: int, device: DeviceFacts, host: HostFacts, workload: Workload, shares: _Families
) -> dict[str, Any]:
    """Seconds of a layer for the block while prompts are read, by what takes them.

    Weights come in and the cache goes out to where it lies; activations that lie elsewhere come and go.
    """
    block = cost.gpu_batch * n
    cache = {tier: block * cost.prompt_kv_bytes * share for tier, share in shares.cache.items()}
    moved = {
        tier: block * workload.prompt_tokens * cost.activation_bytes * share
        for tier, share in shares.activations.items()
    }
    weights = {tier: cost.weight_bytes * share for tier, share in shares.weights.items()}
    return {
        "compute": n * (cost.prefill_compute_s + cost.prefill_attention_s),
        **_links(device, host, inward=[weights, moved], outward=[cache, moved]),
    }


def decode_parts(cost: LayerCosts, n: int, device: DeviceFacts, host: HostFacts, shares: _Families) -> dict[str, Any]:
    """Seconds of a layer for the block and one further token, by what takes them.

    A cache elsewhere comes in and its new token goes out; what the host attends to stays there, and only the new token
    and the activations of attention move. The host's attention lies on a batch's way, so it adds to the device's
    compute.
    """
    block = cost.gpu_batch * n
    attended = shares.cache.get("attended", 0.0)
    read = {tier: block * cost.mean_kv_bytes * share for tier, share in shares.cache.items() if tier != "attended"}
    written = {tier: block * cost.token_kv_bytes * share for tier, share in shares.cache.items()}
    results = {"host": block * cost.activation_bytes * attended}
    moved = {tier: block * cost.activation_bytes * share for tier, share in shares.activations.items()}
    weights = {tier: cost.weight_bytes * share for tier, share in shares.weights.items()}
    compute = n * (cost.decode_compute_s + cost.decode_attention_s * (1 - attended))
    if host.attention_bytes_per_s:
        compute += block * cost.mean_kv_bytes / host.attention_bytes_per_s * attended
    return {
        "compute": compute,
        **_links(device, host, inward=[weights, read, moved, results], outward=[written, moved, results]),
    }


def _links(
    device: DeviceFacts, host: HostFacts, inward: list[dict[str, Any]], outward: list[dict[str, Any]]
) -> dict[str, Any]:
    """Seconds of each link for bytes by tier; what lies on disk crosses the host's link, too."""
    link = host_link(device, duplex=True).reached_bytes_per_s

    def crossing(moves: list[dict[str, Any]], tiers: tuple[str, ...]) -> Any:
        return pulp.lpSum(moved[tier] for moved in moves for tier in tiers if tier in moved)

    found = {
        "device from host": crossing(inward, ("host", "disk", "attended")) * (1 / link),
        "host from device": crossing(outward, ("host", "disk", "attended")) * (1 / link),
    }
    if host.disk_bytes:
        found["disk reads"] = crossing(inward, ("disk",)) * (1 / host.disk_read_bytes_per_s)
        found["disk writes"] = crossing(outward, ("disk",)) * (1 / host.disk_write_bytes_per_s)
    return found


GIGA = 1e9  # rows of memory are in GB, so that no coefficient is far from the others


def tiers_hold_their_parts(
    cost: LayerCosts,
    n: int,
    device: DeviceFacts,
    engine: EngineProfile,
    host: HostFacts,
    workload: Workload,
    shares: _Families,
) -> list[tuple[Any, float]]:
    """(GB held, bytes that there are): the device in either phase, the host, the disk.

    The device also holds two layers' weights that are on their way, and the cache of two batches in one layer, as far
    as they lie elsewhere; a layer passes through the host on its way from disk.
    """
    block, layers = cost.gpu_batch * n, cost.layers
    weights = {tier: layers * cost.weight_bytes / GIGA * share for tier, share in shares.weights.items()}
    cache = {tier: layers * block * cost.last_kv_bytes / GIGA * share for tier, share in shares.cache.items()}
    activations = {
        tier: block * workload.prompt_tokens * cost.activation_bytes / GIGA * share
        for tier, share in shares.activations.items()
    }
    passing = pulp.lpSum(cache[tier] for tier in ("host", "disk") if tier in cache)
    buffers = pulp.lpSum(weights[tier] for tier in weights if tier != "device") * (2 / layers) + passing * (
        2 / (layers * n)
    )
    home = weights["device"] + cache["device"] + activations["device"] + buffers
    available = device.memory_bytes * engine.memory_fraction - cost.fixed_bytes
    on_host = weights["host"] + cache["host"] + cache.get("attended", 0.0) + activations["host"]
    rows = [(home, available - cost.prefill_peak_bytes), (home, available - cost.decode_peak_bytes)]
    if host.disk_bytes:
        staged = (weights["disk"] + cache["disk"]) * (2 / layers)
        rows.append((weights["disk"] + cache["disk"] + activations["disk"], host.disk_bytes))
        return [*rows, (on_host + staged, host.memory_bytes)]
    return [*rows, (on_host, host.memory_bytes)]


def _values(family: dict[str, Any]) -> Shares:
    return {tier: min(1.0, max(0.0, float(share.varValue or 0.0))) for tier, share in family.items()}
