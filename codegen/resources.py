"""What a compiled kernel takes of a multiprocessor, read back from the binary, and the occupancy that follows from
it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specs.errors import CapstanError

OccupancyLimit = Literal["registers", "shared memory", "warps", "blocks"]


class ToolchainError(CapstanError):
    """A part of the compiler is missing or answered something unexpected."""


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor (NVIDIA) or compute unit (AMD).

    NVIDIA: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"; a register file of 64
    Ki is handed out to warps in pieces of 256, and every block takes 1 KiB of shared memory for the system (cc 8.0 on).
    AMD: CDNA 3 and CDNA 4 instruction set guides; 512 vector registers a lane and at most 8 waves on each of 4 SIMDs.
    """

    warps: int
    blocks: int
    shared_memory_bytes: int
    reserved_bytes: int  # of shared memory, each block
    largest_block_bytes: int  # of shared memory that one block may ask for
    warp_size: int = 32


def _nvidia(warps: int, blocks: int, shared_kib: int, block_kib: int) -> Multiprocessor:
    return Multiprocessor(warps, blocks, shared_kib * 1024, 1024, block_kib * 1024)


MULTIPROCESSORS: dict[str, Multiprocessor] = {
    "sm_80": _nvidia(64, 32, 164, 163),
    "sm_86": _nvidia(48, 16, 100, 99),
    "sm_89": _nvidia(48, 24, 100, 99),
    "sm_90": _nvidia(64, 32, 228, 227),
    "sm_100": _nvidia(64, 32, 228, 227),
    "sm_103": _nvidia(64, 32, 228, 227),
    "sm_120": _nvidia(48, 24, 100, 99),
    "gfx942": Multiprocessor(32, 32, 64 * 1024, 0, 64 * 1024, warp_size=64),
    "gfx950": Multiprocessor(32, 32, 160 * 1024, 0, 160 * 1024, warp_size=64),
}
REGISTER_FILE = 65536  # NVIDIA, of one multiprocessor
REGISTER_PIECE = 256  # NVIDIA, handed to a warp
VECTOR_REGISTERS = 512  # AMD, a lane of one SIMD, accumulation registers included
SIMDS = 4
WAVES_PER_SIMD = 8


def occupancy(target: str, *, registers: int, shared_memory_bytes: int, warps: int) -> tuple[float, OccupancyLimit]:
    """Share of a multiprocessor's warps that blocks of this kernel can fill, and what limits it.

    `registers` per thread, `shared_memory_bytes` and `warps` per block. 0.0 where not even one block fits.
    """
    unit = MULTIPROCESSORS[target]
    limits: dict[OccupancyLimit, int] = {"blocks": unit.blocks, "warps": unit.warps // warps}
    if target.startswith("gfx"):
        waves = min(WAVES_PER_SIMD, VECTOR_REGISTERS // max(8, _up(registers, 8)))
        limits["registers"] = waves * SIMDS // warps if warps >= SIMDS else waves * (SIMDS // warps)
    else:
        # Each of four partitions holds a quarter of the registers; a warp lives in one.
        warps_of_partition = REGISTER_FILE // 4 // _up(max(1, registers) * 32, REGISTER_PIECE)
        limits["registers"] = warps_of_partition * 4 // warps
    if shared_memory_bytes:
        limits["shared memory"] = unit.shared_memory_bytes // (shared_memory_bytes + unit.reserved_bytes)
        if shared_memory_bytes > unit.largest_block_bytes:
            limits["shared memory"] = 0
    order: tuple[OccupancyLimit, ...] = ("warps", "registers", "shared memory", "blocks")
    name = min((limit for limit in order if limit in limits), key=lambda limit: limits[limit])
    return min(1.0, limits[name] * warps / unit.warps), name


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def read_nvidia(cubin: bytes, cuobjdump: str) -> tuple[int, int]:
    """(registers, spilled bytes) of a thread, from `cuobjdump -res-usage`: the stack frame and local memory are spills,
    because Triton's kernels have no other use for them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ToolchainError(f"cuobjdump does not run: {error}") from None
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout)
    if done.returncode or found is None:
        raise ToolchainError(
            f"cuobjdump -res-usage says nothing about registers: {(done.stderr or done.stdout).strip()}"
        )
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def read_amd(assembly: str) -> tuple[int, int]:
    """(vector registers, spilled bytes) of a thread, from the metadata at the end of the amdgcn text.

    `.vgpr_count` includes accumulation registers on CDNA 2 and later. A spilled vector register is 4 bytes of a thread.
    """
    counts = dict(
        re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size):\s+(\d+)", assembly)
    )
    if "vgpr_count" not in counts:
        raise ToolchainError("the amdgcn text has no .vgpr_count")
    spilled = 4 * int(counts.get("vgpr_spill_count", 0))
    return int(counts["vgpr_count"]), max(spilled, int(counts.get("private_segment_fixed_size", 0)))


def is_loadable(target: str, shared_memory_bytes: int) -> bool:
    """Whether one block's shared memory fits the target at all."""
    return shared_memory_bytes <= MULTIPROCESSORS[target].largest_block_bytes


def cuobjdump_path(path: str | Path) -> str:
    """`path` if it is a file; `ToolchainError` else."""
    if not Path(path).is_file():
        raise ToolchainError(f"cuobjdump is not at {path}; reinstall triton")
    return str(path)
