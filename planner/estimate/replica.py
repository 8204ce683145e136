"""One replica of a stated deployment: its layout's work, its memory, its engine; and its latency under load."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.cost.memory import memory_budget
from planner.cost.stages import split_stages
from planner.estimate.closed_loop import Rules, run_closed_loop
from planner.estimate.points import Deployment, Point, is_mixture
from planner.estimate.protocol import Protocol
from planner.estimate.step import EngineStep
from planner.estimate.work import LayoutWork, layout_work
from specs.architecture.model import Architecture
from specs.catalog import load_device, load_profile
from specs.document import DType
from specs.errors import InputError
from specs.plan import Layout, Limits
from specs.profile import EngineProfile

_GIB = 2**30


@dataclass(frozen=True)
class Latency:
    """Means over the requests of a closed loop; how many are in flight, and the KV cache holds at full length.

    Both counts are of one batch where pipeline stages take turns.
    """

    ttft_s: float
    tpot_s: float
    in_flight: int
    held: int

    def output_tokens_per_s(self, osl: int, concurrency: int) -> float:
        """Output throughput at `concurrency` requests in flight (Little's law)."""
        return concurrency * osl / (self.ttft_s + max(osl - 1, 0) * self.tpot_s)


def kv_dtype(deployment: Deployment, engine: EngineProfile) -> DType:
    """Element type of the KV cache where a table does not state it.

    TensorRT-LLM keeps 8 bit beside quantised weights; vLLM where a checkpoint was quantised after training, which
    brings the scales; otherwise 16 bit.
    """
    weights, device = deployment.weights_dtype, deployment.device
    sixteen = DType.BF16 if DType.BF16 in device.kv_dtypes else DType.FP16
    if weights.bytes >= 2.0 or DType.FP8 not in device.kv_dtypes:
        return sixteen
    requantised = deployment.architecture.native_weights_dtype.bytes >= 2.0
    if engine.name == "trtllm" or (engine.name == "vllm" and requantised):
        return DType.FP8
    return sixteen


def layout_of(deployment: Deployment) -> Layout:
    """The layout of one replica."""
    stages = deployment.pipeline_parallel
    layers = len(deployment.architecture.layers)
    return Layout(
        tensor_parallel=deployment.tensor_parallel,
        pipeline_stages=(layers,) if stages == 1 else split_stages(deployment.architecture, stages),
        attention_data_parallel=deployment.attention_data_parallel,
        expert_parallel=deployment.expert_parallel,
    )


def work_of(deployment: Deployment, engine: EngineProfile) -> LayoutWork:
    """Seconds of the deployment's operators; worked out once for a layout."""
    return _work(
        deployment.architecture,
        layout_of(deployment),
        deployment.weights_dtype,
        kv_dtype(deployment, engine),
        deployment.device.name,
    )


@lru_cache(maxsize=256)
def _work(architecture: Architecture, layout: Layout, weights: DType, kv: DType, device: str) -> LayoutWork:
    return layout_work(architecture, layout, weights, kv, load_device(device), load_profile(device))


def capacity_tokens(deployment: Deployment, engine: EngineProfile, limits: Limits, longest: int) -> int:
    """Tokens that the KV cache holds. `InputError` with the bytes where weights or one request do not fit."""
    budget = memory_budget(
        deployment.architecture,
        layout_of(deployment),
        deployment.weights_dtype,
        kv_dtype(deployment, engine),
        deployment.device,
        engine,
        limits,
    )
    taken = (
        budget.weights_bytes
        + budget.activation_bytes
        + budget.context_bytes
        + budget.collective_bytes
        + budget.graph_bytes
        + budget.state_bytes
    )
    wanted = taken + longest * budget.kv_bytes_per_token
    if wanted > budget.available_bytes:
        raise InputError(
            f"does not fit: each device needs {wanted / _GIB:.1f} GiB ({budget.weights_bytes / _GIB:.1f} of weights, "
            f"{longest * budget.kv_bytes_per_token / _GIB:.1f} of KV cache for one request) and has "
            f"{budget.available_bytes / _GIB:.1f}",
            field="memory",
        )
    if not budget.kv_bytes_per_token:
        return 2**40
    whole = int(budget.kv_bytes / budget.kv_bytes_per_token) * deployment.attention_data_parallel
    return whole // deployment.pipeline_parallel


def simulate_point(
    point: Point, deployment: Deployment, engine: EngineProfile, protocol: Protocol, longer: float = 1.0
) -> Latency:
    """Mean latency of the point's closed loop, every step `longer` times what is predicted.

    Raises `InputError` where the deployment cannot run.

    Pipeline stages keep as many batches in flight as there are stages: each is simulated with its part of the clients.
    """
    clients = -(-point.concurrency // deployment.pipeline_parallel)
    seats = clients
    budget = protocol.step_tokens(point.isl, point.concurrency, engine.default_max_num_batched_tokens)
    longest = protocol.longest(point.isl, point.osl)
    limits = Limits(
        max_num_seqs=seats,
        max_num_batched_tokens=max(budget, seats),
        max_model_len=longest,
    )
    capacity = capacity_tokens(deployment, engine, limits, longest)
    step = EngineStep(work_of(deployment, engine), engine, limits.max_num_batched_tokens, seats, longer)
    rules = Rules(
        engine.prefill_policy,
        max(1, seats - _idle_seats(deployment, engine)),
        limits.max_num_batched_tokens,
        capacity,
        engine.output_reserve,
        engine.request_overhead_s,
        engine.request_serial_s,
        engine.stream_token_s,
        engine.batch_wait_steps,
        protocol.whole_prompts,
    )
    prompts, outputs = protocol.lengths(point.isl, point.osl, clients)
    ttft, tpot = protocol.means(run_closed_loop(step, rules, clients, prompts, outputs), clients)
    return Latency(ttft, tpot, clients, capacity // (point.isl + point.osl))


def _idle_seats(deployment: Deployment, engine: EngineProfile) -> int:
    """Measured of dense models only: their first token waits for a seat where the batch limit equals the clients."""
    return 0 if is_mixture(deployment.architecture) else engine.idle_seats
