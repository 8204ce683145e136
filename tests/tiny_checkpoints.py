"""Tiny random checkpoints of every family that can be compiled, written by transformers as users' checkpoints are.

`make_checkpoint(folder, "qwen3")` writes config.json and safetensors; `reference_logits` runs transformers over whole
sequences. Everything random comes from the seed. Needs torch and transformers: import inside tests that skip without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB_SIZE = 131  # odd: does not divide over ranks, so the vocabulary's padding is tested too
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
# Variant -> (transformers' class prefix, what differs from SIZES).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "llama-one-kv-head": ("Llama", {"num_key_value_heads": 1}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-rope3": ("Llama", {"rope_parameters": LLAMA3_SCALING}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-wide-heads": ("Llama", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
    "qwen3-moe-mixed": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [0],
        },
    ),
}
FAMILIES = ("llama", "mistral-window", "qwen2", "qwen3", "mixtral", "qwen3-moe")  # one variant each


def make_checkpoint(folder: str | Path, variant: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint of `VARIANTS[variant]` with `changes` of its config into `folder`, and return the folder."""
    prefix, differing = VARIANTS[variant]
    config = getattr(transformers, f"{prefix}Config")(**(SIZES | differing | changes))
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * noise)
            else:  # about unit variance through a product, so that every part of the model shows in the logits
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    folder = Path(folder)
    model.save_pretrained(folder)
    return folder


def reference_logits(folder: str | Path, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits [tokens, vocab] in float32 of each whole sequence, by transformers without a cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    with torch.no_grad():
        return [model(torch.tensor([list(tokens)])).logits[0].float() for tokens in sequences]
