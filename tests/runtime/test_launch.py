"""Packing of arguments and the launcher's dealings with the driver, without a GPU: the driver is a recorder."""

import ctypes
import hashlib
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.launch import (
    ArgumentPacker,
    BinaryLauncher,
    CudaContext,
    JitLauncher,
    LaunchCounts,
    LaunchError,
    expand,
    load_kernels,
    make_launchers,
)
from specs.bundle import read_kernels
from specs.errors import InputError
from specs.kernels import KernelArgument, KernelBinary

CUBIN = b"\x7fELF a cubin"
ARGUMENTS = [
    KernelArgument(name=name, type=kind)
    for name, kind in (("out", "*bf16"), ("count", "i32"), ("scale", "fp32"), ("offset", "i64"), ("ids", "*i64"))
]


def tensor(address: int, dtype: str = "bfloat16", device: int = 0, *, on: str = "cuda", contiguous: bool = True) -> Any:
    """What the packer asks of a torch tensor."""
    return SimpleNamespace(
        dtype=f"torch.{dtype}",
        device=SimpleNamespace(type=on, index=device),
        is_contiguous=lambda: contiguous,
        data_ptr=lambda: address,
    )


def record(**changes: Any) -> KernelBinary:
    fields = {
        "name": "swiglu__bf16", "family": "swiglu", "target": "sm_90", "entry": "swiglu", "arguments": ARGUMENTS,
        "constants": {"BLOCK": 64}, "warps": 4, "stages": 1, "shared_memory_bytes": 100_000, "registers": 32,
        "spilled_bytes": 0, "occupancy": 1.0, "occupancy_limit": "warps", "triton": "3.7.1", "source_sha256": "",
        "binary_sha256": hashlib.sha256(CUBIN).hexdigest(), "source_file": "kernels/swiglu.py",
        "binary_file": "binaries/sm_90/swiglu.cubin",
    }  # fmt: skip
    return KernelBinary.model_validate(fields | changes)


class Driver:
    """Records calls; gives handles; fails where told to."""

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic shared")

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if name == "cuLaunchKernel":
                arguments = (*arguments[:9], words(arguments[9], len(ARGUMENTS) + 2), arguments[10])
            self.calls.append((name, arguments))
            return (1 if name == self.failing else 0, f"<{name}>")

        return call

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


def words(address: int, count: int) -> list[bytes]:
    """The 8 bytes behind each address of the array at `address`."""
    array = (ctypes.c_void_p * count).from_address(address)
    return [ctypes.string_at(pointer, 8) for pointer in array]


VALUES = (tensor(0x7F0000000010), -3, 0.5, -(2**40), tensor(0x40, "int64"))


def test_packing_by_hand() -> None:
    packer = ArgumentPacker("k", ARGUMENTS)  # owns the memory
    found = words(packer.pack(VALUES), 7)
    assert struct.unpack("<Q", found[0]) == (0x7F0000000010,)
    assert struct.unpack("<i4x", found[1]) == (-3,)
    assert struct.unpack("<f4x", found[2]) == (0.5,)
    assert struct.unpack("<q", found[3]) == (-(2**40),)
    assert struct.unpack("<Q", found[4]) == (0x40,)
    assert found[5:] == [bytes(8), bytes(8)]  # global and profiling scratch memory: none


def test_threads_do_not_share_a_buffer() -> None:
    packer = ArgumentPacker("k", ARGUMENTS)
    first = packer.pack(VALUES)
    thread = threading.Thread(target=packer.pack, args=((tensor(0x100), 1, 1.0, 1, tensor(0x200, "int64")),))
    thread.start()
    thread.join()
    assert struct.unpack("<i4x", words(first, 7)[1]) == (-3,)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, tensor(0x10, "float16"), "out is a tensor of float16, expected bfloat16"),
        (0, tensor(0x18), "out starts at no multiple of 16 bytes"),
        (4, tensor(0x10, "int32"), "ids is a tensor of int32, expected int64"),
        (1, 2**31, "count = 2147483648 is no i32"),
        (1, 1.5, "count = 1.5 is no i32"),
        (2, "x", "scale = 'x' is no fp32"),
        (3, 2**63, "is no i64"),
        (3, 2**200, "is no i64"),
        (2, 1e39, r"scale = 1e\+39 is no fp32"),
        (0, tensor(0x10, on="cpu"), "out is on .*, expected cuda:0"),
        (4, tensor(0x10, "int64", 1), "ids is on .*, expected cuda:0"),
        (0, tensor(0x10, contiguous=False), "out is not contiguous"),
    ],
)
def test_wrong_arguments_are_named(position: int, value: Any, message: str) -> None:
    values = [*VALUES]
    values[position] = value
    with pytest.raises(LaunchError, match=message.replace("(", r"\(")):
        ArgumentPacker("k", ARGUMENTS).pack(values)


def test_wrong_number_of_arguments() -> None:
    with pytest.raises(LaunchError, match="k takes 5 arguments, not 4"):
        ArgumentPacker("k", ARGUMENTS).pack(VALUES[:4])


def test_launch_goes_to_the_driver_on_the_current_stream() -> None:
    driver, counts = Driver(), LaunchCounts()
    streams = iter([77, 78])
    launcher = BinaryLauncher(record(), CUBIN, counts, CudaContext(driver, 3, lambda: next(streams)))
    values = tuple(tensor(one.data_ptr(), one.dtype[6:], 3) if hasattr(one, "dtype") else one for one in VALUES)
    assert driver.of("cuModuleLoadData") == []  # loaded when first used
    launcher(lambda meta: (1000 // meta["BLOCK"], 2), *values)
    launcher((5,), *values)
    assert driver.of("cuDeviceGet") == [(3,)]
    assert driver.of("cuCtxSetCurrent") == [("<cuDevicePrimaryCtxRetain>",)]  # once a thread
    assert driver.of("cuModuleLoadData") == [(CUBIN,)]
    assert driver.of("cuModuleGetFunction") == [("<cuModuleLoadData>", b"swiglu")]
    assert driver.of("cuFuncSetAttribute") == [("<cuModuleGetFunction>", "dynamic shared", 100_000)]
    first, second = driver.of("cuLaunchKernel")
    assert first[:9] == ("<cuModuleGetFunction>", 15, 2, 1, 128, 1, 1, 100_000, 77)
    assert second[:9] == ("<cuModuleGetFunction>", 5, 1, 1, 128, 1, 1, 100_000, 78)
    assert struct.unpack("<i4x", first[9][1]) == (-3,)
    assert counts.binary == {"swiglu__bf16": 2}
    assert not counts.jit


def test_every_thread_enters_the_context() -> None:
    driver = Driver()
    context = CudaContext(driver, 0, lambda: 0)
    threads = [threading.Thread(target=context.enter) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert len(driver.of("cuCtxSetCurrent")) == 2


def test_small_shared_memory_needs_no_permission() -> None:
    driver = Driver()
    context = CudaContext(driver, 0, lambda: 0)
    BinaryLauncher(record(shared_memory_bytes=48 * 1024), CUBIN, LaunchCounts(), context)((1,), *VALUES)
    assert driver.of("cuFuncSetAttribute") == []


def test_empty_grid_launches_nothing() -> None:
    driver, counts = Driver(), LaunchCounts()
    BinaryLauncher(record(), CUBIN, counts, CudaContext(driver, 0, lambda: 0))((0, 4), *VALUES)
    assert driver.of("cuLaunchKernel") == []
    assert not counts.binary


@pytest.mark.parametrize("failing", ["cuModuleLoadData", "cuFuncSetAttribute", "cuLaunchKernel"])
def test_driver_errors_are_named(failing: str) -> None:
    driver, counts = Driver(failing), LaunchCounts()
    launcher = BinaryLauncher(record(), CUBIN, counts, CudaContext(driver, 0, lambda: 0))
    with pytest.raises(LaunchError, match=f"{failing} failed: 1"):
        launcher((1,), *VALUES)
    assert not counts.binary


def test_grids() -> None:
    assert expand((3,), {}) == (3, 1, 1)
    assert expand(lambda meta: (meta["A"], 2, 4), {"A": 9}) == (9, 2, 4)
    with pytest.raises(LaunchError, match="one to three sizes"):
        expand((1, 2, 3, 4), {})


def lay_out(folder: Path, data: bytes = CUBIN) -> None:
    (folder / "binaries" / "sm_90").mkdir(parents=True)
    (folder / "binaries" / "sm_90" / "swiglu.cubin").write_bytes(data)


def test_binary_for_the_target_is_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay_out(tmp_path)
    records = [record(target="sm_80", binary_file="binaries/sm_80/absent.cubin"), record()]
    context = CudaContext(Driver(), 0, lambda: 0)
    launchers, _ = make_launchers(records, tmp_path, target="sm_90", context=context)
    assert isinstance(launchers["swiglu__bf16"], BinaryLauncher)
    assert caplog.text == ""


def test_without_a_binary_the_jit_takes_over_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = CudaContext(Driver(), 0, lambda: 0)
    launchers, _ = make_launchers([record(target="sm_80")], tmp_path, target="sm_90", context=context)
    assert isinstance(launchers["swiglu__bf16"], JitLauncher)
    assert "swiglu__bf16 has no binary that runs on sm_90" in caplog.text
    with pytest.raises(InputError, match=r"swiglu\.py: cannot be read"):
        launchers["swiglu__bf16"]((1,), *VALUES)


def test_hsaco_takes_the_jit(tmp_path: Path) -> None:
    amd = record(target="gfx942", binary_file="binaries/gfx942/swiglu.hsaco", warp_size=64)
    launchers, _ = make_launchers([amd], tmp_path, target="gfx942", context=None)
    assert isinstance(launchers["swiglu__bf16"], JitLauncher)


def test_damaged_or_missing_binary_is_refused(tmp_path: Path) -> None:
    context = CudaContext(Driver(), 0, lambda: 0)
    with pytest.raises(InputError, match=r"swiglu\.cubin: cannot be read"):
        make_launchers([record()], tmp_path, target="sm_90", context=context)
    lay_out(tmp_path, CUBIN + b"!")
    with pytest.raises(InputError, match="differs from its hash"):
        make_launchers([record()], tmp_path, target="sm_90", context=context)


def test_records_round_trip_and_bad_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    path.write_text(f"[{record().model_dump_json()}]")
    assert read_kernels(path) == (record(),)
    for text in ("{", "[1]", "3"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"kernels\.json"):
            read_kernels(path)


def test_no_gpu_is_said_plainly() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(LaunchError, match="torch finds none"):
        CudaContext.of_torch(0)


def test_load_kernels_refuses_what_it_cannot_load(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="group 'chat' was compiled without kernels"):
        load_kernels(tmp_path, SimpleNamespace(group="chat", kernels=None), torch.device("cuda"))
    if not torch.cuda.is_available():
        with pytest.raises(LaunchError, match="the torch program runs on the CPU"):
            load_kernels(tmp_path, SimpleNamespace(group="chat", kernels="kernels.json"), torch.device("cuda"))
