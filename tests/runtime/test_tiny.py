"""Models made on the spot: the same seed gives the same bytes, and transformers reads them as any checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import tiny
from runtime.tiny import MAX_PARAMETERS, TINY_LLAMA, made_model, make_model
from specs.architecture import load_architecture
from specs.directories import cache_home, config_home
from specs.errors import InputError

MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 128,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    "tie_word_embeddings": True, "torch_dtype": "float32",
}  # fmt: skip


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first, again = make_model(tmp_path / "a", seed=3), make_model(tmp_path / "b", seed=3)
    assert contents(first) == contents(again)
    other = contents(make_model(tmp_path / "c", seed=4))
    assert other["config.json"] == contents(first)["config.json"]
    assert other["model.safetensors"] != contents(first)["model.safetensors"]


@pytest.mark.parametrize("config", [TINY_LLAMA, MOE], ids=["llama", "qwen3-moe"])
def test_transformers_finds_every_tensor_and_no_other(config, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = make_model(tmp_path / "model", config)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert sum(tensor.numel() for tensor in model.parameters()) == load_architecture(folder).parameter_count().total
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_what_it_says_is_mostly_printable(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model"))
    with torch.no_grad():
        shares = torch.softmax(model(torch.tensor([list(b"Hello, how are you?")])).logits[0], -1)
    assert shares[:, 0x20:0x7F].sum(-1).mean() > 0.9  # 95 of 264 tokens


def test_a_made_model_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = made_model(TINY_LLAMA, 1)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert made_model(dict(reversed(TINY_LLAMA.items())), 1) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert made_model(TINY_LLAMA, 2) != first
    assert [path.name for path in first.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["truncated", "missing", "other", "no hashes"])
def test_a_damaged_made_model_is_made_again(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = made_model(TINY_LLAMA, 1)
    before = contents(made)
    weights = made / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "missing":
        (made / "byte_tokenizer.json").unlink()
    elif damage == "other":
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    else:
        (made / "made.json").write_text("{")
    assert contents(made_model(TINY_LLAMA, 1)) == before
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_of_two_that_make_the_same_model_the_first_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = tiny._write

    def slow(directory, *rest):
        written(directory, *rest)
        monkeypatch.setattr(tiny, "_write", written)
        first.append((made_model(TINY_LLAMA, 1) / "model.safetensors").stat().st_ino)  # the other process is quicker

    first = []
    monkeypatch.setattr(tiny, "_write", slow)
    made = made_model(TINY_LLAMA, 1)
    assert (made / "model.safetensors").stat().st_ino == first[0]
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"model: cannot be written \(No space left on device\)"):
        make_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/model: cannot be written"):
        make_model(tmp_path / "file" / "model")


def test_relative_cache_and_config_folders_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "here", "./here"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        monkeypatch.setenv("XDG_CONFIG_HOME", relative)
        assert cache_home() == tmp_path / ".cache" / "capstan"
        assert config_home() == tmp_path / ".config" / "capstan"
    assert made_model(TINY_LLAMA).is_relative_to(tmp_path / ".cache")


def test_what_cannot_be_made_up_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot hold the byte-level tokenizer"):
        make_model(tmp_path / "small", TINY_LLAMA | {"vocab_size": 100})
    large = TINY_LLAMA | {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 4}
    assert load_architecture(large).parameter_count().total > MAX_PARAMETERS
    with pytest.raises(InputError, match="too large to be made up"):
        make_model(tmp_path / "large", large)
    assert list(tmp_path.iterdir()) == []
