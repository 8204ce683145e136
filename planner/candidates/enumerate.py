"""Enumerate the configurations of a model over the pools, dropping the impossible ones with the reason kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.candidates.bootable import Bootable, prune_wide
from planner.candidates.experts import redundancies
from planner.candidates.family import Family
from planner.candidates.host_tier import host_blocks, with_host_link
from planner.candidates.layouts import is_mixture, rank_layouts
from planner.candidates.options import NEUTRAL, NOTHING, Asked, Options, usual_options
from planner.candidates.replica import tokens_per_sequence
from planner.candidates.spanning import spans
from planner.candidates.speculative import NO_DRAFT, draft_lengths, draft_of, speculation_of
from planner.cost.margin import Margin
from planner.cost.memory import memory_budget, num_blocks
from planner.cost.power_cap import cap_of
from planner.cost.stages import split_stages
from planner.cost.step import step_times
from planner.cost.step_times import StepTimes
from planner.cost.unlike_stages import unlike_step_times
from planner.facts import Facts
from specs.architecture import Architecture
from specs.compilable import obstacle_to_compiling
from specs.deployment import AdaptersSpec, ModelChoices, ModelSpec, PoolSpec
from specs.document import DType
from specs.engine_rules import capable
from specs.errors import InputError
from specs.plan import Configuration, Discarded, Layout, Limits, Speculation

# Sequence limits that are tried, the likeliest first, and token budgets where no TPOT limit suggests one. 2048 balances
# a chunk's length against the steps that a prompt needs; powers of two are what engines capture graphs for.
TOKEN_BUDGETS = (2048, 4096, 8192, 1024, 512)
MOST_BUDGET = 16384  # of a whole replica
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
    asked: Asked = NOTHING,
) -> tuple[list[Family], list[Discarded]]:
    """All configurations of one model that can boot, and those that cannot, each with its reason.

    `asked`: which options the traffic gives a meaning. Raises `InputError` where pinned limits contradict each other.
    """
    architecture = facts.architectures[name]
    _check_pins(name, choices, architecture)
    bootable: list[Bootable] = []
    dropped: list[Discarded] = []
    for pool in pools:
        if choices.pool is not None and pool.name not in choices.pool:
            continue
        measured = name in facts.expert_loads
        for configuration, layout in _layouts(name, model, choices, engines, pool, architecture, measured):
            obstacle = _obstacle(
                configuration, layout, pool, architecture, facts, max_model_len, choices, model.adapters
            )
            if obstacle is None:
                bootable.append(Bootable(pool, configuration, layout))
            else:
                dropped.append(obstacle)
    remaining, needless = prune_wide(bootable, facts, choices)
    if choices.stages_over is not None:
        spanning, obstacles = spans(name, model, choices, engines, facts, _least_limits(choices, max_model_len))
        remaining += [Bootable(s.pools[0], s.configuration, s.layout, s.pools, s.devices) for s in spanning]
        dropped += obstacles
    found: list[Family] = []
    for item in remaining:
        plain = _family(item, architecture, facts, choices, max_model_len, model.adapters)
        if model.adapters is not None and plain.cache(_least_limits(choices, max_model_len)) is None:
            detail = "the KV cache that adapters leave does not hold the longest request"
            dropped.append(Discarded(configuration=item.configuration, reason="memory", detail=detail))
            continue
        options = usual_options(plain.engine.name, asked, choices)
        found += [*_with_options(plain, options, facts), *_with_drafts(plain, options, model, facts, choices)]
    return found, [*dropped, *needless]


def _family(
    item: Bootable,
    architecture: Architecture,
    facts: Facts,
    choices: ModelChoices,
    max_model_len: int,
    adapters: AdaptersSpec | None,
) -> Family:
    configuration, device = item.configuration, facts.device_of(item.pool)
    profile, engine = facts.profiles[item.pool.device], facts.engines[configuration.engine]
    key = (
        configuration.model,
        "+".join(configuration.stage_pools) or item.pool.name,
        configuration.engine,
        f"tp{configuration.tensor_parallel}",
        f"pp{configuration.pipeline_parallel}",
        *(["layers-" + "-".join(map(str, configuration.pipeline_stages))] if configuration.stage_pools else []),
        *([f"dp{item.layout.attention_data_parallel}"] if item.layout.attention_data_parallel > 1 else []),
        *([f"ep{item.layout.expert_parallel}"] if item.layout.expert_parallel > 1 else []),
        *([f"redundant-{item.layout.redundant_experts}"] if item.layout.redundant_experts else []),
        f"weights-{configuration.weights_dtype.value}",
        f"kv-{configuration.kv_dtype.value}",
    )
    loads = facts.expert_loads.get(configuration.model)
    plain = Family(
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
        table=lambda: family_times(plain, choices, facts.margins[engine.name]),
        adapters=adapters,
        experts=None if loads is None else loads.placement(item.layout, item.pool.gpus_per_node),
        stage_pools=item.stage_pools,
        stage_devices=item.stage_devices,
    )
    return plain


def _with_options(plain: Family, options: Options, facts: Facts) -> list[Family]:
    """The family under the options that its traffic gives a meaning, without and with a host tier."""
    usual = plain if options == NEUTRAL else plain.with_options(options)
    blocks = host_blocks(plain, facts.hardware) if options.prefix_caching and not plain.stage_pools else 0
    if not blocks:
        return [usual]
    margin = facts.margins[plain.engine.name]
    tiered = replace(usual, table=lambda: with_host_link(usual, margin))
    return [usual, tiered.with_options(replace(options, host_blocks=blocks))]


def _with_drafts(
    plain: Family, options: Options, model: ModelSpec, facts: Facts, choices: ModelChoices
) -> list[Family]:
    """The family with speculation, for each number of drafts; not across stages, where engines do not speculate."""
    spec, margin = model.speculative, facts.margins[plain.engine.name]
    if spec is None or plain.layout.pipeline_parallel > 1 or not capable(plain.engine.name, "speculation"):
        return []
    found = []
    draft = draft_of(spec, plain, facts.drafts.get(plain.model)) if draft_lengths(spec) else NO_DRAFT
    for drafts in draft_lengths(spec):
        family = replace(plain, draft=draft).with_options(
            replace(options, speculation=speculation_of(spec, drafts, draft))
        )
        found.append(with_table(family, choices, margin))
    bootable = _least_limits(choices, plain.max_model_len)
    return [family for family in found if family.cache(bootable) is not None]


def with_table(family: Family, choices: ModelChoices, margin: Margin) -> Family:
    """The family with step times of its own."""
    return replace(family, table=lambda: family_times(family, choices, margin))


def family_times(family: Family, choices: ModelChoices, margin: Margin) -> StepTimes:
    """Step times of the widest limits that are tried, longer by `margin` than predicted."""
    skew = None if family.experts is None else family.experts.skew
    if family.stage_devices:
        return unlike_step_times(
            family.architecture,
            family.layout,
            family.weights_dtype,
            family.kv_dtype,
            family.stage_devices,
            family.engine,
            *widest_limits(choices, family.layout, family.options.speculation),
            expert_skew=skew,
        ).scaled(margin.steps, margin.first_token)
    return step_times(
        family.architecture,
        family.layout,
        family.weights_dtype,
        family.kv_dtype,
        family.device,
        family.profile,
        family.engine,
        *widest_limits(choices, family.layout, family.options.speculation),
        expert_skew=skew,
        cap=cap_of(family.pool, family.device),
        adapters=family.adapters,
    ).scaled(margin.steps, margin.first_token)


def widest_limits(choices: ModelChoices, layout: Layout, speculation: Speculation | None = None) -> tuple[int, int]:
    """The most rows sampled and tokens computed in one step of a replica, under the limits that are tried."""
    ranks, sequences = layout.attention_data_parallel, sequence_limits(choices)
    rows = ranks * max(sequences) * tokens_per_sequence(speculation)
    pinned = choices.max_num_batched_tokens
    return rows, max(rows, MOST_BUDGET if pinned is None else ranks * max(pinned))


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


def _check_pins(name: str, choices: ModelChoices, architecture: Architecture) -> None:
    """`InputError` where pins contradict each other, or lay out experts of a model that has none.

    Where no pinned token budget reaches a pinned number of sequences, decoding ones would starve.
    """
    for field in ("attention_data_parallel", "expert_parallel"):
        pinned = getattr(choices, field)
        if pinned is not None and min(pinned) > 1 and not is_mixture(architecture):
            raise InputError(
                f"{architecture.name} has no experts: {min(pinned)} ranks have none to share out",
                field=f"choices.{name}.{field}",
                expected="1, or auto; more replicas serve more requests",
            )
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
    measured: bool,
) -> Iterator[tuple[Configuration, Layout]]:
    """Of every engine; with copies of experts where their loads are `measured`."""
    layers = len(architecture.layers)
    stages_of: dict[int, tuple[int, ...]] = {}
    for engine in engines:
        for tensor in choices.tensor_parallel or tuple(size for size in TENSOR_PARALLEL if size <= pool.gpus_per_node):
            for pipeline in choices.pipeline_parallel or PIPELINE_PARALLEL:
                if pipeline not in stages_of:
                    stages_of[pipeline] = (
                        split_stages(architecture, pipeline) if pipeline <= layers else (1,) * pipeline
                    )
                for groups, experts in rank_layouts(architecture, choices, engine, pool, tensor, pipeline):
                    for copies in redundancies(architecture, experts) if measured else (0,):
                        layout = Layout(
                            tensor_parallel=tensor,
                            pipeline_stages=stages_of[pipeline],
                            attention_data_parallel=groups,
                            expert_parallel=experts,
                            redundant_experts=copies,
                        )
                        for weights in model.weights or (architecture.native_weights_dtype,):
                            for kv_cache in model.kv_cache or (DType.BF16,):
                                yield _configuration(name, pool, engine, layout, weights, kv_cache), layout


def _configuration(
    name: str, pool: PoolSpec, engine: str, layout: Layout, weights: DType, kv_cache: DType
) -> Configuration:
    return Configuration(
        model=name,
        pool=pool.name,
        device=pool.device,
        engine=engine,
        tensor_parallel=layout.tensor_parallel,
        pipeline_parallel=layout.pipeline_parallel,
        weights_dtype=weights,
        kv_dtype=kv_cache,
        attention_data_parallel=layout.attention_data_parallel,
        expert_parallel=layout.expert_parallel,
    )


def _obstacle(
    configuration: Configuration,
    layout: Layout,
    pool: PoolSpec,
    architecture: Architecture,
    facts: Facts,
    max_model_len: int,
    choices: ModelChoices,
    adapters: AdaptersSpec | None,
) -> Discarded | None:
    """The first law that this configuration breaks, or None."""
    device, engine = facts.device_of(pool), facts.engines[configuration.engine]

    def because(reason: str, detail: str, margin: float | None = None) -> Discarded:
        return Discarded(configuration=configuration, reason=reason, detail=detail, margin=margin)

    if layout.pipeline_parallel > len(architecture.layers):
        return because("layers", f"{layout.pipeline_parallel} stages for {len(architecture.layers)} layers")
    ranks = layout.tensor_parallel * layout.attention_data_parallel
    if ranks % layout.expert_parallel:
        return because("experts", f"experts cannot be spread over {layout.expert_parallel} of {ranks} ranks")
    heads = architecture.tensor_parallel_obstacle(
        layout.tensor_parallel, layout.expert_parallel, layout.attention_data_parallel
    )
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
    if adapters is not None and not capable(configuration.engine, "adapters"):
        return because("engine", f"{configuration.engine} serves no adapters")
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


def stated_family(
    item: Bootable, facts: Facts, max_model_len: int, choices: ModelChoices, adapters: AdaptersSpec | None
) -> Family | Discarded:
    """One configuration that nobody chose, or why it cannot boot; `choices` are its limits alone.

    Whether stages in several pools can boot is asked before (`spanning.span_of`), memory aside.
    """
    own, architecture = item.configuration, facts.architectures[item.configuration.model]
    if not item.stage_pools:
        obstacle = _obstacle(own, item.layout, item.pool, architecture, facts, max_model_len, choices, adapters)
        if obstacle is not None:
            return obstacle
    return _family(item, architecture, facts, choices, max_model_len, adapters)
