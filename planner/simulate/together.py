"""Independent simulations at the same time. The compiled simulator lets other Python threads run while it works.

Which simulations are run never depends on the number of threads, and results come in the order of the tasks, so
whatever is decided by them is the same on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

MOST_THREADS = 2  # more hold more memory at once, and wait for each other in what is Python


def threads() -> int:
    """Threads that simulations run on: `CAPSTAN_THREADS`, else as many as there are cores, at most `MOST_THREADS`."""
    stated = os.environ.get("CAPSTAN_THREADS", "")
    return max(1, int(stated)) if stated.isdigit() else min(MOST_THREADS, os.cpu_count() or 1)


def together(tasks: Iterable[Callable[[], T]]) -> list[T]:
    """What each task returns, in their order; the first exception, in that order, is raised when all have ended."""
    listed = list(tasks)
    if threads() == 1 or len(listed) < 2:
        return [task() for task in listed]
    with ThreadPoolExecutor(min(threads(), len(listed))) as pool:
        futures = [pool.submit(task) for task in listed]
    return [future.result() for future in futures]


def meanwhile(task: Callable[[], T]) -> Callable[[], T]:
    """Start `task`, which waits for another process, on a thread; what is returned waits for what it returns."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(task)
    pool.shutdown(wait=False)
    return future.result
