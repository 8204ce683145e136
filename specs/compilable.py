"""What engine capstan can compile in this version: asked by codegen, which refuses by name, and by planners."""

from __future__ import annotations

from pathlib import Path

from specs.architecture import Architecture, Attention, DenseMLP, Layer, MixtureOfExperts, Rope, load_architecture
from specs.deployment.models import DeploymentSpec
from specs.document import DType
from specs.errors import InputError, NotHonouredError
from specs.plan import Layout

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")
DTYPES = (DType.FP32, DType.BF16, DType.FP16)  # of weights, activations and KV cache
ROPE_KINDS = ("default", "linear", "llama3")
ROPE_NUMBERS = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
ROPE_KEYS = ("rope_parameters", "rope_scaling", "partial_rotary_factor")


def obstacle_to_compiling(
    architecture: Architecture, layout: Layout, weights_dtype: DType, kv_dtype: DType
) -> str | None:
    """Why there is no program for this model, layout and types, in one sentence; None where there is one.

    A program is one rank of a tensor-parallel group: no pipeline, no attention data parallelism, experts cut inside.
    The kernels of a GPU target may still refuse a shape (`specs.kernels.reason_against`).
    """
    of_model = _obstacle_of_model(architecture)
    return (
        (None if of_model is None else of_model[1])
        or _obstacle_of_types(weights_dtype, kv_dtype)
        or _obstacle_of_layout(architecture, layout)
    )


def refuse_uncompilable(spec: DeploymentSpec, base_dir: str | Path) -> None:
    """`NotHonouredError` for a model that no choice of layout or types makes a program of, where engine capstan is the
    only one allowed: it names the model's config and the key in it.
    """
    if spec.engines != ("capstan",):
        return
    for name, model in spec.models.items():
        field, source = f"models.{name}.architecture", model.architecture
        try:
            found = _obstacle_of_model(load_architecture(source, base_dir=base_dir))
        except InputError:
            continue  # whoever plans says so, with the statement's line
        if found is None:
            continue
        key, reason = found
        path = Path(base_dir) / source if isinstance(source, str) else None
        file = None if path is None or not path.exists() else str(path / "config.json" if path.is_dir() else path)
        field = key if file is not None else field if isinstance(source, str) else f"{field}.{key}"
        raise NotHonouredError(reason, file=file, field=field, expected="another checkpoint, or another engine")


def _obstacle_of_model(architecture: Architecture) -> tuple[str, str] | None:
    """(key of the config, why there is no program), or None."""
    name, rope = architecture.name, architecture.rope
    if architecture.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        reason = f"model family {architecture.family!r} cannot be compiled in this version; those that can: {known}"
        return "model_type", reason
    if architecture.quantisation is not None:
        stored = architecture.quantisation.dtype.value
        reason = f"{name} is stored in {stored}; quantised checkpoints cannot be compiled in this version"
        return "quantization_config", reason
    if rope is None or rope.kind not in ROPE_KINDS or rope.partial_rotary_factor != 1.0:
        kind = "none" if rope is None else rope.kind if rope.kind not in ROPE_KINDS else "on a part of each head"
        known = ", ".join(ROPE_KINDS)
        reason = f"rotary embedding ({kind}) of {name} cannot be compiled in this version; those that can: {known}"
        return next((key for key in ROPE_KEYS if architecture.config.get(key) is not None), "rope_theta"), reason
    wrong = _wrong_rope_number(rope)
    if wrong is not None:
        return next((key for key in ROPE_KEYS if architecture.config.get(key) is not None), "rope_theta"), wrong
    for index, layer in enumerate(architecture.layers):
        if not _is_expressed(layer):
            return "architectures", f"layer {index} of {name} has no program in this version"
    return None


def _wrong_rope_number(rope: Rope) -> str | None:
    """What a scaled rotary embedding lacks to be computed."""
    numbers = dict(rope.parameters)
    for key in ROPE_NUMBERS.get(rope.kind, ()):
        value = numbers.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            return f"{key} of the rotary embedding ({rope.kind}) is {value!r}, which is not a number above 0"
    low, high = numbers.get("low_freq_factor"), numbers.get("high_freq_factor")
    if rope.kind == "llama3" and low == high:
        return f"low_freq_factor and high_freq_factor of the rotary embedding are both {low!r}"
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
        (f"{layout.pipeline_parallel} pipeline_stages", layout.pipeline_parallel),
        (f"attention_data_parallel of {layout.attention_data_parallel}", layout.attention_data_parallel),
        (f"expert_parallel of {layout.expert_parallel}", layout.expert_parallel),
    ):
        if size > 1:
            return f"{what} cannot be compiled in this version: programs are split by tensor parallelism only"
    if sum(layout.pipeline_stages) != len(architecture.layers):
        layers = sum(layout.pipeline_stages)
        return f"pipeline_stages hold {layers} layers, {architecture.name} has {len(architecture.layers)}"
    obstacle = architecture.tensor_parallel_obstacle(layout.tensor_parallel, 1)
    return None if obstacle is None else f"tensor_parallel of {layout.tensor_parallel}: {obstacle}"
