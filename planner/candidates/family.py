"""A family is one configuration up to its limits; a variant is a family with limits, and so with a KV cache.

family  = (model, pool, engine, TP x PP x attention-DP x EP, weight dtype, KV dtype, options)
variant = family + (max sequences, token budget, maximum length) -> KV blocks -> `ReplicaModel` for simulation
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from planner.candidates.options import NEUTRAL, Options
from planner.candidates.replica import replica_model
from planner.candidates.speculative import NO_DRAFT, Draft
from planner.cost.adapters import adapter_bytes
from planner.cost.memory import memory_budget, num_blocks
from planner.cost.step_times import StepTimes
from planner.simulate import ReplicaModel
from specs.architecture import Architecture
from specs.deployment import AdaptersSpec, PoolSpec
from specs.document import DType
from specs.plan import Cache, Configuration, ExpertPlacement, Layout, Limits, Scheduling
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile


@dataclass(frozen=True, eq=False)
class Family:
    """One configuration of a replica, limits left open."""

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
    table: Callable[[], StepTimes]  # worked out when it is first wanted
    options: Options = NEUTRAL
    draft: Draft = NO_DRAFT
    experts: ExpertPlacement | None = None  # from measured loads
    adapters: AdaptersSpec | None = None

    def with_options(self, options: Options) -> Family:
        """The same configuration with other options, under the key that says so; step times stay as they are."""
        key = "/".join((*self.key.split("/")[: -len(self.options.key_parts) or None], *options.key_parts))
        return dataclasses.replace(self, key=key, options=options, table=lambda: self.times)

    @property
    def channel(self) -> str:
        """What a prefill and a decode side have to share to be used together; empty for replicas that do both."""
        if self.options.role == "unified":
            return ""
        where = self.pool.name if self.options.crossing == "node" else "network"
        recurrent = self.architecture.state_bytes(1, range(len(self.architecture.layers))) > 0
        ranks = f"/tp{self.layout.tensor_parallel}" if recurrent else ""  # states are not cut anew on their way
        return f"{self.engine.name}/{self.kv_dtype.value}/{where}{ranks}"

    @cached_property
    def times(self) -> StepTimes:
        """Of the widest limits that are tried."""
        return self.table()

    def forget_times(self) -> None:
        """Give the memory of the step tables back (half a megabyte); they are worked out again when they are wanted."""
        self.__dict__.pop("times", None)

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
        if self.adapters is not None:
            taken = adapter_bytes(self.architecture, self.layout, self.adapters)
            budget = budget.model_copy(update={"adapter_bytes": taken, "kv_bytes": max(0, budget.kv_bytes - taken)})
        if self.draft is not NO_DRAFT:
            budget = self.draft.taken_from(budget)
        blocks = num_blocks(budget, self.engine.block_size_tokens)
        if blocks * self.engine.block_size_tokens < limits.max_model_len:
            return None
        return Cache(
            kv_dtype=self.kv_dtype,
            block_size_tokens=self.engine.block_size_tokens,
            num_blocks=blocks,
            prefix_caching=self.options.prefix_caching,
            host_blocks=self.options.host_blocks,
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
            attention_data_parallel=self.layout.attention_data_parallel,
            expert_parallel=self.layout.expert_parallel,
            role=self.options.role,
            prefix_caching=self.options.prefix_caching,
            host_blocks=self.options.host_blocks,
            draft_tokens=self.options.draft_tokens,
            order=self.options.order,
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
        return replica_model(self.family.times, self.family.layout, self.limits, self.cache, self.scheduling)

    @property
    def scheduling(self) -> Scheduling:
        engine, options = self.family.engine, self.family.options
        return Scheduling(
            order=options.order,
            speculation=options.speculation,
            prefill_policy=engine.prefill_policy,
            output_reserve=engine.output_reserve,
            batch_wait_steps=engine.batch_wait_steps,
        )
