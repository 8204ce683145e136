"""Stated groups as configurations with limits and a cache. What a group leaves out, its engine decides by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.candidates.bootable import Bootable
from planner.candidates.enumerate import model_length, stated_family, with_table
from planner.candidates.family import Family, Variant
from planner.candidates.host_tier import host_blocks_of, moves_blocks, with_host_link
from planner.candidates.layouts import is_mixture
from planner.candidates.options import Options
from planner.candidates.spanning import span_of
from planner.candidates.speculative import draft_of, speculation_of
from planner.cost.adapters import adapter_bytes
from planner.cost.memory import memory_budget
from planner.cost.stages import split_stages
from planner.facts import Facts
from specs.architecture import Architecture
from specs.deployment import ModelChoices, ModelSpec, PoolSpec, StatedGroup
from specs.deployment.stated import takers
from specs.engine_rules import Capability, capable
from specs.errors import InputError
from specs.plan import Configuration, Discarded, Layout, Limits

MOST_TOKENS = 2**20  # of a step: tables of step times are this long


@dataclass(frozen=True)
class StatedReplicas:
    """A group and the configuration that each of its replicas is."""

    group: StatedGroup
    variant: Variant

    @property
    def family(self) -> Family:
        return self.variant.family


def stated_replicas(
    name: str,
    model: ModelSpec,
    groups: tuple[StatedGroup, ...],
    pools: tuple[PoolSpec, ...],
    facts: Facts,
    longest: Mapping[str, int],
) -> tuple[StatedReplicas, ...]:
    """The groups of model `name`; `longest` says how many tokens the longest request of each of its classes has.

    Raises `InputError` that names the group where it cannot boot, or its engine does not do what it states.
    """
    of_name = {pool.name: pool for pool in pools}
    found = []
    for index, group in enumerate(groups):
        try:
            own = _longest_of(groups, index, longest)
            found.append(StatedReplicas(group, _variant(name, model, group, of_name, facts, own)))
        except InputError as error:
            if error.field is None or not error.field.startswith("models."):
                key = f".{error.field}" if error.field else ""
                error.field = f"choices.{name}.groups[{index}]{key}"
            raise
    return tuple(found)


def _longest_of(groups: tuple[StatedGroup, ...], index: int, longest: Mapping[str, int]) -> int:
    """Tokens of the longest request that group `index` is sent, by its clients or by the group before it."""
    senders = {index} | {i for i, group in enumerate(groups) if group.hands_over_to == groups[index].name}
    sent = [tokens for name, tokens in longest.items() if senders.intersection(takers(groups, name))]
    return max(sent, default=1)


def _variant(
    name: str, model: ModelSpec, group: StatedGroup, pools: Mapping[str, PoolSpec], facts: Facts, longest: int
) -> Variant:
    facts = _with_engine(facts, group)
    limits = _limits(name, model, group, facts, longest)
    _refuse_untold(group)
    _refuse_experts_of_dense(facts.architectures[name], group)
    item = _bootable(name, model, group, pools, facts)
    choices = choices_of(limits)
    if isinstance(item, Discarded):
        raise _obstacle(group, item)
    plain = stated_family(item, facts, limits.max_model_len, choices, model.adapters)
    if isinstance(plain, Discarded):
        raise _obstacle(group, plain)
    family = _with_options(plain, group, model, facts, choices)
    cache = family.cache(limits)
    if cache is None:
        raise InputError(f"{group.name} cannot run (memory): {_no_room(family, limits)}")
    return Variant(replace(family, key=f"{family.key}/{group.name}"), limits, cache)


def _obstacle(group: StatedGroup, found: Discarded) -> InputError:
    return InputError(f"{group.name} cannot run ({found.reason}): {found.detail}")


def _bootable(
    name: str, model: ModelSpec, group: StatedGroup, pools: Mapping[str, PoolSpec], facts: Facts
) -> Bootable | Discarded:
    """The group as a configuration; where its stages stand in several pools, or why they cannot."""
    pool, architecture = pools[group.pool], facts.architectures[name]
    layout = _layout(architecture, group)
    configuration = Configuration(
        model=name,
        pool=pool.name,
        device=pool.device,
        engine=group.engine,
        tensor_parallel=group.tensor_parallel,
        pipeline_parallel=group.pipeline_parallel,
        weights_dtype=group.weights or next(iter(model.weights), architecture.native_weights_dtype),
        kv_dtype=group.kv_cache or model.kv_cache[0],
        attention_data_parallel=group.attention_data_parallel,
        expert_parallel=group.expert_parallel,
        stage_pools=group.stage_pools or (),
        pipeline_stages=layout.pipeline_stages if group.stage_pools else (),
    )
    if group.stage_pools is None:
        return Bootable(pool, configuration, layout)
    span = span_of(configuration, layout, tuple(pools[stage] for stage in group.stage_pools), facts, model)
    if isinstance(span, Discarded):
        return span
    return Bootable(pool, configuration, layout, span.pools, span.devices)


def choices_of(limits: Limits) -> ModelChoices:
    """Choices that leave these limits, and step times that reach no further."""
    return ModelChoices(max_num_seqs=(limits.max_num_seqs,), max_num_batched_tokens=(limits.max_num_batched_tokens,))


def _with_engine(facts: Facts, group: StatedGroup) -> Facts:
    """The facts with the engine as the group runs it: its release, and its share of the memory."""
    engine = facts.engines[group.engine].at(group.engine_version or "")
    if group.memory_fraction is not None:
        engine = engine.model_copy(update={"memory_fraction": group.memory_fraction})
    return replace(facts, engines={**facts.engines, group.engine: engine})


def _limits(name: str, model: ModelSpec, group: StatedGroup, facts: Facts, longest: int) -> Limits:
    engine, architecture = facts.engines[group.engine], facts.architectures[name]
    sequences = group.max_num_seqs or engine.default_max_num_seqs
    budget = group.max_num_batched_tokens or max(engine.default_max_num_batched_tokens, sequences)
    if budget < sequences:
        raise InputError(
            f"{budget} tokens a step do not reach max_num_seqs, {sequences}: every sequence needs one",
            field="max_num_batched_tokens",
            expected=f"at least {sequences}, or a smaller max_num_seqs",
        )
    if budget > MOST_TOKENS:
        message, expected = f"{budget} tokens a step are absurdly many", f"at most {MOST_TOKENS}"
        raise InputError(message, field="max_num_batched_tokens", expected=expected)
    length = group.max_context_tokens or model_length(name, model, architecture, longest)
    if length < longest:
        raise InputError(
            f"{length} tokens are fewer than those of the longest request that {group.name} serves, {longest}",
            field="max_context",
            expected=f"at least {longest}, or another group for the classes of long requests (serves)",
        )
    if length > architecture.max_position_embeddings:
        raise InputError(
            f"{length} tokens are more than {architecture.name} was trained for",
            field="max_context",
            expected=f"at most {architecture.max_position_embeddings}",
        )
    return Limits(max_num_seqs=sequences, max_num_batched_tokens=budget, max_model_len=length)


def _layout(architecture: Architecture, group: StatedGroup) -> Layout:
    layers, stages = len(architecture.layers), group.pipeline_stages
    if stages is not None and sum(stages) != layers:
        raise InputError(
            f"{' + '.join(map(str, stages))} layers are {sum(stages)}; {architecture.name} has {layers}",
            field="pipeline_stages",
            expected=f"stages that hold {layers} layers together",
        )
    return Layout(
        tensor_parallel=group.tensor_parallel,
        pipeline_stages=stages or split_stages(architecture, group.pipeline_parallel),
        attention_data_parallel=group.attention_data_parallel,
        expert_parallel=group.expert_parallel,
    )


def _refuse_untold(group: StatedGroup) -> None:
    """`InputError` where the group states what its engine cannot be told."""
    wanted: tuple[tuple[bool, str, Capability, str], ...] = (
        (group.role != "unified", "role", "disaggregation", "hands over no KV caches"),
        (bool(group.prefix_caching), "prefix_caching", "prefix_caching", "keeps no prefixes"),
        (group.host_kv_bytes > 0, "host_kv_cache", "host_tier", "keeps no KV blocks in host memory"),
        (group.draft_tokens > 0, "draft_tokens", "speculation", "does not speculate"),
        (group.order == "priority", "order", "priority", "serves first come, first served"),
        (
            group.attention_data_parallel > 1,
            "attention_data_parallel",
            "attention_data_parallel",
            "does not share out requests in attention",
        ),
    )
    for stated, field, capability, words in wanted:
        if stated and not capable(group.engine, capability):
            raise InputError(f"{group.engine} {words}", field=field, expected="another engine, or without it")
    if group.draft_tokens and group.pipeline_parallel > 1:
        raise InputError("engines do not speculate across pipeline stages", field="draft_tokens", expected="0")


def _refuse_experts_of_dense(architecture: Architecture, group: StatedGroup) -> None:
    """`InputError` where a model without experts is laid out as one with experts."""
    if is_mixture(architecture):
        return
    for field in ("attention_data_parallel", "expert_parallel"):
        if getattr(group, field) > 1:
            message = f"{architecture.name} has no experts: {getattr(group, field)} ranks have none to share out"
            expected = "1; more replicas serve more requests"
            raise InputError(message, field=field, expected=expected)


def _with_options(plain: Family, group: StatedGroup, model: ModelSpec, facts: Facts, choices: ModelChoices) -> Family:
    caching = group.prefix_caching
    if caching is None:
        caching = group.role != "decode" and capable(group.engine, "prefix_caching")
    options = Options(role=group.role, prefix_caching=caching, order=group.order)
    margin = facts.margins[group.engine]
    if group.draft_tokens and model.speculative is not None:
        draft = draft_of(model.speculative, plain, facts.drafts.get(plain.model))
        options = replace(options, speculation=speculation_of(model.speculative, group.draft_tokens, draft))
        return with_table(replace(plain, draft=draft).with_options(options), choices, margin)
    if not group.host_kv_bytes:
        return plain.with_options(options)
    if not moves_blocks(plain):
        expected = "a model of plain attention, without attention_data_parallel"
        raise InputError("blocks of this model are not moved to the host", field="host_kv_cache", expected=expected)
    blocks = host_blocks_of(plain, group.host_kv_bytes / plain.gpus)
    tiered = replace(plain, table=lambda: with_host_link(plain, margin))
    return tiered.with_options(replace(options, host_blocks=blocks))


def _no_room(family: Family, limits: Limits) -> str:
    """Of the fullest device: what it has to hold beside the KV cache, and what there is."""
    budget = memory_budget(
        family.architecture,
        family.layout,
        family.weights_dtype,
        family.kv_dtype,
        family.device,
        family.engine,
        limits,
        [stage.device for stage in family.stage_devices],
    )
    adapters = 0
    if family.adapters is not None:
        adapters = adapter_bytes(family.architecture, family.layout, family.adapters)
    return (
        f"weights take {budget.weights_bytes / 1e9:.1f} GB, drafts {family.draft.weights_bytes / 1e9:.1f} GB and "
        f"adapters {adapters / 1e9:.1f} GB of {budget.available_bytes / 1e9:.1f} GB a device; the KV cache that is "
        f"left holds no request of {limits.max_model_len} tokens"
    )
