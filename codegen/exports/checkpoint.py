"""Which checkpoint an engine loads for a model of the plan, and what its config.json says of weights and KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from specs.architecture import stated_quantisation
from specs.document import DType
from specs.errors import InputError
from specs.plan import Plan

# Quantisation methods as checkpoints name them -> dtype of the stored weights.
_METHODS = {
    "fp8": DType.FP8,
    "fbgemm_fp8": DType.FP8,
    "mxfp8": DType.FP8,
    "mxfp4": DType.FP4,
    "gpt_oss_mxfp4": DType.FP4,
    "modelopt_fp4": DType.FP4,
    "nvfp4": DType.FP4,
    "awq": DType.INT4,
    "gptq": DType.INT4,
    "bitsandbytes": DType.INT4,
}


def checkpoint_name(plan: Plan, model: str) -> str:
    """Hugging Face id or directory that the engine loads: what the spec declares, never a relative with equal shape."""
    declared = _declared(plan, model)
    if not isinstance(declared, str) or not declared.strip():
        raise InputError(
            "is declared inline, so there is no checkpoint to load",
            field=f"spec.models.{model}.architecture",
            expected="a Hugging Face id (ORG/NAME) or a directory with config.json and weights",
        )
    if declared.endswith("config.json"):
        return str(PurePosixPath(declared).parent)
    if is_directory(declared) or declared.count("/") == 1:
        return declared
    # A bare catalogue alias: the catalogue knows the id.
    from specs.architecture import load_architecture

    name = str(load_architecture(declared).name)
    if name.count("/") != 1:
        raise InputError(
            f"{declared!r} does not say which checkpoint to load",
            field=f"spec.models.{model}.architecture",
            expected="a Hugging Face id (ORG/NAME) or a directory with config.json and weights",
        )
    return name


def is_directory(name: str) -> bool:
    """Whether a checkpoint's name is a path rather than a Hugging Face id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def checkpoint_dtype(plan: Plan, model: str) -> DType | None:
    """Dtype of the weights that the checkpoint was quantised to, by its own config; None where it is not quantised.

    `InputError` where the config names a method that says nothing about the size of the weights.
    """
    stated = stated_quantisation(plan.architectures.get(model, {}))
    if stated is None:
        return None
    method = str(stated.get("quant_method", "")).lower()
    bits = _stated_bits(stated)
    if method in ("compressed-tensors", "modelopt", "quark") and bits is not None:
        number_type, width = bits
        if width == 8:
            return DType.INT8 if number_type == "int" else DType.FP8
        return DType.INT4 if number_type == "int" else DType.FP4
    if method == "modelopt":
        return DType.FP4 if "FP4" in str(stated.get("quant_algo", "")).upper() else DType.FP8
    if method in ("gptq", "bitsandbytes") and (stated.get("bits") == 8 or stated.get("load_in_8bit")):
        return DType.INT8
    if method in _METHODS:
        return _METHODS[method]
    raise InputError(
        f"is quantised by a method that this version does not know ({method or 'not stated'})",
        field=f"architectures.{model}.quantization_config.quant_method",
        expected=", ".join(sorted({*_METHODS, "compressed-tensors", "modelopt"})),
    )


def quantises_kv(plan: Plan, model: str) -> bool:
    """Whether the checkpoint's config asks for a quantised KV cache, which `--kv-cache-dtype auto` would follow."""
    stated = stated_quantisation(plan.architectures.get(model, {}))
    return stated is not None and bool(stated.get("kv_cache_scheme") or stated.get("kv_cache_quant_algo"))


def _stated_bits(stated: Mapping[str, Any]) -> tuple[str, int] | None:
    """(number type, bits) of the weights of the first group of a compressed-tensors style config."""
    groups = stated.get("config_groups")
    if not isinstance(groups, Mapping):
        return None
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and isinstance(weights.get("num_bits"), int):
            return str(weights.get("type", "float")), weights["num_bits"]
    return None


def keeps_uniform_kv(plan: Plan, model: str) -> bool:
    """Whether every layer keeps KV of every token: no sliding windows, no recurrent layers."""
    config = _text_config(plan, model)
    kinds = config.get("layer_types") or config.get("layers_block_type") or ()
    if any(kind not in ("full_attention", "attention") for kind in kinds):
        return False
    if config.get("hybrid_override_pattern") or config.get("full_attention_interval", 1) not in (None, 1):
        return False
    # Qwen2 and Qwen3 state a window that `use_sliding_window: false` switches off.
    return not (config.get("sliding_window") and config.get("use_sliding_window", True) and not kinds)


def compresses_kv(plan: Plan, model: str) -> bool:
    """Whether the model caches one latent vector per token (multi-head latent attention), not keys and values."""
    return (_integer(_text_config(plan, model), "kv_lora_rank") or 0) > 0


def layer_count(plan: Plan, model: str) -> int | None:
    return _integer(_text_config(plan, model), "num_hidden_layers")


def attention_heads(plan: Plan, model: str) -> int | None:
    return _integer(_text_config(plan, model), "num_attention_heads")


def is_mixture_of_experts(plan: Plan, model: str) -> bool:
    config = _text_config(plan, model)
    return any((_integer(config, key) or 0) > 1 for key in ("num_experts", "num_local_experts", "n_routed_experts"))


def longest_context(plan: Plan, model: str) -> int | None:
    """Positions that the engine accepts; None where the config does not state them or rescales them."""
    config = _text_config(plan, model)
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default") if isinstance(scaling, Mapping) else ""
    # llama3 scaling is already in max_position_embeddings; other kinds multiply it in ways that the engine decides.
    if kind not in ("", "default", "llama3"):
        return None
    return _integer(config, "max_position_embeddings")


def _integer(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text_config(plan: Plan, model: str) -> Mapping[str, Any]:
    """The part of config.json that describes the language model."""
    config = plan.architectures.get(model, {})
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _declared(plan: Plan, model: str) -> Any:
    models = plan.spec.get("models")
    entry = models.get(model) if isinstance(models, Mapping) else None
    if not isinstance(entry, Mapping):
        raise InputError(f"does not declare the model {model!r} that a group serves", field="spec.models")
    return entry.get("architecture")
