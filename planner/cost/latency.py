"""Seconds of single operators on one device: the interface, and its two sources.

`RooflineLatency` needs a handful of parameters (`DeviceProfile`): the larger of compute and memory time, plus a launch.
`FittedLatency` uses the latency model that was fitted to kernel tables (`planner.operators`), the device's own or its
relative's, and falls back on the roofline for what no table measures.

Kernel tables replay one kernel over and over, so that its operands are warm in the L2 where they fit. In a step every
layer has weights and a KV cache of its own: `FittedLatency` therefore takes products and cache reads cold,
seconds + core(without an L2) - core(with it), where the core is the physical part of the fit. Experts are taken as
measured: their rows do not show what the L2 gives them, and the few that fit it are bound by launches.

All shapes are arrays that broadcast against each other; all results are arrays of seconds.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from planner.cost.collectives import all_reduce_s, stage_transfer_s
from planner.cost.moe import experts_s
from planner.cost.roofline import Floats, compute_dtype, elementwise_s, gemm_s, peak_flops, weight_bytes_per_element
from planner.cost.transfer import network_all_reduce_s
from planner.operators import DeviceModel, OperatorProfile, device_model
from planner.operators.cores import OperatorFacts, gemm_core, moe_core, operator_facts, without_l2
from planner.operators.grid import Rows
from planner.operators.lane import Lane
from specs.document import DType
from specs.profile import DeviceFacts, DeviceProfile


@dataclass(frozen=True)
class AttentionShape:
    """Attention of one rank. `heads` query heads over `kv_heads` cached ones of `head_dim` elements (the mean of key
    and value); `window`: keys that a query sees, None = all."""

    heads: int
    kv_heads: int
    head_dim: float
    window: int | None
    kv_dtype: DType


@dataclass(frozen=True)
class LatentShape:
    """Multi-head latent attention of one rank (see `specs.architecture.operators.LatentPagedAttention`)."""

    heads: float
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    kv_dtype: DType
    window: int | None = None  # keys that a query sees, None = all


@dataclass(frozen=True)
class ExpertShape:
    """The routed experts of one rank: `experts` in all, spread over `expert_ranks`, each `width` wide here."""

    experts: int
    experts_per_token: int
    hidden_size: int
    width: int
    gated: bool
    weights: DType
    expert_ranks: int = 1
    tensor_ranks: int = 1  # that cut each expert: its whole width is width x tensor_ranks
    block_scaled: bool = False  # 8-bit weights with one scale per block, as DeepSeek-V3's


class OperatorLatency(Protocol):
    """What the cost of a step is made of. Bytes are those of one rank's message."""

    def gemm(self, tokens: Floats, in_features: int, out_features: int, weights: DType) -> Floats:
        """y[tokens, out] = x[tokens, in] W[out, in]^T, quantising x where the arithmetic is 8 bit or less."""

    def decode_attention(self, sequences: Floats, keys: Floats, shape: AttentionShape) -> Floats:
        """One query token of each of `sequences` sequences over `keys` keys each (a mean)."""

    def prefill_attention(self, new: Floats, cached: Floats, shape: AttentionShape) -> Floats:
        """`new` tokens of one prompt, causal, over `cached` earlier ones."""

    def latent_decode(self, sequences: Floats, keys: Floats, shape: LatentShape) -> Floats:
        """As `decode_attention`, absorbed: all heads read one latent vector per key."""

    def latent_prefill(self, new: Floats, cached: Floats, shape: LatentShape) -> Floats:
        """As `prefill_attention`, expanded."""

    def experts(self, tokens: Floats, shape: ExpertShape) -> Floats:
        """Grouped products of the routed experts; `tokens` before they are split over ranks."""

    def elementwise(self, moved_bytes: Floats) -> Floats:
        """A kernel that only moves `moved_bytes`, reads plus writes."""

    def all_reduce(self, message_bytes: Floats, ranks: int) -> Floats:
        """Sum over `ranks` inside the fast domain."""

    def all_gather(self, message_bytes: Floats, ranks: int) -> Floats:
        """`message_bytes` is what every rank holds after it."""

    def reduce_scatter(self, message_bytes: Floats, ranks: int) -> Floats:
        """`message_bytes` is what every rank holds before it."""

    def router_skew(self, ranks: int) -> float:
        """Load of the hottest rank over the mean, where a trained router spreads tokens over the experts of `ranks`."""

    def hand_over(self, message_bytes: Floats, same_node: bool) -> Floats:
        """From one device to another: a send and its receive."""


@dataclass(frozen=True)
class RooflineLatency:
    """Roofline with the few fitted corrections of a `DeviceProfile`."""

    device: DeviceFacts
    profile: DeviceProfile

    def gemm(self, tokens: Floats, in_features: int, out_features: int, weights: DType) -> Floats:
        return gemm_s(tokens, in_features, out_features, weights, self.device, self.profile)

    def decode_attention(self, sequences: Floats, keys: Floats, shape: AttentionShape) -> Floats:
        token_bytes = 2.0 * shape.kv_heads * shape.head_dim * shape.kv_dtype.bytes
        # arithmetic stays far below the peak: a query head reads its keys for one token only
        return self._decode(sequences, keys, token_bytes, 0.0, shape.kv_heads, shape.kv_dtype)

    def prefill_attention(self, new: Floats, cached: Floats, shape: AttentionShape) -> Floats:
        token_bytes = 2.0 * shape.kv_heads * shape.head_dim * shape.kv_dtype.bytes
        flops = 4.0 * shape.heads * shape.head_dim
        return self._prefill(new, cached, shape.window, flops, token_bytes, shape.kv_dtype)

    def latent_decode(self, sequences: Floats, keys: Floats, shape: LatentShape) -> Floats:
        token_bytes = (shape.kv_rank + shape.rope_dim) * shape.kv_dtype.bytes
        flops = 2.0 * shape.heads * (shape.kv_rank + shape.rope_dim + shape.kv_rank)
        return self._decode(sequences, keys, token_bytes, flops, 1.0, shape.kv_dtype)

    def latent_prefill(self, new: Floats, cached: Floats, shape: LatentShape) -> Floats:
        token_bytes = (shape.kv_rank + shape.rope_dim) * shape.kv_dtype.bytes
        flops = 2.0 * shape.heads * (shape.nope_dim + shape.rope_dim + shape.value_dim)
        return self._prefill(new, cached, shape.window, flops, token_bytes, shape.kv_dtype)

    def experts(self, tokens: Floats, shape: ExpertShape) -> Floats:
        return experts_s(
            tokens,
            shape.experts,
            shape.experts_per_token,
            shape.hidden_size,
            shape.width,
            shape.gated,
            shape.weights,
            self.device,
            self.profile,
            shape.expert_ranks,
        )

    def elementwise(self, moved_bytes: Floats) -> Floats:
        return elementwise_s(moved_bytes, self.device, self.profile)

    def all_reduce(self, message_bytes: Floats, ranks: int) -> Floats:
        """Over several domains: reduce-scatter inside each, all-reduce of the parts across, all-gather inside."""
        near = math.gcd(ranks, self.device.fast_domain)
        if near == ranks:
            return all_reduce_s(message_bytes, ranks, self.device, self.profile)
        inside = self.reduce_scatter(message_bytes, near) + self.all_gather(message_bytes, near)
        return inside + network_all_reduce_s(message_bytes / near, ranks // near, self.device)

    def all_gather(self, message_bytes: Floats, ranks: int) -> Floats:
        return self._half(message_bytes, ranks)

    def reduce_scatter(self, message_bytes: Floats, ranks: int) -> Floats:
        return self._half(message_bytes, ranks)

    def router_skew(self, ranks: int) -> float:
        return 1.0  # nothing measured: balanced

    def _half(self, message_bytes: Floats, ranks: int) -> Floats:
        """All-gather or reduce-scatter: one pass of the ring where an all-reduce takes two."""
        near = math.gcd(ranks, self.device.fast_domain)
        if near == ranks:
            return all_reduce_s(message_bytes / 2.0, ranks, self.device, self.profile)
        across = network_all_reduce_s(message_bytes / near, ranks // near, self.device) / 2.0
        return self._half(message_bytes, near) + across

    def hand_over(self, message_bytes: Floats, same_node: bool) -> Floats:
        return stage_transfer_s(message_bytes, same_node, self.device)

    @property
    def _sixteen_bit_rate(self) -> float:
        dtype = DType.BF16 if DType.BF16 in self.device.flops else DType.FP16
        return peak_flops(dtype, self.device) * self.profile.prefill_attention_efficiency

    def _key_s(self, token_bytes: float, kv_dtype: DType) -> float:
        shares = self.profile.decode_attention_efficiency
        share = shares[kv_dtype] if kv_dtype in shares else min(shares.values())
        return token_bytes / (self.device.hbm_bytes_per_s * share)

    def _decode(
        self, sequences: Floats, keys: Floats, token_bytes: float, flops: float, kv_rows: float, kv_dtype: DType
    ) -> Floats:
        key_s = max(self._key_s(token_bytes, kv_dtype), flops / self._sixteen_bit_rate)
        row_s = self.profile.decode_attention_row_s * kv_rows
        seconds: Floats = self.profile.decode_attention_launch_s + sequences * (row_s + keys * key_s)
        return seconds

    def _prefill(
        self, new: Floats, cached: Floats, window: int | None, flops: float, token_bytes: float, kv_dtype: DType
    ) -> Floats:
        pair_s, ramp = flops / self._sixteen_bit_rate, self.profile.prefill_attention_ramp_tokens
        seen, reread = seen_pairs(new, cached, window), cached
        if window is not None:
            reread = np.minimum(cached, float(window))
        seconds: Floats = (
            self.profile.prefill_attention_launch_s
            + pair_s * (seen + new * ramp / 2.0)
            + reread * self._key_s(token_bytes, kv_dtype)
        )
        return seconds


def seen_pairs(new: Floats, cached: Floats, window: int | None) -> Floats:
    """(query, key) pairs of a causal chunk of `new` tokens over `cached` ones, inside the window where there is one."""
    if window is None:
        return new * cached + new * (new + 1.0) / 2.0
    growing = np.clip(window - cached, 0.0, new)  # queries that still see everything
    pairs: Floats = growing * cached + growing * (growing + 1.0) / 2.0 + (new - growing) * window
    return pairs


# Element types as the kernel tables name them; others are weight-only: arithmetic of 16 bit, bytes of their own.
_GEMM_LANES = {DType.BF16: "bfloat16", DType.FP16: "bfloat16", DType.FP32: "bfloat16", DType.FP8: "fp8"}
# Dense products of block-scaled weights are taken as those of per-tensor scales: their measured rows hold host time.
_EXPERT_LANES = {**_GEMM_LANES, DType.INT4: "int4_wo", DType.FP4: "w4a16_mxfp4"}
_SIXTEEN_BIT = "bfloat16"
_SKEWED = ("fp8_block", "bfloat16")  # expert lanes that the skew of the router is read from
_MOST_KEPT = 4000  # results of a few kilobytes each
# Skew of the router in the tables' words: 0 is balanced. Trained routers are near the power law 1.01.
ROUTER_LAW = 1.01


@dataclass(frozen=True)
class FittedLatency(RooflineLatency):
    """The latency model fitted to kernel tables, of the device or of its relative (`model.note` says so)."""

    model: DeviceModel
    kept: dict[tuple[object, ...], Floats] = field(default_factory=dict, compare=False, repr=False)

    def measures_products(self, weights: DType) -> bool:
        """Whether a table holds products of weights stored so."""
        return self._gemm_lane(weights) is not None

    def _gemm_lane(self, weights: DType) -> Lane | None:
        name = _GEMM_LANES.get(weights)
        return self._lane("gemm", name) if name and weights in self.device.flops else None

    def gemm(self, tokens: Floats, in_features: int, out_features: int, weights: DType) -> Floats:
        rows = _columns(m=tokens, n=out_features, k=in_features)
        lane = self._gemm_lane(weights)
        if lane is not None:
            return self._seconds(lane, cold=True, rows=rows)
        plain = self._lane("gemm", _SIXTEEN_BIT)
        if plain is None:
            return super().gemm(tokens, in_features, out_features, weights)
        core = gemm_core(weight_bytes_per_element(weights), compute_dtype(weights, self.device).value)
        return core(rows, self._without_l2, plain.parameters)

    def decode_attention(self, sequences: Floats, keys: Floats, shape: AttentionShape) -> Floats:
        lane = self._attention_lane("generation_attention", shape)
        if lane is None:
            return super().decode_attention(sequences, keys, shape)
        window = 0.0 if shape.window is None else float(shape.window)
        return self._seconds(lane, cold=True, rows=_columns(batch=sequences, keys=keys, window=window, **_heads(shape)))

    def prefill_attention(self, new: Floats, cached: Floats, shape: AttentionShape) -> Floats:
        lane = self._attention_lane("context_attention", shape)
        if lane is None:
            return super().prefill_attention(new, cached, shape)
        window = 0.0 if shape.window is None else float(shape.window)
        rows = _columns(batch=1.0, tokens=new, prefix=cached, window=window, **_heads(shape))
        return self._seconds(lane, rows)

    def experts(self, tokens: Floats, shape: ExpertShape) -> Floats:
        measured = self._expert_lane(shape)
        lane = measured or self._expert_lane(replace(shape, weights=DType.BF16, block_scaled=False))
        if lane is None:
            return super().experts(tokens, shape)
        rows = _columns(
            tokens=tokens,
            hidden=shape.hidden_size,
            inter=shape.width * shape.tensor_ranks,
            topk=shape.experts_per_token,
            experts=shape.experts,
            moe_tp=shape.tensor_ranks,
            moe_ep=shape.expert_ranks,
            law=ROUTER_LAW,
        )
        seconds = self._seconds(lane, rows)
        if measured is None:  # no table has the type: its own bytes and peak under the fit of 16 bit
            peak = compute_dtype(shape.weights, self.device).value
            core = moe_core(weight_bytes_per_element(shape.weights), peak)
            seconds = seconds * core(rows, self.model.facts, lane.parameters) / lane.physical(rows, self.model.facts)
        # tables are of gated experts: three matrices; without a gate two of the three are there
        return seconds if shape.gated else seconds * (2.0 / 3.0)

    def all_reduce(self, message_bytes: Floats, ranks: int) -> Floats:
        """The better of the engine's own kernel (small messages) and NCCL, as engines choose."""
        if ranks == 1:
            return message_bytes * 0.0
        seconds = [
            self._seconds(lane, _columns(bytes=message_bytes, ranks=ranks, kind=0.0))
            for lane in (
                self._ranks_lane("custom_allreduce", "vllm_graph", ranks),
                self._ranks_lane("nccl", "all_reduce", ranks),
            )
            if lane is not None
        ]
        if not seconds or math.gcd(ranks, self.device.fast_domain) < ranks:
            return super().all_reduce(message_bytes, ranks)
        best: Floats = np.minimum.reduce(seconds)
        return best

    def all_gather(self, message_bytes: Floats, ranks: int) -> Floats:
        return self._nccl("all_gather", message_bytes, ranks)

    def reduce_scatter(self, message_bytes: Floats, ranks: int) -> Floats:
        return self._nccl("reduce_scatter", message_bytes, ranks)

    def router_skew(self, ranks: int) -> float:
        """As the device's measured experts show it: ranks^(skew x law)."""
        lane = next((lane for name in _SKEWED if (lane := self._lane("moe", name)) is not None), None)
        if lane is None:
            return super().router_skew(ranks)
        parameters = dict(zip((p.name for p in lane.kind.parameters), lane.parameters.tolist(), strict=True))
        return float(min(ranks, ranks ** (parameters["skew"] * ROUTER_LAW)))

    def _nccl(self, operation: str, message_bytes: Floats, ranks: int) -> Floats:
        lane = self._ranks_lane("nccl", operation, ranks)
        if ranks == 1:
            return message_bytes * 0.0
        if lane is None:
            return super().all_gather(message_bytes, ranks)
        near = math.gcd(ranks, self.device.fast_domain)
        if near < ranks:
            across = network_all_reduce_s(message_bytes / near, ranks // near, self.device) / 2.0
            return self._nccl(operation, message_bytes, near) + across
        rows = _columns(bytes=message_bytes, ranks=ranks, kind=0.0)
        return self._seconds(lane, rows)

    @property
    def _without_l2(self) -> OperatorFacts:
        return without_l2(self.model.facts)

    def _seconds(self, lane: Lane, rows: Rows, cold: bool = False) -> Floats:
        """Seconds of the rows, kept: configurations of one device share most of their operators."""
        key = (id(lane), cold, *(column.tobytes() for column in rows.values()))
        found = self.kept.get(key)
        if found is None:
            if len(self.kept) >= _MOST_KEPT:
                self.kept.clear()
            facts = self.model.facts
            found = lane.seconds(rows, facts, self.model.correction)
            if cold:
                found = found + np.maximum(lane.physical(rows, self._without_l2) - lane.physical(rows, facts), 0.0)
            found.flags.writeable = False
            self.kept[key] = found
        return found

    def _lane(self, family: str, name: str) -> Lane | None:
        return _unpacked(self.model.profile, family, name)

    def _attention_lane(self, family: str, shape: AttentionShape) -> Lane | None:
        stored = "fp8" if shape.kv_dtype.bytes < 2.0 else _SIXTEEN_BIT
        for kind in ("window", "full") if shape.window is not None else ("full",):
            for name in (stored, _SIXTEEN_BIT):
                lane = self._lane(family, f"{name}/{kind}")
                if lane is not None:
                    return lane
        return None

    def _expert_lane(self, shape: ExpertShape) -> Lane | None:
        name = _EXPERT_LANES.get(shape.weights)
        names = (f"{name}_block", name) if shape.block_scaled else (name,)
        for found in names if name else ():
            unaligned = self._lane("moe", f"{found}/unaligned") if shape.width % 16 else None
            lane = unaligned or self._lane("moe", str(found))
            if lane is not None:
                return lane
        return None

    def _ranks_lane(self, family: str, name: str, ranks: int) -> Lane | None:
        """The lane of `ranks`, else of the next larger or the largest measured number of ranks."""
        prefix = f"{name}/"
        known = sorted(
            int(lane[len(prefix) :]) for lane in self.model.profile.lanes.get(family, {}) if lane.startswith(prefix)
        )
        if not known:
            return None
        nearest = next((size for size in known if size >= ranks), known[-1])
        return self._lane(family, f"{prefix}{nearest}")


def _columns(**columns: Floats | float) -> Rows:
    """Columns broadcast to one length."""
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(value, np.float64)) for value in columns.values()))
    return dict(zip(columns, arrays, strict=True))


def _heads(shape: AttentionShape) -> dict[str, float]:
    return {"heads": float(shape.heads), "kv_heads": float(shape.kv_heads), "head_dim": float(shape.head_dim)}


# Lanes unpacked so far, by the profile that holds them; the profile is kept so that its id stays its own.
_UNPACKED: dict[int, tuple[OperatorProfile, dict[tuple[str, str], Lane | None]]] = {}


def _unpacked(profile: OperatorProfile, family: str, name: str) -> Lane | None:
    _, lanes = _UNPACKED.setdefault(id(profile), (profile, {}))
    key = (family, name)
    if key not in lanes:
        lanes[key] = profile.lane(family, name)
    return lanes[key]


def latency_of(device: DeviceFacts, profile: DeviceProfile) -> OperatorLatency:
    """The best source for `device`: a fit to kernel tables (the profile's, the catalogue's, that of a relative), else
    the roofline.

    Steps that the user measured say more of this device than the catalogue's tables: they are taken as they are.
    """
    key = (device.model_dump_json(), id(profile))
    if key not in _SOURCES:
        if len(_SOURCES) >= _MOST_SOURCES:
            _SOURCES.clear()
        _SOURCES[key] = (profile, _source(device, profile))
    return _SOURCES[key][1]


# Sources in use, with the profile whose id is in their key
_SOURCES: dict[tuple[str, int], tuple[DeviceProfile, OperatorLatency]] = {}
_MOST_SOURCES = 32


def _source(device: DeviceFacts, profile: DeviceProfile) -> OperatorLatency:
    if profile.operators is not None:
        own = OperatorProfile.model_validate(profile.operators)
        return FittedLatency(device, profile, DeviceModel(device.name, own, own.facts(), 1.0, None))
    if profile.confidence == "calibrated" or device.vendor != "nvidia":
        return RooflineLatency(device, profile)
    model = device_model(device.name)
    return FittedLatency(device, profile, replace(model, facts=operator_facts(device)))


def borrowed_note(device: DeviceFacts, profile: DeviceProfile) -> str | None:
    """What the costs of `device` are taken from, in a sentence, where nobody measured it; None where somebody did."""
    source = latency_of(device, profile)
    if isinstance(source, FittedLatency):
        return source.model.note
    if profile.confidence == "borrowed":
        return f"{device.name}: figures are borrowed from {profile.relative_of}, scaled by datasheet"
    return None


def unmeasured_note(device: DeviceFacts, profile: DeviceProfile, weights: DType) -> str | None:
    """That products of these weights are in no table of the device, in a sentence; None where they are."""
    source = latency_of(device, profile)
    if not isinstance(source, FittedLatency) or source.measures_products(weights):
        return None
    return (
        f"{device.name}: products of {weights} weights are in no table, predicted from those of 16 bit and their bytes"
    )


def kernel_errors(device: DeviceFacts, profile: DeviceProfile) -> dict[str, float]:
    """Median relative error of single kernels on rows that no fit saw, by family; empty where nothing is known.

    Of a device without tables: those of devices of its kind when each was left out.
    """
    source = latency_of(device, profile)
    if not isinstance(source, FittedLatency):
        if profile.confidence == "borrowed":
            return {}
        return {name: value for name, value in profile.error_quantiles.items() if name.endswith("p50")}
    fitted = source.model.profile
    if fitted.confidence == "datasheet":
        by_family: dict[str, list[float]] = {}
        for families in fitted.left_out.values():
            for family, held_out in families.items():
                by_family.setdefault(family, []).append(held_out.p50)
        return {family: max(errors) for family, errors in by_family.items()}
    return {
        family: statistics.median(fit.held_out.p50 for fit in lanes.values() if fit.held_out is not None)
        for family, lanes in fitted.lanes.items()
        if any(fit.held_out is not None for fit in lanes.values())
    }
