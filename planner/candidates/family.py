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
from planner.cost.unlike_stages import StageDevice
from planner.simulate import ReplicaModel
from specs.architecture import Architecture
from specs.deployment import AdaptersSpec, PoolSpec
from specs.document import DType
from specs.plan import Cache, Configuration, DeviceSlot, ExpertPlacement, Layout, Limits, ReplicaPlacement, Scheduling
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile


@dataclass(frozen=True, eq=False)
class Family:
    """One configuration of a replica, limits left open."""

    key: str
    model: str
    pool: PoolSpec  # of the first stage
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
    stage_pools: tuple[PoolSpec, ...] = ()  # by pipeline stage, where they stand in several pools; (): all in `pool`
    stage_devices: tuple[StageDevice, ...] = ()  # of these

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
    def pools(self) -> tuple[PoolSpec, ...]:
        """The pools that a replica takes devices of, in the order of its stages."""
        return tuple(dict.fromkeys(self.stage_pools)) or (self.pool,)

    def gpus_in(self, pool: str) -> int:
        """Devices that a replica takes of the pool of this name."""
        if not self.stage_pools:
            return self.gpus if pool == self.pool.name else 0
        ranks = self.layout.tensor_parallel * self.layout.attention_data_parallel
        return ranks * sum(stage.name == pool for stage in self.stage_pools)

    def places(self, replica: ReplicaPlacement) -> tuple[tuple[str, DeviceSlot], ...]:
        """The devices of one of its replicas, each with its pool, in rank order."""
        ranks = self.layout.tensor_parallel * self.layout.attention_data_parallel
        pools = [stage.name for stage in self.stage_pools or (self.pool,) * self.layout.pipeline_parallel]
        return tuple((pools[index // ranks], slot) for index, slot in enumerate(replica.slots))

    @property
    def elsewhere(self) -> tuple[tuple[str, int], ...]:
        """(pool, devices) of the stages that stand outside `pool`."""
        return tuple((pool.name, self.gpus_in(pool.name)) for pool in self.pools[1:])

    @cached_property
    def most_replicas(self) -> int:
        """Replicas of this size that the pools hold."""
        return min(_most_replicas(self.gpus_in(pool.name), pool) for pool in self.pools)

    def cache(self, limits: Limits) -> Cache | None:
        """The KV cache that is left under these limits; None where not even one longest request fits."""
        budget = memory_budget(
            self.architecture,
            self.layout,
            self.weights_dtype,
            self.kv_dtype,
            self.device,
            self.engine,
            limits,
            [stage.device for stage in self.stage_devices],
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
            stage_pools=tuple(pool.name for pool in self.stage_pools),
            pipeline_stages=self.layout.pipeline_stages if self.stage_pools else (),
        )


def _most_replicas(gpus: int, pool: PoolSpec) -> int:
    """Replicas that take so many devices of a pool each."""
    node = pool.gpus_per_node
    nodes, rest = divmod(pool.count, node)
    if gpus > node:
        return nodes // (gpus // node)
    return nodes * (node // gpus) + (rest // gpus if pool.rent == "gpu" else 0)


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
