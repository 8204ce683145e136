"""A model made on the spot from a seed: random weights, byte-level tokenizer, default chat template. No network.

The same config and seed give the same bytes. Rows of the embedding and the head that stand for printable ASCII are
larger than the others, so that what such a model babbles can be read in a terminal.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
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
from specs.directories import cache_home, replace_directory
from specs.errors import InputError

MAX_PARAMETERS = 50_000_000  # 200 MB in fp32: what may be made up without being asked for

HASHES = "made.json"  # of the other files, written last
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
    vocabulary cannot hold the byte-level tokenizer, the model is too large to be made up, or it cannot be written.
    """
    return _make(Path(directory), dict(TINY_LLAMA if config is None else config), seed, replace_directory)


def _make(target: Path, config: dict[str, Any], seed: int, install: Callable[[Path, Path], None]) -> Path:
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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            staged = Path(scratch) / "new"
            staged.mkdir()
            _write(staged, config, architecture, seed)
            install(staged, target)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=str(target)) from None
    return target


def _write(directory: Path, config: dict[str, Any], architecture: Architecture, seed: int) -> None:
    from safetensors.numpy import save

    # RandomState's stream is frozen by numpy's compatibility policy; that of newer generators is not.
    draw = np.random.RandomState(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    vocabulary_names = {tensor.name for tensor in architecture.weights() if tensor.stage != "layer"}
    for tensor in architecture.weights():
        for name in tensor.names():
            values = _values(draw, name, tensor.shape, name in vocabulary_names and len(tensor.shape) == 2)
            tensors[name] = values
    # Not by the library: what it raises on a full disk is no OSError.
    (directory / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    eos = 256 + SPECIAL_TOKENS.index("<eos>")
    bos = 256 + SPECIAL_TOKENS.index("<bos>")
    written = {**config, "bos_token_id": bos, "eos_token_id": eos}
    (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    (directory / BYTE_TOKENIZER_FILE).write_text(
        json.dumps({"kind": "byte-level", "special_tokens": SPECIAL_TOKENS}, indent=2) + "\n", encoding="utf-8"
    )
    (directory / CHAT_TEMPLATE_FILE).write_text(DEFAULT_CHAT_TEMPLATE, encoding="utf-8")
    (directory / HASHES).write_text(json.dumps(_hashes(directory), indent=2) + "\n", encoding="utf-8")


def _hashes(directory: Path) -> dict[str, str]:
    """File name -> sha256 of every file of the model."""
    files = sorted(path for path in directory.iterdir() if path.name != HASHES)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def is_intact(directory: Path) -> bool:
    """Whether a made model is as it was written."""
    try:
        return bool(json.loads((directory / HASHES).read_bytes()) == _hashes(directory))
    except (OSError, ValueError):
        return False


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
    """The made model of this config and seed in the user's cache directory, written there where it is not intact."""
    text = json.dumps({"config": dict(config), "seed": seed, "format": FORMAT}, sort_keys=True)
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    directory = cache_home() / "models" / name
    return directory if is_intact(directory) else _make(directory, dict(config), seed, _install_unless_made)


def _install_unless_made(staged: Path, target: Path) -> None:
    """The first of two processes that make the same model wins; the other uses what it made."""
    try:
        os.replace(staged, target)
    except OSError:
        if not is_intact(target):
            replace_directory(staged, target)
