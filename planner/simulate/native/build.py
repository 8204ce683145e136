"""Compiles the simulator with the machine's C compiler on first use, keeps it in the user's cache, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from planner.simulate.native import abi

# -O3 is not faster here; -O2 is, by a tenth, and takes twice as long to compile as -O1
FLAGS = ("-std=c11", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-fast-math")
LIBRARIES = ("-lm",)
_TIMEOUT_S = 120.0
_SOURCES = Path(__file__).parent
_LOG = logging.getLogger(__name__)


@cache
def compiled() -> ctypes.CDLL | None:
    """The compiled simulator; None, and a warning in the log, where it cannot be had. Off with `CAPSTAN_NATIVE=0`."""
    if os.environ.get("CAPSTAN_NATIVE") == "0":
        return None
    compiler = find_compiler()
    if compiler is None:
        _warn("no C compiler found (set CC)")
        return None
    try:
        return load(compiler, cache_folder())
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or [str(error)]
        _warn(f"the C compiler {compiler[0]} failed: {lines[0]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        _warn(f"the C compiler {compiler[0]} failed: {error}")
    return None


def load(compiler: list[str], folder: Path | None) -> ctypes.CDLL:
    """From `folder`, compiled first where that has it not or cannot load it; for this process alone where `folder` is
    None, cannot be written, or holds nothing that may be run. Raises `OSError` and what `subprocess.run` raises."""
    if folder is not None:
        target = folder / f"{key(compiler)}.so"
        with suppress(OSError):
            return _open(target)
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            compile_to(compiler, target)
            return _open(target)
    with tempfile.TemporaryDirectory(prefix="capstan-") as private:
        compile_to(compiler, Path(private) / "simulator.so")
        return _open(Path(private) / "simulator.so")  # stays mapped when the file is gone


def compile_to(compiler: list[str], target: Path) -> None:
    """Compile under a temporary name and move into place: other processes see all of it or nothing."""
    handle, partial = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        command = [*compiler, *FLAGS, str(_SOURCES / "native.c"), "-o", partial, *LIBRARIES]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


def find_compiler() -> list[str] | None:
    """The command of `CC`, else the first of cc, gcc and clang that is installed."""
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen:
        return chosen if shutil.which(chosen[0]) else None
    return next(([path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def key(compiler: list[str]) -> str:
    """Of sources, flags, compiler and machine: what else could make another library."""
    digest = hashlib.sha256()
    for path in sorted([*_SOURCES.glob("*.c"), *_SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    found = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    stat = found.stat()
    identity = (compiler, str(found), stat.st_size, stat.st_mtime_ns, FLAGS, LIBRARIES, platform.platform())
    digest.update(repr((identity, platform.machine())).encode())
    return f"simulator-{digest.hexdigest()[:20]}"


def cache_folder() -> Path | None:
    """Where compiled libraries are kept; None where there is no home."""
    if chosen := os.environ.get("CAPSTAN_CACHE"):
        return Path(chosen) / "native"
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "capstan" / "native"
    except RuntimeError:
        return None


def _open(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    abi.declare(loaded)
    return loaded


def _warn(reason: str) -> None:
    _LOG.warning("simulating in Python, hundreds of times slower: %s", reason)
