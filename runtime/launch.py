"""Launching kernels: compiled binaries through `cuda.bindings` on torch's current stream, or Triton's JIT from the
source.

Both are called as `kernels[name](grid, *arguments)`, with the arguments that `codegen/kernels` lists; `grid` is a tuple
or a function of the kernel's constants. `LaunchCounts` says which of the two ran, and is part of what a runtime
reports: a start whose kernels are all compiled has `jit` empty. AMD devices take the JIT in this version.
"""

from __future__ import annotations

import ctypes
import linecache
import logging
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from specs.bundle import RuntimeConfig, read_kernels, read_verified
from specs.errors import CapstanError, InputError
from specs.kernels import KernelArgument, KernelBinary

LOG = logging.getLogger(__name__)
ALIGNMENT = 16  # bytes; kernels are compiled on the promise that every tensor starts at a multiple of it
SLOT_BYTES = 8  # of one argument in the buffer; no argument is wider
FORMATS = {"i32": "i4x", "i64": "q", "fp32": "f4x"}  # `struct` codes, each one slot
TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "i32": "int32", "i64": "int64"}
DEFAULT_SHARED_BYTES = 48 * 1024  # what a block may ask for without being allowed more

Grid = tuple[int, ...] | Callable[[Mapping[str, int]], tuple[int, ...]]


class LaunchError(CapstanError):
    """A kernel cannot be launched: no GPU, no binding, a wrong argument, or the driver refuses."""


class Launcher(Protocol):
    """What a program calls. `constants` are the kernel's tile sizes."""

    constants: Mapping[str, int]

    def __call__(self, grid: Grid, *arguments: Any) -> None:
        """Queue the kernel on torch's current stream."""


@dataclass
class LaunchCounts:
    """Launches of each kernel, by the way that it went."""

    binary: Counter[str] = field(default_factory=Counter)
    jit: Counter[str] = field(default_factory=Counter)


class ArgumentPacker:
    """Turns launch arguments into what `cuLaunchKernel` reads: an array of addresses, one of each value.

    Every value has a slot of 8 bytes in one buffer. Triton's kernels expect two further pointers, to global and to
    profiling scratch memory; the compiler was checked to use neither, so they are null.
    """

    def __init__(self, name: str, arguments: Sequence[KernelArgument], device: int = 0) -> None:
        self.name = name
        self.arguments = tuple(arguments)
        self._device = ("cuda", device)
        codes = "".join("Q" if argument.is_pointer else FORMATS[argument.type] for argument in arguments)
        self._struct = struct.Struct(f"<{codes}QQ")
        self._local = threading.local()  # a buffer of each thread: two may launch the same kernel

    def pack(self, values: Sequence[Any]) -> int:
        """Address of the array of addresses, valid until this thread packs again. `LaunchError` names a wrong
        argument."""
        if len(values) != len(self.arguments):
            raise LaunchError(f"{self.name} takes {len(self.arguments)} arguments, not {len(values)}")
        buffer, array = self._buffers()
        words = [
            self._address(argument, value) if argument.is_pointer else value
            for argument, value in zip(self.arguments, values, strict=True)
        ]
        try:
            self._struct.pack_into(buffer, 0, *words, 0, 0)
        except (struct.error, OverflowError):
            self._explain(words)
            raise
        return ctypes.addressof(array)

    def _buffers(self) -> tuple[Any, Any]:
        buffers: tuple[Any, Any] | None = getattr(self._local, "buffers", None)
        if buffers is None:
            slots = len(self.arguments) + 2
            buffer = ctypes.create_string_buffer(slots * SLOT_BYTES)
            start = ctypes.addressof(buffer)
            array = (ctypes.c_void_p * slots)(*(start + SLOT_BYTES * slot for slot in range(slots)))
            self._local.buffers = buffers = (buffer, array)
        return buffers

    def _address(self, argument: KernelArgument, tensor: Any) -> int:
        wanted = TORCH_NAMES[argument.type.removeprefix("*")]
        found = str(tensor.dtype).removeprefix("torch.")
        if found != wanted:
            raise LaunchError(f"{self.name}: {argument.name} is a tensor of {found}, expected {wanted}")
        device = tensor.device
        if (device.type, device.index) != self._device:
            wanted = ":".join(map(str, self._device))
            raise LaunchError(f"{self.name}: {argument.name} is on {device}, expected {wanted}")
        if not tensor.is_contiguous():
            raise LaunchError(f"{self.name}: {argument.name} is not contiguous, and the kernel has no strides")
        address: int = tensor.data_ptr()
        if address % ALIGNMENT:
            raise LaunchError(f"{self.name}: {argument.name} starts at no multiple of {ALIGNMENT} bytes")
        return address

    def _explain(self, words: Sequence[Any]) -> None:
        """Raise `LaunchError` for the scalar that does not fit its type."""
        for argument, word in zip(self.arguments, words, strict=True):
            try:
                struct.pack("<Q" if argument.is_pointer else f"<{FORMATS[argument.type]}", word)
            except (struct.error, OverflowError):
                raise LaunchError(f"{self.name}: {argument.name} = {word!r} is no {argument.type}") from None


class BinaryLauncher:
    """One cubin, loaded when first launched. `driver` is `cuda.bindings.driver` (another object in tests)."""

    def __init__(self, record: KernelBinary, data: bytes, counts: LaunchCounts, context: CudaContext) -> None:
        self.record = record
        self.constants: Mapping[str, int] = record.constants
        self._data = data
        self._counts = counts
        self._context = context
        self._packer = ArgumentPacker(record.name, record.arguments, context.device)
        self._function: Any = None

    def __call__(self, grid: Grid, *arguments: Any) -> None:
        """Queue the kernel on torch's current stream; a grid with a zero queues nothing."""
        x, y, z = expand(grid, self.constants)
        if x * y * z == 0:
            return
        self._context.enter()
        if self._function is None:
            self._function = self.load()
        record = self.record
        threads = record.warps * record.warp_size
        packed = self._packer.pack(arguments)
        self._context.call(
            "cuLaunchKernel", self._function, x, y, z, threads, 1, 1,
            record.shared_memory_bytes, self._context.stream(), packed, 0,
        )  # fmt: skip
        self._counts.binary[record.name] += 1

    def load(self) -> Any:
        """The function handle, allowed as much dynamic shared memory as the kernel wants. `LaunchError` if refused."""
        module = self._context.call("cuModuleLoadData", self._data)
        function = self._context.call("cuModuleGetFunction", module, self.record.entry.encode())
        if self.record.shared_memory_bytes > DEFAULT_SHARED_BYTES:
            attribute = self._context.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._context.call("cuFuncSetAttribute", function, attribute, self.record.shared_memory_bytes)
        return function


class CudaContext:
    """The driver, torch's context on one device, and torch's current stream.

    Driver calls need a current context in every thread that makes them; torch sets it lazily, so each thread enters
    once.
    """

    def __init__(self, driver: Any, device: int, stream: Callable[[], int]) -> None:
        self.driver = driver
        self.device = device
        self.stream = stream
        self._local = threading.local()
        self.call("cuInit", 0)
        self._context = self.call("cuDevicePrimaryCtxRetain", self.call("cuDeviceGet", device))

    @classmethod
    def of_torch(cls, device: int) -> CudaContext:
        """The context of torch's CUDA device `device`. `LaunchError` without a GPU or without `cuda.bindings`."""
        import torch

        if not torch.cuda.is_available():
            raise LaunchError(
                "compiled kernels need an NVIDIA GPU, and torch finds none; the torch program runs on the CPU"
            )
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise LaunchError(f"compiled kernels are launched through the package cuda-bindings ({error})") from None
        cuda: Any = torch.cuda  # its annotations are partial
        cuda.init()
        return cls(driver, device, lambda: torch.cuda.current_stream(device).cuda_stream)

    def enter(self) -> None:
        """Make the context current in this thread."""
        if not getattr(self._local, "entered", False):
            self.call("cuCtxSetCurrent", self._context)
            self._local.entered = True

    def call(self, name: str, *arguments: Any) -> Any:
        """A driver function's result. `LaunchError` with the driver's own name for what went wrong."""
        code, *results = getattr(self.driver, name)(*arguments)
        if int(code):
            raise LaunchError(f"{name} failed: {getattr(code, 'name', code)}")
        return results[0] if results else None


class JitLauncher:
    """One kernel compiled by Triton when it is first launched (or interpreted, under TRITON_INTERPRET=1)."""

    def __init__(self, record: KernelBinary, source: Path, counts: LaunchCounts) -> None:
        self.record = record
        self.constants: Mapping[str, int] = record.constants
        self._source = source
        self._counts = counts
        self._function: Any = None

    def __call__(self, grid: Grid, *arguments: Any) -> None:
        """Queue the kernel on torch's current stream; a grid with a zero queues nothing."""
        sizes = expand(grid, self.constants)
        if 0 in sizes:
            return
        if self._function is None:
            self._function = getattr(_module(self._source, self.record.source_sha256), self.record.entry)
        fusion = bool(self.record.options.get("enable_fp_fusion", True))
        self._function[sizes](
            *arguments,
            **self.constants,
            num_warps=self.record.warps,
            num_stages=self.record.stages,
            enable_fp_fusion=fusion,
        )
        self._counts.jit[self.record.name] += 1


def expand(grid: Grid, constants: Mapping[str, int]) -> tuple[int, int, int]:
    """The grid as three numbers."""
    sizes = tuple(grid(constants) if callable(grid) else grid)
    if not 1 <= len(sizes) <= 3:
        raise LaunchError(f"a grid has one to three sizes, not {sizes}")
    x, y, z = (*sizes, 1, 1)[:3]
    return int(x), int(y), int(z)


def device_target(device: int) -> str:
    """The target of torch's device: sm_90, gfx942."""
    import torch

    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def make_launchers(
    records: Iterable[KernelBinary],
    folder: Path,
    *,
    target: str,
    context: CudaContext | None,
    counts: LaunchCounts | None = None,
) -> tuple[dict[str, Launcher], LaunchCounts]:
    """Launchers by kernel name; paths in the records are relative to `folder`.

    A kernel has a `BinaryLauncher` where the bundle has a cubin for `target` and a context is given, and a
    `JitLauncher` otherwise, which is logged. Raises `InputError` where a binary does not match its record.
    """
    counts = counts or LaunchCounts()
    by_name: dict[str, list[KernelBinary]] = {}
    for record in records:
        by_name.setdefault(record.name, []).append(record)
    launchers: dict[str, Launcher] = {}
    for name, variants in by_name.items():
        exact = next((record for record in variants if record.target == target), None)
        if exact is not None and context is not None and exact.binary_file.endswith(".cubin"):
            launchers[name] = BinaryLauncher(exact, _binary(exact, folder), counts, context)
            continue
        record = exact or variants[0]
        LOG.warning("%s has no binary that runs on %s here; Triton compiles it when it is first used", name, target)
        launchers[name] = JitLauncher(record, folder / record.source_file, counts)
    return launchers, counts


class Kernels(dict[str, Launcher]):
    """Launchers by kernel name; `counts` says which way each went."""

    def __init__(self, launchers: Mapping[str, Launcher], counts: LaunchCounts) -> None:
        super().__init__(launchers)
        self.counts = counts


def load_kernels(folder: Path, config: RuntimeConfig, device: Any) -> Kernels:
    """Launchers for one group of a bundle on a CUDA device of torch; `folder` is the group's.

    `LaunchError` without a GPU or `cuda.bindings`; `InputError` where a file is missing or damaged.
    """
    import torch

    if config.kernels is None:
        raise InputError(f"group {config.group!r} was compiled without kernels", file=str(folder), field="kernels")
    if not torch.cuda.is_available():
        raise LaunchError("kernels need a GPU, and torch finds none; the torch program runs on the CPU")
    index = torch.device(device).index or 0
    context = None if torch.version.hip else CudaContext.of_torch(index)
    records = read_kernels(folder / config.kernels)
    launchers, counts = make_launchers(records, folder, target=device_target(index), context=context)
    return Kernels(launchers, counts)


def _binary(record: KernelBinary, folder: Path) -> bytes:
    return read_verified(folder / record.binary_file, record.binary_sha256)


def _module(source: Path, sha256: str) -> ModuleType:
    """The generated module, made of the bytes whose hash was checked and never of what Python may have cached.

    Triton reads a kernel's text through `linecache`, so the checked text stands there under the file's name.
    """
    text = read_verified(source, sha256).decode()
    module = ModuleType(f"capstan_kernel_{sha256[:16]}_{source.stem}")
    linecache.cache[str(source)] = (len(text), None, text.splitlines(keepends=True), str(source))
    exec(compile(text, str(source), "exec"), module.__dict__)
    return module
