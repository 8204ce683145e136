"""The `DeploymentSpec` document: what a user declares, with every quantity resolved to a number.

The unit of a number is part of its name (`_s`, `_bytes`, `_per_s`, `_tokens`). What the user leaves out carries its
default here, so that `resolved(spec)` shows the whole declaration. How YAML becomes these records: `grammar.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from specs.document import Document, DType, Frozen

Metric = Literal["ttft", "tpot", "e2e"]
Router = Literal["least_outstanding", "round_robin", "least_kv", "power_of_two", "prefix_aware", "sticky"]
Engine = Literal["capstan", "vllm", "sglang", "trtllm"]
TraceFormat = Literal["azure", "burstgpt", "mooncake", "sharegpt", "csv"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class AdaptersSpec(Frozen):
    """LoRA adapters served beside the base model."""

    count: PositiveInt
    rank: PositiveInt


class SpeculativeSpec(Frozen):
    """Speculative decoding: who drafts, how often a draft is accepted, how many tokens it proposes."""

    method: Literal["ngram", "draft", "eagle", "mtp"]
    acceptance: Fraction
    max_draft: PositiveInt
    draft_model: str | None = None


class ModelSpec(Frozen):
    """One model. `architecture` is a catalogue name or alias, a path (config.json or its folder), or inline config."""

    architecture: str | dict[str, Any]
    weights: tuple[DType, ...] = ()  # empty: as the checkpoint stores them
    kv_cache: tuple[DType, ...] = (DType.BF16,)
    max_context_tokens: PositiveInt | None = None  # None: the longest request, up to a multiple of 1024
    adapters: AdaptersSpec | None = None
    speculative: SpeculativeSpec | None = None
    expert_load: str | None = None  # file with a row a layer, a column an expert: what the router was measured to send


class SpotSpec(Frozen):
    """Interruptible machines: cheaper by `discount`, taken away `interruptions_per_hour` times an hour."""

    discount: Fraction
    interruptions_per_hour: NonNegativeFloat
    recovery_s: PositiveFloat = 600.0  # from an interruption until a replacement serves


class PoolSpec(Frozen):
    """Equal devices that may be used."""

    name: str
    device: str
    count: PositiveInt
    gpus_per_node: PositiveInt
    usd_per_gpu_hour: NonNegativeFloat | None = None
    rent: Literal["node", "gpu"] = "gpu"  # the loader makes it "node" for priced pools
    power_cap_w: PositiveFloat | None = None
    spot: SpotSpec | None = None

    @property
    def usd_per_hour(self) -> float | None:
        """Dollars for an hour of one device, as it is paid: spot machines at their discount."""
        if self.usd_per_gpu_hour is None or self.spot is None:
            return self.usd_per_gpu_hour
        return self.usd_per_gpu_hour * (1.0 - self.spot.discount)

    @property
    def nodes(self) -> int:
        """Nodes that hold the devices; the last one may be partly filled."""
        return -(-self.count // self.gpus_per_node)


class LinkSpec(Frozen):
    """The network between two pools (or inside one), where it is not uniform."""

    between: tuple[str, str]
    bandwidth_bytes_per_s: PositiveFloat
    latency_s: NonNegativeFloat | None = None


class CableSpec(Frozen):
    """Cables that are alike: from each node that the first end names to what the second names, both directions.

    An end is a node (`POOL/3`), nodes (`POOL/0-3`, `POOL/*`) or a switch (any other name).
    """

    between: tuple[str, str]
    bandwidth_bytes_per_s: PositiveFloat  # of one cable, each direction
    latency_s: NonNegativeFloat = 0.0


class NetworkSpec(Frozen):
    """Between nodes, per device and direction. None: the device's datasheet."""

    bandwidth_bytes_per_s: PositiveFloat | None = None
    latency_s: NonNegativeFloat | None = None
    links: tuple[LinkSpec, ...] = ()
    graph: tuple[CableSpec, ...] = ()  # nodes, switches and their cables; empty: every node reaches every other alike


class HostSpec(Frozen):
    """The host of a node: memory, link to one device, local storage."""

    dram_bytes: PositiveInt | None = None
    pcie_bytes_per_s: PositiveFloat | None = None
    nvme_bytes_per_s: PositiveFloat | None = None


class HardwareSpec(Frozen):
    pools: tuple[PoolSpec, ...]
    network: NetworkSpec = NetworkSpec()
    host: HostSpec = HostSpec()
    carbon_g_per_kwh: NonNegativeFloat | None = None

    def pool(self, name: str) -> PoolSpec:
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)


class FixedLength(Frozen):
    kind: Literal["fixed"] = "fixed"
    tokens: PositiveInt


class MeanLength(Frozen):
    """Only the mean is known; `max_tokens` cuts the tail."""

    kind: Literal["mean"] = "mean"
    mean_tokens: PositiveFloat
    max_tokens: PositiveInt | None = None


class LognormalLength(Frozen):
    kind: Literal["lognormal"] = "lognormal"
    mean_tokens: PositiveFloat
    p99_tokens: PositiveFloat


class UniformLength(Frozen):
    """Whole numbers from `low_tokens` to `high_tokens`, both included."""

    kind: Literal["uniform"] = "uniform"
    low_tokens: PositiveInt
    high_tokens: PositiveInt


class HistogramLength(Frozen):
    """Counts by length, in a file beside the spec."""

    kind: Literal["histogram"] = "histogram"
    file: str
    source: Literal["csv", "prometheus"] = "csv"


LengthSpec = Annotated[
    FixedLength | MeanLength | LognormalLength | UniformLength | HistogramLength, Field(discriminator="kind")
]


class TraceSpec(Frozen):
    """Recorded requests. `rate_per_s` rescales time so that the mean rate is this; None keeps the recorded times."""

    file: str
    format: TraceFormat = "csv"
    rate_per_s: PositiveFloat | None = None


class DiurnalSpec(Frozen):
    """How the rate of a diurnal process swings: a cosine around the mean, `peak_at_s` into every period the highest."""

    peak_to_mean: Annotated[float, Field(ge=1, le=2)]
    period_s: PositiveFloat = 86_400.0
    peak_at_s: NonNegativeFloat = 43_200.0


class ArrivalSpec(Frozen):
    """Drawn arrivals. `cv` is the coefficient of variation of the gaps (1 is Poisson, 0 constant).

    A `diurnal` process is Poisson with a rate that swings; `rate_per_s` is its mean over a period.
    """

    rate_per_s: PositiveFloat
    process: Literal["poisson", "gamma", "constant", "diurnal"] = "poisson"
    cv: NonNegativeFloat = 1.0
    diurnal: DiurnalSpec | None = None  # of a diurnal process


class SessionSpec(Frozen):
    """Conversations: a turn starts `think_time` after the previous answer. Starts are Poisson, turns geometric, think
    times exponential. With `growing_context` a prompt is the previous prompt, its answer and new tokens."""

    rate_per_s: PositiveFloat
    turns_mean: Annotated[float, Field(ge=1)]
    think_time_mean_s: NonNegativeFloat = 0.0
    growing_context: bool = False


class ClosedLoopSpec(Frozen):
    """So many requests are always in flight, until `requests` are served; the first `warmup` of them do not count."""

    concurrency: PositiveInt
    requests: PositiveInt | None = None  # beside the warm-up; None: ten for each in flight
    warmup: NonNegativeInt = 0


class SharedPrefixSpec(Frozen):
    """Prompts of one of `groups` groups begin with the same `tokens` tokens. Group k of 0, 1, ... is asked for in
    proportion to (k + 1) ** -skew: 0 is alike, 1 is Zipf's law."""

    tokens: PositiveInt
    groups: PositiveInt = 1
    skew: NonNegativeFloat = 0.0


class ThroughputSpec(Frozen):
    at_least_tokens_per_s: PositiveFloat


class TimeWindow(Frozen):
    """Part of every day, seconds after midnight; `end_s` before `start_s` passes midnight."""

    start_s: NonNegativeInt
    end_s: NonNegativeInt


class PercentileLimit(Frozen):
    """`percentile` per cent of the requests of the class are at most at `limit_s`."""

    metric: Metric
    percentile: PositiveFloat
    limit_s: PositiveFloat


class SLO(Frozen):
    """Percentile limits, each to be met; or joint limits, all met by the share `attainment` of requests."""

    percentiles: tuple[PercentileLimit, ...] = ()
    joint: dict[Metric, float] = Field(default_factory=dict)
    attainment: Fraction | None = None


class TrafficClass(Frozen):
    """Requests of one kind: exactly one of `trace`, `arrivals`, `sessions`, `closed_loop`."""

    name: str
    model: str
    trace: TraceSpec | None = None
    arrivals: ArrivalSpec | None = None
    sessions: SessionSpec | None = None
    closed_loop: ClosedLoopSpec | None = None
    prompt_tokens: LengthSpec | None = None  # None: the trace has them
    output_tokens: LengthSpec | None = None
    shared_prefix: SharedPrefixSpec | None = None
    slo: SLO | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    tenant: str | None = None  # None: the class by itself
    window: TimeWindow | None = None
    throughput: ThroughputSpec | None = None


class Objective(Frozen):
    sense: Literal["minimise", "maximise"] = "minimise"
    quantity: Literal["cost", "gpus", "energy", "carbon", "throughput", "goodput", "traffic"] = "cost"

    def __str__(self) -> str:
        return f"{self.sense} {self.quantity}"


class LimitsSpec(Frozen):
    budget_usd_per_hour: PositiveFloat | None = None
    survive_node_failures: NonNegativeInt = 0
    gpus: dict[str, PositiveInt] = Field(default_factory=dict)  # by model
    utilisation: Fraction | None = None  # headroom: the promises hold at 1 / this share of the traffic
    confidence: Fraction | None = None  # steps and first tokens are as late as this quantile of measured ones was
    power_w: PositiveFloat | None = None


class StatedGroup(Frozen):
    """Equal replicas that stand already. None: what the engine does where it is told nothing."""

    name: str
    pool: str
    replicas: PositiveInt
    engine: Engine = "vllm"
    engine_version: str | None = None  # None: the one that the catalogue's profile is of
    nodes: tuple[NonNegativeInt, ...] | None = None  # of the pool; None: wherever there is room
    role: Literal["unified", "prefill", "decode"] = "unified"
    hands_over_to: str | None = None  # of a prefill group: the decode group that its requests go on in
    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    pipeline_stages: tuple[PositiveInt, ...] | None = None  # layers of each stage; None: evenly
    stage_pools: tuple[str, ...] | None = None  # where each stage stands, the first in `pool`; None: all in `pool`
    attention_data_parallel: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    weights: DType | None = None  # None: as the model declares, which is one type
    kv_cache: DType | None = None  # likewise
    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    max_context_tokens: PositiveInt | None = None  # None: the model's
    memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = None  # of device memory that the engine may take
    prefix_caching: bool | None = None
    host_kv_bytes: NonNegativeInt = 0  # host memory for KV blocks, of one replica
    draft_tokens: NonNegativeInt = 0  # proposed in a step, by what the model's `speculative` declares; 0: none
    order: Literal["fcfs", "priority"] = "fcfs"
    serves: dict[str, Fraction | None] | None = None  # by class: share of its requests, None: by capacity;
    # None altogether: of every class what groups with stated shares leave

    @property
    def gpus(self) -> int:
        """Devices of one replica."""
        return self.tensor_parallel * self.attention_data_parallel * self.pipeline_parallel

    @property
    def gpus_by_pool(self) -> dict[str, int]:
        """Devices of one replica by pool, in the order of the stages."""
        ranks = self.tensor_parallel * self.attention_data_parallel
        stages = self.stage_pools or (self.pool,) * self.pipeline_parallel
        return {pool: ranks * stages.count(pool) for pool in dict.fromkeys(stages)}


class ModelChoices(Frozen):
    """Allowed values; None leaves the choice to the planner; one value is a pin."""

    tensor_parallel: tuple[PositiveInt, ...] | None = None
    pipeline_parallel: tuple[PositiveInt, ...] | None = None
    max_num_seqs: tuple[PositiveInt, ...] | None = None
    max_num_batched_tokens: tuple[PositiveInt, ...] | None = None
    replicas: tuple[PositiveInt, ...] | None = None
    pool: tuple[str, ...] | None = None
    stages_over: tuple[str, ...] | None = None  # pools that the pipeline stages of one replica may stand in
    attention_data_parallel: tuple[PositiveInt, ...] | None = None
    expert_parallel: tuple[PositiveInt, ...] | None = None
    prefix_caching: bool | None = None
    groups: tuple[StatedGroup, ...] = ()  # all replicas of the model, where they are stated and not chosen

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `groups` and `stages_over` that say nothing."""
        return {name: item for name, item in handler(self).items() if item or name not in ("groups", "stages_over")}


class Choices(Frozen):
    engine: tuple[Engine, ...] = ("vllm",)
    disaggregation: Literal["auto", "never", "always"] = "auto"
    router: Router = "least_outstanding"  # among the replicas of a group
    models: dict[str, ModelChoices] = Field(default_factory=dict)

    def of(self, model: str) -> ModelChoices:
        """The choices of one model; everything free where the user said nothing."""
        return self.models.get(model, ModelChoices())

    @property
    def stated(self) -> dict[str, tuple[StatedGroup, ...]]:
        """The groups that are stated, by model; models whose replicas are chosen are not in it."""
        return {name: choices.groups for name, choices in self.models.items() if choices.groups}


class SwitchingSpec(Frozen):
    """What it takes to change from one plan to the next one of a schedule."""

    start_s: NonNegativeFloat | None = None  # of a replica; None: its weights over NVMe or the network, and the engine
    usd_per_replica: NonNegativeFloat = 0.0  # that starts, beside the rent of its devices


class ScheduleSpec(Frozen):
    """How `capstan schedule` cuts the day."""

    slot_s: PositiveFloat = 7200.0  # pieces of a diurnal swing, each planned for its highest rate
    switching: SwitchingSpec = SwitchingSpec()


class DeploymentSpec(Document):
    """What a user declares. `load_deployment` makes one from YAML; `resolved` writes it out with all defaults."""

    api_version: Literal["capstan/v1"] = "capstan/v1"
    kind: Literal["Deployment"] = "Deployment"
    name: str
    models: dict[str, ModelSpec]
    hardware: HardwareSpec
    traffic: tuple[TrafficClass, ...]
    objective: Objective = Objective()
    limits: LimitsSpec = LimitsSpec()
    choices: Choices = Choices()
    measured: str | None = None  # file of measured request rates, in the place of the cost model where it has them
    schedule: ScheduleSpec = ScheduleSpec()

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Engines that a plan may be for: those to choose from, where anything is chosen, and those that are stated."""
        stated = self.choices.stated
        chosen = () if stated.keys() >= self.models.keys() else self.choices.engine
        return tuple(dict.fromkeys((*chosen, *(group.engine for groups in stated.values() for group in groups))))


def resolved(spec: DeploymentSpec) -> dict[str, Any]:
    """The declaration in plain JSON types, every default written out; `DeploymentSpec.model_validate` reads it."""
    return spec.model_dump(mode="json")
