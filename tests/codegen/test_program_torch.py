"""The torch program's logits are those of transformers, however a sequence is cut into steps and over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from program_harness import Replica, load_module  # noqa: E402
from tiny_checkpoints import FAMILIES, VARIANTS, VOCAB_SIZE, make_checkpoint, reference_logits  # noqa: E402

from codegen.program import generate_program  # noqa: E402
from specs.architecture import load_architecture  # noqa: E402
from specs.document import DType  # noqa: E402
from specs.plan import Layout  # noqa: E402

LENGTHS = (23, 5, 1, 17)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[list[int]], list[Any]]]:
    """Variant -> folder, sequences of tokens, their reference logits; made when first asked for."""

    class Made(dict[str, tuple[Path, list[list[int]], list[Any]]]):
        def __missing__(self, variant: str) -> tuple[Path, list[list[int]], list[Any]]:
            folder = make_checkpoint(tmp_path_factory.mktemp(variant), variant)
            generator = torch.Generator().manual_seed(5)
            sequences = [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in LENGTHS]
            self[variant] = (folder, sequences, reference_logits(folder, sequences))
            return self[variant]

    return Made()


def replica(folder: Path, *, ranks: int = 1, dtype: DType = DType.FP32, kv: DType | None = None) -> Replica:
    architecture = load_architecture(folder)
    program = generate_program(
        architecture,
        Layout(tensor_parallel=ranks, pipeline_stages=(len(architecture.layers),)),
        compute_dtype=dtype,
        kv_dtype=kv or dtype,
        block_size_tokens=4,
    )
    return Replica(load_module(program.source), program.manifest, folder)


def run(made: Replica, steps: Iterable[Sequence[tuple[int, Sequence[int]]]], count: int) -> list[Any]:
    """Logits of each sequence, its steps joined."""
    found: list[list[Any]] = [[] for _ in range(count)]
    for work in steps:
        for (sequence, _), logits in zip(work, made.step(work), strict=True):
            found[sequence].append(logits)
    return [torch.cat(pieces) for pieces in found]


def steps_of(sequences: list[list[int]], style: str) -> list[list[tuple[int, list[int]]]]:
    """The same tokens in different steps: whole prompts; chunks; token by token; or all of these mixed in one step."""
    if style == "prefill":
        return [[(index, tokens) for index, tokens in enumerate(sequences)]]
    sizes = {"chunked": [6, 2, 1, 5], "decode": [1, 1, 1, 1], "mixed": [7, 1, 1, 16]}[style]
    places, steps = [0] * len(sequences), []
    while any(place < len(tokens) for place, tokens in zip(places, sequences, strict=True)):
        work = []
        for index, tokens in enumerate(sequences):
            piece = tokens[places[index] : places[index] + sizes[index]]
            places[index] += len(piece)
            work += [(index, piece)] if piece else []
        steps.append(work)
    return steps


def assert_close(found: list[Any], expected: list[Any], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max().item() <= tolerance * other.abs().max().item()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("style", ["prefill", "mixed"])
def test_logits_are_those_of_transformers(checkpoints: Any, variant: str, style: str) -> None:
    folder, sequences, expected = checkpoints[variant]
    assert_close(run(replica(folder), steps_of(sequences, style), len(sequences)), expected, 1e-5)


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("style", ["chunked", "decode"])
def test_chunks_and_decoding_change_nothing(checkpoints: Any, variant: str, style: str) -> None:
    folder, sequences, expected = checkpoints[variant]
    assert_close(run(replica(folder), steps_of(sequences, style), len(sequences)), expected, 1e-5)


@pytest.mark.parametrize(
    ("variant", "ranks"), [*((variant, 2) for variant in VARIANTS), ("llama", 4), ("llama-one-kv-head", 4)]
)
def test_ranks_together_give_the_same_logits(checkpoints: Any, variant: str, ranks: int) -> None:
    """Heads, widths and an odd vocabulary cut over ranks; KV heads fewer than ranks are repeated."""
    folder, sequences, expected = checkpoints[variant]
    made = replica(folder, ranks=ranks)
    assert_close(run(made, steps_of(sequences, "mixed"), len(sequences)), expected, 1e-5)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16])
def test_half_precision_stays_near(checkpoints: Any, dtype: DType) -> None:
    folder, sequences, expected = checkpoints["llama"]
    found = run(replica(folder, dtype=dtype), steps_of(sequences, "mixed"), len(sequences))
    assert found[0].dtype == torch.float32
    assert_close(found, expected, 0.04 if dtype == DType.BF16 else 0.005)


def test_a_cache_in_another_type_than_the_weights(checkpoints: Any) -> None:
    folder, sequences, expected = checkpoints["llama"]
    made = replica(folder, dtype=DType.FP32, kv=DType.FP16)
    found = run(made, steps_of(sequences, "mixed"), len(sequences))
    assert made.caches[0][0].dtype == torch.float16
    assert_close(found, expected, 0.003)
    assert any((one - other).abs().max() > 1e-6 for one, other in zip(found, expected, strict=True))


def test_a_long_prompt_is_cut_into_rows_that_attend_together(tmp_path: Path) -> None:
    """More tokens than CHUNK_ROWS, in a window and without: the cuts leave no trace."""
    for variant in ("llama", "mistral-window"):
        folder = make_checkpoint(tmp_path / variant, variant, max_position_embeddings=1024)
        tokens = torch.randint(VOCAB_SIZE, (300,), generator=torch.Generator().manual_seed(2)).tolist()
        made = replica(folder)
        made.module.CHUNK_ROWS = 64
        made.free = list(range(128))
        made.caches = [[torch.full((2, 128, 4, 2, 8), 100.0) for _ in range(2)]]
        found = run(made, [[(0, tokens[:10])], [(0, tokens[10:])]], 1)
        assert_close(found, reference_logits(folder, [tokens]), 1e-5)


def test_only_sampled_rows_give_logits(checkpoints: Any) -> None:
    folder, sequences, expected = checkpoints["llama"]
    made = replica(folder)
    batch = made.batch([(0, sequences[0]), (1, sequences[1])])
    wanted = torch.tensor([len(sequences[0]) - 1, len(sequences[0]) + len(sequences[1]) - 1])
    from dataclasses import replace

    logits = made._forward(0, replace(batch, sample_rows=wanted), None)
    assert logits.shape == (2, VOCAB_SIZE)
    assert_close([logits[0], logits[1]], [expected[0][-1], expected[1][-1]], 1e-5)
