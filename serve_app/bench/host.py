"""What a run asks of its own process: interrupts as events, and enough open files."""

from __future__ import annotations

import asyncio
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def interrupt_sets(first: asyncio.Event, second: asyncio.Event) -> Iterator[None]:
    """Let Ctrl-C set `first`, and `second` from then on. Only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        (second if first.is_set() else first).set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def raise_open_file_limit() -> None:
    """Allow as many connections as the system lets this process have: an open loop needs them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
