"""Checkpoints into slots: shards, ranks, packing; and every way in which files can be wrong."""

# ruff: noqa: E402 - what is imported needs packages that may be absent; then the file is skipped
from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
from program_harness import load_slots
from safetensors.torch import load_file, save_file
from tiny_checkpoints import VARIANTS, make_checkpoint

from codegen.program import generate_program
from runtime.loader import INDEX, load_weights
from specs.architecture import load_architecture
from specs.document import DType
from specs.errors import InputError, NotHonouredError
from specs.plan import Layout

CPU = torch.device("cpu")


def manifest_of(folder, ranks: int = 1, dtype: DType = DType.FP32):
    architecture = load_architecture(folder)
    layout = Layout(tensor_parallel=ranks, pipeline_stages=(len(architecture.layers),))
    program = generate_program(architecture, layout, compute_dtype=dtype, kv_dtype=dtype, block_size_tokens=16)
    return program.manifest


def shard(folder, parts: int = 3):
    """Split model.safetensors into shards with an index, as large checkpoints come."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for index in range(parts):
        file = f"model-{index + 1:05d}-of-{parts:05d}.safetensors"
        mine = names[index::parts]
        save_file({name: tensors[name] for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


@pytest.fixture
def llama(tmp_path):
    return make_checkpoint(tmp_path / "llama", "llama")


@pytest.mark.parametrize("variant", ["llama", "llama-one-kv-head", "qwen2", "qwen3", "mixtral", "qwen3-moe"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_gets_its_part_of_every_slot(variant, ranks, tmp_path):
    """Against a second, plain reading of the whole files, in which each tensor is cut after it was loaded."""
    assert variant in VARIANTS
    folder = make_checkpoint(tmp_path / "model", variant)
    manifest = manifest_of(folder, ranks)
    for rank in range(ranks):
        got, expected = load_weights(folder, manifest, CPU, rank=rank), load_slots(folder, manifest, rank)
        assert got.keys() == expected.keys()
        for name in expected:
            assert torch.equal(got[name], expected[name]), name


def test_shards_give_the_same_as_one_file(llama):
    manifest = manifest_of(llama)
    whole = load_weights(llama, manifest, CPU)
    shard(llama)
    sharded = load_weights(llama, manifest, CPU)
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_weights_take_the_slots_type(llama):
    half = load_weights(llama, manifest_of(llama, dtype=DType.BF16), CPU)
    whole = load_weights(llama, manifest_of(llama), CPU)
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    assert all(torch.equal(half[name], whole[name].to(torch.bfloat16)) for name in whole)


def test_a_missing_shard_is_named(llama):
    manifest = manifest_of(llama)
    shard(llama)
    (llama / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors: is missing"):
        load_weights(llama, manifest, CPU)


def test_a_truncated_shard_is_named(llama):
    manifest = manifest_of(llama)
    shard(llama)
    file = llama / "model-00001-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model-00001-of-00003\.safetensors: .*safetensors"):
        load_weights(llama, manifest, CPU)


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!"]
)
def test_garbage_in_the_place_of_weights_is_refused(llama, content):
    manifest = manifest_of(llama)
    (llama / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is no readable safetensors file"):
        load_weights(llama, manifest, CPU)


def test_a_directory_without_weights_says_what_was_expected(llama):
    manifest = manifest_of(llama)
    (llama / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no weights; expected model\.safetensors"):
        load_weights(llama, manifest, CPU)


def test_shapes_that_contradict_the_config_are_named_with_both(llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(
        InputError, match=r"'model\.layers\.0\.mlp\.\w+\.weight' has shape \(.*48.*\), which contradicts"
    ):
        load_weights(llama, manifest_of(llama), CPU)


def test_a_tensor_that_is_not_there_is_named_with_the_nearest(llama):
    manifest = manifest_of(llama)
    tensors = load_file(llama / "model.safetensors")
    tensors["model.layers.1.self_attn.q_projection.weight"] = tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, llama / "model.safetensors")
    with pytest.raises(InputError, match=r"'model\.layers\.1\.self_attn\.q_proj\.weight' is missing") as caught:
        load_weights(llama, manifest, CPU)
    assert all(name.startswith("model.layers.1.self_attn.") for name in caught.value.nearest)


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"weight_map": 3}', '{"weight_map": {"a": "../../etc/passwd"}}']
)
def test_an_index_that_is_none_is_refused(llama, text):
    manifest = manifest_of(llama)
    shard(llama)
    (llama / INDEX).write_text(text)
    with pytest.raises(InputError, match="index"):
        load_weights(llama, manifest, CPU)


def test_types_that_the_runtime_does_not_hold_are_refused_by_name(llama):
    manifest = manifest_of(llama)
    slot = manifest.slots[0].model_copy(update={"dtype": DType.FP8})
    with pytest.raises(NotHonouredError, match="fp8"):
        load_weights(llama, manifest.model_copy(update={"slots": (slot, *manifest.slots[1:])}), CPU)


def add_tensors(folder, **tensors):
    """Further tensors in the one file of a checkpoint."""
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["model.layers.99.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "extra"]
)
def test_a_tensor_without_a_place_in_the_model_is_refused_by_name(llama, name):
    add_tensors(llama, **{name: torch.ones(4)})
    with pytest.raises(InputError, match=rf"tensor '{name}' has no place in the model that config\.json describes"):
        load_weights(llama, manifest_of(llama), CPU)


def test_buffers_that_the_config_gives_are_left_alone(llama):
    manifest = manifest_of(llama)
    plain = load_weights(llama, manifest, CPU)
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.masked_bias")
    add_tensors(llama, **{name: torch.ones(4) for name in names})
    assert load_weights(llama, manifest, CPU).keys() == plain.keys()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("companion", ["weight_scale", "weight_scale_inv", None])
def test_quantised_tensors_are_not_cast(llama, dtype, companion):
    base = "model.layers.1.mlp.down_proj."
    tensors = load_file(llama / "model.safetensors")
    tensors[base + "weight"] = tensors[base + "weight"].to(dtype)
    if companion is not None:
        tensors[base + companion] = torch.ones(1)
    save_file(tensors, llama / "model.safetensors")
    with pytest.raises(InputError, match=r"down_proj\.weight.* quantised checkpoints are not served"):
        load_weights(llama, manifest_of(llama), CPU)


def test_the_copy_of_a_tied_head_is_left_alone_and_another_head_refused(tmp_path):
    folder = make_checkpoint(tmp_path / "tied", "llama-tied")
    manifest = manifest_of(folder)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    add_tensors(folder, **{"lm_head.weight": table.clone()})
    assert load_weights(folder, manifest, CPU)
    for other in (table + 1, table.to(torch.bfloat16)):
        add_tensors(folder, **{"lm_head.weight": other})
        with pytest.raises(InputError, match="tie_word_embeddings"):
            load_weights(folder, manifest, CPU)


def test_a_tensor_in_two_shards_is_refused(llama):
    manifest = manifest_of(llama)
    shard(llama)
    first, second = (llama / f"model-0000{index}-of-00003.safetensors" for index in (1, 2))
    name = sorted(load_file(first))[0]
    save_file(load_file(second) | {name: load_file(first)[name] + 1}, second)
    with pytest.raises(InputError, match=rf"00002-of-00003\.safetensors: holds tensor '{name}', which .* places in"):
        load_weights(llama, manifest, CPU)


def test_a_shards_tensor_that_the_index_leaves_out_is_refused(llama):
    manifest = manifest_of(llama)
    shard(llama)
    file = llama / "model-00001-of-00003.safetensors"
    save_file(load_file(file) | {"model.layers.7.x": torch.ones(1)}, file)
    with pytest.raises(InputError, match=r"holds tensor 'model\.layers\.7\.x', which .*index\.json does not name"):
        load_weights(llama, manifest, CPU)


def test_an_index_beside_another_whole_file_is_refused(llama):
    manifest = manifest_of(llama)
    whole = (llama / "model.safetensors").read_bytes()
    shard(llama)
    (llama / "model.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match=r"model\.safetensors: stands beside"):
        load_weights(llama, manifest, CPU)
    (llama / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(load_file(llama / "model.safetensors"), "model.safetensors")})
    )
    assert load_weights(llama, manifest, CPU)
