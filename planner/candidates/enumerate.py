"""Enumerate the configurations of a model over the pools, dropping the impossible ones with the reason kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.candidates.family import Family
from planner.cost.memory import memory_budget, num_blocks
from planner.cost.stages import split_stages
from planner.cost.step import step_times
from planner.facts import Facts
from specs.architecture import Architecture
from specs.compilable import obstacle_to_compiling
from specs.deployment import ModelChoices, ModelSpec, PoolSpec
from specs.document import DType
from specs.errors import InputError
from specs.plan import Configuration, Discarded, Layout, Limits

# Sequence limits that are tried, the likeliest first, and token budgets where no TPOT limit suggests one. 2048 balances
# a chunk's length against the steps that a prompt needs; powers of two are what engines capture graphs for.
TOKEN_BUDGETS = (2048, 4096, 8192, 1024, 512)
MOST_BUDGET = 16384
SEQUENCE_LIMITS = (256, 128, 512, 64, 32)
TENSOR_PARALLEL = (1, 2, 4, 8, 16)
PIPELINE_PARALLEL = (1, 2, 4)


def model_length(name: str, model: ModelSpec, architecture: Architecture, longest_request: int) -> int:
    """The maximum length a replica must hold: the declared context, else the longest request rounded up to 1024.

    Raises `InputError` where the model or the declared context is shorter than the traffic's longest request.
    """
    trained = architecture.max_position_embeddings
    declared = model.max_context_tokens
    if declared is not None and declared > trained:
        raise InputError(
            f"{declared} tokens are more than {architecture.name} was trained for",
            field=f"models.{name}.max_context",
            expected=f"at most {trained}",
        )
    length = declared if declared is not None else min(trained, -(-longest_request // 1024) * 1024)
    if longest_request > length:
        raise InputError(
            f"the longest request of its traffic has {longest_request} tokens (prompt and output), more than {length}",
            field=f"models.{name}.max_context",
            expected=f"at least {longest_request}" if longest_request <= trained else f"requests of at most {trained}",
        )
    return length


def families(
    name: str,
    model: ModelSpec,
    choices: ModelChoices,
    engines: tuple[str, ...],
    pools: tuple[PoolSpec, ...],
    facts: Facts,
    max_model_len: int,
) -> tuple[list[Family], list[Discarded]]:
    """All configurations of one model that can boot, and those that cannot, each with its reason.

    Raises `InputError` where pinned limits contradict each other.
    """
    _check_pins(name, choices)
    bootable: list[_Bootable] = []
    dropped: list[Discarded] = []
    architecture = facts.architectures[name]
    for pool in pools:
        if choices.pool is not None and pool.name not in choices.pool:
            continue
        for configuration, layout in _layouts(name, model, choices, engines, pool, architecture):
            obstacle = _obstacle(configuration, layout, pool, architecture, facts, max_model_len, choices)
            if obstacle is None:
                bootable.append(_Bootable(pool, configuration, layout))
            else:
                dropped.append(obstacle)
    remaining, needless = _prune_pipelines(bootable, facts, choices)
    return [_family(item, architecture, facts, choices, max_model_len) for item in remaining], [*dropped, *needless]


@dataclass(frozen=True)
class _Bootable:
    """A configuration that memory, types and topology allow; nothing is known of its speed yet."""

    pool: PoolSpec
    configuration: Configuration
    layout: Layout


def _family(
    item: _Bootable, architecture: Architecture, facts: Facts, choices: ModelChoices, max_model_len: int
) -> Family:
    configuration, device = item.configuration, facts.device_of(item.pool)
    profile, engine = facts.profiles[item.pool.device], facts.engines[configuration.engine]
    key = (
        configuration.model,
        item.pool.name,
        configuration.engine,
        f"tp{configuration.tensor_parallel}",
        f"pp{configuration.pipeline_parallel}",
        f"weights-{configuration.weights_dtype.value}",
        f"kv-{configuration.kv_dtype.value}",
    )
    return Family(
        key="/".join(key),
        model=configuration.model,
        pool=item.pool,
        architecture=architecture,
        device=device,
        profile=profile,
        engine=engine,
        layout=item.layout,
        weights_dtype=configuration.weights_dtype,
        kv_dtype=configuration.kv_dtype,
        max_model_len=max_model_len,
        times=step_times(
            architecture,
            item.layout,
            configuration.weights_dtype,
            configuration.kv_dtype,
            device,
            profile,
            engine,
            *widest_limits(choices),
        ).scaled(facts.margins[configuration.engine]),
    )


def widest_limits(choices: ModelChoices) -> tuple[int, int]:
    """The most sequences and the largest token budget that are tried: what step times are worked out for."""
    sequences = sequence_limits(choices)
    return max(sequences), max(*sequences, *(choices.max_num_batched_tokens or (MOST_BUDGET,)))


def sequence_limits(choices: ModelChoices) -> tuple[int, ...]:
    """Sequence limits to try; without a pin, those that a pinned token budget reaches."""
    if choices.max_num_seqs is not None:
        return choices.max_num_seqs
    most = max(choices.max_num_batched_tokens or (MOST_BUDGET,))
    return tuple(limit for limit in SEQUENCE_LIMITS if limit <= most) or (most,)


def _least_limits(choices: ModelChoices, max_model_len: int) -> Limits:
    """The limits that leave the most memory to the KV cache."""
    sequences = min(sequence_limits(choices))
    pinned = [budget for budget in choices.max_num_batched_tokens or () if budget >= sequences]
    budget = min(pinned) if pinned else max(min(TOKEN_BUDGETS), sequences)
    return Limits(max_num_seqs=sequences, max_num_batched_tokens=budget, max_model_len=max_model_len)


def _check_pins(name: str, choices: ModelChoices) -> None:
    """`InputError` where no pinned token budget reaches a pinned number of sequences: decoding ones would starve."""
    budgets, sequences = choices.max_num_batched_tokens, min(sequence_limits(choices))
    if budgets is not None and max(budgets) < sequences:
        raise InputError(
            f"{max(budgets)} tokens a step do not reach max_num_seqs, {sequences}: every sequence needs one",
            field=f"choices.{name}.max_num_batched_tokens",
            expected=f"at least {sequences}, or a smaller max_num_seqs",
        )


def _layouts(
    name: str,
    model: ModelSpec,
    choices: ModelChoices,
    engines: tuple[str, ...],
    pool: PoolSpec,
    architecture: Architecture,
) -> Iterator[tuple[Configuration, Layout]]:
    layers = len(architecture.layers)
    stages_of: dict[int, tuple[int, ...]] = {}
    for engine in engines:
        for tensor in choices.tensor_parallel or tuple(size for size in TENSOR_PARALLEL if size <= pool.gpus_per_node):
            for pipeline in choices.pipeline_parallel or PIPELINE_PARALLEL:
                if pipeline not in stages_of:
                    stages_of[pipeline] = (
                        split_stages(architecture, pipeline) if pipeline <= layers else (1,) * pipeline
                    )
                for weights in model.weights or (architecture.native_weights_dtype,):
                    for kv_cache in model.kv_cache or (DType.BF16,):
                        yield (
                            Configuration(
                                model=name,
                                pool=pool.name,
                                device=pool.device,
                                engine=engine,
                                tensor_parallel=tensor,
                                pipeline_parallel=pipeline,
                                weights_dtype=weights,
                                kv_dtype=kv_cache,
                            ),
                            Layout(tensor_parallel=tensor, pipeline_stages=stages_of[pipeline]),
                        )


def _obstacle(
    configuration: Configuration,
    layout: Layout,
    pool: PoolSpec,
    architecture: Architecture,
    facts: Facts,
    max_model_len: int,
    choices: ModelChoices,
) -> Discarded | None:
    """The first law that this configuration breaks, or None."""
    device, engine = facts.device_of(pool), facts.engines[configuration.engine]

    def because(reason: str, detail: str, margin: float | None = None) -> Discarded:
        return Discarded(configuration=configuration, reason=reason, detail=detail, margin=margin)

    if layout.pipeline_parallel > len(architecture.layers):
        return because("layers", f"{layout.pipeline_parallel} stages for {len(architecture.layers)} layers")
    heads = architecture.tensor_parallel_obstacle(layout.tensor_parallel, layout.expert_parallel)
    if heads is not None:
        return because("heads", heads)
    if layout.tensor_parallel > pool.gpus_per_node:
        return because(
            "node",
            f"TP {layout.tensor_parallel} does not fit a node of {pool.gpus_per_node} {pool.device}",
        )
    if layout.tensor_parallel > device.fast_domain:
        return because(
            "node",
            f"TP {layout.tensor_parallel} leaves the fast domain of {device.fast_domain} {device.name}",
        )
    if layout.gpus > pool.count:
        return because("inventory", f"one replica needs {layout.gpus} devices, the pool has {pool.count}")
    if layout.gpus > pool.gpus_per_node and layout.gpus % pool.gpus_per_node:
        return because("node", f"{layout.gpus} devices do not fill whole nodes of {pool.gpus_per_node}")
    if layout.gpus > pool.gpus_per_node and pool.gpus_per_node % layout.tensor_parallel:
        return because(
            "node", f"stages of TP {layout.tensor_parallel} do not fill a node of {pool.gpus_per_node} {pool.device}"
        )
    if configuration.weights_dtype not in device.weight_dtypes:
        return because("dtype", f"{device.name} has no kernels for {configuration.weights_dtype} weights")
    if configuration.kv_dtype not in device.kv_dtypes:
        return because("dtype", f"{device.name} has no kernels for a {configuration.kv_dtype} KV cache")
    if configuration.engine == "capstan":
        uncompilable = obstacle_to_compiling(architecture, layout, configuration.weights_dtype, configuration.kv_dtype)
        if uncompilable is not None:
            return because("engine", uncompilable)
    limits = _least_limits(choices, max_model_len)
    budget = memory_budget(
        architecture, layout, configuration.weights_dtype, configuration.kv_dtype, device, engine, limits
    )
    tokens = num_blocks(budget, engine.block_size_tokens) * engine.block_size_tokens
    if tokens < max_model_len:
        short = (max_model_len - tokens) * budget.kv_bytes_per_token
        fixed = budget.available_bytes - budget.kv_bytes if budget.kv_bytes else budget.weights_bytes
        return because(
            "memory",
            f"weights take {budget.weights_bytes / 1e9:.1f} GB of {budget.available_bytes / 1e9:.1f} GB a device; "
            f"the KV cache that is left holds {tokens} tokens, one request may need {max_model_len}",
            margin=(fixed + short) / budget.available_bytes - 1.0,
        )
    return None


def _prune_pipelines(
    bootable: list[_Bootable], facts: Facts, choices: ModelChoices
) -> tuple[list[_Bootable], list[Discarded]]:
    """Pipeline stages are tried only where they are pinned, or where the same devices cannot do it without.

    Over a fast link, tensor parallelism over the same devices reads the same bytes with a lower latency; where it fits,
    stages only add latency. Over PCIe, where all-reduces are slow, stages stay in the race.
    """
    if choices.pipeline_parallel is not None:
        return bootable, []

    def types(item: _Bootable) -> tuple[object, ...]:
        chosen = item.configuration
        return item.pool.name, chosen.engine, chosen.weights_dtype, chosen.kv_dtype

    flat = [item for item in bootable if item.layout.pipeline_parallel == 1]
    same_devices = {(*types(item), item.layout.gpus) for item in flat}
    one_node = {types(item) for item in flat}
    remaining: list[_Bootable] = []
    dropped: list[Discarded] = []
    for item in bootable:
        fast = facts.devices[item.pool.device].link in ("nvlink", "xgmi")
        needless = fast and (*types(item), item.layout.gpus) in same_devices
        across = item.layout.gpus > item.pool.gpus_per_node and types(item) in one_node
        if item.layout.pipeline_parallel == 1 or not (needless or across):
            remaining.append(item)
            continue
        detail = (
            "tensor parallelism over the same devices fits and has the lower latency"
            if needless
            else "a replica inside one node fits; stages across nodes would only add latency"
        )
        dropped.append(Discarded(configuration=item.configuration, reason="pipeline", detail=detail))
    return remaining, dropped
