"""How a model is cut over ranks: what stands in the way of a size, and what one rank holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from specs.architecture.layer import Layer
from specs.architecture.mlps import MixtureOfExperts
from specs.architecture.weights import Ranks
from specs.document import DType
from specs.errors import InputError

if TYPE_CHECKING:
    from specs.architecture.model import Architecture


def obstacle(
    layers: Iterable[tuple[Layer, int]],
    block: int,
    tensor_parallel: int,
    expert_parallel: int | None,
    attention_data_parallel: int = 1,
) -> str | None:
    """The first reason why `tensor_parallel` ranks cannot hold these layers, or None.

    Heads are never cut; KV heads and state groups may be repeated when there are more ranks. MLP widths are cut in
    whole scale blocks. Routed experts are cut inside (expert_parallel 1), spread (over all tensor_parallel x
    attention_data_parallel ranks), or both.
    """
    if tensor_parallel < 1:
        return f"{tensor_parallel} is not a number of ranks"
    for layer, _ in layers:
        if layer.mixer is not None:
            for divisible in layer.mixer.divisible():
                reason = divisible.obstacle(tensor_parallel)
                if reason is not None:
                    return reason
        if layer.mlp is not None:
            for what, width in layer.mlp.widths():
                reason = _width_obstacle(what, width, block, tensor_parallel)
                if reason is not None:
                    return reason
        if isinstance(layer.mlp, MixtureOfExperts):
            ranks = tensor_parallel * attention_data_parallel
            reason = _experts_obstacle(layer.mlp, block, ranks, expert_parallel)
            if reason is not None:
                return reason
    return None


def _width_obstacle(what: str, width: int, block: int, ranks: int) -> str | None:
    if width % ranks:
        return f"{width} {what} cannot be split evenly over {ranks} ranks"
    if ranks > 1 and (width // ranks) % block:
        share = width // ranks
        return f"{width} {what} over {ranks} ranks are {share} each, not whole blocks of {block} that share a scale"
    return None


def _experts_obstacle(mlp: MixtureOfExperts, block: int, ranks: int, expert_parallel: int | None) -> str | None:
    if expert_parallel is None:
        inside = _experts_obstacle(mlp, block, ranks, 1)
        return inside if inside is not None and _experts_obstacle(mlp, block, ranks, ranks) is not None else None
    if ranks % expert_parallel:
        return f"expert parallelism of {expert_parallel} does not divide {ranks} ranks"
    if mlp.experts % expert_parallel:
        return f"{mlp.experts} experts cannot be spread evenly over {expert_parallel} ranks"
    return _width_obstacle("columns of an expert", mlp.intermediate_size, block, ranks // expert_parallel)


def weight_elements_per_rank(
    architecture: Architecture,
    tensor_parallel: int,
    expert_parallel: int = 1,
    stage_layers: range | None = None,
    first: bool = True,
    last: bool = True,
    attention_data_parallel: int = 1,
) -> tuple[int, int]:
    """(quantised, other) weight elements on the fullest rank of a pipeline stage.

    The stage holds the layers `stage_layers` (None = all), the embedding if `first`, the head if `last`; tied
    embeddings are counted once where a stage has both. Experts are spread over `expert_parallel` of the stage's
    tensor_parallel x attention_data_parallel ranks and cut inside over the rest; `InputError` if that is no division.
    """
    ranks = tensor_parallel * attention_data_parallel
    if expert_parallel < 1 or ranks % expert_parallel:
        raise InputError(
            f"expert parallelism of {expert_parallel} does not divide the {ranks} ranks of a stage",
            field="expert_parallel",
        )
    cut = Ranks(tensor_parallel, expert_parallel, ranks // expert_parallel)
    quantised = other = 0
    for layer, count in architecture.layer_counts(stage_layers):
        layer_quantised, layer_other = layer.rank_elements(cut)
        quantised, other = quantised + count * layer_quantised, other + count * layer_other
    if first:
        other += sum(tensor.rank_elements(cut) for tensor in architecture.embedding_tensors())
    if last:
        other += sum(tensor.rank_elements(cut) for tensor in architecture.head_tensors())
        if architecture.tied_embeddings and not first:  # the last stage needs its own copy of the table
            other += architecture.embedding_tensors()[0].rank_elements(cut)
    return quantised, other


def weight_bytes_per_rank(
    architecture: Architecture,
    weights_dtype: DType,
    tensor_parallel: int,
    expert_parallel: int = 1,
    stage_layers: range | None = None,
    first: bool = True,
    last: bool = True,
    attention_data_parallel: int = 1,
) -> int:
    """Bytes of the same: quantised elements with their scales, others in 16 bits (or `weights_dtype` if wider)."""
    quantised, other = weight_elements_per_rank(
        architecture, tensor_parallel, expert_parallel, stage_layers, first, last, attention_data_parallel
    )
    per_element = architecture.weight_bytes_per_element(weights_dtype)
    return round(quantised * per_element + other * max(2.0, weights_dtype.bytes))


def expert_slot_bytes(
    architecture: Architecture, weights_dtype: DType, expert_tensor_parallel: int, stage_layers: range | None = None
) -> float:
    """Bytes of one expert on one rank, over all layers of a stage (None = all): what one slot more a layer takes."""
    cut = Ranks(expert_tensor_parallel, 1, expert_tensor_parallel)
    found = 0.0
    for layer, count in architecture.layer_counts(stage_layers):
        for tensor in layer.tensors():
            if tensor.expert_axis:
                quantised = architecture.weight_bytes_per_element(weights_dtype)
                per_element = quantised if tensor.quantised else max(2.0, weights_dtype.bytes)
                found += count * tensor.rank_elements(cut) / tensor.experts * per_element
    return found
