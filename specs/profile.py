"""Facts of devices and engines, and the few fitted parameters of the cost model (`Profile` documents).

A `DeviceFacts` is what a datasheet says. A `DeviceProfile` is what measurements say about the same device, fitted
by a script; a device without measurements gets the profile of its nearest relative, and says so in `confidence`.
An `EngineProfile` is how one serving engine (vllm, sglang, trtllm, capstan) spends CPU time and memory.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from specs.document import Document, DType, Frozen


class DeviceFacts(Document):
    """One device as its maker states it. `flops` are dense peaks (no sparsity), per element type."""

    kind: Literal["Device"] = "Device"
    name: str
    aliases: tuple[str, ...] = ()
    vendor: Literal["nvidia", "amd", "cpu"]
    target: str  # compiler target: sm_90, gfx942, cpu
    memory_bytes: PositiveInt
    hbm_bytes_per_s: PositiveFloat
    l2_bytes: PositiveInt
    multiprocessors: PositiveInt
    flops: dict[DType, PositiveFloat]
    power_w: PositiveFloat
    idle_power_w: PositiveFloat
    link_bytes_per_s: NonNegativeFloat  # per device, one direction, inside the fast domain (NVLink, xGMI, else PCIe)
    link: Literal["nvlink", "xgmi", "pcie", "none"]
    pcie_bytes_per_s: PositiveFloat  # one direction, host to device
    nic_bytes_per_s: NonNegativeFloat  # per device, one direction, between nodes
    network_latency_s: NonNegativeFloat = 5e-6  # between nodes, beyond that of a hand-over inside one (estimate)
    gpus_per_node: PositiveInt
    fast_domain: PositiveInt  # devices joined by the fast link (72 for GB200 NVL72)
    weight_dtypes: tuple[DType, ...]
    kv_dtypes: tuple[DType, ...]
    sources: dict[str, str]


class StreamingPoint(Frozen):
    """Achieved bandwidth when a kernel streams `bytes` once; between points, interpolate in log(bytes)."""

    bytes: PositiveFloat
    bytes_per_s: PositiveFloat


class DeviceProfile(Document):
    """Fitted parameters of the first cost model; every figure has one physical meaning."""

    kind: Literal["Profile"] = "Profile"
    version: PositiveInt = 1
    device: str
    confidence: Literal["measured", "borrowed", "calibrated"]
    relative_of: str | None = None  # the device whose fit was borrowed
    provenance: str
    licence: str
    launch_s: PositiveFloat  # floor of one kernel under CUDA graphs
    weight_streaming: tuple[StreamingPoint, ...]
    compute_efficiency: dict[DType, PositiveFloat]  # reached share of the peak in large GEMMs
    gemm_ramp_tokens: dict[DType, NonNegativeFloat]  # rows at which a GEMM reaches half of that share
    decode_attention_efficiency: dict[DType, PositiveFloat]  # by KV dtype: share of HBM bandwidth when reading KV
    decode_attention_launch_s: PositiveFloat
    decode_attention_row_s: NonNegativeFloat  # more per sequence and KV head, whatever the context
    prefill_attention_efficiency: PositiveFloat  # share of the 16-bit peak
    prefill_attention_launch_s: PositiveFloat
    prefill_attention_ramp_tokens: NonNegativeFloat  # prompt length at which causal prefill reaches half of that share
    moe_compute_efficiency: dict[DType, PositiveFloat]
    moe_memory_efficiency: PositiveFloat
    moe_launch_s: PositiveFloat
    allreduce_latency_s: dict[int, PositiveFloat]  # by ranks
    allreduce_efficiency: dict[int, PositiveFloat]  # by ranks: share of link bandwidth in large all-reduces
    elementwise_efficiency: PositiveFloat  # share of HBM bandwidth of norms and activations
    error_quantiles: dict[str, NonNegativeFloat] = Field(default_factory=dict)  # "p50": 0.08 ... on held-out rows
    operators: dict[str, Any] | None = None  # OperatorProfile that `capstan calibrate --from` fitted for this device


class PowerProfile(Document):
    """Electrical power of a device at work, as shares of (limit - idle), so that another device can borrow them.

    watts = idle + (limit - idle) x min(1, active_share + compute_share x FLOPs per second / peak
    + memory_share x bytes per second / bandwidth)
    """

    kind: Literal["Power"] = "Power"
    version: PositiveInt = 1
    device: str
    confidence: Literal["measured", "borrowed"]
    relative_of: str | None = None  # the device whose shares were borrowed
    provenance: str
    licence: str
    active_share: NonNegativeFloat = Field(lt=1)  # of a device that runs kernels, whatever they do
    compute_share: NonNegativeFloat  # more at the peak of its arithmetic
    memory_share: NonNegativeFloat  # more at the peak of its memory
    error_quantiles: dict[str, NonNegativeFloat] = Field(default_factory=dict)  # of watts, on held-out rows


class KernelFactors(Frozen):
    """Seconds of an engine's kernels relative to those that the operator model predicts, by kind of operator."""

    gemm: PositiveFloat = 1.0
    attention: PositiveFloat = 1.0  # of decoding sequences
    prefill_attention: PositiveFloat = 1.0
    experts: PositiveFloat = 1.0  # of few tokens, whose weights decide
    prefill_experts: PositiveFloat = 1.0  # of many tokens, whose arithmetic decides
    elementwise: PositiveFloat = 1.0
    collective: PositiveFloat = 1.0
    scan: PositiveFloat = 1.0

    def of(self, kind: str) -> float:
        """The factor of an operation's kind (`planner.cost.operations.Kind`)."""
        return float(getattr(self, kind))


class EngineRelease(Frozen):
    """What is different in the versions of an engine before `before`."""

    before: str
    step_overhead_s: NonNegativeFloat | None = None
    sequence_overhead_s: NonNegativeFloat | None = None
    prefill_step_s: NonNegativeFloat | None = None
    eager_launch_s: NonNegativeFloat | None = None
    request_overhead_s: NonNegativeFloat | None = None
    request_serial_s: NonNegativeFloat | None = None
    stream_token_s: NonNegativeFloat | None = None
    idle_seats: NonNegativeInt | None = None
    batch_wait_steps: NonNegativeInt | None = None


class EngineProfile(Document):
    """How an engine schedules and what it costs beyond the kernels."""

    kind: Literal["Engine"] = "Engine"
    name: Literal["vllm", "sglang", "trtllm", "capstan"]
    version: str
    block_size_tokens: PositiveInt
    memory_fraction: PositiveFloat  # of device memory the engine may take
    context_bytes: PositiveInt  # CUDA context and libraries, per device
    collective_bytes: dict[int, int]  # communication buffers per device, by tensor-parallel size
    graph_bytes_per_layer: int  # captured CUDA graphs
    step_overhead_s: NonNegativeFloat  # CPU work per step that does not overlap the device
    sequence_overhead_s: NonNegativeFloat  # more of it per running sequence
    request_overhead_s: NonNegativeFloat  # tokenising, routing, first response: once per request, before queueing
    default_max_num_seqs: PositiveInt
    default_max_num_batched_tokens: PositiveInt
    prefill_policy: Literal["mixed_chunked", "prefill_first"]
    kernels: KernelFactors = KernelFactors()
    prefill_step_s: NonNegativeFloat = 0.0  # more of a step that holds prompts and so runs without a captured graph
    eager_launch_s: NonNegativeFloat = 0.0  # host time per kernel of such a step, which takes no less than all of them
    request_serial_s: NonNegativeFloat = 0.0  # of the frontend, which takes one request after the other
    stream_token_s: NonNegativeFloat = 0.0  # of the frontend per output token
    output_reserve: NonNegativeFloat = Field(default=0.0, le=1.0)  # share of a request's output free before it may run
    idle_seats: NonNegativeInt = 0  # of those that a batch limit states, left free in practice
    batch_wait_steps: NonNegativeInt = 0  # that a prompt waits for company, unless the token budget is full
    releases: tuple[EngineRelease, ...] = ()  # oldest first
    step_error: dict[str, PositiveFloat] = Field(default_factory=dict)  # "90%": measured / predicted seconds of a step
    first_token_error: dict[str, PositiveFloat] = Field(default_factory=dict)  # the same of TTFT, of such longer steps
    sources: dict[str, str]

    @field_validator("step_error", "first_token_error")
    @classmethod
    def _check_errors(cls, ratios: dict[str, float]) -> dict[str, float]:
        """Names are percentages below 100 %, from the median on; names and ratios ascend."""
        shares = [quantile_share(name) for name in ratios]
        if shares and (shares[0] != 0.5 or shares[-1] >= 1.0 or any(a >= b for a, b in pairwise(shares))):
            raise ValueError(f"quantiles {', '.join(ratios)}: expected 50%, then ascending ones below 100%")
        if any(a > b for a, b in pairwise(ratios.values())):
            raise ValueError("the ratios of higher quantiles must not be smaller")
        return ratios

    def at(self, version: str) -> EngineProfile:
        """The profile of a release; a blank version, or one that is no number, is the profile's own."""
        wanted = _numbers(version)
        for release in self.releases:
            if wanted and wanted < _numbers(release.before):
                changes = release.model_dump(exclude={"before"}, exclude_none=True)
                return self.model_copy(update=changes)
        return self


def quantile_share(name: str) -> float:
    """The share that a quantile's name states: 90% -> 0.9. `ValueError` where it is no percentage."""
    if not re.fullmatch(r"\d+(\.\d+)?%", name):
        raise ValueError(f"{name!r} is no quantile, such as 90%")
    return float(name[:-1]) / 100.0


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: 0.5.6.post2 -> (0, 5, 6); () where it begins with none."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()
