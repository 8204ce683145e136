"""Groups that are stated (`choices.MODEL.groups`): filled with what the rest of the file says, and checked against it.

Pins of the model beside `groups` hold for every group: one value is taken where a group says nothing, and a group that
says something else contradicts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from specs.deployment import models as m
from specs.deployment.grammar import Place
from specs.errors import InputError, nearest_names

PINS = (
    *("pool", "tensor_parallel", "pipeline_parallel", "attention_data_parallel", "expert_parallel"),
    *("max_num_seqs", "max_num_batched_tokens", "prefix_caching"),
)  # fmt: skip
ROUNDING = 1e-6  # of shares that add up


@dataclass(frozen=True)
class Stated:
    """All groups of one model, and the place of the whole file."""

    model: str
    groups: tuple[m.StatedGroup, ...]
    at: Place

    def error(
        self, index: int, key: str, message: str, expected: str | None = None, nearest: tuple[str, ...] = ()
    ) -> InputError:
        """An error at a key of a group where that was written, else at the group."""
        group = f"choices.{self.model}.groups[{index}]"
        written = f"{group}.{key}"
        return self.at.error(message, expected, nearest, field=written if written in self.at.lines else group)


def finish_groups(values: dict[str, Any], choices: m.Choices, at: Place) -> m.Choices:
    """The choices with every stated group whole; `values` are those of the document.

    Types that groups state are declared by that where their model says nothing of them: `values["models"]` changes.
    Raises `InputError` where groups contradict the rest of the file.
    """
    models: dict[str, m.ModelSpec] = dict(values["models"])
    own = dict(choices.models)
    every: list[Stated] = []
    for model, groups in choices.stated.items():
        stated = _filled(Stated(model, groups, at), choices, values["hardware"])
        models[model] = _with_types(stated, models[model])
        stated = _with_targets(stated, models[model], choices)
        _check_serves(stated, values["traffic"])
        own[model] = choices.of(model).model_copy(update={"groups": stated.groups})
        every.append(stated)
    _refuse_equal_names(every)
    _check_stock(every, values["hardware"])
    values["models"] = models
    return choices.model_copy(update={"models": own})


def _filled(stated: Stated, choices: m.Choices, hardware: m.HardwareSpec) -> Stated:
    """Names, pools, engines and what the model's pins say, group by group."""
    pinned = choices.of(stated.model)
    groups = []
    for index, group in enumerate(stated.groups):
        known = {"name": group.name or f"{stated.model}-{index}", **_pins(stated, index, pinned)}
        if not group.pool and "pool" not in known:
            known["pool"] = _only_pool(stated, index, hardware)
        if "engine" not in group.model_fields_set:
            if len(choices.engine) > 1:
                message = "does not say which engine it runs, and choices.engine allows several"
                raise stated.error(index, "engine", message, f"engine: {' or '.join(choices.engine)}")
            known["engine"] = choices.engine[0]
        group = group.model_copy(update=known)
        _check_place(stated, index, group, hardware)
        groups.append(group)
    count = sum(group.replicas for group in groups)
    if pinned.replicas is not None and count not in pinned.replicas:
        allowed = ", ".join(map(str, pinned.replicas))
        raise stated.error(
            0, "replicas", f"the groups have {count} replicas, choices.{stated.model}.replicas: {allowed}"
        )
    return Stated(stated.model, tuple(groups), stated.at)


def _pins(stated: Stated, index: int, pinned: m.ModelChoices) -> dict[str, Any]:
    """What the model's other choices say of a group that does not say it."""
    group, known = stated.groups[index], {}
    for key in PINS:
        pin = getattr(pinned, key)
        if pin is None:
            continue
        allowed = pin if isinstance(pin, tuple) else (pin,)
        said = getattr(group, key) if key in group.model_fields_set and getattr(group, key) != "" else None
        if said is None and len(allowed) == 1:
            known[key] = allowed[0]
        elif said not in allowed:
            words = " or ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in allowed)
            says = f"{key} is not stated" if said is None else f"{key} {str(said).lower()} is not allowed"
            message = f"{says}: choices.{stated.model}.{key} holds for every group"
            raise stated.error(index, key, message, f"{key}: {words}")
    return known


def _only_pool(stated: Stated, index: int, hardware: m.HardwareSpec) -> str:
    names = [pool.name for pool in hardware.pools]
    if len(names) > 1:
        raise stated.error(index, "pool", "does not say in which pool it stands", f"pool: {' or '.join(names)}")
    return names[0]


def _check_place(stated: Stated, index: int, group: m.StatedGroup, hardware: m.HardwareSpec) -> None:
    names = [pool.name for pool in hardware.pools]
    for key, pools in (("pool", (group.pool,)), ("stage_pools", group.stage_pools or ())):
        for name in pools:
            if name not in names:
                message, expected = f"names no pool: {name!r}", f"one of {', '.join(names)}"
                raise stated.error(index, key, message, expected, nearest_names(name, names))
    if group.stage_pools is not None:
        _check_stage_pools(stated, index, group.stage_pools, group)
    pool = hardware.pool(group.pool)
    for node in group.nodes or ():
        if node >= pool.nodes:
            message = f"there is no node {node} in pool {pool.name}, which has {pool.nodes}"
            raise stated.error(index, "nodes", message, f"nodes 0 to {pool.nodes - 1}")


def _check_stage_pools(stated: Stated, index: int, pools: tuple[str, ...], group: m.StatedGroup) -> None:
    """Stages in two pools or more, those of a pool together, and nothing stated that is of one pool."""
    if len(set(pools)) < 2:
        raise stated.error(
            index, "stage_pools", "all stages stand in one pool", f"pool: {pools[0]}, and no stage_pools"
        )
    if len([1 for a, b in pairwise(pools) if a != b]) + 1 > len(set(pools)):
        message = f"stages of one pool follow each other, and not {', '.join(pools)}"
        raise stated.error(index, "stage_pools", message, "an order that goes from pool to pool once")
    for key, stands in (("nodes", group.nodes is not None), ("role", group.role != "unified")):
        if stands:
            raise stated.error(index, key, "is not stated of replicas whose stages stand in several pools", f"no {key}")


def _with_types(stated: Stated, model: m.ModelSpec) -> m.ModelSpec:
    """The model with the types that groups state, where it says nothing; every group has one type of each."""
    update: dict[str, Any] = {}
    for key in ("weights", "kv_cache"):
        own = [getattr(group, key) for group in stated.groups if getattr(group, key) is not None]
        declared = getattr(model, key)
        if key not in model.model_fields_set:
            if key == "kv_cache" and own:  # undeclared weights are the checkpoint's own, and any type that is stated
                native = declared if len(own) < len(stated.groups) else ()
                update[key] = tuple(dict.fromkeys((*native, *own)))
            continue
        for index, group in enumerate(stated.groups):
            said = getattr(group, key)
            if said is None and len(declared) > 1:
                message = f"does not say its {key}, and models.{stated.model}.{key} declares several"
                raise stated.error(index, key, message, f"{key}: {' or '.join(declared)}")
            if said is not None and said not in declared:
                message = f"{key} {said} is not declared by models.{stated.model}.{key}: {', '.join(declared)}"
                raise stated.error(index, key, message, f"{key}: {' or '.join(declared)}")
    return model.model_copy(update=update)


def _with_targets(stated: Stated, model: m.ModelSpec, choices: m.Choices) -> Stated:
    """The groups with the decode group that each prefill group hands over to; roles and drafts are checked."""
    groups = list(stated.groups)
    unwanted = {"never": ("prefill", "decode"), "always": ("unified",)}.get(choices.disaggregation, ())
    decodes = [group.name for group in groups if group.role == "decode"]
    for index, group in enumerate(groups):
        if group.role in unwanted:
            message = f"is a {group.role} group, and choices.disaggregation is {choices.disaggregation}"
            raise stated.error(index, "role", message, "groups as it says, or disaggregation: auto")
        if group.draft_tokens:
            _check_drafts(stated, index, model)
        if group.role == "prefill":
            target = _target(stated, index, decodes)
            groups[index] = group.model_copy(update={"hands_over_to": target})
        elif group.hands_over_to is not None:
            message = f"a {group.role} group hands nothing over"
            raise stated.error(index, "hands_over_to", message, "role: prefill, or no hands_over_to")
    for index, group in enumerate(groups):
        if group.role == "decode" and all(other.hands_over_to != group.name for other in groups):
            message = "is a decode group, and no prefill group hands over to it"
            raise stated.error(index, "role", message, f"a prefill group with hands_over_to: {group.name}")
    return Stated(stated.model, tuple(groups), stated.at)


def _target(stated: Stated, index: int, decodes: list[str]) -> str:
    group = stated.groups[index]
    if group.hands_over_to is None:
        if len(decodes) == 1:
            return _alike(stated, index, decodes[0])
        message = "is a prefill group, and does not say which decode group takes its requests"
        expected = f"hands_over_to: {' or '.join(decodes)}" if decodes else "a group with role: decode beside it"
        raise stated.error(index, "hands_over_to", message, expected)
    if group.hands_over_to not in decodes:
        message = f"names no decode group of {stated.model}: {group.hands_over_to!r}"
        nearest = nearest_names(group.hands_over_to, decodes)
        expected = f"one of {', '.join(decodes)}" if decodes else "a group with role: decode"
        raise stated.error(index, "hands_over_to", message, expected, nearest)
    return _alike(stated, index, group.hands_over_to)


def _alike(stated: Stated, index: int, target: str) -> str:
    """`target`, where both sides run one engine and keep one type of KV cache."""
    group = stated.groups[index]
    other = next(item for item in stated.groups if item.name == target)
    for key in ("engine", "kv_cache"):
        own, there = getattr(group, key), getattr(other, key)
        if own != there:
            message = (
                f"{key} is {own or 'the default'}, and {there or 'the default'} in {target}, which it hands over to"
            )
            raise stated.error(index, key, message, f"one {key} on both sides")
    return target


def _check_drafts(stated: Stated, index: int, model: m.ModelSpec) -> None:
    speculative, drafts = model.speculative, stated.groups[index].draft_tokens
    if speculative is None:
        message = f"models.{stated.model} declares no speculative decoding"
        raise stated.error(index, "draft_tokens", message, "speculative: {method, acceptance, max_draft} there, or 0")
    if drafts > speculative.max_draft:
        message = f"{drafts} are more than models.{stated.model}.speculative.max_draft, {speculative.max_draft}"
        raise stated.error(index, "draft_tokens", message, f"at most {speculative.max_draft}")


def _check_serves(stated: Stated, traffic: tuple[m.TrafficClass, ...]) -> None:
    """Every class of the model is served once, all of it, and every group serves something."""
    own = [item.name for item in traffic if item.model == stated.model]
    model_of = {item.name: item.model for item in traffic}
    for index, group in enumerate(stated.groups):
        if group.serves is not None and group.role == "decode":
            raise stated.error(index, "serves", "a decode group takes what is handed over to it", "no serves")
        for name in group.serves or ():
            if name not in own:
                words = f"names no class of {stated.model}: {name!r}"
                if name in model_of:
                    words = f"class {name} is of model {model_of[name]}, not of {stated.model}"
                expected = f"one of {', '.join(own)}"
                raise stated.error(index, f"serves.{name}", words, expected, nearest_names(name, own))
    for name in own:
        _check_shares(stated, name)
    taken = {index for name in own for index in takers(stated.groups, name)}
    for index, group in enumerate(stated.groups):
        if group.role != "decode" and index not in taken:
            message = f"{group.name} takes no requests: other groups state shares of all of them"
            raise stated.error(index, "serves", message, "a share of some class, or no such group")


def _check_shares(stated: Stated, name: str) -> None:
    """The stated shares of a class are all of it, or leave the rest to somebody."""
    shares = [(index, (group.serves or {}).get(name)) for index, group in enumerate(stated.groups)]
    total, last = sum(share or 0.0 for _, share in shares), max((i for i, share in shares if share), default=0)
    said = " and ".join(f"{100 * share:.4g}% by {stated.groups[index].name}" for index, share in shares if share)
    if total > 1.0 + ROUNDING:
        message = f"{100 * total:.4g}% of class {name} is served: {said}"
        raise stated.error(last, "serves", message, "shares of a class that add up to 100%")
    rest = [i for i in takers(stated.groups, name) if not (stated.groups[i].serves or {}).get(name)]
    if total < 1.0 - ROUNDING and not rest:
        message = f"{100 * (1.0 - total):.4g}% of class {name} is served by no group" + (f" ({said})" if said else "")
        raise stated.error(last, "serves", message, "shares of a class that add up to 100%, or a group without serves")
    for index in rest:
        if total >= 1.0 - ROUNDING and name in (stated.groups[index].serves or {}):
            message = f"nothing of class {name} is left: {said}"
            raise stated.error(index, "serves", message, "shares of a class that add up to 100%")


def takers(groups: tuple[m.StatedGroup, ...], name: str) -> list[int]:
    """Groups that take requests of a class from clients: those that say so, and those that take what is left."""
    left = sum((group.serves or {}).get(name) or 0.0 for group in groups) < 1.0 - ROUNDING
    return [
        index
        for index, group in enumerate(groups)
        if group.role != "decode" and (left if group.serves is None else name in group.serves)
    ]


def _refuse_equal_names(every: list[Stated]) -> None:
    seen: set[str] = set()
    for stated in every:
        for index, group in enumerate(stated.groups):
            if group.name in seen:
                raise stated.error(index, "name", f"the name {group.name!r} stands twice", "different names")
            seen.add(group.name)


def _check_stock(every: list[Stated], hardware: m.HardwareSpec) -> None:
    taken = {pool.name: 0 for pool in hardware.pools}
    every_group = ((stated, index, group) for stated in every for index, group in enumerate(stated.groups))
    for stated, index, group in every_group:
        for name, gpus in group.gpus_by_pool.items():
            count, needed = hardware.pool(name).count, group.replicas * gpus
            left = count - taken[name]
            if needed > left:
                other = f" beside {taken[name]} of other groups" if taken[name] else ""
                message = f"{group.replicas} replicas of {gpus} devices are {needed}{other}; pool {name} has {count}"
                raise stated.error(index, "replicas", message, f"at most {left // gpus}, or a larger pool")
            taken[name] += needed


def refuse_stated(spec: m.DeploymentSpec, question: str) -> None:
    """`InputError` where groups are stated: `question` looks for other plans, and there are none."""
    for model in spec.choices.stated:
        raise InputError(
            f"{question} looks for other plans, and all replicas of {model} are stated",
            field=f"choices.{model}.groups",
            expected="choices to choose from: a value or a list for each, and no groups",
        )
