"""`choices.MODEL.groups` as they are written. What must fit together of them: `stated.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from specs.deployment import models as m
from specs.deployment.grammar import Field, ListOf, MapOf, OneOrMore, Place, Record, Shape, checked_name, text_of
from specs.deployment.scalars import BYTES, DTYPE, POSITIVE_SHARE, TOKENS, Count, Flag, Name, OneOf, Parsed
from specs.errors import InputError
from specs.quantities import shown
from specs.yaml_source import Mapping as MappingNode
from specs.yaml_source import Node, Scalar, Sequence

T = TypeVar("T")
_VERSION = r"v?[0-9]+(\.[0-9]+)*[a-z0-9.+-]*"
_PARALLEL = Count(high=1024)


class Serves(Shape[dict[str, float | None]]):
    """A class, several, or shares by class."""

    says = "a class, a list of classes, or shares such as {chat: 60%}"
    _shares = MapOf(POSITIVE_SHARE, "shares such as {chat: 60%}")

    def read(self, node: Node, at: Place) -> dict[str, float | None]:
        if isinstance(node, MappingNode):
            return {**self._shares.read(node, at)}
        if isinstance(node, Scalar):
            return {checked_name(text_of(node, at, self.says), at): None}
        return dict.fromkeys(OneOrMore(Name()).read(node, at))

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [Name().schema(), ListOf(Name()).schema(), self._shares.schema()]}


@dataclass(frozen=True)
class Repeated(Shape[tuple[T, ...]]):
    """Something for each stage, as a list; unlike in `OneOrMore`, equal items may follow each other."""

    item: Shape[T]
    says: str

    def read(self, node: Node, at: Place) -> tuple[T, ...]:
        if not isinstance(node, Sequence):
            raise at.error("is not a list", self.says)
        return ListOf(self.item).read(node, at)

    def schema(self) -> dict[str, Any]:
        return ListOf(self.item).schema()


_LAYERS = Repeated(Count(high=10_000), "the layers of each stage, such as [30, 18]")


def _version(text: str) -> str:
    if not re.fullmatch(_VERSION, text):
        raise InputError(f"{shown(text)} is no version")
    return text


def _finish_group(values: dict[str, Any], at: Place) -> None:
    values.setdefault("name", "")
    for key in ("pipeline_stages", "stage_pools"):
        stages = values.get(key)
        if stages is not None and values.setdefault("pipeline_parallel", len(stages)) != len(stages):
            message = f"lists {len(stages)} stages, and there are {values['pipeline_parallel']}"
            raise at.error(message, "as many as pipeline_parallel and the other lists of stages say", field=key)
    pools = values.get("stage_pools", ())
    if pools and values.setdefault("pool", pools[0]) != pools[0]:
        message = f"the first stage stands in {pools[0]}, and pool is {values['pool']}"
        raise at.error(message, f"pool: {pools[0]}, or no pool", field="pool")
    values.setdefault("pool", "")


GROUP = Record(
    m.StatedGroup,
    {
        "name": Field(Name(), "what the group is called in the plan (default: MODEL-0, MODEL-1, ...)"),
        "pool": Field(Name(), "where its replicas stand (default: the pool, where there is one)"),
        "replicas": Field(Count(), "running copies", required=True),
        "nodes": Field(OneOrMore(Count(low=0)), "nodes of the pool, from 0 (default: wherever there is room)"),
        "engine": Field(OneOf(get_args(m.Engine)), "default: that of `choices.engine`, where it is one"),
        "engine_version": Field(
            Parsed("a version such as 0.12.0", _version, f"^{_VERSION}$"),
            "release of the engine (default: the one that the catalogue knows best)",
        ),
        "serves": Field(
            Serves(),
            "which classes it takes, and what share of each; a class alone: by capacity (default: what groups with "
            "shares leave of every class, by capacity)",
        ),
        "role": Field(OneOf(("unified", "prefill", "decode")), "prefill and decode apart (default unified)"),
        "hands_over_to": Field(Name(), "of a prefill group: the decode group (default: the only one)"),
        "tensor_parallel": Field(_PARALLEL, "devices that share every layer (default 1)"),
        "pipeline_parallel": Field(_PARALLEL, "stages of layers (default 1)"),
        "pipeline_stages": Field(_LAYERS, "layers of each stage, in order (default: evenly)"),
        "stage_pools": Field(
            Repeated(Name(), "the pool of each stage, such as [old, new]"),
            "where the stages stand, where that is in several pools (default: all in `pool`)",
        ),
        "attention_data_parallel": Field(_PARALLEL, "groups of ranks that share out requests in attention (default 1)"),
        "expert_parallel": Field(_PARALLEL, "ranks that experts are spread over (default 1: every expert is cut)"),
        "weights": Field(DTYPE, "weight type (default: the model's)"),
        "kv_cache": Field(DTYPE, "KV cache type (default: the model's)"),
        "max_num_seqs": Field(Count(), "sequences in one batch (default: the engine's)"),
        "max_num_batched_tokens": Field(TOKENS, "token budget of one step (default: the engine's)"),
        "max_context": Field(TOKENS, "longest prompt plus output served (default: the model's)", "max_context_tokens"),
        "memory_fraction": Field(POSITIVE_SHARE, "of device memory that the engine may take (default: the engine's)"),
        "prefix_caching": Field(Flag(), "whether prompts that begin alike are computed once (default: the engine's)"),
        "host_kv_cache": Field(
            BYTES, "host memory for KV blocks, of one replica with all its ranks (default: none)", "host_kv_bytes"
        ),
        "draft_tokens": Field(
            Count(low=0, high=1000), "proposed in a step, by what `models.MODEL.speculative` declares (default 0: none)"
        ),
        "order": Field(OneOf(("fcfs", "priority")), "in which requests are served (default fcfs)"),
    },
    _finish_group,
)
