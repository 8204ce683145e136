"""What C calls now and then while it simulates: it tells the progress, and can be told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Listener:
    """Passes the progress on; the run stops where that raises, or when Ctrl-C came. `raised` says by what."""

    def __init__(self, progress: Callable[[float], None] | None) -> None:
        self.raised: BaseException | None = None
        self._progress = progress

    def __call__(self, share: float) -> int:
        try:
            if self._progress is not None and self.raised is None:
                self._progress(share)
        except BaseException as error:
            self.raised = error
        return self.raised is not None

    @contextmanager
    def hearing_interrupts(self) -> Iterator[None]:
        """Ctrl-C is kept until C looks, as an exception cannot pass through it; only the main thread gets signals."""
        usual = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self.raised = KeyboardInterrupt()
