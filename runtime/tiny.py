"""A model made on the spot from a seed: random weights, byte-level tokenizer, default chat template. No network.

The same config and seed give the same bytes. Rows of the embedding and the head that stand for printable ASCII are
larger than the others, so that what such a model babbles can be read in a terminal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.tokenizer import (
    BYTE_TOKENIZER_FILE,
    BYTE_VOCABULARY,
    CHAT_TEMPLATE_FILE,
    DEFAULT_CHAT_TEMPLATE,
    SPECIAL_TOKENS,
)
from specs.architecture import Architecture, load_architecture
from specs.errors import InputError

MAX_PARAMETERS = 50_000_000  # 200 MB in fp32: what may be made up without being asked for

FORMAT = 1  # raise it when the same config and seed give another model

TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 264,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def make_model(directory: str | Path, config: Mapping[str, Any] | None = None, seed: int = 0) -> Path:
    """Write a model directory (config, weights, tokenizer, chat template) and return it. Replaces it whole.

    `config`: a Hugging Face config of any known family (default: a two-layer Llama). `InputError` where the
    vocabulary cannot hold the byte-level tokenizer or the model is too large to be made up.
    """
    config = dict(TINY_LLAMA if config is None else config)
    architecture = load_architecture(config)
    if architecture.vocab_size < BYTE_VOCABULARY:
        raise InputError(
            f"a vocabulary of {architecture.vocab_size} cannot hold the byte-level tokenizer of a made model",
            field="vocab_size",
            expected=f"at least {BYTE_VOCABULARY}",
        )
    parameters = architecture.parameter_count().total
    if parameters > MAX_PARAMETERS:
        raise InputError(
            f"{architecture.name} has {parameters / 1e6:.0f} million parameters: too large to be made up",
            expected=f"a checkpoint directory (--model DIR), or at most {MAX_PARAMETERS / 1e6:.0f} million",
        )
    target = Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(temporary, config, architecture, seed)
        if target.exists():
            shutil.rmtree(target)
        os.chmod(temporary, 0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _write(directory: Path, config: dict[str, Any], architecture: Architecture, seed: int) -> None:
    from safetensors.numpy import save_file

    # RandomState's stream is frozen by numpy's compatibility policy; that of newer generators is not.
    draw = np.random.RandomState(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    vocabulary_names = {tensor.name for tensor in architecture.weights() if tensor.stage != "layer"}
    for tensor in architecture.weights():
        for name in tensor.names():
            values = _values(draw, name, tensor.shape, name in vocabulary_names and len(tensor.shape) == 2)
            tensors[name] = values
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
    eos = 256 + SPECIAL_TOKENS.index("<eos>")
    bos = 256 + SPECIAL_TOKENS.index("<bos>")
    written = {**config, "bos_token_id": bos, "eos_token_id": eos}
    (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    (directory / BYTE_TOKENIZER_FILE).write_text(
        json.dumps({"kind": "byte-level", "special_tokens": SPECIAL_TOKENS}, indent=2) + "\n", encoding="utf-8"
    )
    (directory / CHAT_TEMPLATE_FILE).write_text(DEFAULT_CHAT_TEMPLATE, encoding="utf-8")


def _values(draw: np.random.RandomState, name: str, shape: tuple[int, ...], vocabulary: bool) -> np.ndarray[Any, Any]:
    if "norm" in name and name.endswith(".weight"):
        return np.ones(shape, dtype=np.float32)
    if name.endswith(".bias"):
        return np.asarray(0.1 * draw.standard_normal(shape), dtype=np.float32)
    # keeps the size of activations through a layer; experts and projections alike have their inputs last
    values = draw.standard_normal(shape) / np.sqrt(shape[-1])
    if vocabulary:
        loudness = np.full(shape[0], 0.1)
        loudness[0x20:0x7F] = 3.0
        values *= loudness[:, None]
    return np.asarray(values, dtype=np.float32)


def made_model(config: Mapping[str, Any], seed: int = 0) -> Path:
    """The made model of this config and seed in the user's cache directory, written there the first time."""
    text = json.dumps({"config": dict(config), "seed": seed, "format": FORMAT}, sort_keys=True)
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(base) / "capstan" / "models" / name
    # The folder is renamed into place whole, so where it exists it is complete.
    return directory if (directory / "model.safetensors").exists() else make_model(directory, config, seed)
