"""Families that are planned and predicted but not compiled: names, shapes, caches, states, cuts, refusals.

Names and shapes are compared with what transformers writes for the same config, where it has the family.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_configs import TINY, tiny

from specs.architecture import (
    AllReduce,
    Architecture,
    Attention,
    DenseMLP,
    IndexScores,
    LatentAttention,
    LatentPagedAttention,
    Linear,
    MixtureOfExperts,
    PagedAttention,
    RecurrentScan,
    load_architecture,
)
from specs.architecture.catalogue import MODELS
from specs.architecture.families import FAMILIES, MULTIMODAL
from specs.compilable import FAMILIES as COMPILED
from specs.compilable import obstacle_to_compiling
from specs.document import DType
from specs.errors import InputError
from specs.plan import Layout

# Families that transformers cannot build from these words.
WITHOUT_REFERENCE = {"minimax_m3", "nemotron-nas"}


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        load_architecture(config)
    return str(caught.value)


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for tensor in architecture.weights() for name in tensor.names()}


@pytest.mark.parametrize("model_type", sorted(set(TINY) - WITHOUT_REFERENCE))
def test_names_and_shapes_are_those_that_transformers_writes(tmp_path: Path, model_type: str) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    safe_open = pytest.importorskip("safetensors").safe_open
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    config = transformers.AutoConfig.for_model(model_type, **TINY[model_type])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found: dict[str, tuple[int, ...]] = {}
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    saved = json.loads((tmp_path / "config.json").read_text())
    if model_type == "qwen3_5_moe_text":  # experts are written one by one, as the quantised checkpoints hold them
        saved["quantization_config"] = {"quant_method": "fp8"}
    written = load_architecture(saved)
    assert shapes(written) == found
    stated = load_architecture(tiny(model_type))
    assert [layer.mixer for layer in stated.layers] == [layer.mixer for layer in written.layers]
    assert stated.parameter_count() == written.parameter_count()


# The totals that transformers gives the published configs (text models, with the buffers that checkpoints hold).
REFERENCE = (
    "MiniMaxAI/MiniMax-M2.5",
    "Qwen/Qwen3.5-397B-A17B",
    "Qwen/Qwen3.5-122B-A10B",
    "Qwen/Qwen3.5-27B",
    "deepseek-ai/DeepSeek-V3.2",
    "zai-org/GLM-5",
    "zai-org/GLM-5.2",
    "XiaomiMiMo/MiMo-V2-Flash",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "google/gemma-4-26B-A4B",
    "moonshotai/Kimi-K2.5",
)
STORED_BUFFERS = ("e_score_correction_bias", "layer_scalar")


@pytest.mark.parametrize("name", REFERENCE)
def test_totals_of_published_models_are_those_of_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = json.loads((MODELS / name.replace("/", "__") / "config.json").read_text())
    config = config.get("text_config", config)
    config.pop("quantization_config", None)
    model_type = {"kimi_k2": "deepseek_v3"}.get(config["model_type"], config["model_type"])
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    built = transformers.CONFIG_MAPPING[model_type].from_dict({**config, "model_type": model_type})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(built)
    stored = [one for key, one in model.named_buffers() if key.endswith(STORED_BUFFERS)]
    total = sum(tensor.numel() for tensor in (*model.parameters(), *stored))
    assert load_architecture(name).parameter_count().total == total


def test_the_text_model_of_minimax_m3_has_the_size_that_transformers_gives_it() -> None:
    # MiniMaxM3VLForCausalLM of transformers 5.23 on the published sizes, and 128 correction biases in 57 layers
    assert load_architecture("MiniMaxAI/MiniMax-M3").parameter_count().total == 426_174_565_632 + 57 * 128


# Caches and states, by hand


def test_kv_bytes_per_token_by_hand() -> None:
    expected = {
        "MiniMaxAI/MiniMax-M2.5": 62 * 2 * 8 * 128 * 2,
        "Qwen/Qwen3.5-397B-A17B": 15 * 2 * 2 * 256 * 2,  # every fourth of 60 layers attends
        "moonshotai/Kimi-K2.5": 61 * (512 + 64) * 2,
        "deepseek-ai/DeepSeek-V3.2": 61 * ((512 + 64) * 2 + 128 + 4),  # an 8-bit index key and its scale
        "zai-org/GLM-5": 78 * ((512 + 64) * 2 + 128 + 4),
        "zai-org/GLM-5.2": 78 * (512 + 64) * 2 + 21 * (128 + 4),  # 21 of 78 layers choose keys
        "MiniMaxAI/MiniMax-M3": 60 * 2 * 4 * 128 * 2 + 57 * 128 * 2,
        "XiaomiMiMo/MiMo-7B-Base": 36 * 2 * 8 * 128 * 2,
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1": 49 * 2 * 8 * 128 * 2,  # 31 of 80 layers have no attention
    }
    for name, expected_bytes in expected.items():
        assert load_architecture(name).kv_bytes_per_token(DType.BF16, 1) == expected_bytes, name


def test_windowed_and_full_layers_of_two_shapes_by_hand() -> None:
    mimo = load_architecture("XiaomiMiMo/MiMo-V2-Flash")
    assert mimo.kv_bytes_per_token(DType.BF16, 1) == 9 * 4 * (192 + 128) * 2
    assert mimo.window_kv_bytes_per_token(DType.BF16, 1) == 39 * 8 * (192 + 128) * 2
    assert mimo.window_tokens == 129  # the query's own key and 128 before it
    gemma = load_architecture("google/gemma-4-26B-A4B")
    assert gemma.kv_bytes_per_token(DType.BF16, 1) == 5 * 2 * 2 * 512 * 2
    assert gemma.window_kv_bytes_per_token(DType.BF16, 1) == 25 * 2 * 8 * 256 * 2
    assert gemma.window_tokens == 1024
    scout = load_architecture("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert scout.kv_bytes_per_token(DType.BF16, 1) == 12 * 2 * 8 * 128 * 2
    assert scout.window_kv_bytes_per_token(DType.BF16, 1) == 36 * 2 * 8 * 128 * 2
    assert scout.window_tokens == 8192


def test_eight_bit_caches_of_sparse_latent_attention_keep_scales_and_a_wide_rotary_key() -> None:
    architecture = load_architecture("deepseek-ai/DeepSeek-V3.2")
    assert architecture.kv_bytes_per_token(DType.FP8, 8) == 61 * (656 + 132)  # 656: FlashMLA's FP8 layout
    assert load_architecture("deepseek-ai/DeepSeek-V3").kv_bytes_per_token(DType.FP8, 8) == 61 * 576


def test_layers_that_choose_keys_keep_them_all() -> None:
    architecture = load_architecture("zai-org/GLM-5")
    assert architecture.window_tokens == 2048
    assert architecture.window_kv_bytes_per_token(DType.BF16, 1) == 0
    per_token = architecture.kv_bytes_per_token(DType.BF16, 1)
    assert architecture.sequence_bytes(100_000, DType.BF16, 1) == 100_000 * per_token


def test_state_of_the_gated_delta_net_by_hand() -> None:
    architecture = load_architecture("Qwen/Qwen3.5-397B-A17B")
    state, channels = 64 * 128 * 128, 2 * 16 * 128 + 64 * 128
    assert architecture.state_bytes(1) == 45 * (state * 4 + channels * 3 * 2)
    assert architecture.state_bytes(8) == architecture.state_bytes(1) // 8
    scan = next(one for one in architecture.layers[0].operators() if isinstance(one, RecurrentScan))
    assert (scan.state_elements, scan.flops_per_token) == (state, 7 * state)


# Cuts


def test_valid_sizes_by_hand() -> None:
    sizes = {
        # 256 experts spread where 1536 columns do not cut into blocks of 128; 48 heads, 8 KV heads repeated
        "MiniMaxAI/MiniMax-M2.5": (1, 2, 4, 8, 16),
        "Qwen/Qwen3.5-397B-A17B": (1, 2, 4, 8, 16),  # 16 key heads of the delta net; 2 KV heads repeated
        "Qwen/Qwen3.5-27B": (1, 2, 4, 8),  # 24 heads
        "moonshotai/Kimi-K2.5": (1, 2, 4, 8, 16, 32, 64),
        "zai-org/GLM-5-FP8": (1, 2, 4, 8, 16),  # 2048 shared columns in blocks of 128
        "google/gemma-4-26B-A4B": (1, 2, 4, 8, 16),
        "meta-llama/Llama-4-Scout-17B-16E-Instruct": (1, 2, 4, 8),  # 40 heads
    }
    for name, expected in sizes.items():
        assert load_architecture(name).valid_tensor_parallel(64) == expected, name


def test_obstacles_say_what_is_in_the_way() -> None:
    qwen = load_architecture("Qwen/Qwen3.5-397B-A17B")
    assert qwen.tensor_parallel_obstacle(32) == ("16 linear-attention key heads cannot be split evenly over 32 ranks")
    minimax = load_architecture("MiniMaxAI/MiniMax-M2.5")
    assert "blocks of 128" in str(minimax.tensor_parallel_obstacle(8, expert_parallel=1))
    assert minimax.tensor_parallel_obstacle(4, expert_parallel=1) is None
    assert minimax.tensor_parallel_obstacle(8, expert_parallel=8) is None
    maverick = load_architecture("meta-llama/Llama-4-Maverick-17B-128E-Instruct")
    assert maverick.tensor_parallel_obstacle(16) == "40 attention heads cannot be split evenly over 16 ranks"


def test_norms_over_all_heads_are_cut_with_them_and_need_a_sum() -> None:
    architecture = load_architecture("MiniMaxAI/MiniMax-M2.5")
    norms = {tensor.name: tensor for tensor in architecture.layers[0].tensors() if tensor.name.endswith("_norm.weight")}
    assert norms["q_norm.weight"].shape == (48 * 128,)
    assert norms["k_norm.weight"].shape == (8 * 128,)
    assert norms["q_norm.weight"].shard_axis == norms["k_norm.weight"].shard_axis == 0
    sums = [one.elements_per_token for one in architecture.layers[0].operators() if isinstance(one, AllReduce)]
    assert sums == [4, 3072, 3072]  # two squares in 32 bits; attention; experts


# Sparse attention


def test_layers_that_share_a_choice_score_nothing() -> None:
    architecture = load_architecture("zai-org/GLM-5.2")
    scoring = [
        index
        for index, layer in enumerate(architecture.layers)
        if any(isinstance(one, IndexScores) for one in layer.operators())
    ]
    assert scoring == [0, 1, 2, *range(6, 78, 4)]
    for layer in architecture.layers:
        attention = next(one for one in layer.operators() if isinstance(one, LatentPagedAttention))
        assert attention.top_k == 2048
        assert isinstance(layer.mixer, LatentAttention)
    assert len(architecture.distinct_layers) == 3  # dense and scoring; routed and scoring; routed and not


def test_the_indexer_is_whole_on_every_rank() -> None:
    layer = load_architecture("deepseek-ai/DeepSeek-V3.2").layers[0]
    linear = {one.name: one for one in layer.operators() if isinstance(one, Linear)}
    for name, shape in {
        "index_q_proj": (1536, 64 * 128),
        "index_k_proj": (7168, 128),
        "index_weights": (7168, 64),
    }.items():
        assert linear[name].rank_shape(8) == linear[name].rank_shape(1) == shape
    scores = next(one for one in layer.operators() if isinstance(one, IndexScores))
    assert scores == IndexScores(64, 128, 2048, 132)


def test_which_layers_score_can_be_stated_in_three_ways() -> None:
    stated = load_architecture(tiny("glm_moe_dsa"))
    pattern = tiny("glm_moe_dsa", indexer_types=None, index_topk_pattern="FSFS")
    every = tiny("glm_moe_dsa", indexer_types=None, index_topk_freq=2, index_skip_topk_offset=1)
    assert load_architecture(pattern).layers == load_architecture(every).layers == stated.layers
    assert load_architecture(tiny("glm_moe_dsa", indexer_types=None)).layers[1] != stated.layers[1]


def test_blocks_of_keys_are_counted_in_keys() -> None:
    architecture = load_architecture(tiny("minimax_m3"))
    assert [layer.reach for layer in architecture.layers] == [None, 8, 8]
    attention = [one for layer in architecture.layers for one in layer.operators() if isinstance(one, PagedAttention)]
    assert [one.top_k for one in attention] == [None, 8, 8]


# Shapes that differ from layer to layer


def test_every_layer_of_a_searched_model_has_its_own_shape() -> None:
    first, second, third = load_architecture(tiny("nemotron-nas")).layers
    assert isinstance(first.mixer, Attention)
    assert isinstance(third.mixer, Attention)
    assert (first.mixer.kv_heads, third.mixer.kv_heads, second.mixer, third.mlp) == (2, 1, None, None)
    assert isinstance(first.mlp, DenseMLP)
    assert isinstance(second.mlp, DenseMLP)
    assert (first.mlp.intermediate_size, second.mlp.intermediate_size) == (256, 512)  # 42 and 426, in units of 256


def test_llama4_is_chunked_where_it_is_rotary_and_routed_every_other_layer() -> None:
    layers = load_architecture(tiny("llama4_text")).layers
    assert [layer.window for layer in layers] == [9, 9, 9, None]
    assert [isinstance(layer.mixer, Attention) and layer.mixer.rotary for layer in layers] == [True, True, True, False]
    assert [isinstance(layer.mlp, MixtureOfExperts) for layer in layers] == [False, True, False, True]


def test_rotary_parts_of_heads() -> None:
    for config, part in (
        (tiny("qwen3_5_text"), 0.25),
        (tiny("qwen3_5_text", rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}), 0.5),
        (tiny("minimax_m2"), 4 / 6),
        (tiny("minimax_m3"), 1.0),
        (tiny("minimax_m3", rotary_dim=2), 2 / 6),
    ):
        rope = load_architecture(config).rope
        assert rope is not None
        assert rope.partial_rotary_factor == part
    gemma = load_architecture("google/gemma-4-26B-A4B")
    assert gemma.rope is not None
    assert gemma.window_rope is not None
    assert (gemma.rope.theta, gemma.window_rope.theta) == (1e6, 1e4)
    mimo = load_architecture("XiaomiMiMo/MiMo-V2-Flash")
    assert mimo.rope is not None
    assert mimo.window_rope is not None
    assert (mimo.rope.theta, mimo.window_rope.theta) == (5e6, 1e4)


# Multimodal configs


def wrapped(**changes: Any) -> dict[str, Any]:
    text = tiny("qwen3_5_text")
    return {"model_type": "qwen3_5", "text_config": text, "vision_config": {"depth": 2}, **changes}


def test_the_text_model_of_a_multimodal_config_is_read_and_its_tower_named() -> None:
    inside, alone = load_architecture(wrapped()), load_architecture(tiny("qwen3_5_text"))
    assert inside.layers == alone.layers
    assert (inside.omitted, alone.omitted) == (("vision_config",), ())
    assert {name.replace("model.language_model.", "model.") for name in shapes(inside)} == set(shapes(alone))
    assert "lm_head.weight" in shapes(inside)
    # what a plan embeds is the whole config
    assert load_architecture(json.loads(json.dumps(dict(inside.config))), name=inside.name) == inside


def test_names_of_text_models_begin_as_in_their_checkpoints() -> None:
    for name, weight in {
        "moonshotai/Kimi-K2.5": "language_model.model.layers.60.mlp.experts.383.up_proj.weight",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct": "language_model.model.layers.0.feed_forward.experts.gate_up_proj",
        "Qwen/Qwen3.5-397B-A17B": "model.language_model.layers.0.mlp.experts.gate_up_proj",
        "Qwen/Qwen3.5-397B-A17B-FP8": "model.language_model.layers.0.mlp.experts.511.gate_proj.weight",
        "google/gemma-4-26B-A4B": "model.language_model.layers.29.router.per_expert_scale",
    }.items():
        assert weight in shapes(load_architecture(name))
    assert "language_model.lm_head.weight" in shapes(load_architecture("moonshotai/Kimi-K2.5"))


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"text_config": 3}, ["text_config", "text model"]),
        ({"text_config": tiny("llama4_text")}, ["text_config.model_type", "llama4_text", "qwen3_5_text"]),
        ({"text_config": tiny("qwen3_5_text", hidden_size=-1)}, ["text_config.hidden_size", "-1"]),
        ({"text_config": tiny("qwen3_5_text", moe_every=2)}, ["text_config.moe_every", "not a key"]),
        ({"cross_attention_layers": [1]}, ["cross_attention_layers", "not a key"]),
    ],
)
def test_errors_in_a_multimodal_config_name_the_key_inside(changes: dict[str, Any], fragments: list[str]) -> None:
    message = refusal(wrapped(**changes))
    for fragment in fragments:
        assert fragment in message


def test_only_the_experts_of_kimi_k25_are_quantised() -> None:
    architecture = load_architecture("moonshotai/Kimi-K2.5")
    assert architecture.quantisation is not None
    assert (architecture.quantisation.dtype, architecture.quantisation.block) == (DType.INT4, 32)
    assert architecture.quantisation.scale_bytes_per_element == 2 / 32  # symmetric: no zeros
    quantised = [tensor.name for tensor in architecture.weights() if tensor.quantised]
    assert quantised
    assert all(".mlp.experts." in name for name in quantised)
    # another checkpoint of the same model in another type leaves the same modules alone
    nvfp4 = load_architecture("nvidia/Kimi-K2.5-NVFP4")
    assert nvfp4.native_weights_dtype == DType.FP4
    assert nvfp4.layers == architecture.layers


@pytest.mark.parametrize(
    ("model_type", "changes", "fragment"),
    [
        ("minimax_m2", {"qk_norm_type": "per_head"}, "qk_norm_type"),
        ("minimax_m2", {"attn_type_list": [1, 0]}, "attn_type_list"),
        ("minimax_m2", {"shared_intermediate_size": 8}, "shared_intermediate_size"),
        ("minimax_m3", {"attention_output_gate": True}, "attention_output_gate"),
        ("minimax_m3", {"moe_layer_freq": [0, 1]}, "moe_layer_freq"),
        ("minimax_m3", {"sparse_attention_config": {"use_sparse_attention": False}}, "use_sparse_attention"),
        ("qwen3_5_text", {"attn_output_gate": False}, "attn_output_gate"),
        ("qwen3_5_text", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen3_5_text", {"linear_num_value_heads": 3}, "linear_num_value_heads"),
        ("qwen3_5_moe_text", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("deepseek_v32", {"index_topk": None}, "index_topk"),
        ("deepseek_v32", {"scoring_func": "sqrtsoftplus"}, "scoring_func"),
        ("glm_moe_dsa", {"indexer_types": ["shared", "full", "full", "full"]}, "indexer_types"),
        ("glm_moe_dsa", {"indexer_types": None, "index_topk_pattern": "FXFS"}, "index_topk_pattern"),
        ("glm_moe_dsa", {"indexer_types": None, "index_topk_pattern": 3}, "index_topk_pattern"),
        ("glm_moe_dsa", {"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
        ("mimo_v2_flash", {"swa_head_dim": 7}, "swa_head_dim"),
        ("mimo_v2_flash", {"layer_types": None}, "hybrid_layer_pattern"),
        ("mimo_v2_flash", {"n_shared_experts": 1}, "n_shared_experts"),
        ("llama4_text", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("llama4_text", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("llama4_text", {"moe_layers": [9]}, "moe_layers"),
        ("gemma4_text", {"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input"),
        ("gemma4_text", {"num_kv_shared_layers": 1}, "num_kv_shared_layers"),
        ("gemma4_text", {"per_layer_config": {"0": {"head_dim": 3}}}, "per_layer_config"),
        ("gemma4_text", {"per_layer_config": {"2": {"hidden_size": 3}}}, "per_layer_config"),
        ("nemotron-nas", {"block_configs": []}, "block_configs"),
    ],
)
def test_what_is_not_expressed_is_refused_by_its_key(model_type: str, changes: dict[str, Any], fragment: str) -> None:
    assert fragment in refusal(tiny(model_type, **changes))


@pytest.mark.parametrize(
    ("part", "statement", "fragment"),
    [
        ("attention", {"n_heads_in_group": 3}, "n_heads_in_group = 3 in layer 0"),
        ("attention", {"replace_with_linear": True}, "replace_with_linear"),
        ("attention", {"window_length": 64}, "window_length"),
        ("ffn", {"ffn_mult": -1}, "ffn_mult = -1 in layer 0"),
    ],
)
def test_a_layer_that_the_search_made_otherwise_is_refused(part: str, statement: dict[str, Any], fragment: str) -> None:
    first, *rest = TINY["nemotron-nas"]["block_configs"]
    config = tiny("nemotron-nas", block_configs=[{**first, part: {**first[part], **statement}}, *rest])
    message = refusal(config)
    assert "block_configs" in message
    assert fragment in message


def test_a_layer_without_anything_is_refused() -> None:
    nothing = {"attention": {"no_op": True}, "ffn": {"no_op": True}}
    _, *rest = TINY["nemotron-nas"]["block_configs"]
    assert "leaves nothing in layer 0" in refusal(tiny("nemotron-nas", block_configs=[nothing, *rest]))


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_compiling_is_refused_by_the_family(model_type: str) -> None:
    architecture = load_architecture(tiny(model_type))
    layout = Layout(tensor_parallel=1, pipeline_stages=(len(architecture.layers),))
    reason = obstacle_to_compiling(architecture, layout, DType.BF16, DType.BF16)
    assert reason is not None
    assert architecture.family in reason


def test_the_page_of_families_names_each_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    named = {name for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])} - {"_text", "model_type"}
    assert named | {"qwen3_5_text", "qwen3_5_moe_text"} == set(FAMILIES)
    compiled = set(re.findall(r"`([^`]+)`", next(line for line in lines if "capstan too" in line).split("|")[1]))
    assert compiled == set(COMPILED)


def test_every_multimodal_family_of_the_catalogue_names_its_tower() -> None:
    for path in sorted(MODELS.glob("*/config.json")):
        config = json.loads(path.read_text())
        architecture = load_architecture(config)
        assert bool(architecture.omitted) == (config["model_type"] in MULTIMODAL and "vision_config" in config)
