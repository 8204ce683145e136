"""Model families: one module each, and one table from `model_type` to the function that reads its config."""

from __future__ import annotations

from collections.abc import Callable

from specs.architecture.families import (
    deepseek_v3,
    gemma4,
    gpt_oss,
    llama,
    llama4,
    mimo_v2_flash,
    minimax_m2,
    minimax_m3,
    mixtral,
    nemotron_h,
    nemotron_nas,
    opt,
    qwen3_5,
    qwen3_moe,
)
from specs.architecture.families.multimodal import text_model
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
    "deepseek_v32": deepseek_v3.read_v32,
    "glm_moe_dsa": deepseek_v3.read_glm,
    "minimax_m2": minimax_m2.read,
    "minimax_m3": minimax_m3.read,
    "mimo": llama.read_mimo,
    "mimo_v2_flash": mimo_v2_flash.read,
    "nemotron_h": nemotron_h.read,
    "nemotron-nas": nemotron_nas.read,
    "opt": opt.read,
    "qwen3_next": qwen3_5.read_next,
    "qwen3_5_text": qwen3_5.read_dense,
    "qwen3_5_moe_text": qwen3_5.read_sparse,
    "llama4_text": llama4.read,
    "gemma4_text": gemma4.read,
    # The text model of a multimodal config; names in these checkpoints begin otherwise.
    "kimi_k25": text_model("kimi_k25", deepseek_v3.read, "language_model.", "kimi_k2"),
    "qwen3_5": text_model("qwen3_5", qwen3_5.read_dense, "model.language_model.", "qwen3_5_text"),
    "qwen3_5_moe": text_model("qwen3_5_moe", qwen3_5.read_sparse, "model.language_model.", "qwen3_5_moe_text"),
    "llama4": text_model("llama4", llama4.read, "language_model.", "llama4_text"),
    "gemma4": text_model("gemma4", gemma4.read, "model.language_model.", "gemma4_text"),
}
MULTIMODAL = frozenset({"kimi_k25", "qwen3_5", "qwen3_5_moe", "llama4", "gemma4"})

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
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "minimax_m3": "MiniMaxM3ForCausalLM",
    "mimo": "MiMoForCausalLM",
    "mimo_v2_flash": "MiMoV2FlashForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "nemotron-nas": "DeciLMForCausalLM",
    "opt": "OPTForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "kimi_k25": "KimiK25ForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
}

# Families that are known and not expressed, and what stands in the way.
UNSUPPORTED: dict[str, str] = {
    "deepseek_v2": "its router and its scaling of attention differ from DeepSeek-V3's",
    "deepseek_ref": "compressed sparse attention and hyper-connections",
    "deepseek_v4": "compressed sparse attention and hyper-connections",
    "falcon": "parallel attention and MLP",
    "gemma2": "soft-capped attention and two more norms a layer",
    "gemma3": "two more norms a layer and two rotary embeddings",
    "gemma3_text": "two more norms a layer and two rotary embeddings",
    "gpt2": "fused transposed projections",
    "kimi_k3": "delta attention (KDA) with gates of full rank, residuals over blocks of layers, and a vision tower",
    "phi3": "fused projections",
    "qwen2_moe": "a gated shared expert",
    "step3p7": "gates of attention heads, whose number is not the same in all layers",
}
