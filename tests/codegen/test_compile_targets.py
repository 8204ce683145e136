"""Every part of every family compiles with no GPU: all of them for one target of each maker, attention for the rest.

The whole matrix takes about a minute (CAPSTAN_SLOW_TESTS=1); `benchmarks/compile_matrix.py` writes its resource table.
"""

import os
from pathlib import Path

import pytest
from test_kernels_source import HEADS, all_specs, spec

from codegen.compile import compile_kernel, compile_kernels, triton_version
from codegen.kernels import render
from codegen.resources import MULTIPROCESSORS
from specs.kernels import TARGETS

pytest.importorskip("triton", reason="kernels are compiled by Triton (the runtime extra)")

DEFAULT_TARGETS = ("sm_90", "gfx942")  # one of each maker


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernel-cache")


def check(target: str, cache: Path) -> None:
    """Every part compiles, fits the device and can be resident; no kernel of 16-bit types spills more than a little."""
    for compiled in compile_kernels([render(one) for one in all_specs(target)], cache=cache, processes=1):
        record = compiled.record
        assert compiled.data[:4] == b"\x7fELF"
        assert record.entry.encode() in compiled.data
        assert 0 < record.registers <= 512
        assert record.spilled_bytes <= 64, record
        assert record.shared_memory_bytes <= MULTIPROCESSORS[target].largest_block_bytes
        assert 0 < record.occupancy <= 1
        assert record.triton == triton_version()
        assert record.options["enable_fp_fusion"] is True


@pytest.mark.parametrize("target", DEFAULT_TARGETS)
def test_every_part_compiles(target: str, cache: Path) -> None:
    check(target, cache)


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in DEFAULT_TARGETS])
def test_attention_compiles_for_every_target(target: str, cache: Path) -> None:
    """The kernel nearest to the limits of registers and shared memory."""
    kernel = render(spec("paged_attention", HEADS | {"head_dim": 256}, "prefill", target))
    assert compile_kernel(kernel, cache=cache).record.occupancy > 0


@pytest.mark.skipif("CAPSTAN_SLOW_TESTS" not in os.environ, reason="about a minute; set CAPSTAN_SLOW_TESTS=1")
@pytest.mark.parametrize("target", [target for target in TARGETS if target not in DEFAULT_TARGETS])
def test_every_part_compiles_for_every_target(target: str, cache: Path) -> None:
    check(target, cache)
