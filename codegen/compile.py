"""Generated kernels -> binaries, for devices that need not be present: `triton.compile` for a stated target.

Results are kept by content: same source, signature, constants, options, target and Triton version give the same files
from the cache, without importing Triton. Binaries do not depend on the machine or the folder: the source is compiled
from memory under the name that it has in a bundle (`kernels/NAME.py`), which is what line information shows.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import linecache
import logging
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from codegen.kernels import GeneratedKernel
from codegen.resources import ToolchainError, cuobjdump_path, is_loadable, occupancy, read_amd, read_nvidia
from specs.directories import cache_home
from specs.errors import InputError
from specs.kernels import KernelBinary

LOG = logging.getLogger(__name__)
CACHE_FORMAT = 1  # raised when what is stored changes its meaning
ALIGNMENT = 16  # bytes that every tensor's start is a multiple of; the launcher checks it
PARALLEL_FROM = 3  # kernels; a second process costs about a second to start


@dataclass(frozen=True)
class CompiledKernel:
    """A binary (cubin or hsaco) and the record that a launcher needs."""

    record: KernelBinary
    data: bytes
    cached: bool

    @property
    def suffix(self) -> str:
        """`.cubin` or `.hsaco`."""
        return ".hsaco" if self.record.target.startswith("gfx") else ".cubin"


def compile_kernel(kernel: GeneratedKernel, *, cache: Path | None = None) -> CompiledKernel:
    """The binary of `kernel` for its spec's target, from the cache or compiled now. Needs the `runtime` extra, no GPU.

    Raises `ToolchainError` where Triton is missing or refuses the source, `InputError` where the kernel needs more
    shared memory than the target has.
    """
    folder = cache or default_cache()
    key = _key(kernel)
    return _load(folder, key) or _compile_into(kernel, folder, key)


def compile_kernels(
    kernels: Iterable[GeneratedKernel],
    *,
    cache: Path | None = None,
    processes: int = 2,
    progress: Callable[[CompiledKernel], None] | None = None,
) -> tuple[CompiledKernel, ...]:
    """All of them, in the order given, on `processes` processes where many are not in the cache."""
    wanted = list(kernels)
    folder = cache or default_cache()
    keys = [_key(kernel) for kernel in wanted]
    done: dict[str, CompiledKernel] = {}

    def finish(key: str, compiled: CompiledKernel) -> None:
        done[key] = compiled
        if progress is not None:
            progress(compiled)

    missing: dict[str, GeneratedKernel] = {}
    for key, kernel in zip(keys, wanted, strict=True):
        if key in done or key in missing:
            continue
        found = _load(folder, key)
        if found is None:
            missing[key] = kernel
        else:
            finish(key, found)
    if processes > 1 and len(missing) >= PARALLEL_FROM:
        with ProcessPoolExecutor(min(processes, len(missing)), mp_context=get_context("spawn")) as pool:
            try:
                with _interrupts_ignored():
                    futures = {pool.submit(_compile_into, kernel, folder, key): key for key, kernel in missing.items()}
                for future in as_completed(futures):
                    finish(futures[future], future.result())
            except BaseException:
                with _interrupts_ignored():  # a second Ctrl-C in here would leave the workers waiting for ever
                    for worker in active_children():
                        worker.terminate()
                    pool.shutdown(cancel_futures=True)
                raise
    else:
        for key, kernel in missing.items():
            finish(key, _compile_into(kernel, folder, key))
    return tuple(done[key] for key in keys)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C is ignored in the block, and in the processes that are started in it.

    It reaches a terminal's whole process group; a pool whose workers die while kernels are handed to them never ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def default_cache() -> Path:
    """`capstan/kernels` in the user's cache folder."""
    return cache_home() / "kernels"


def triton_version() -> str:
    """The installed Triton's version, without importing it. `ToolchainError` where there is none."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise ToolchainError(
            "kernels are compiled by Triton, which is not installed: install capstan-llm[runtime]"
        ) from None


def options_of(kernel: GeneratedKernel) -> dict[str, bool | int | str]:
    """Compile options. `enable_fp_fusion` is pinned because its default changes between Triton versions."""
    return {"num_warps": kernel.warps, "num_stages": kernel.stages, "enable_fp_fusion": True}


def load_function(kernel_name: str, source: str, entry: str) -> Any:
    """The `triton.jit` function of generated source, without a file: Triton reads the text through `linecache`."""
    filename = f"kernels/{kernel_name}.py"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = ModuleType(f"capstan_kernel_{kernel_name}")
    exec(compile(source, filename, "exec"), module.__dict__)  # our own text, made by `codegen.kernels.render`
    return getattr(module, entry)


def _key(kernel: GeneratedKernel) -> str:
    """Everything that the binary depends on."""
    content = {
        "format": CACHE_FORMAT,
        "name": kernel.name,
        "source": kernel.source,
        "entry": kernel.entry,
        "arguments": [argument.model_dump() for argument in kernel.arguments],
        "constants": kernel.constants,
        "options": options_of(kernel),
        "target": kernel.spec.target,
        "alignment": ALIGNMENT,
        "triton": triton_version(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _compile_into(kernel: GeneratedKernel, folder: Path, key: str) -> CompiledKernel:
    compiled = _compile(kernel)
    _store(folder, key, compiled)
    return compiled


def _compile(kernel: GeneratedKernel) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = kernel.spec.target
    amd = target.startswith("gfx")
    where = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    # Constants come last in the signature; every pointer is promised to be aligned, no scalar is.
    pointers = [index for index, argument in enumerate(kernel.arguments) if argument.is_pointer]
    source = ASTSource(
        load_function(kernel.name, kernel.source, kernel.entry),
        kernel.signature,
        constexprs={(len(kernel.arguments) + i,): value for i, value in enumerate(kernel.constants.values())},
        attrs={(index,): [["tt.divisibility", ALIGNMENT]] for index in pointers},
    )
    options = options_of(kernel)
    with tempfile.TemporaryDirectory(prefix="capstan-triton-") as scratch, triton.knobs.cache.scope():
        triton.knobs.cache.dir = scratch  # Triton's own cache is keyed by places; ours is by content
        try:
            made = triton.compile(source, target=where, options=options)
        except Exception as error:  # Triton raises many kinds; the kernel and target must be named
            raise ToolchainError(f"Triton does not compile {kernel.name} for {target}: {error}") from error
    data: bytes = made.asm["hsaco" if amd else "cubin"]
    shared = int(made.metadata.shared)
    if amd:
        registers, spilled = read_amd(made.asm["amdgcn"])
    else:
        _check_parameters(kernel, made.asm["ptx"])
        registers, spilled = read_nvidia(data, cuobjdump_path(triton.knobs.nvidia.cuobjdump.path))
    warps = int(made.metadata.num_warps)
    if not is_loadable(target, shared):
        raise InputError(f"{kernel.name} needs {shared} bytes of shared memory a block, more than {target} has")
    # AMD's metadata has no such fields in 3.7.1.
    if any(getattr(made.metadata, name, 0) for name in ("global_scratch_size", "profile_scratch_size")):
        raise ToolchainError(f"{kernel.name} needs scratch memory on {target}, which the launcher does not hand out")
    share, limit = occupancy(target, registers=registers, shared_memory_bytes=shared, warps=warps)
    record = KernelBinary(
        name=kernel.name,
        family=kernel.spec.family,
        part=kernel.spec.part,
        target=target,
        entry=str(made.metadata.name),
        arguments=kernel.arguments,
        constants=kernel.constants,
        warps=warps,
        warp_size=where.warp_size,
        stages=kernel.stages,
        shared_memory_bytes=shared,
        registers=registers,
        spilled_bytes=spilled,
        occupancy=round(share, 4),
        occupancy_limit=limit,
        triton=triton_version(),
        options=options,
        source_sha256=kernel.source_sha256,
        binary_sha256=hashlib.sha256(data).hexdigest(),
    )
    return CompiledKernel(record, data, cached=False)


def _check_parameters(kernel: GeneratedKernel, ptx: str) -> None:
    """The launcher passes the arguments and two scratch pointers; a Triton that wants anything else is refused here."""
    wanted, found = len(kernel.arguments) + 2, len(re.findall(r"^\s*\.param \.", ptx, re.MULTILINE))
    if found != wanted:
        raise ToolchainError(f"Triton {triton_version()} gives {kernel.name} {found} parameters, expected {wanted}")


def _load(folder: Path, key: str) -> CompiledKernel | None:
    """What the cache holds, or None. An entry that does not match its own hash is reported and made anew."""
    record_file, data_file = _files(folder, key)
    try:
        record = KernelBinary.model_validate_json(record_file.read_bytes())
        data = data_file.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        LOG.warning("cannot use %s from the kernel cache (%s); compiling again", record_file, error)
        return None
    if hashlib.sha256(data).hexdigest() != record.binary_sha256:
        LOG.warning("%s in the kernel cache is damaged; compiling again", data_file)
        return None
    return CompiledKernel(record, data, cached=True)


def _store(folder: Path, key: str, compiled: CompiledKernel) -> None:
    """Binary first, then the record, each by rename: a reader finds both or compiles."""
    record_file, data_file = _files(folder, key)
    record = compiled.record.model_dump_json(indent=2) + "\n"
    try:
        data_file.parent.mkdir(parents=True, exist_ok=True)
        for path, content in ((data_file, compiled.data), (record_file, record.encode())):
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(name, path)
    except OSError as error:  # compiling went well; only the next time costs more
        LOG.warning("the kernel cache %s cannot be written (%s)", folder, error)


def _files(folder: Path, key: str) -> tuple[Path, Path]:
    return folder / key[:2] / f"{key}.json", folder / key[:2] / f"{key}.bin"


def resource_rows(binaries: Sequence[KernelBinary]) -> list[dict[str, str | int | float]]:
    """The resource table, one row of a kernel and target, as plain values (`resources.json`, `resources.md`)."""
    return [
        {
            "kernel": binary.name,
            "target": binary.target,
            "registers": binary.registers,
            "spilled_bytes": binary.spilled_bytes,
            "shared_memory_bytes": binary.shared_memory_bytes,
            "warps": binary.warps,
            "occupancy": binary.occupancy,
            "limited_by": binary.occupancy_limit,
        }
        for binary in binaries
    ]
