"""Generated programs as text: formatted, deterministic, importing nothing of Capstan; and their weight map."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import time
from math import prod
from pathlib import Path
from typing import Any

import pytest
from plan_fixture import LLAMA_70B, QWEN_30B_A3B

from codegen.kernels import moe_block_rows
from codegen.program import generate_program, generate_triton_program
from codegen.program.kernel_specs import moe_tilings
from specs.architecture import Architecture, load_architecture, weight_elements_per_rank
from specs.document import DType
from specs.plan import Layout
from specs.program import ProgramManifest, WeightPart

SMALL = {
    "vocab_size": 1001,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SMALL | {"model_type": "llama", "rope_scaling": LLAMA3, "attention_bias": True, "mlp_bias": True},
    "llama-linear": SMALL | {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": SMALL | {"model_type": "mistral", "sliding_window": 32},
    "qwen2": SMALL
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    | {"tie_word_embeddings": True},
    "qwen3": SMALL | {"model_type": "qwen3", "head_dim": 128},
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": SMALL
    | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
    | {"mlp_only_layers": [0]},
    "llama-70b": LLAMA_70B | {"rope_scaling": LLAMA3},
    "qwen3-30b": QWEN_30B_A3B | {"intermediate_size": 6144},
}


def programs(architecture: Architecture, ranks: int, kv: DType = DType.BF16) -> tuple[Any, Any]:
    """The torch and the Triton program."""
    layout = Layout(tensor_parallel=ranks, pipeline_stages=(len(architecture.layers),))
    plain = generate_program(architecture, layout, compute_dtype=DType.BF16, kv_dtype=kv, block_size_tokens=16)
    return plain, generate_triton_program(plain.model, target="sm_90", multiprocessors=132, max_num_batched_tokens=8192)


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_generated_programs_need_no_formatter_and_no_linter(tmp_path: Path) -> None:
    for name, config in CONFIGS.items():
        for ranks in (1, 2):
            for program in programs(load_architecture(config), ranks, DType.FP16 if name == "llama" else DType.BF16):
                (tmp_path / f"{name}_{ranks}_{program.manifest.backend}.py").write_text(program.source)
    rules = "E,F,W,I,UP,B,SIM,C4,RUF,PT,PIE,RET,N"
    common = ["--isolated", "--line-length", "120", "--target-version", "py311", str(tmp_path)]
    for arguments in (["format", "--check", "--diff"], ["check", "--no-cache", "--select", rules]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, *common], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_program_stands_alone_and_has_no_unused_helper(name: str) -> None:
    for program in programs(load_architecture(CONFIGS[name]), 2):
        tree = ast.parse(program.source)
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert imported <= {"__future__", "collections.abc", "typing", "math", "torch", "torch.nn.functional"}
        read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        defined |= {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}  # type: ignore[attr-defined]
        assert defined - {"forward"} <= read
        assert program.source.count("    # Layer ") == len(program.model.layers)


def test_the_same_model_gives_the_same_text() -> None:
    first, second = (programs(load_architecture(CONFIGS["qwen3_moe"]), 2) for _ in range(2))
    assert [one.source for one in first] == [one.source for one in second]
    assert first[0].manifest.to_json() == second[0].manifest.to_json()


def test_a_name_cannot_break_out_of_the_docstring() -> None:
    hostile = 'x"""\nimport os\nos.abort()\n"""' + "y" * 300
    program, _ = programs(load_architecture(CONFIGS["llama"], name=hostile), 1)
    assert "import os" not in program.source.splitlines()
    assert isinstance(ast.parse(program.source).body[0], ast.Expr)
    assert max(map(len, program.source.splitlines())) <= 120


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_slots_hold_every_weight_of_the_rank_once(name: str, ranks: int) -> None:
    """Elements of all slots = what the family's description counts on a rank; every checkpoint tensor is named once."""
    architecture = load_architecture(CONFIGS[name])
    program, _ = programs(architecture, ranks)
    slots = program.manifest.slots
    assert sum(prod(slot.shape) for slot in slots) == sum(weight_elements_per_rank(architecture, ranks))
    named = [part.checkpoint_name for slot in slots for part in slot.parts]
    assert sorted(named) == sorted(one for tensor in architecture.weights() for one in tensor.names())
    read = [slot.name for slot in slots if f'weights["{slot.name}"]' in program.source]
    assert read == [slot.name for slot in slots]


def test_slices_of_ranks_cover_a_tensor() -> None:
    heads = WeightPart(checkpoint_name="q", shape=(12, 5), shard_axis=0, segments=((12, 6),))
    assert [heads.rank_slices(rank, 3) for rank in range(3)] == [((0, 4),), ((4, 8),), ((8, 12),)]
    repeated = WeightPart(checkpoint_name="k", shape=(8, 5), shard_axis=0, segments=((8, 2),))
    assert [repeated.rank_slices(rank, 4) for rank in range(4)] == [((0, 4),), ((0, 4),), ((4, 8),), ((4, 8),)]
    assert repeated.rank_shape(4) == (4, 5)
    vocabulary = WeightPart(checkpoint_name="e", shape=(10, 3), shard_axis=0)
    assert [vocabulary.rank_slices(rank, 4) for rank in range(4)] == [((0, 3),), ((3, 6),), ((6, 9),), ((9, 10),)]
    assert vocabulary.rank_shape(4) == (3, 3)
    columns = WeightPart(checkpoint_name="d", shape=(3, 8), shard_axis=1)
    assert (columns.rank_slices(1, 2), columns.rank_shape(2)) == (((4, 8),), (3, 4))
    whole = WeightPart(checkpoint_name="n", shape=(7,))
    assert (whole.rank_slices(1, 2), whole.rank_shape(2)) == (((0, 7),), (7,))


@pytest.mark.parametrize(("experts", "chosen", "most"), [(128, 8, 8192), (8, 2, 2048), (4, 2, 30), (6, 2, 1)])
def test_every_step_runs_the_tiles_made_for_its_size(experts: int, chosen: int, most: int) -> None:
    tilings = moe_tilings(most, experts, chosen)
    assert tilings[-1].max_tokens == most
    assert [one.max_tokens for one in tilings] == sorted({one.max_tokens for one in tilings})
    for tokens in range(1, most + 1):
        used = next(one for one in tilings if tokens <= one.max_tokens)
        assert used.block_rows == moe_block_rows(tokens, experts, chosen)


def test_large_models_are_generated_quickly() -> None:
    """80 layers, and 48 layers of 128 experts: 18,432 expert tensors in the weight map."""
    started = time.process_time()
    for name in ("llama-70b", "qwen3-30b"):
        plain, _ = programs(load_architecture(CONFIGS[name]), 4)
        assert ProgramManifest.model_validate_json(plain.manifest.to_json()) == plain.manifest
    assert time.process_time() - started < 4.0
