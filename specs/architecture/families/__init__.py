"""Model families: one module each, and one table from `model_type` to the function that reads its config."""

from __future__ import annotations

from collections.abc import Callable

from specs.architecture.families import deepseek_v3, gpt_oss, llama, mixtral, nemotron_h, opt, qwen3_moe
from specs.architecture.model import Architecture
from specs.architecture.reading import ConfigReader

FAMILIES: dict[str, Callable[[ConfigReader], Architecture]] = {
    "llama": llama.read_llama,
    "mistral": llama.read_mistral,
    "qwen2": llama.read_qwen2,
    "qwen3": llama.read_qwen3,
    "mixtral": mixtral.read,
    "qwen3_moe": qwen3_moe.read,
    "gpt_oss": gpt_oss.read,
    "deepseek_v3": deepseek_v3.read,
    "kimi_k2": deepseek_v3.read,
    "nemotron_h": nemotron_h.read,
    "opt": opt.read,
}

# The class names that a config of the family carries. Another class under the same `model_type` is other code.
ARCHITECTURES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "opt": "OPTForCausalLM",
}

# Families that are known and not expressed, and what stands in the way.
UNSUPPORTED: dict[str, str] = {
    "deepseek_v2": "its router and its scaling of attention differ from DeepSeek-V3's",
    "deepseek_v32": "sparse attention with an indexer (DSA)",
    "deepseek_v4": "compressed sparse attention",
    "deepseek_ref": "compressed sparse attention",
    "falcon": "parallel attention and MLP",
    "gemma2": "soft-capped attention and two more norms a layer",
    "gemma3": "two more norms a layer and two rotary embeddings",
    "gemma3_text": "two more norms a layer and two rotary embeddings",
    "gemma4": "two head sizes, two rotary embeddings and a vision tower",
    "glm_moe_dsa": "sparse attention with an indexer (DSA)",
    "gpt2": "fused transposed projections",
    "kimi_k25": "a vision tower around a Kimi-K2 text model",
    "kimi_k3": "delta attention (KDA) and a vision tower",
    "llama4": "chunked attention, interleaved experts and a vision tower",
    "mimo": "Qwen2's layers with multi-token prediction, not described yet",
    "mimo_v2_flash": "two shapes of attention in one model",
    "minimax_m2": "query-key norms over all heads at once",
    "minimax_m3": "sparse attention",
    "nemotron-nas": "a shape of its own in every layer",
    "phi3": "fused projections",
    "qwen2_moe": "a gated shared expert",
    "qwen3_5": "gated delta-net layers and a vision tower",
    "qwen3_5_moe": "gated delta-net layers and a vision tower",
    "qwen3_next": "gated delta-net layers",
    "step3p7": "windowed attention with experts of its own, not described yet",
}
