"""Parts of a config that families share: rotary embedding, sliding windows, element types, quantisation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from specs.architecture.model import Quantisation, Rope
from specs.architecture.reading import MAX_SIZE, ConfigReader
from specs.document import DType
from specs.errors import nearest_names

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")
COMPUTE_DTYPES = {"bfloat16": DType.BF16, "float16": DType.FP16, "float32": DType.FP32}


def read_layer_ropes(reader: ConfigReader, window_theta: str | None = None) -> tuple[Rope, Rope | None]:
    """(of full attention, of windowed layers): `rope_parameters` by kind of layer, or one set of parameters.

    `window_theta`: the key of the windowed layers' theta where one set is otherwise of all layers.
    """
    key, kinds = "rope_parameters", ("full_attention", "sliding_attention")
    found = reader.raw(key)
    theta = reader.number(window_theta) if window_theta is not None and reader.has(window_theta) else None
    if not isinstance(found, Mapping) or not any(kind in found for kind in kinds):
        rope = read_rope(reader)
        return rope, None if theta is None else replace(rope, theta=theta)
    for again in ("rope_theta", "partial_rotary_factor"):  # beside it, a copy for one kind of layer
        reader.raw(again)
    parts = []
    for kind in kinds:
        if not isinstance(found.get(kind), Mapping):
            raise reader.error(key, f"has no parameters of {kind} layers", f"a mapping for each of {', '.join(kinds)}")
        parts.append(read_rope(ConfigReader({key: found[kind]}, reader.name, reader.file)))
    return parts[0], parts[1]


def read_rope(reader: ConfigReader, default_theta: float = 10_000.0, default_partial: float = 1.0) -> Rope:
    """`rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (before); both must not disagree."""
    theta = reader.number("rope_theta", default_theta)
    partial = reader.number("partial_rotary_factor", default_partial, high=1.0)
    key = "rope_parameters" if reader.has("rope_parameters") else "rope_scaling"
    scaling = reader.raw(key)
    reader.raw("rope_scaling")  # the older form beside the newer one is a copy of it
    if scaling is None:
        return Rope(theta, partial_rotary_factor=partial)
    if not isinstance(scaling, Mapping) or any(isinstance(value, Mapping) for value in scaling.values()):
        raise reader.error(key, "is not one set of rotary parameters for all layers", "a mapping of numbers")
    inner = ConfigReader(scaling, reader.name)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise reader.error(
            key,
            f"has the unknown method {kind!r}",
            "one of " + ", ".join(ROPE_KINDS),
            nearest_names(str(kind), ROPE_KINDS, 1),
        )
    own_theta = inner.raw("rope_theta")
    if own_theta is not None:
        if reader.has("rope_theta") and own_theta != theta:
            raise reader.error(key, f"says rope_theta {own_theta!r}, beside a rope_theta of {theta:g}", "one of them")
        theta = inner.number("rope_theta")
    if scaling.get("partial_rotary_factor") is not None:
        partial = inner.number("partial_rotary_factor", high=1.0)
    rest: list[tuple[str, float | bool | str | tuple[float, ...]]] = []
    for name in sorted(set(scaling) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}):
        value = scaling[name]
        if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
            rest.append((name, tuple(value)))
        elif isinstance(value, bool | int | float | str):
            rest.append((name, value))
        elif value is not None:
            raise reader.error(key, f"has {name} = {value!r}", "numbers")
    return Rope(theta, str(kind), partial, tuple(rest))


def read_windows(
    reader: ConfigReader, layers: int, rule: Literal["none", "all", "switch", "alternate"]
) -> tuple[int | None, ...]:
    """The window of each layer. `layer_types` decides where given; else the family's rule:

    none: no windows; all: every layer where `sliding_window` is set (Mistral); switch: with `use_sliding_window`, the
    layers from `max_window_layers` on (Qwen); alternate: even layers (gpt-oss).
    """
    window = reader.optional_integer("sliding_window", high=1 << 31)
    if rule == "none" and window is not None:
        raise reader.error("sliding_window", f"is {window}; this family attends to the whole context", "null")
    if rule == "switch":
        used = reader.boolean("use_sliding_window", False)
        first_windowed = reader.integer("max_window_layers", layers, low=0)
        window = window if used else None
        if used and window is None:
            raise reader.missing("sliding_window")
    types = reader.raw("layer_types")
    if types is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != layers or not all(one in known for one in types):
            raise reader.error(
                "layer_types", "does not fit the model", f"{layers} entries, each one of {' or '.join(known)}"
            )
        if "sliding_attention" in types and window is None:
            raise reader.error("layer_types", "has sliding_attention where sliding_window is not in use", known[0])
        return tuple(window if one == "sliding_attention" else None for one in types)
    if rule == "all":
        return (window,) * layers
    if rule == "switch":
        return tuple(window if index >= first_windowed else None for index in range(layers))
    if rule == "alternate":
        if window is None:
            raise reader.missing("sliding_window")
        return tuple(window if index % 2 == 0 else None for index in range(layers))
    return (None,) * layers


def stated_quantisation(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`quantization_config` of a config, or of the text model inside a multimodal one; None where there is none."""
    for part in (config, config.get("text_config")):
        found = part.get("quantization_config") if isinstance(part, Mapping) else None
        if isinstance(found, Mapping) and found:
            return found
    return None


def reads_as_excluded(reader: ConfigReader, module: str) -> bool:
    """Whether the checkpoint of compressed-tensors leaves `module`, a full name, unquantised.

    Its `ignore` list holds full names and regular expressions after "re:". Other methods list what families know.
    """
    found = reader.raw("quantization_config")
    ignored = found.get("ignore") if isinstance(found, Mapping) else None
    for entry in ignored if isinstance(ignored, list) else ():
        if not isinstance(entry, str):
            continue
        try:
            if entry == module or (entry.startswith("re:") and re.match(entry[3:], module)):
                return True
        except re.error as error:
            raise reader.error("quantization_config", f"ignores {entry!r}, which is no expression ({error})") from None
    return False


def read_compute_dtype(reader: ConfigReader) -> DType:
    """`dtype` (transformers 5) or `torch_dtype`; bf16 where neither is stated."""
    key = "dtype" if reader.has("dtype") else "torch_dtype"
    value = reader.raw(key)
    if value is None:
        return DType.BF16
    if not isinstance(value, str) or value not in COMPUTE_DTYPES:
        raise reader.error(key, f"is {value!r}", "one of " + ", ".join(COMPUTE_DTYPES))
    return COMPUTE_DTYPES[value]


def read_quantisation(reader: ConfigReader) -> Quantisation | None:
    """How the checkpoint's quantised weights are stored. Lists of excluded modules are not read: families know them."""
    key = "quantization_config"
    found = reader.raw(key)
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise reader.error(key, "is not a mapping", "the quantisation of the checkpoint")
    method, algorithm = found.get("quant_method"), found.get("quant_algo")
    if method in ("fp8", "fbgemm_fp8"):
        return _fp8(reader, found)
    if method == "mxfp4":
        return Quantisation(DType.FP4, scale_bytes_per_element=1 / 32)  # one 8-bit exponent for 32 elements; padded
    if algorithm == "FP8":
        return Quantisation(DType.FP8)
    if algorithm == "NVFP4":
        return Quantisation(DType.FP4, scale_bytes_per_element=1 / 16)  # one FP8 scale for 16 elements; padded
    if method in ("gptq", "awq") and found.get("bits") in (4, 8):
        return Quantisation(DType.INT4 if found["bits"] == 4 else DType.INT8, **_group(reader, found))
    if method == "compressed-tensors":
        return _compressed_tensors(reader, found)
    raise reader.error(
        key,
        f"has the unknown method {method or algorithm!r}",
        "fp8, mxfp4, modelopt (FP8, NVFP4), compressed-tensors, gptq or awq",
    )


def _fp8(reader: ConfigReader, found: Mapping[str, Any]) -> Quantisation:
    block = found.get("weight_block_size")
    if block is None:
        return Quantisation(DType.FP8)
    whole = isinstance(block, list) and len(block) == 2
    if not whole or not all(isinstance(one, int) and 0 < one <= MAX_SIZE for one in block):
        raise reader.error("weight_block_size", f"is {block!r}", "two sizes")
    return Quantisation(DType.FP8, block=max(block), scale_bytes_per_element=4 / (block[0] * block[1]))


def _group(reader: ConfigReader, found: Mapping[str, Any]) -> dict[str, Any]:
    """Scales of grouped integers: 16 bits, and a zero of 4 bits unless symmetric, for each group; -1 is one group per
    channel."""
    size = found.get("group_size", 128)
    if isinstance(size, bool) or not isinstance(size, int) or not (size == -1 or 0 < size <= MAX_SIZE):
        raise reader.error("group_size", f"is {size!r}", "a positive whole number, or -1")
    scale_bytes = 2.0 if found.get("symmetric") is True else 2.5
    return {} if size == -1 else {"block": size, "scale_bytes_per_element": scale_bytes / size}


def _compressed_tensors(reader: ConfigReader, found: Mapping[str, Any]) -> Quantisation:
    groups = found.get("config_groups")
    kinds: list[tuple[Any, ...]] = []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            kind = tuple(weights.get(key) for key in ("num_bits", "type", "group_size", "symmetric"))
            kinds += [kind] if kind not in kinds else []
    known = {
        (8, "float"): DType.FP8,
        (8, "int"): DType.INT8,
        (4, "float"): DType.FP4,
        (4, "int"): DType.INT4,
    }
    if len(kinds) != 1:
        raise reader.error("config_groups", "mixes several weight types, or states none", "one weight type")
    bits, type_name, size, symmetric = kinds[0]
    dtype = next((dtype for names, dtype in known.items() if names == (bits, type_name)), None)
    if dtype is None:
        what = f"has weights of {bits!r} bits of type {type_name!r}"
        raise reader.error("config_groups", what, "4 or 8 bits, float or int")
    if dtype == DType.FP4:
        return Quantisation(dtype, scale_bytes_per_element=1 / 16)
    group = _group(reader, {"group_size": size, "symmetric": symmetric}) if size is not None else {}
    return Quantisation(dtype, **group)
