"""Independent simulations at the same time. The compiled simulator lets other Python threads run while it works.

Which simulations are run never depends on the number of threads, and results come in the order of the tasks, so
whatever is decided by them is the same on every machine.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

MOST_THREADS = 2  # more hold more memory at once, and wait for each other in what is Python


def threads() -> int:
    """Threads that simulations run on: `CAPSTAN_THREADS`, else as many as there are cores, at most `MOST_THREADS`."""
    stated = os.environ.get("CAPSTAN_THREADS", "")
    return max(1, int(stated)) if stated.isdigit() else min(MOST_THREADS, os.cpu_count() or 1)


def together(tasks: Iterable[Callable[[], T]]) -> list[T]:
    """What each task returns, in their order; where one raises, no other is started, and the first in order is raised.

    The calling thread works along with other threads, which cost a tenth of a millisecond to start.
    """
    listed = list(tasks)
    if threads() == 1 or len(listed) < 2:
        return [task() for task in listed]
    waiting = deque(enumerate(listed))
    found: dict[int, T] = {}
    raised: dict[int, BaseException] = {}

    def work() -> None:
        while True:
            try:
                index, task = waiting.popleft()
            except IndexError:
                return
            try:
                found[index] = task()
            except BaseException as error:
                raised[index] = error
                waiting.clear()

    others = [Thread(target=work, daemon=True) for _ in range(min(threads(), len(listed)) - 1)]
    for other in others:
        other.start()
    work()
    for other in others:
        other.join()
    if raised:
        raise raised[min(raised)]
    return [found[index] for index in range(len(listed))]


def meanwhile(task: Callable[[], T]) -> Callable[[], T]:
    """Start `task`, which waits for another process, on a thread; what is returned waits for what it returns."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(task)
    pool.shutdown(wait=False)
    return future.result
