"""A background thread that calls one function again and again until closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Poller:
    """Calls `action` every `period_s` seconds on a daemon thread; `close` waits for it to stop.

    `aligned`: at whole multiples of the period on the monotonic clock, which all processes of a
    host share, so that their pollers act together. `action` handles its own errors: an exception
    ends the thread through `threading.excepthook`.
    """

    def __init__(
        self, name: str, period_s: float, action: Callable[[], None], *, aligned: bool = False
    ) -> None:
        self._period_s = period_s
        self._action = action
        self._aligned = aligned
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._wait_s()):
            self._action()

    def _wait_s(self) -> float:
        if not self._aligned:
            return self._period_s
        return self._period_s - time.monotonic() % self._period_s

    def close(self) -> None:
        """Stop and wait for the running action. May be called twice."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)
