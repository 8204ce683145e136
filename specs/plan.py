"""The `Plan` document: what to run, where, with which limits, why, and how good the answer is proven to be.

A plan stands alone: it embeds the resolved spec, the model and device facts and the profile parameters it was made
with, and names traces by path and sha256. Timings of the planner itself are printed, never stored.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_serializer,
    model_validator,
)
from pydantic import SerializerFunctionWrapHandler as Handler

from specs.document import Document, DType, Frozen
from specs.profile import DeviceFacts, DeviceProfile, EngineProfile, PowerProfile

RouterName = Literal["least_outstanding", "round_robin", "least_kv", "power_of_two", "prefix_aware", "sticky"]


class Layout(Frozen):
    """How one replica is split over devices. `pipeline_stages` holds the layers of each stage, in order."""

    tensor_parallel: PositiveInt = 1
    pipeline_stages: tuple[PositiveInt, ...]
    attention_data_parallel: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    redundant_experts: NonNegativeInt = 0  # copies beside the experts of a layer; slots are shared evenly by the ranks
    sequence_parallel: bool = False  # norms on a part of the tokens, between a reduce-scatter and an all-gather

    @property
    def pipeline_parallel(self) -> int:
        return len(self.pipeline_stages)

    @property
    def gpus(self) -> int:
        """Devices of one replica. Experts spread over the same devices, so `expert_parallel` adds none."""
        return self.tensor_parallel * self.attention_data_parallel * len(self.pipeline_stages)


class Limits(Frozen):
    """What the engine must enforce, in the engine's own words."""

    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    max_model_len: PositiveInt


class MemoryBudget(Frozen):
    """Bytes of the fullest device of a replica; the parts add up to at most `available_bytes`."""

    device_bytes: PositiveInt
    available_bytes: PositiveInt  # device_bytes x the engine's memory fraction
    weights_bytes: NonNegativeInt
    activation_bytes: NonNegativeInt
    context_bytes: NonNegativeInt
    collective_bytes: NonNegativeInt
    graph_bytes: NonNegativeInt
    state_bytes: NonNegativeInt = 0  # recurrent state of max_num_seqs sequences
    adapter_bytes: NonNegativeInt = 0  # LoRA adapters, all of them
    draft_bytes: NonNegativeInt = 0  # weights of a draft model, or of the layer that drafts
    kv_bytes: NonNegativeInt  # what is left for KV blocks
    kv_bytes_per_token: NonNegativeFloat  # on this device


class Cache(Frozen):
    """Paged KV cache of one replica."""

    kv_dtype: DType
    block_size_tokens: PositiveInt
    num_blocks: PositiveInt
    prefix_caching: bool = False
    host_blocks: NonNegativeInt = 0  # of the host tier: swapped sequences and evicted prefixes
    memory: MemoryBudget

    @property
    def capacity_tokens(self) -> int:
        return self.num_blocks * self.block_size_tokens


class Speculation(Frozen):
    """Speculative decoding: a draft of `draft_tokens` tokens per step, each accepted with probability `acceptance`."""

    draft_tokens: PositiveInt
    acceptance: float = Field(ge=0.0, le=1.0)  # of a draft token whose predecessors were accepted
    draft_s: NonNegativeFloat = 0.0  # time that drafting adds to a step


class Scheduling(Frozen):
    """Rule of service inside a replica (names and meaning of `specs.service`)."""

    order: Literal["fcfs", "priority", "edf", "sjf", "srpt", "mlfq", "vtc"] = "fcfs"
    chunked_prefill: bool = True
    prefill_policy: Literal["mixed_chunked", "prefill_first", "decode_first"] = "mixed_chunked"
    preemption: Literal["recompute", "swap"] = "recompute"
    batch_wait_steps: NonNegativeInt = 0  # that a prompt waits for company, unless the token budget is full
    output_reserve: float = Field(default=0.0, ge=0.0, le=1.0)  # share of an output free before its request may run
    max_waiting_tokens: PositiveInt | None = None  # prompts beyond so many waiting tokens are refused; None: never
    mlfq_quantum_tokens: PositiveInt = 512  # of the first level; each further level doubles it
    predictor_error: NonNegativeFloat = 0.0  # standard deviation of log(predicted / true output), for sjf and srpt
    speculation: Speculation | None = None


class DeviceSlot(Frozen):
    """One device: node index within its pool, device index within its node."""

    node: NonNegativeInt
    device: NonNegativeInt


class StageMachine(Frozen):
    """Where one pipeline stage of every replica of a group stands."""

    pool: str
    device: str


class ReplicaPlacement(Frozen):
    """Devices of one replica in rank order: stage by stage, tensor-parallel ranks together. Each slot is in the pool of
    its stage: that of the group, or the one that `ReplicaGroup.stages` names."""

    slots: tuple[DeviceSlot, ...]


class ExpertPlacement(Frozen):
    """Which expert each slot of a replica holds, from measured loads. Slots of a rank stand together, in rank order."""

    slots_per_rank: PositiveInt
    physical_to_logical: tuple[tuple[NonNegativeInt, ...], ...]  # [layers with experts][slots] -> expert
    skew: PositiveFloat  # load of the fullest rank over the mean, mean of the layers
    skew_bound: PositiveFloat  # no placement of so many slots has less


class ReplicaGroup(Frozen):
    """Equal replicas of one configuration, in one pool or with stages in several."""

    id: str
    model: str
    role: Literal["unified", "prefill", "decode"] = "unified"
    hands_over_to: str | None = None  # of a prefill group: the decode group that its requests go on in
    pool: str  # of the first stage
    device: str
    stages: tuple[StageMachine, ...] = ()  # by pipeline stage, where they stand in several pools; (): all in `pool`
    engine: Literal["vllm", "sglang", "trtllm", "capstan"]
    engine_version: str = ""  # stated; "": the one that `Plan.engines` describes
    layout: Layout
    weights_dtype: DType
    limits: Limits
    cache: Cache
    scheduling: Scheduling
    kernels: dict[str, str] = Field(default_factory=dict)
    experts: ExpertPlacement | None = None  # None: as the engine places them
    replicas: PositiveInt
    placement: tuple[ReplicaPlacement, ...]
    carries: dict[str, PositiveFloat] = Field(default_factory=dict)  # by class: share of its traffic that one replica
    # carries within every SLO (priced by simulation); {} in plans made before it was kept

    @model_serializer(mode="wrap")
    def _written(self, handler: Handler) -> dict[str, Any]:
        return _without_empty(handler(self), "stages", "engine_version")

    @model_validator(mode="after")
    def _every_stage_stands_somewhere(self) -> Self:
        if self.stages and len(self.stages) != self.layout.pipeline_parallel:
            raise ValueError(f"{len(self.stages)} stages are named, the layout has {self.layout.pipeline_parallel}")
        if self.stages and self.stages[0] != StageMachine(pool=self.pool, device=self.device):
            raise ValueError("the first of `stages` is not on the group's own pool and device")
        return self

    @property
    def machines(self) -> tuple[StageMachine, ...]:
        """Pool and device of every pipeline stage."""
        return self.stages or (StageMachine(pool=self.pool, device=self.device),) * self.layout.pipeline_parallel

    @property
    def gpus_by_pool(self) -> dict[str, int]:
        """Devices that one replica takes of each pool, in the order of the stages."""
        ranks = self.layout.tensor_parallel * self.layout.attention_data_parallel
        taken: dict[str, int] = {}
        for machine in self.machines:
            taken[machine.pool] = taken.get(machine.pool, 0) + ranks
        return taken

    def places(self, replica: ReplicaPlacement) -> tuple[tuple[str, DeviceSlot], ...]:
        """The devices of one of its replicas, each with its pool, in rank order."""
        if not self.stages:
            return tuple((self.pool, slot) for slot in replica.slots)
        ranks = self.layout.tensor_parallel * self.layout.attention_data_parallel
        last = len(self.stages) - 1  # of slots beyond the ranks, which no plan should have
        return tuple((self.stages[min(index // ranks, last)].pool, slot) for index, slot in enumerate(replica.slots))


class Route(Frozen):
    """Share of one request class that goes to one group; shares of a class add up to 1."""

    request_class: str
    group: str
    share: PositiveFloat


class Interval(Frozen):
    low: float
    high: float


class ClassPrediction(Frozen):
    """Simulated latency of one request class. Percentile maps: "p50", "p90", ... -> seconds."""

    request_class: str
    basis: Literal["simulated", "measured"] = "simulated"  # measured: by request rates, and latencies only simulated
    requests: PositiveInt
    rate_per_s: PositiveFloat
    ttft_s: dict[str, float]
    tpot_s: dict[str, float]
    e2e_s: dict[str, float]
    attainment: float  # share of requests that meet every stated limit of the class
    attainment_interval: Interval  # 95 %
    tokens_per_s: NonNegativeFloat | None = None  # prompt and output, of a class that states a throughput


class GroupPrediction(Frozen):
    """Simulated load of one replica group."""

    group: str
    basis: Literal["simulated"] = "simulated"
    utilisation: float  # share of the replicas' time that the work takes in the best batches (utilisation law)
    busy: float  # share of the time in which the busiest replica runs anything at all
    kv_occupancy_peak: float
    running_peak: NonNegativeInt
    running_mean: NonNegativeFloat | None = None  # sequences in service on one replica; None: of a chosen group
    preemptions: NonNegativeInt
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    power_w: NonNegativeFloat | None = None  # mean of all devices of the group; None in plans made before it was kept

    @model_serializer(mode="wrap")
    def _written(self, handler: Handler) -> dict[str, Any]:
        return _without_empty(handler(self), "running_mean")


class Predictions(Frozen):
    classes: tuple[ClassPrediction, ...]
    groups: tuple[GroupPrediction, ...]
    confidence: Literal["measured", "borrowed", "calibrated"]  # of the weakest profile used
    notes: tuple[str, ...] = ()


class Cost(Frozen):
    usd_per_hour: NonNegativeFloat | None  # None where a used pool has no price
    usd_per_million_output_tokens: NonNegativeFloat | None  # at the mean of the declared traffic, not at its busiest
    usd_per_million_tokens: NonNegativeFloat | None  # likewise, prompt and output
    gpus: NonNegativeInt  # working
    gpus_rented: NonNegativeInt
    nodes: dict[str, NonNegativeInt]  # by pool, rented
    power_w: NonNegativeFloat  # mean of the working devices; hosts, switches and cooling are not in it
    joules_per_output_token: NonNegativeFloat | None = None
    joules_per_token: NonNegativeFloat | None = None  # prompt and output
    grams_co2_per_hour: NonNegativeFloat | None = None  # None where no carbon intensity is declared
    grams_co2_per_million_output_tokens: NonNegativeFloat | None = None
    grams_co2_per_million_tokens: NonNegativeFloat | None = None


class Check(Frozen):
    """One row of the re-check: a law, its two sides, whether it holds."""

    law: str
    left: float
    relation: Literal["<=", ">=", "=="]
    right: float
    holds: bool


class SimulatedWindow(Frozen):
    """What the plan was simulated on. `seed` matters where arrivals or lengths are drawn."""

    request_class: str
    source: str  # trace path, or the declared distribution
    sha256: str | None
    start_s: float
    end_s: float
    requests: int
    longest_request_tokens: PositiveInt  # prompt and output, of the whole source
    mean_prompt_tokens_per_s: NonNegativeFloat | None = None  # of the whole source, not of the busiest window
    mean_output_tokens_per_s: NonNegativeFloat | None = None
    notes: tuple[str, ...] = ()  # what a user should know about the source, and what of it is not used
    seed: int


class FreshLimit(Frozen):
    """One limit on traffic that planning did not see, over all fresh requests of its class."""

    request_class: str
    limit: str
    required: float  # share of the requests that must meet it
    met: float
    requests: NonNegativeInt
    overdispersion: float  # variance of misses over that of independent requests
    verdict: Literal["kept", "broken", "kept on average", "broken on average", "undecided"]


class FreshSeeds(Frozen):
    """A sequential test of the plan on fresh seeds (`planner/optimize/fresh_seeds.py` has the law)."""

    seeds: tuple[NonNegativeInt, ...]
    requests: NonNegativeInt
    error: float  # of accepting or refuting a limit wrongly
    zone: float  # relative distance from the allowed misses inside which either answer is right
    limits: tuple[FreshLimit, ...]


class Certificate(Frozen):
    """How good the plan is, and what was checked without the solver."""

    objective: str
    value: float
    bound: float  # no plan can be better than this under the cost model (utilisation law, no queueing)
    gap: NonNegativeFloat
    priced_bound: float  # no mix of the configurations can be better at the loads that simulation allows them
    priced_gap: NonNegativeFloat
    solver: str
    solver_status: str  # true status: "optimal", "time limit", ...; "stated": nothing was searched
    columns: NonNegativeInt
    simulations: NonNegativeInt
    refuted: NonNegativeInt = 0  # better mixes that did not keep every promise when they were simulated whole
    checks: tuple[Check, ...]
    # of throughput and goodput: what all of a class is; of a stated deployment, what it serves of it within its limits
    worth: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    multiple: PositiveFloat = 1.0  # of the declared traffic, at which the plan was made and is predicted
    windows: tuple[SimulatedWindow, ...]
    fresh: FreshSeeds | None = None  # None: not tested

    @property
    def is_stated(self) -> bool:
        """Whether the plan is a deployment as it stands: nobody searched for another, and it may break promises."""
        return self.solver_status == "stated"


class Configuration(Frozen):
    """Short form of one candidate, as discarded ones are listed."""

    model: str
    pool: str
    device: str
    engine: str
    tensor_parallel: PositiveInt
    pipeline_parallel: PositiveInt
    weights_dtype: DType
    kv_dtype: DType
    max_num_seqs: NonNegativeInt = 0
    max_num_batched_tokens: NonNegativeInt = 0
    attention_data_parallel: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    role: Literal["unified", "prefill", "decode"] = "unified"
    prefix_caching: bool = False
    host_blocks: NonNegativeInt = 0
    draft_tokens: NonNegativeInt = 0  # of speculative decoding; 0: none
    order: str = "fcfs"
    stage_pools: tuple[str, ...] = ()  # by pipeline stage, where they stand in several pools; (): all in `pool`
    pipeline_stages: tuple[PositiveInt, ...] = ()  # layers of each of these

    @model_serializer(mode="wrap")
    def _written(self, handler: Handler) -> dict[str, Any]:
        return _without_empty(handler(self), "stage_pools", "pipeline_stages")


def _without_empty(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """The record without those of its optional fields that say nothing: plans without them stay as they were."""
    return {name: value for name, value in values.items() if value or name not in names}


class Discarded(Frozen):
    """Why one configuration is not in the plan. `margin`: relative distance to acceptance (nearest miss first)."""

    configuration: Configuration
    reason: str  # one word or two: memory, heads, slo, dominated, cost, ...
    detail: str  # a sentence with the figures
    margin: float | None = None


class Binding(Frozen):
    """A statement of the user that the plan has no room left in."""

    statement: str
    used: str
    limit: str


class CableLoad(Frozen):
    """What the plan sends over one cable of the network, in one direction, and what the cable carries."""

    between: tuple[str, str]  # from, to: nodes (`POOL/INDEX`) or switches
    bytes_per_s: NonNegativeFloat  # predicted, of the simulated window
    capacity_bytes_per_s: PositiveFloat


class Plan(Document):
    kind: Literal["Plan"] = "Plan"
    version: Literal[1] = 1
    name: str
    capstan: str  # version that made it
    groups: tuple[ReplicaGroup, ...]
    routes: tuple[Route, ...]
    admitted: dict[str, float] = Field(default_factory=dict)  # share of a class that is let in; absent: all of it
    router: RouterName = "least_outstanding"  # within a group
    network: tuple[CableLoad, ...] = ()  # cables that carry anything; none where replicas stay inside their nodes
    predictions: Predictions
    cost: Cost
    certificate: Certificate
    binding: tuple[Binding, ...]
    discarded: tuple[Discarded, ...]
    discarded_counts: dict[str, int]
    spec: dict[str, Any]  # the resolved DeploymentSpec
    traffic_folder: str  # the folder that the spec's trace files are relative to, from the plan's own
    architectures: dict[str, dict[str, Any]]  # model name -> config.json as read
    devices: dict[str, DeviceFacts]
    profiles: dict[str, DeviceProfile]
    engines: dict[str, EngineProfile]
    power: dict[str, PowerProfile] = Field(default_factory=dict)  # by device

    def group(self, group_id: str) -> ReplicaGroup:
        for group in self.groups:
            if group.id == group_id:
                return group
        raise KeyError(group_id)
