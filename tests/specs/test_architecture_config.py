"""Reading configs: what is refused, by which name, and that nothing but `InputError` ever comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specs.architecture import Architecture, Attention, DenseMLP, LatentAttention, MixtureOfExperts, load_architecture
from specs.document import DType
from specs.errors import InputError


def small(**changes: Any) -> dict[str, Any]:
    """A small valid config; a change to `...` removes the key."""
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 100,
        "max_position_embeddings": 512,
    } | changes
    return {key: value for key, value in config.items() if value is not ...}


def refusal(config: Any, **arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_architecture(config, **arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"attn_output_gate": True}, ["architecture.attn_output_gate", "not a key that the llama family knows"]),
        ({"linear_attn_config": {"kda_layers": [1]}}, ["linear_attn_config"]),
        ({"sliding_window": 4096}, ["sliding_window", "whole context"]),
        ({"layer_types": ["sliding_attention", "full_attention"]}, ["layer_types", "sliding_window is not in use"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "2 entries"]),
        ({"layer_types": ["full_attention", "linear_attention"]}, ["layer_types"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "does not divide 4"]),
        ({"hidden_size": 66}, ["hidden_size", "4 heads do not divide"]),
        ({"hidden_size": -64}, ["hidden_size", "-64", "whole number"]),
        ({"hidden_size": True}, ["hidden_size", "true"]),
        ({"hidden_size": 64.0}, ["hidden_size", "64.0"]),
        ({"hidden_size": "64"}, ["hidden_size"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "4096"]),
        ({"vocab_size": 10**400}, ["vocab_size", "more than 64 bits"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "NaN"]),
        ({"rope_theta": -1.0}, ["rope_theta"]),
        ({"rope_scaling": {"rope_type": "yarm"}}, ["rope_scaling", "yarm", "did you mean 'yarn'"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, ["rope_parameters", "all layers"]),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, ["rope_parameters", "beside a rope_theta"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'silu'"]),
        ({"attention_bias": "yes"}, ["attention_bias", "true or false"]),
        ({"intermediate_size": ..., "intermediate_sizes": 5}, ["intermediate_size", "missing", "intermediate_sizes"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["architectures", "LlamaForCausalLM"]),
        ({"vision_config": {"depth": 3}}, ["vision_config", "multimodal"]),
        ({"torch_dtype": "int3"}, ["torch_dtype", "bfloat16"]),
        ({"quantization_config": {"quant_method": "bitnet"}}, ["quantization_config", "bitnet"]),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 1]}}, ["weight_block_size"]),
        ({"model_type": ...}, ["model_type", "missing"]),
        ({"model_type": "lama"}, ["'lama'", "families", "did you mean 'llama'"]),
        ({"model_type": ["llama"]}, ["model_type"]),
        ({"model_type": "kimi_k3", "text_config": {"x": 1}}, ["kimi_k3", "delta attention"]),
        ({"model_type": "blip9", "text_config": {"x": 1}}, ["blip9", "multimodal"]),
        ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5}, ["num_experts_per_tok", "of 4"]),
    ],
)
def test_what_a_family_cannot_express_is_refused_by_name(changes: dict[str, Any], fragments: list[str]) -> None:
    message = refusal(small(**changes))
    for fragment in fragments:
        assert fragment in message


def test_keys_that_change_nothing_are_fine() -> None:
    plain = load_architecture(small())
    noisy = small(
        _name_or_path="me/mine",
        transformers_version="5.0",
        attention_dropout=0.1,
        use_cache=True,
        id2label={"0": "A"},
        some_future_switch=False,
        other=None,
        layer_types=["full_attention"] * 2,
        architectures=["LlamaForCausalLM"],
    )
    assert load_architecture(noisy, name=plain.name) == plain


def test_both_spellings_of_rotary_parameters_are_read() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 64}
    old = load_architecture(small(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling}))
    new = load_architecture(small(rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **scaling}))
    assert old == new
    assert old.rope is not None
    assert (old.rope.theta, old.rope.kind) == (5e5, "llama3")
    assert dict(old.rope.parameters)["factor"] == 8.0


def test_windows_of_qwen_are_on_only_when_switched_on() -> None:
    off = small(model_type="qwen2", sliding_window=128, max_window_layers=1, use_sliding_window=False)
    assert [layer.window for layer in load_architecture(off).layers] == [None, None]
    on = {**off, "use_sliding_window": True}
    assert [layer.window for layer in load_architecture(on).layers] == [None, 128]
    types = {**on, "layer_types": ["sliding_attention", "full_attention"]}
    assert [layer.window for layer in load_architecture(types).layers] == [128, None]
    mistral = load_architecture(small(model_type="mistral", sliding_window=64))
    assert [layer.window for layer in mistral.layers] == [64, 64]


def test_biases_and_norms_follow_the_family() -> None:
    by_family = {family: load_architecture(small(model_type=family)) for family in ("llama", "qwen2", "qwen3")}
    assert [one.attention_bias for one in by_family.values()] == [False, True, False]
    assert [one.qk_norm for one in by_family.values()] == [False, False, True]
    qwen2 = by_family["qwen2"].layers[0].mixer
    assert isinstance(qwen2, Attention)
    assert (qwen2.qkv_bias, qwen2.output_bias) == (True, False)
    qwen3 = by_family["qwen3"].layers[0].mixer
    assert isinstance(qwen3, Attention)
    assert qwen3.head_dim == 128  # its default is no quotient


def test_sparse_layers_follow_the_steps_of_qwen3_moe() -> None:
    config = small(
        model_type="qwen3_moe",
        num_hidden_layers=6,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    )
    kinds = [isinstance(layer.mlp, MixtureOfExperts) for layer in load_architecture(config).layers]
    assert kinds == [False, True, False, False, False, True]
    assert "mlp_only_layers" in refusal({**config, "mlp_only_layers": [6]})


def test_deepseek_is_dense_first_and_kimi_is_the_same_family() -> None:
    deepseek = load_architecture("deepseek-ai/DeepSeek-V3")
    kinds = [type(layer.mlp) for layer in deepseek.layers]
    assert kinds == [DenseMLP] * 3 + [MixtureOfExperts] * 58
    assert isinstance(deepseek.layers[0].mixer, LatentAttention)
    assert (deepseek.mtp_layers, deepseek.native_weights_dtype) == (1, DType.FP8)
    kimi = load_architecture("moonshotai/Kimi-K2-Instruct")
    assert (kimi.family, kimi.mtp_layers) == ("deepseek_v3", 0)
    assert "index_topk" in refusal({**deepseek.config, "index_topk": 2048})


def test_a_hybrid_pattern_names_its_layers() -> None:
    config = dict(load_architecture("nvidia/Nemotron-H-56B-Base-8K").config)
    assert "unknown kind 'X'" in refusal({**config, "hybrid_override_pattern": "MX", "num_hidden_layers": 2})
    assert "names 2 layers" in refusal({**config, "hybrid_override_pattern": "M*"})


def test_equal_layers_are_equal_values() -> None:
    architecture = load_architecture("openai/gpt-oss-120b")
    assert sorted(count for _, count in architecture.distinct_layers) == [18, 18]
    assert len(load_architecture("deepseek-ai/DeepSeek-V3").distinct_layers) == 2
    assert hash(architecture) == hash(load_architecture("openai/gpt-oss-120b"))


@pytest.mark.parametrize(
    ("name", "model", "dtype"),
    [
        ("meta-llama/Llama-3.1-70B", "meta-llama/Meta-Llama-3.1-70B", DType.BF16),
        ("META-LLAMA/llama-3.1-70b", "meta-llama/Meta-Llama-3.1-70B", DType.BF16),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B", DType.BF16),
        ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Meta-Llama-3.1-70B", DType.BF16),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "meta-llama/Meta-Llama-3.1-70B", DType.FP8),
        ("nvidia/Llama-3.3-70B-Instruct-NVFP4", "meta-llama/Meta-Llama-3.1-70B", DType.FP4),
        ("nvidia/DeepSeek-R1-NVFP4", "deepseek-ai/DeepSeek-R1", DType.FP4),
        ("Qwen/Qwen3-32B-FP8-Static-PerTensor", "Qwen/Qwen3-32B", DType.FP8),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistralai/Mixtral-8x7B-v0.1", DType.BF16),
        ("zhipuai/GLM-5", "zai-org/GLM-5", DType.BF16),
        ("zai-org/GLM-5.1-FP8", "zai-org/GLM-5", DType.FP8),
        ("MiniMaxAI/MiniMax-M2", "MiniMaxAI/MiniMax-M2.5", DType.FP8),
        ("nvidia/Kimi-K2.5-NVFP4", "moonshotai/Kimi-K2.5", DType.FP4),
    ],
)
def test_aliases_have_the_shape_of_their_model(name: str, model: str, dtype: DType) -> None:
    found = load_architecture(name)
    assert found.layers == load_architecture(model).layers
    assert found.native_weights_dtype == dtype
    # a plan embeds the config as read: loading that again gives the same architecture
    assert load_architecture(json.loads(json.dumps(dict(found.config))), name=found.name) == found


def test_names_are_spelled_as_the_catalogue_has_them() -> None:
    assert load_architecture("META-LLAMA/llama-3.1-70b").name == "meta-llama/Llama-3.1-70B"
    assert load_architecture("qwen3-32b").name == "Qwen/Qwen3-32B"


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("meta-llama/Llama-3.1-71B", ["no model of the catalogue", "did you mean 'meta-llama/Llama-3.1-70B'"]),
        ("gpt-oss", ["openai/gpt-oss-20b"]),
        ("meta-lama/Llama-3.1-8b", ["meta-llama/Llama-3.1-8B"]),
        ("moonshotai/Kimi-K3", ["kimi_k3", "delta attention", "deepseek_v3, deepseek_v32"]),
        ("deepseek-ai/DeepSeek-V4-Pro", ["'deepseek_v4'", "did you mean 'deepseek_v3'"]),
        ("stepfun-ai/Step-3.7-Flash", ["step3p7"]),
        ("", ["no model"]),
        ("a\0b", ["no model"]),
        ("a" * 5000, ["no model"]),
    ],
)
def test_unknown_and_unsupported_names_are_refused_with_the_nearest(name: str, fragments: list[str]) -> None:
    message = refusal(name)
    for fragment in fragments:
        assert fragment in message
    assert len(message) < 1000


def test_a_file_and_a_folder_are_read_beside_the_spec(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(small(), indent=1))
    from_folder = load_architecture("models/mine", base_dir=tmp_path)
    from_file = load_architecture("models/mine/config.json", base_dir=tmp_path)
    assert from_folder.layers == from_file.layers == load_architecture(small()).layers
    assert from_folder.name == "models/mine"
    assert "no config.json" in refusal("models", base_dir=tmp_path)
    assert "no such file" in refusal("models/yours", base_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b'{"model_type": "llama",', "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"[1, 2]", "holds list"),
        (b'{"hidden_size": 1, "hidden_size": 2}', "stands twice"),
        (b'{"model_type": "llama", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
        (b'{"model_type": "llama", "a": ' + b"[" * 40 + b"]" * 40 + b"}", "nested too deeply"),
        (b'{"model_type": "llama", "hidden_size": NaN}', "NaN"),
        (b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b" " * (5 << 20), "too large"),
    ],
)
def test_a_broken_file_is_one_message(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    message = refusal(path)
    assert str(path) in message
    assert fragment in message


def test_an_error_in_a_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(small(num_key_value_heads=3), indent=1))
    line = path.read_text().splitlines().index(' "num_key_value_heads": 3,') + 1
    assert f"{path}:{line}: num_key_value_heads" in refusal(path)


def test_infinities_of_old_configs_can_stand_in_a_document() -> None:
    config = {**load_architecture("nvidia/Nemotron-H-56B-Base-8K").config, "time_step_limit": [0.0, float("inf")]}
    json.dumps(dict(load_architecture(config).config), allow_nan=False)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
BASES = [
    dict(load_architecture(name).config)
    for name in (
        "Qwen/Qwen3-30B-A3B-FP8",
        "deepseek-ai/DeepSeek-V3",
        "openai/gpt-oss-20b",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "facebook/opt-13b",
        "meta-llama/Llama-3.1-8B",
        "MiniMaxAI/MiniMax-M3",
        "Qwen/Qwen3.5-35B-A3B",
        "moonshotai/Kimi-K2.5",
        "zai-org/GLM-5.2",
        "XiaomiMiMo/MiMo-V2-Flash",
        "google/gemma-4-26B-A4B",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
    )
]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(BASES), st.data())
def test_any_value_gives_an_architecture_or_an_input_error(base: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(base)))
    config = {**base, key: data.draw(JSON_VALUES)}
    if isinstance(base[key], dict) and (key == "text_config" or data.draw(st.booleans())):
        inner = data.draw(st.sampled_from(sorted(base[key])))
        config[key] = {**base[key], inner: data.draw(JSON_VALUES)}
    try:
        architecture = load_architecture(config)
    except InputError:
        return
    assert isinstance(architecture, Architecture)
    assert architecture.parameter_count().total > 0
    hash(architecture)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_an_input_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        load_architecture(path)


def test_loading_is_quick_and_needs_no_heavy_module() -> None:
    code = (
        "import sys, time\n"
        "from specs.architecture import load_architecture\n"
        "start = time.process_time()\n"
        "load_architecture('meta-llama/Llama-3.1-70B')\n"
        "assert time.process_time() - start < 0.02, time.process_time() - start\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'networkx', 'yaml', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
