"""What must be undone however this process ends, short of SIGKILL."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@contextmanager
def undone_at_end(undo: Callable[[], None]) -> Iterator[None]:
    """While it is open, `undo` runs at once when a signal tells this process to end, and when the
    interpreter exits. It must not raise, may run twice, and may run in the midst of itself.

    After it a signal does what it did before; where that was to kill the process, SystemExit is
    raised instead, so that other `with` blocks end as well. An ignored signal stays ignored. Python
    runs handlers between two byte codes of the main thread, so `undo` may call anything; outside of
    the main thread no signal can be caught, and only the exit is. A forked child inherits all of
    this and undoes nothing.
    """
    end = _End(undo)
    atexit.register(end.at_exit)
    try:
        end.catch()
        yield
    finally:
        atexit.unregister(end.at_exit)
        end.release()


class _End:
    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = undo
        self._owner = os.getpid()
        self._previous: dict[int, Any] = {}

    def catch(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.getsignal(number)
            # None: installed by C code, which Python can neither call nor put back.
            if before is not None and before is not signal.SIG_IGN:
                self._previous[number] = before
                signal.signal(number, self._at_signal)

    def release(self) -> None:
        for number, before in self._previous.items():
            if signal.getsignal(number) == self._at_signal:  # else somebody has replaced it since
                signal.signal(number, before)

    def at_exit(self) -> None:
        if os.getpid() == self._owner:
            self._undo()

    def _at_signal(self, number: int, frame: FrameType | None) -> None:
        self.at_exit()
        before = self._previous[number]
        if callable(before):
            before(number, frame)
        elif os.getpid() == self._owner:
            raise SystemExit(128 + number)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
