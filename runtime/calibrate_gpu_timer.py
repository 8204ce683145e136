"""What times kernels on a CUDA device, cold or warm, and reads its clocks. Only `read_clocks` can run without one."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

L2 = Literal["cold", "warm"]
Call = Callable[[], object]
ROW_S = 0.05  # of repetitions of one call
REPETITIONS = (5, 50)  # least and most of them
GRAPH_LAUNCHES = 10  # in one replay, so that the start of a replay does not count
EAGER_LAUNCHES = 1000
LEAST_FLUSH_BYTES = 2**26


class Timer(Protocol):
    """Times a call on the device; `l2` says whether repetitions find their operands in the cache."""

    l2: L2

    def seconds(self, call: Call) -> tuple[float, int]:
        """(median seconds of a call, repetitions)."""

    def launches(self) -> dict[str, float]:
        """Seconds of launching an empty kernel, by way of launching it."""


@dataclass(frozen=True)
class Clocks:
    """What the driver says while the device works."""

    clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_cap_w: float | None = None
    driver: str | None = None


class CudaTimer:
    """CUDA events. Cold: a write of twice the L2 before every repetition, outside the timed part; it also keeps the
    device busy while the host launches. Warm: replays of a CUDA graph of the same call."""

    def __init__(self, l2: L2, l2_bytes: int) -> None:
        self.l2 = l2
        self._flush = torch.empty(max(2 * l2_bytes, LEAST_FLUSH_BYTES), dtype=torch.int8, device="cuda")

    def seconds(self, call: Call) -> tuple[float, int]:
        """(median seconds of a call, calls timed), about `ROW_S` of them; two calls first, untimed."""
        with torch.inference_mode():
            for _ in range(2):
                call()
            torch.cuda.synchronize()
            return _median(call, 1, self._flush.zero_) if self.l2 == "cold" else _replayed(call)

    def launches(self) -> dict[str, float]:
        """Of a kernel on one element: `eager`, launched one by one from Python; `graph`, in a replayed CUDA graph."""
        element = torch.zeros(1, device="cuda")
        with torch.inference_mode():
            element.add_(1)
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(EAGER_LAUNCHES):
                element.add_(1)
            torch.cuda.synchronize()
            eager = (time.perf_counter() - started) / EAGER_LAUNCHES
            graph, _ = _replayed(lambda: element.add_(1))
        return {"eager": eager, "graph": graph}


def _replayed(call: Call) -> tuple[float, int]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):  # a capture wants libraries initialised on another stream
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_LAUNCHES):
            call()
    graph.replay()
    return _median(graph.replay, GRAPH_LAUNCHES)


def _median(run: Call, calls: int, before: Call = lambda: None) -> tuple[float, int]:
    """(median seconds of one of the `calls` in a `run`, calls timed); `before` each run, untimed."""

    def timed() -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before()
        start.record()
        run()
        end.record()
        return start, end

    start, end = timed()
    end.synchronize()
    first_s = max(start.elapsed_time(end) / 1e3, 1e-6)
    least, most = REPETITIONS
    pairs = [timed() for _ in range(max(least, min(most, int(ROW_S / first_s))))]
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) / 1e3 / calls for start, end in pairs]
    return max(statistics.median(times), 1e-9), len(times) * calls


def clocks_at_work() -> Clocks:
    """The clocks while large products run."""
    side = 8192
    x = torch.empty(side, side, dtype=torch.bfloat16, device="cuda").normal_()
    with ThreadPoolExecutor(1) as other:
        answer = None
        end = time.monotonic() + 0.5  # clocks need a moment to settle
        while answer is None or not answer.done():
            for _ in range(4):
                torch.nn.functional.linear(x, x)
            torch.cuda.synchronize()
            if answer is None and time.monotonic() > end:
                answer = other.submit(read_clocks, str(torch.cuda.get_device_properties(0).uuid))
        return answer.result()


def read_clocks(uuid: str, run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> Clocks:
    """What nvidia-smi says of the GPU `uuid`; fields are None where it does not say."""
    query = "--query-gpu=clocks.sm,clocks.mem,power.limit,driver_version"
    gpu = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    command = ["nvidia-smi", f"--id={gpu}", query, "--format=csv,noheader,nounits"]
    try:
        done = run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return Clocks()
    cells = [cell.strip() for cell in done.stdout.strip().split(",")]
    if done.returncode != 0 or len(cells) != 4:
        return Clocks()
    clock, memory, power = (_number(cell) for cell in cells[:3])
    return Clocks(clock and clock * 1e6, memory and memory * 1e6, power, cells[3])


def _number(cell: str) -> float | None:
    """A positive number; None for "[N/A]" and its like."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if value > 0 else None
