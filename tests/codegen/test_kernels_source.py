"""What `render` writes: deterministic, formatted, specialised text; and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.kernels import moe_block_rows, moe_tiles, parts_of, render, render_family
from specs.document import DType
from specs.errors import InputError
from specs.kernels import CAPABILITIES, TARGETS, KernelFamily, KernelSpec, reason_against

ROOT = Path(__file__).parents[2]
HEADS = {"heads": 64, "kv_heads": 8, "head_dim": 128, "block_size": 16}
MOE = {"experts": 128, "experts_per_token": 8}


def spec(
    family: str, shapes: dict[str, int], part: str = "", target: str = "sm_90", dtype: str = "bf16", **flags: bool
):
    return KernelSpec(family=family, part=part, target=target, dtype=dtype, shapes=shapes, flags=flags)


def all_specs(target: str = "sm_90", dtype: str = "bf16") -> list[KernelSpec]:
    """One of every part, and the variants that a flag or an optional shape makes."""
    products = {"in_features": 2048, "out_features": 768}
    specs = [
        spec("add_rms_norm", {"hidden_size": 8192}, residual=True),
        spec("add_rms_norm", {"hidden_size": 5120}),
        spec("rope_kv_write", HEADS),
        spec("rope_kv_write", HEADS | {"heads": 40}, qk_norm=True),
        *(spec("paged_attention", HEADS, part) for part in ("prefill", "decode")),
        *(spec("paged_attention", HEADS | {"window": 4096}, part) for part in ("prefill", "decode")),
        *(spec("paged_attention", HEADS | {"chunk_tokens": 256}, part) for part in ("split", "reduce")),
        *(spec("paged_attention", HEADS | {"chunk_tokens": 256, "window": 128}, part) for part in ("split", "reduce")),
        spec("swiglu", {"intermediate_size": 28672}),
        spec("swiglu", {"intermediate_size": 1000}),
        spec("moe_route", MOE, "topk", renormalise=True),
        spec("moe_route", MOE, "count"),
        spec("moe_route", MOE | {"block_rows": 64}, "sort"),
        spec("grouped_gemm", MOE | products | {"block_rows": 16}, "gate_up", swiglu=True),
        spec("grouped_gemm", MOE | products | {"block_rows": 128}, "gate_up"),
        spec("grouped_gemm", MOE | products | {"block_rows": 128, "in_features": 1000}, "down"),
        spec("grouped_gemm", {"experts_per_token": 8, "out_features": 2048}, "combine"),
        spec("sample", {"vocab_size": 128256}),
    ]
    return [one.model_copy(update={"target": target, "dtype": DType(dtype)}) for one in specs]


def test_every_part_is_in_the_list() -> None:
    rendered = {(one.family, one.part) for one in all_specs()}
    assert rendered == {(family, part) for family in KernelFamily for part in parts_of(family)}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_source_is_deterministic_and_the_same_for_all_targets(dtype: str) -> None:
    for one, other in zip(all_specs("sm_90", dtype), all_specs("gfx942", dtype), strict=True):
        assert render(one).source == render(one).source == render(other).source
        assert render(one).name == render(other).name


def test_source_is_formatted(tmp_path: Path) -> None:
    """As `ruff format` would write it and with nothing for `ruff check`, but for the capitals of tile sizes (N803)."""
    for dtype in ("bf16", "fp32"):
        for one in all_specs(dtype=dtype):
            (tmp_path / f"{one.name}.py").write_text(render(one).source)
    for command in (
        ["format", "--check"],
        ["check", "--select", "E,F,W,I,UP,B,SIM,C4,RUF,PIE,RET,N", "--ignore", "N803"],
    ):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "120", str(tmp_path)]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_only_live_parameters_appear() -> None:
    plain, windowed = (
        render(spec("paged_attention", shapes, "decode")).source for shapes in (HEADS, HEADS | {"window": 9})
    )
    assert "WINDOW" not in plain
    assert "WINDOW = tl.constexpr(9)" in windowed
    assert "residual" not in render(spec("add_rms_norm", {"hidden_size": 64})).source
    assert "q_norm" not in render(spec("rope_kv_write", HEADS)).source
    assert "mask" not in render(spec("add_rms_norm", {"hidden_size": 64})).source  # a power of two needs none
    assert "mask" in render(spec("add_rms_norm", {"hidden_size": 65})).source
    assert "ieee" not in render(spec("paged_attention", HEADS, "decode")).source
    assert "ieee" in render(spec("paged_attention", HEADS, "decode", dtype="fp32")).source


def test_header_states_arguments_and_grid() -> None:
    for one in all_specs():
        kernel = render(one)
        header = kernel.source.split('"""')[1]
        assert one.name in header
        assert f"Grid: {kernel.grid_source}" in header
        for argument in kernel.arguments:
            assert f"{argument.name}: {argument.type}" in header
        assert list(kernel.signature) == [a.name for a in kernel.arguments] + list(kernel.constants)


def test_scalars_are_not_specialised() -> None:
    """Or a just-in-time start would compile again for a batch of one and for multiples of 16."""
    source = render(spec("paged_attention", HEADS, "prefill")).source
    assert '@triton.jit(do_not_specialize=["scale", "num_sequences", "width"])' in source


def test_names_tell_variants_apart_and_are_identifiers() -> None:
    names = [one.name for one in all_specs()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    half = spec("paged_attention", HEADS, "decode").model_copy(update={"kv_dtype": DType.FP16})
    assert half.name != spec("paged_attention", HEADS, "decode").name


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (spec("paged_attention", HEADS | {"head_dim": 96}, "decode"), "head_dim to be a power of two, not 96"),
        (spec("paged_attention", HEADS | {"head_dim": 512}, "decode"), "head_dim up to 256"),
        (spec("paged_attention", HEADS | {"kv_heads": 7}, "decode"), "multiple of kv_heads"),
        (spec("paged_attention", HEADS), "its parts: 'prefill', 'decode', 'split', 'reduce'"),
        (spec("paged_attention", HEADS, "split"), "needs the shapes chunk_tokens"),
        (spec("paged_attention", HEADS | {"sinks": 1}, "decode"), "knows nothing of sinks"),
        (spec("add_rms_norm", {"hidden_size": 64}, bias=True), "knows nothing of bias"),
        (spec("add_rms_norm", {"hidden_size": 0}), "hidden_size from 1 on"),
        (spec("add_rms_norm", {"hidden_size": 64}, dtype="fp8"), "no fp8 variant"),
        (spec("add_rms_norm", {"hidden_size": 64}, target="sm_91"), "did you mean sm_90"),
        (spec("moe_route", {"experts": 4, "experts_per_token": 5}, "count"), "more experts than there are"),
        (spec("grouped_gemm", MOE | {"in_features": 8, "out_features": 8, "block_rows": 8}, "down"), "from 16 on"),
    ],
)
def test_refusals_say_why(wrong: KernelSpec, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        render(wrong)
    assert reason in str(caught.value)
    assert caught.value.exit_code == 2


def test_family_renders_all_its_parts() -> None:
    shapes = MOE | {"in_features": 2048, "out_features": 768, "block_rows": 16}
    kernels = render_family(spec("grouped_gemm", shapes, swiglu=True))
    assert [kernel.spec.part for kernel in kernels] == ["gate_up", "down", "combine"]
    assert [kernel.spec.flags for kernel in kernels] == [{"swiglu": True}, {}, {}]


def test_every_target_has_tiles_that_divide_the_work() -> None:
    for target in TARGETS:
        for one in all_specs(target):
            kernel = render(one)
            if one.part in ("prefill", "decode"):
                group = one.shapes["heads"] // one.shapes["kv_heads"]
                assert kernel.constants["BLOCK_Q"] == kernel.constants["BLOCK_M"] // group >= 1
            if one.part == "split":
                assert one.shapes["chunk_tokens"] % kernel.constants["TILE"] == 0
            assert 1 <= kernel.warps <= 32


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.sampled_from([16, 32, 64, 128]))
def test_tiles_are_enough_for_any_routing(counts: list[int], block_rows: int) -> None:
    needed = sum(-(-count // block_rows) for count in counts)
    assert moe_tiles(sum(counts), len(counts), block_rows) >= needed


def test_block_rows_follow_the_mean_of_an_expert() -> None:
    assert moe_block_rows(1, 128, 8) == 16  # the least that tl.dot takes
    assert moe_block_rows(1024, 128, 8) == 64
    assert moe_block_rows(100_000, 128, 8) == 128


def test_capabilities_are_of_all_families() -> None:
    assert set(CAPABILITIES) == set(KernelFamily)
    assert all(reason_against(one) is None for one in all_specs())


def test_philox_known_answers() -> None:
    """The first word of Philox-4x32-10 for a zero counter and key, as published with Random123 (kat_vectors)."""
    pytest.importorskip("torch")
    from codegen.kernels.reference import philox_uniform

    assert float(philox_uniform(0, 0, 1)[0]) == ((0x6627E8D5 >> 9) + 0.5) * 2.0**-23
