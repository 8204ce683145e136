"""The weight map: which slots a program reads, and of which checkpoint tensors this rank's part of each is made."""

from __future__ import annotations

from collections.abc import Iterable

from codegen.program.rank import RankLayer, RankModel
from specs.architecture import WeightTensor
from specs.program import WeightPart, WeightSlot

# Slot within a layer <- (pack, roles of the checkpoint tensors in order). Slots are named after what a program does
# with them, not after a checkpoint.
ATTENTION = {
    "mixer_norm": ("one", ("mixer_norm.weight",)),
    "qkv_proj": ("concat", ("q_proj.weight", "k_proj.weight", "v_proj.weight")),
    "qkv_bias": ("concat", ("q_proj.bias", "k_proj.bias", "v_proj.bias")),
    "q_norm": ("one", ("q_norm.weight",)),
    "k_norm": ("one", ("k_norm.weight",)),
    "o_proj": ("one", ("o_proj.weight",)),
    "o_bias": ("one", ("o_proj.bias",)),
    "mlp_norm": ("one", ("mlp_norm.weight",)),
}
DENSE = {
    "gate_up_proj": ("concat", ("gate_proj.weight", "up_proj.weight")),
    "gate_up_bias": ("concat", ("gate_proj.bias", "up_proj.bias")),
    "down_proj": ("one", ("down_proj.weight",)),
    "down_bias": ("one", ("down_proj.bias",)),
}
EXPERTS = {
    "router": ("one", ("router.weight",)),
    "experts_gate_up": ("stack", ("expert_gate_proj.weight", "expert_up_proj.weight")),
    "experts_down": ("stack", ("expert_down_proj.weight",)),
}


def weight_slots(model: RankModel) -> tuple[WeightSlot, ...]:
    """All slots in the order in which `forward` reads them."""
    architecture = model.architecture
    embedding = {tensor.name: tensor for tensor in architecture.embedding_tensors()}
    head = {tensor.name: tensor for tensor in architecture.head_tensors()}
    slots = [_slot(model, "embed_tokens", "one", [embedding["embed_tokens.weight"]], None)]
    for layer in model.layers:
        slots += _layer_slots(model, layer)
    slots.append(_slot(model, "final_norm", "one", [head["final_norm.weight"]], None))
    if not architecture.tied_embeddings:
        slots.append(_slot(model, "lm_head", "one", [head["lm_head.weight"]], None))
    return tuple(slots)


def _layer_slots(model: RankModel, layer: RankLayer) -> Iterable[WeightSlot]:
    by_role = {tensor.name: tensor for tensor in model.architecture.layers[layer.index].tensors()}
    for name, (pack, roles) in (ATTENTION | (EXPERTS if layer.experts else DENSE)).items():
        tensors = [by_role.pop(role) for role in roles if role in by_role]
        if tensors:
            yield _slot(model, layer.prefix + name, pack, tensors, layer.index)
    if by_role:
        raise ValueError(f"layer {layer.index}: no slot for {', '.join(by_role)}")


def _slot(model: RankModel, name: str, pack: str, tensors: list[WeightTensor], layer: int | None) -> WeightSlot:
    parts = _parts(model, tensors, layer)
    shapes = [part.rank_shape(model.tensor_parallel) for part in parts]
    group = len(tensors)
    if pack == "one":
        shape: tuple[int, ...] = shapes[0]
    elif pack == "concat":
        shape = (sum(one[0] for one in shapes), *shapes[0][1:])
    else:
        shape = (len(parts) // group, sum(one[0] for one in shapes[:group]), *shapes[0][1:])
    return WeightSlot.model_validate(
        {
            "name": name,
            "dtype": model.compute_dtype,
            "shape": shape,
            "pack": pack,
            "group": group if pack == "stack" else 1,
            "parts": parts,
        }
    )


def _parts(model: RankModel, tensors: list[WeightTensor], layer: int | None) -> tuple[WeightPart, ...]:
    """One part for a tensor; expert by expert (gate, up of expert 0, of expert 1 ...) where there are `count`."""
    names = model.architecture.weight_names
    parts = []
    for expert in range(tensors[0].count):
        for tensor in tensors:
            role, dot, suffix = tensor.name.partition(".")
            name = names[role].replace("{layer}", str(layer)).replace("{expert}", str(expert)) + dot + suffix
            parts.append(
                WeightPart(
                    checkpoint_name=name,
                    shape=tensor.shape,
                    shard_axis=tensor.shard_axis,
                    segments=tuple((segment.size, segment.units) for segment in tensor.segments),
                )
            )
    return tuple(parts)
