"""Parameter counts, KV bytes and checkpoint sizes against what the models' makers publish."""

from __future__ import annotations

import pytest

from specs.architecture import describe_models, load_architecture, model_names, weight_bytes_per_rank
from specs.document import DType

# Exact counts: the sizes that the models' pages on the Hugging Face hub state (from the safetensors headers).
EXACT = {
    "meta-llama/Meta-Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Meta-Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,  # half the index's total_size, 281,241,268,224 bytes of bf16
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,  # the head is tied; a stored copy of it is not counted
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": 480_154_875_392,
}

# Rounded figures: (total, active), in billions, and half a unit of the last digit of each.
ROUNDED = {
    "openai/gpt-oss-20b": (20.91, 0.005, 3.61, 0.005),  # arXiv:2508.10925, table 1; active without the embedding
    "openai/gpt-oss-120b": (116.83, 0.005, 5.13, 0.005),
    "deepseek-ai/DeepSeek-V3": (671, 0.5, 37, 0.5),  # arXiv:2412.19437
    "deepseek-ai/DeepSeek-R1": (671, 0.5, 37, 0.5),
    "moonshotai/Kimi-K2-Instruct": (1000, 50, 32, 0.5),  # model card: 1 T total, 32 B active
    "Qwen/Qwen3-30B-A3B": (30.5, 0.05, 3.3, 0.3),  # arXiv:2505.09388 counts the embedding as active
    "Qwen/Qwen3-235B-A22B": (235, 0.5, 22, 0.6),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": (480, 0.5, 35, 0.6),
    "mistralai/Mixtral-8x7B-v0.1": (47, 0.5, 13, 0.5),  # arXiv:2401.04088
    "mistralai/Mixtral-8x22B-v0.1": (141, 0.5, 39, 0.5),  # announcement, April 2024
    "nvidia/Nemotron-H-56B-Base-8K": (56, 0.5, 56, 1.0),  # arXiv:2504.03624: by name
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.6, 0.05, 3.2, 0.05),  # its technical report, December 2025
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16": (120, 1.0, 12, 0.5),  # by name
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": (550, 1.0, 55, 0.5),  # by name
    # model cards; towers of multimodal models are not counted, and some cards count the input embedding as active
    "MiniMaxAI/MiniMax-M2.5": (230, 2, 10, 0.5),
    "MiniMaxAI/MiniMax-M2.7": (230, 2, 10, 0.5),
    "MiniMaxAI/MiniMax-M3": (428, 3, 23, 1.8),  # "about"; active without embedding and head: 23.5
    "Qwen/Qwen3.5-397B-A17B": (397, 1, 17, 0.7),
    "Qwen/Qwen3.5-122B-A10B": (122, 0.5, 10, 1.0),  # 9.8 with the embedding
    "Qwen/Qwen3.5-35B-A3B": (35, 0.5, 3, 0.1),
    "Qwen/Qwen3.5-27B": (27, 0.5, 27, 1.4),
    "moonshotai/Kimi-K2.5": (1000, 50, 32, 0.5),
    "deepseek-ai/DeepSeek-V3.2": (671, 1, 37, 0.5),
    "zai-org/GLM-5": (744, 0.5, 40, 1.0),
    "zai-org/GLM-5.2": (744, 1.0, 40, 0.5),
    "XiaomiMiMo/MiMo-7B-Base": (7, 0.7, 7, 0.7),
    "XiaomiMiMo/MiMo-V2-Flash": (309, 0.5, 15, 0.5),
    "google/gemma-4-26B-A4B": (25.2, 0.05, 3.8, 0.05),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (109, 1.5, 17, 0.9),  # 17.2 with the embedding
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": (400, 1.5, 17, 0.9),
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": (49, 1.0, 49, 1.0),  # by name
    "facebook/opt-13b": (13, 0.5, 13, 0.5),  # arXiv:2205.01068, table 1
    "facebook/opt-66b": (66, 0.5, 66, 0.5),
    "facebook/opt-175b": (175, 0.5, 175, 0.5),
}


@pytest.mark.parametrize("name", EXACT)
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert load_architecture(name).parameter_count().total == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_parameter_count_rounds_to_the_published_one(name: str) -> None:
    total, total_slack, active, active_slack = ROUNDED[name]
    count = load_architecture(name).parameter_count()
    assert count.total / 1e9 == pytest.approx(total, abs=total_slack)
    assert count.active / 1e9 == pytest.approx(active, abs=active_slack)


def test_every_model_of_the_catalogue_has_a_published_count() -> None:
    same_shape = {name for name in model_names() if name.endswith("-FP8")}
    assert set(model_names()) == set(EXACT) | set(ROUNDED) | same_shape
    for name in same_shape:
        assert load_architecture(name).layers == load_architecture(name.removesuffix("-FP8")).layers


def test_the_larger_vocabulary_of_newer_mixtral_tokenizers_is_counted() -> None:
    config = load_architecture("mistralai/Mixtral-8x22B-v0.1").config
    count = load_architecture({**config, "vocab_size": 32_768}).parameter_count()
    assert count.total == 140_620_634_112 + 2 * 768 * 6144 == 140_630_071_296


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen/Qwen3-0.6B", 0.44), ("Qwen/Qwen3-1.7B", 1.4), ("Qwen/Qwen3-8B", 6.95), ("Qwen/Qwen3-32B", 31.2)],
)
def test_non_embedding_parameters_are_those_of_the_model_card(name: str, billions: float) -> None:
    count = load_architecture(name).parameter_count()
    assert (count.total - count.embedding) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("name", model_names())
def test_the_count_is_the_sum_over_the_named_weights(name: str) -> None:
    architecture = load_architecture(name)
    assert architecture.parameter_count().total == sum(tensor.elements for tensor in architecture.weights())


@pytest.mark.parametrize(
    ("name", "kilobytes"),
    # arXiv:2505.09343 (Insights into DeepSeek-V3), table 1: KV cache per token in bf16, in units of 1000 bytes.
    [
        ("deepseek-ai/DeepSeek-V3", 70.272),
        ("Qwen/Qwen2.5-72B-Instruct", 327.680),
        ("meta-llama/Llama-3.1-405B", 516.096),
    ],
)
def test_kv_bytes_per_token_are_the_published_ones(name: str, kilobytes: float) -> None:
    assert load_architecture(name).kv_bytes_per_token(DType.BF16, 1) == kilobytes * 1000


def test_kv_bytes_by_hand() -> None:
    llama = load_architecture("meta-llama/Llama-3.1-70B")
    assert llama.kv_bytes_per_token(DType.BF16, 8) == 80 * 2 * 1 * 128 * 2
    assert llama.kv_bytes_per_token(DType.BF16, 16) == 80 * 2 * 1 * 128 * 2  # 8 KV heads, each on two ranks
    assert llama.kv_bytes_per_token(DType.FP8, 2, range(10, 30)) == 20 * 2 * 4 * 128
    deepseek = load_architecture("deepseek-ai/DeepSeek-V3")
    assert deepseek.kv_bytes_per_token(DType.FP8, 8) == 61 * 576  # the latent vector is whole on every rank


def test_windowed_layers_are_counted_apart() -> None:
    architecture = load_architecture("openai/gpt-oss-120b")
    assert architecture.window_tokens == 128
    assert [layer.window for layer in architecture.layers[:4]] == [128, None, 128, None]
    per_token = 18 * 2 * 8 * 64 * 2  # half of 36 layers
    assert architecture.kv_bytes_per_token(DType.BF16, 1) == per_token
    assert architecture.window_kv_bytes_per_token(DType.BF16, 1) == per_token
    assert architecture.sequence_bytes(1000, DType.BF16, 1) == 1000 * per_token + 128 * per_token
    assert architecture.sequence_bytes(100, DType.BF16, 1) == 200 * per_token


def test_recurrent_state_by_hand() -> None:
    architecture = load_architecture("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    mamba_layers, attention_layers = 23, 6  # of the pattern: 23 M, 6 *, 23 E
    state, channels = 64 * 64 * 128, 64 * 64 + 2 * 8 * 128
    assert architecture.state_bytes(1) == mamba_layers * (state * 4 + channels * 3 * 2)
    # 16 ranks: 4 heads each; 8 groups are fewer than ranks, so every rank keeps one
    assert architecture.state_bytes(16) == mamba_layers * (4 * 64 * 128 * 4 + (4 * 64 + 2 * 128) * 3 * 2)
    assert architecture.kv_bytes_per_token(DType.BF16, 1) == attention_layers * 2 * 2 * 128 * 2
    assert load_architecture("Qwen/Qwen3-8B").state_bytes(1) == 0


@pytest.mark.parametrize(("name", "gibibytes"), [("openai/gpt-oss-120b", 60.8), ("openai/gpt-oss-20b", 12.8)])
def test_mxfp4_checkpoints_have_their_published_size(name: str, gibibytes: float) -> None:
    # arXiv:2508.10925, table 1. Without the scales the larger would be 57.4 GiB.
    architecture = load_architecture(name)
    assert architecture.native_weights_dtype == DType.FP4
    assert weight_bytes_per_rank(architecture, DType.FP4, 1) / 2**30 == pytest.approx(gibibytes, abs=0.06)


def test_names_and_shapes_are_those_of_the_checkpoints() -> None:
    llama = {tensor.name: tensor for tensor in load_architecture("meta-llama/Llama-3.1-8B").weights()}
    assert len(llama) == 291  # tensors in the published index
    assert llama["model.layers.31.self_attn.k_proj.weight"].shape == (1024, 4096)
    assert llama["model.layers.0.mlp.down_proj.weight"].shape == (4096, 14336)
    assert llama["model.layers.0.mlp.down_proj.weight"].shard_axis == 1
    assert llama["lm_head.weight"].stage == "head"
    mixtral = [name for one in load_architecture("mistralai/Mixtral-8x7B-v0.1").weights() for name in one.names()]
    assert len(mixtral) == len(set(mixtral)) == 995
    assert "model.layers.5.block_sparse_moe.experts.7.w2.weight" in mixtral
    deepseek = {name for one in load_architecture("deepseek-ai/DeepSeek-V3").weights() for name in one.names()}
    assert "model.layers.3.mlp.gate.e_score_correction_bias" in deepseek
    assert "model.layers.2.mlp.gate_proj.weight" in deepseek
    assert "model.layers.60.mlp.experts.255.up_proj.weight" in deepseek
    assert not any(name.startswith("model.layers.61.") for name in deepseek)  # multi-token prediction
    oss = {tensor.name: tensor for tensor in load_architecture("openai/gpt-oss-20b").weights()}
    assert oss["model.layers.0.mlp.experts.gate_up_proj"].shape == (32, 2880, 5760)
    assert oss["model.layers.0.self_attn.sinks"].shape == (64,)
    assert not oss["model.layers.0.self_attn.q_proj.weight"].quantised
    nemotron = {tensor.name: tensor for tensor in load_architecture("nvidia/Nemotron-H-56B-Base-8K").weights()}
    assert nemotron["backbone.layers.0.mixer.in_proj.weight"].shape == (2 * 16384 + 2 * 8 * 256 + 256, 8192)
    opt = {tensor.name: tensor.shape for tensor in load_architecture("facebook/opt-13b").weights()}
    assert opt["model.decoder.embed_positions.weight"] == (2050, 5120)
    assert opt["model.decoder.layers.39.fc1.bias"] == (20480,)
    assert "lm_head.weight" not in opt


def test_the_catalogue_is_described_model_by_model() -> None:
    described = {model.name: model for model in describe_models()}
    assert set(described) == set(model_names())
    llama = described["meta-llama/Meta-Llama-3.1-70B"]
    assert (llama.family, llama.layers, llama.native_weights_dtype) == ("llama", 80, "bf16")
    assert "meta-llama/Llama-3.1-70B" in llama.aliases
