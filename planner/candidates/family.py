"""A family is one configuration up to its limits; a variant is a family with limits, and so with a KV cache.

family  = (model, pool, engine, TP x PP, weight dtype, KV dtype)
variant = family + (max sequences, token budget, maximum length) -> KV blocks -> `ReplicaModel` for simulation
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from planner.cost.memory import memory_budget, num_blocks
from planner.cost.step_times import StepTimes
from planner.simulate import ReplicaModel
from specs.architecture import Architecture
from specs.deployment import PoolSpec
from specs.document import DType
from specs.plan import Cache, Configuration, Layout, Limits, Scheduling
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile


@dataclass(frozen=True, eq=False)
class Family:
    """One configuration of a replica, limits left open. `times` covers the widest limits that are tried."""

    key: str
    model: str
    pool: PoolSpec
    architecture: Architecture
    device: DeviceFacts
    profile: DeviceProfile
    engine: EngineProfile
    layout: Layout
    weights_dtype: DType
    kv_dtype: DType
    max_model_len: int
    times: StepTimes

    @property
    def gpus(self) -> int:
        return self.layout.gpus

    @cached_property
    def most_replicas(self) -> int:
        """Replicas of this size that the pool holds."""
        node = self.pool.gpus_per_node
        nodes, rest = divmod(self.pool.count, node)
        if self.gpus > node:
            return nodes // (self.gpus // node)
        return nodes * (node // self.gpus) + (rest // self.gpus if self.pool.rent == "gpu" else 0)

    def cache(self, limits: Limits) -> Cache | None:
        """The KV cache that is left under these limits; None where not even one longest request fits."""
        budget = memory_budget(
            self.architecture, self.layout, self.weights_dtype, self.kv_dtype, self.device, self.engine, limits
        )
        blocks = num_blocks(budget, self.engine.block_size_tokens)
        if blocks * self.engine.block_size_tokens < limits.max_model_len:
            return None
        return Cache(
            kv_dtype=self.kv_dtype,
            block_size_tokens=self.engine.block_size_tokens,
            num_blocks=blocks,
            memory=budget,
        )

    def configuration(self, limits: Limits | None = None) -> Configuration:
        return Configuration(
            model=self.model,
            pool=self.pool.name,
            device=self.device.name,
            engine=self.engine.name,
            tensor_parallel=self.layout.tensor_parallel,
            pipeline_parallel=self.layout.pipeline_parallel,
            weights_dtype=self.weights_dtype,
            kv_dtype=self.kv_dtype,
            max_num_seqs=limits.max_num_seqs if limits else 0,
            max_num_batched_tokens=limits.max_num_batched_tokens if limits else 0,
        )


@dataclass(frozen=True, eq=False)
class Variant:
    """A family with its limits and the cache they leave."""

    family: Family
    limits: Limits
    cache: Cache

    @cached_property
    def replica(self) -> ReplicaModel:
        """What the simulator needs to know of one replica."""
        return ReplicaModel(
            times=under_limits(self.family.times, self.limits),
            limits=self.limits,
            num_blocks=self.cache.num_blocks,
            block_size_tokens=self.cache.block_size_tokens,
            scheduling=self.scheduling,
        )

    @property
    def scheduling(self) -> Scheduling:
        engine = self.family.engine
        return Scheduling(
            prefill_policy=engine.prefill_policy,
            output_reserve=engine.output_reserve,
            batch_wait_steps=engine.batch_wait_steps,
        )


def under_limits(times: StepTimes, limits: Limits) -> StepTimes:
    """The step times of wider limits, cut to what fits a step under `limits`."""
    return dataclasses.replace(
        times,
        tokens_s=times.tokens_s[: limits.max_num_batched_tokens + 1],
        sampled_s=times.sampled_s[: limits.max_num_seqs + 1],
    )
