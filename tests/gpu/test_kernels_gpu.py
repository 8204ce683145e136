"""On an NVIDIA GPU: every kernel in fp16 and bf16 against torch, from binaries alone. Skipped, visibly, without one."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")
pytest.importorskip("triton", reason="needs the runtime extra")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch finds none"),
]


@pytest.fixture
def no_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any compilation by Triton's JIT from here on fails the test."""
    import triton.runtime.jit

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the JIT was asked to run a kernel that is compiled already")

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", refuse)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_compiled_kernels_equal_torch_and_never_invoke_the_jit(dtype: str, tmp_path: Path, no_jit: None) -> None:
    from benchmarks.gpu.cases import TOLERANCE, Maker
    from benchmarks.gpu.kernels import launchers_for
    from runtime.launch import device_target
    from specs.document import DType

    target = device_target(0)
    cases = Maker("cuda", DType(dtype), target).cases()
    launchers, counts = launchers_for(cases, tmp_path, target)
    for case in cases:
        case.launch(launchers)
        torch.cuda.synchronize()
        assert case.error() <= TOLERANCE[DType(dtype)], case.name
    assert not counts.jit
    assert set(counts.binary) == {spec.name for case in cases for spec in case.specs}


def test_launches_are_captured_by_cuda_graphs(tmp_path: Path, no_jit: None) -> None:
    from benchmarks.gpu.cases import TOLERANCE, Maker
    from benchmarks.gpu.kernels import launchers_for
    from runtime.launch import device_target
    from specs.document import DType

    target = device_target(0)
    case = Maker("cuda", DType.BF16, target).swiglu(7)
    launchers, _ = launchers_for([case], tmp_path, target)
    case.launch(launchers)  # loads the binary outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.launch(launchers)
    case.found().zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert case.error() <= TOLERANCE[DType.BF16]


def test_jit_fallback_gives_the_same(tmp_path: Path) -> None:
    from benchmarks.gpu.cases import Maker
    from benchmarks.gpu.kernels import launchers_for
    from runtime.launch import JitLauncher, LaunchCounts, device_target
    from specs.document import DType

    target = device_target(0)
    case = Maker("cuda", DType.BF16, target).swiglu(7)
    launchers, _ = launchers_for([case], tmp_path, target)
    case.launch(launchers)
    compiled, counts = case.found().clone(), LaunchCounts()
    (name,) = launchers
    record = launchers[name].record
    case.found().zero_()
    case.launch({name: JitLauncher(record, tmp_path / record.source_file, counts)})
    torch.cuda.synchronize()
    assert torch.equal(case.found(), compiled)
    assert counts.jit == {name: 1}
