"""Replicas whose pipeline stages stand in several pools: which pools, how many stages in each, which layers where.

Tried where `choices.MODEL.stages_over` names pools: every two and every three of them, in the order of the list, with
the same tensor parallelism in every stage. Where layers are cut: `layer_cuts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

from planner.candidates.layer_cuts import LayerCuts
from planner.cost.stages import split_stages
from planner.cost.unlike_stages import StageDevice
from planner.facts import Facts
from planner.stage_devices import stage_devices
from specs.architecture import Architecture
from specs.architecture.mlps import MixtureOfExperts
from specs.deployment import ModelChoices, ModelSpec, PoolSpec
from specs.document import DType
from specs.engine_rules import capable
from specs.plan import Configuration, Discarded, Layout, Limits

TENSOR_PARALLEL = (1, 2, 4, 8)
MOST_POOLS = 3  # of one replica
MOST_STAGES, MOST_IN_A_POOL = 4, 2  # tried without a pin


@dataclass(frozen=True)
class Span:
    """A configuration that boots on the pools of its stages."""

    configuration: Configuration
    layout: Layout
    pools: tuple[PoolSpec, ...]  # by stage
    devices: tuple[StageDevice, ...]  # by stage


def spans(
    name: str,
    model: ModelSpec,
    choices: ModelChoices,
    engines: tuple[str, ...],
    facts: Facts,
    least: Limits,
) -> tuple[list[Span], list[Discarded]]:
    """All that can boot over the pools of `choices.stages_over`, and those that cannot, each with its reason.

    `least`: the limits that leave the most memory to the KV cache.
    """
    found: list[Span] = []
    dropped: list[Discarded] = []
    architecture = facts.architectures[name]
    for pools in _stage_pools(choices, facts, len(architecture.layers)):
        for engine, layout, weights, kv_cache in _layouts(model, choices, engines, pools, architecture):
            own = _configuration(name, pools, engine, layout, weights, kv_cache)
            obstacle = _obstacle(own, layout, pools, architecture, facts, model, choices)
            if obstacle is not None:
                reason, detail = obstacle
                dropped.append(Discarded(configuration=own, reason=reason, detail=detail))
                continue
            devices = stage_devices(pools, layout.tensor_parallel, facts.hardware, facts.devices, facts.profiles)
            cuts = LayerCuts(architecture, layout, weights, kv_cache, devices, facts.engines[engine], least)
            splits = cuts.splits()
            if not splits:
                dropped.append(Discarded(configuration=own, reason="memory", detail=_shortage(own, devices, least)))
            for split in splits:
                whole = layout.model_copy(update={"pipeline_stages": split})
                configuration = own.model_copy(update={"pipeline_stages": split})
                found.append(Span(configuration, whole, pools, devices))
    compact, wide = _compact(found, choices)
    return compact, [*dropped, *wide]


def span_of(
    configuration: Configuration, layout: Layout, pools: tuple[PoolSpec, ...], facts: Facts, model: ModelSpec
) -> Span | Discarded:
    """One configuration that nobody chose, or the law that it breaks; whether it fits the memory is not asked."""
    architecture = facts.architectures[configuration.model]
    as_stated = ModelChoices(pipeline_parallel=(len(pools),))
    obstacle = _obstacle(configuration, layout, pools, architecture, facts, model, as_stated)
    if obstacle is not None:
        return Discarded(configuration=configuration, reason=obstacle[0], detail=obstacle[1])
    devices = stage_devices(pools, layout.tensor_parallel, facts.hardware, facts.devices, facts.profiles)
    return Span(configuration, layout, pools, devices)


def _compact(found: list[Span], choices: ModelChoices) -> tuple[list[Span], list[Discarded]]:
    """Without those on several machines of a pool, where one of each does it too; all, where stages are pinned."""

    def types(span: Span) -> tuple[object, ...]:
        own = span.configuration
        return tuple(dict.fromkeys(own.stage_pools)), own.engine, own.weights_dtype, own.kv_dtype

    def is_wide(span: Span) -> bool:
        tensor = span.layout.tensor_parallel
        return any(tensor * span.pools.count(pool) > pool.gpus_per_node for pool in span.pools)

    small = [types(span) for span in found if not is_wide(span)]
    needless = [span for span in found if choices.pipeline_parallel is None and is_wide(span) and types(span) in small]
    detail = "a replica on one machine of each pool fits; stages on more would only add latency"
    return (
        [span for span in found if span not in needless],
        [Discarded(configuration=span.configuration, reason="node", detail=detail) for span in needless],
    )


def _stage_pools(choices: ModelChoices, facts: Facts, layers: int) -> Iterator[tuple[PoolSpec, ...]]:
    """The pool of every stage: two pools of the list or three, in its order, with one stage or more in each."""
    over = [facts.hardware.pool(name) for name in choices.stages_over or ()]
    pinned = None if choices.pipeline_parallel is None else [n for n in choices.pipeline_parallel if n <= layers]
    most = MOST_IN_A_POOL if pinned is None else max(pinned, default=0)
    for size in range(2, min(MOST_POOLS, len(over)) + 1):
        for chosen in combinations(over, size):
            for counts in product(range(1, most + 1), repeat=size):
                if sum(counts) in (range(MOST_STAGES + 1) if pinned is None else pinned):
                    yield tuple(pool for pool, count in zip(chosen, counts, strict=True) for _ in range(count))


def _layouts(
    model: ModelSpec,
    choices: ModelChoices,
    engines: tuple[str, ...],
    pools: tuple[PoolSpec, ...],
    architecture: Architecture,
) -> Iterator[tuple[str, Layout, DType, DType]]:
    """Engine, layout with like stages, type of weights and of the KV cache."""
    if len(pools) > len(architecture.layers) or 1 not in (choices.attention_data_parallel or (1,)):
        return
    even = split_stages(architecture, len(pools))
    node = min(pool.gpus_per_node for pool in pools)
    mixture = any(isinstance(layer.mlp, MixtureOfExperts) for layer, _ in architecture.distinct_layers)
    for engine in engines:
        for tensor in choices.tensor_parallel or tuple(size for size in TENSOR_PARALLEL if size <= node):
            for experts in choices.expert_parallel or dict.fromkeys((1, tensor) if mixture else (1,)):
                layout = Layout(tensor_parallel=tensor, pipeline_stages=even, expert_parallel=experts)
                for weights in model.weights or (architecture.native_weights_dtype,):
                    for kv_cache in model.kv_cache or (DType.BF16,):
                        yield engine, layout, weights, kv_cache


def _configuration(
    name: str, pools: tuple[PoolSpec, ...], engine: str, layout: Layout, weights: DType, kv_cache: DType
) -> Configuration:
    return Configuration(
        model=name,
        pool=pools[0].name,
        device=pools[0].device,
        engine=engine,
        tensor_parallel=layout.tensor_parallel,
        pipeline_parallel=layout.pipeline_parallel,
        weights_dtype=weights,
        kv_dtype=kv_cache,
        expert_parallel=layout.expert_parallel,
        stage_pools=tuple(pool.name for pool in pools),
    )


def _obstacle(
    own: Configuration,
    layout: Layout,
    pools: tuple[PoolSpec, ...],
    architecture: Architecture,
    facts: Facts,
    model: ModelSpec,
    choices: ModelChoices,
) -> tuple[str, str] | None:
    """(reason, detail) of the first law that this configuration breaks, memory aside."""
    tensor = layout.tensor_parallel
    if not capable(own.engine, "unlike_stages"):
        return "engine", f"{own.engine} is not known to run the stages of one replica on unlike machines"
    if model.adapters is not None:
        return "engine", "adapters are planned for replicas of one pool only"
    devices = [facts.device_of(pool) for pool in pools]
    if len({device.vendor for device in devices}) > 1:
        return "engine", "the stages of one replica speak to each other through the library of one vendor"
    if tensor % layout.expert_parallel:
        return "experts", f"experts cannot be spread over {layout.expert_parallel} of {tensor} ranks"
    heads = architecture.tensor_parallel_obstacle(tensor, layout.expert_parallel, 1)
    if heads is not None:
        return "heads", heads
    for pool, device in zip(pools, devices, strict=True):
        if tensor > min(pool.gpus_per_node, device.fast_domain):
            return "node", f"TP {tensor} does not fit a node of {pool.gpus_per_node} {pool.device}"
        if own.weights_dtype not in device.weight_dtypes:
            return "dtype", f"{device.name} has no kernels for {own.weights_dtype} weights"
        if own.kv_dtype not in device.kv_dtypes:
            return "dtype", f"{device.name} has no kernels for a {own.kv_dtype} KV cache"
    return _misfit(tensor, pools) or _needless(tensor, pools, architecture, facts, choices)


def _misfit(tensor: int, pools: tuple[PoolSpec, ...]) -> tuple[str, str] | None:
    """What stands against these devices in the nodes of their pools."""
    shares: dict[str, int] = {}  # ranks on each machine of a pool
    for pool in dict.fromkeys(pools):
        taken, node = tensor * pools.count(pool), pool.gpus_per_node
        if taken > pool.count:
            return "inventory", f"one replica needs {taken} devices of {pool.name}, which has {pool.count}"
        if taken > node and (taken % node or node % tensor):
            return "node", f"{taken} devices do not fill whole nodes of {node} {pool.device}"
        shares[pool.name] = min(taken, node)
    if len(set(shares.values())) > 1:
        each = ", ".join(f"{count} on one of {name}" for name, count in shares.items())
        return "node", f"engines give every machine of a replica equally many ranks, here {each}"
    return None


def _needless(
    tensor: int, pools: tuple[PoolSpec, ...], architecture: Architecture, facts: Facts, choices: ModelChoices
) -> tuple[str, str] | None:
    """Stages that share a node over a fast link, where tensor parallelism over the same devices reads as many bytes
    sooner; not where they are pinned."""
    if choices.pipeline_parallel is not None or architecture.tensor_parallel_obstacle(2 * tensor, 1, 1) is not None:
        return None
    for pool in dict.fromkeys(pools):
        fast = facts.devices[pool.device].link in ("nvlink", "xgmi")
        if fast and pools.count(pool) > 1 and 2 * tensor <= pool.gpus_per_node:
            return "pipeline", "tensor parallelism over the same devices fits and has the lower latency"
    return None


def _shortage(own: Configuration, devices: tuple[StageDevice, ...], least: Limits) -> str:
    """Why no split of the layers fits."""
    held = ", ".join(
        f"{own.tensor_parallel} x {stage.device.memory_bytes / 1e9:.0f} GB of {pool}"
        for stage, pool in zip(devices, own.stage_pools, strict=True)
    )
    return f"no split of the layers over {held} leaves room for a KV cache of {least.max_model_len} tokens, one request"
