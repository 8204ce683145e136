"""What engine capstan can compile in this version: asked by codegen, which refuses by name, and by planners."""

from __future__ import annotations

from specs.architecture import Architecture, Attention, DenseMLP, Layer, MixtureOfExperts
from specs.document import DType
from specs.plan import Layout

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")
DTYPES = (DType.FP32, DType.BF16, DType.FP16)  # of weights, activations and KV cache
ROPE_KINDS = ("default", "linear", "llama3")


def obstacle_to_compiling(
    architecture: Architecture, layout: Layout, weights_dtype: DType, kv_dtype: DType
) -> str | None:
    """Why there is no program for this model, layout and types, in one sentence; None where there is one.

    A program is one rank of a tensor-parallel group: no pipeline, no attention data parallelism, experts cut inside.
    The kernels of a GPU target may still refuse a shape (`specs.kernels.reason_against`).
    """
    return (
        _obstacle_of_model(architecture)
        or _obstacle_of_types(weights_dtype, kv_dtype)
        or _obstacle_of_layout(architecture, layout)
    )


def _obstacle_of_model(architecture: Architecture) -> str | None:
    name, rope = architecture.name, architecture.rope
    if architecture.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        return f"model family {architecture.family!r} cannot be compiled in this version; those that can: {known}"
    if architecture.quantisation is not None:
        stored = architecture.quantisation.dtype.value
        return f"{name} is stored in {stored}; quantised checkpoints cannot be compiled in this version"
    if rope is None or rope.kind not in ROPE_KINDS or rope.partial_rotary_factor != 1.0:
        kind = "none" if rope is None else rope.kind if rope.kind not in ROPE_KINDS else "on a part of each head"
        known = ", ".join(ROPE_KINDS)
        return f"rotary embedding ({kind}) of {name} cannot be compiled in this version; those that can: {known}"
    for index, layer in enumerate(architecture.layers):
        if not _is_expressed(layer):
            return f"layer {index} of {name} has no program in this version"
    return None


def _is_expressed(layer: Layer) -> bool:
    mixer, mlp = layer.mixer, layer.mlp
    if not isinstance(mixer, Attention) or mixer.sinks or not mixer.rotary:
        return False
    if isinstance(mlp, MixtureOfExperts):
        plain = mlp.scoring == "softmax" and mlp.expert_groups == 1 and mlp.scaling == 1.0 and mlp.latent_size is None
        return plain and mlp.gated and not (mlp.shared_intermediate_size or mlp.router_bias or mlp.correction_bias)
    return isinstance(mlp, DenseMLP) and mlp.gated


def _obstacle_of_types(weights_dtype: DType, kv_dtype: DType) -> str | None:
    for what, dtype in (("weights", weights_dtype), ("KV cache", kv_dtype)):
        if dtype not in DTYPES:
            return f"{what} in {dtype.value} cannot be compiled in this version; bf16, fp16 and fp32 can"
    return None


def _obstacle_of_layout(architecture: Architecture, layout: Layout) -> str | None:
    for what, size in (
        ("pipeline_parallel", layout.pipeline_parallel),
        ("attention_data_parallel", layout.attention_data_parallel),
        ("expert_parallel", layout.expert_parallel),
    ):
        if size > 1:
            return f"{what} of {size} cannot be compiled in this version: programs are split by tensor parallelism only"
    if sum(layout.pipeline_stages) != len(architecture.layers):
        layers = sum(layout.pipeline_stages)
        return f"pipeline_stages hold {layers} layers, {architecture.name} has {len(architecture.layers)}"
    obstacle = architecture.tensor_parallel_obstacle(layout.tensor_parallel, 1)
    return None if obstacle is None else f"tensor_parallel of {layout.tensor_parallel}: {obstacle}"
