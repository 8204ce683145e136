"""The text model inside a multimodal config: `text_config` is read by its own family, towers are named as omitted.

What is predicted and planned is the text model serving text; a tower's weights (0.4 to 1 billion parameters of the
models known here) are not counted, and neither are image or audio inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from specs.architecture.model import Architecture
from specs.architecture.reading import ConfigReader

TOWERS = ("vision_config", "audio_config")
# Token ids, and how towers are fed; none of them is of the text model.
_HARMLESS = """
    audio_token_id boa_token_id boi_token_id boi_token_index eoa_token_id eoa_token_index eoi_token_id eoi_token_index
    ignore_index image_placeholder image_token_id image_token_index initializer_range media_placeholder_token_id
    use_unified_vision_chunk video_placeholder video_token_id vision_end_token_id vision_soft_tokens_per_image
    vision_start_token_id
"""
HARMLESS = frozenset(_HARMLESS.split())
# Keys that may stand outside `text_config` and hold for the text model.
INHERITED = ("tie_word_embeddings", "dtype", "torch_dtype")


def text_model(
    family: str, read: Callable[[ConfigReader], Architecture], prefix: str, inside: str
) -> Callable[[ConfigReader], Architecture]:
    """A reader of multimodal configs whose text model is of the `model_type` `inside`, read by `read`.

    The text model's names begin with `prefix`: all of them, or, where it ends in "model.", those that began so.
    """

    def named(name: str) -> str:
        if not prefix.startswith("model."):
            return prefix + name
        return prefix + name.removeprefix("model.") if name.startswith("model.") else name

    def read_text(reader: ConfigReader) -> Architecture:
        towers = tuple(tower for tower in TOWERS if reader.raw(tower))
        text = reader.nested("text_config", _inherited(reader))
        text.expect("model_type", inside)
        architecture = read(text)
        reader.finish(family, HARMLESS)
        names = {role: named(name) for role, name in architecture.weight_names.items()}
        return replace(architecture, omitted=towers, weight_names=names)

    return read_text


def _inherited(reader: ConfigReader) -> dict[str, Any]:
    """Keys of the outer config that hold for the text model, and its quantisation where that stands outside.

    A quantisation from outside (of a repository that stores the same model otherwise) replaces the inner one, but for
    the modules that the inner one leaves alone.
    """
    inner = reader.raw("text_config")
    found = {key: reader.raw(key) for key in INHERITED if reader.has(key)}
    outside = reader.raw("quantization_config")
    if isinstance(outside, Mapping) and outside and isinstance(inner, Mapping):
        own = inner.get("quantization_config")
        ignored = own.get("ignore", []) if isinstance(own, Mapping) else []
        found["quantization_config"] = {"ignore": ignored, **outside}
    return found
