"""A small fixed piece of work, timed in CPU seconds a few times a second while a load runs.

A neighbour in another virtual machine slows this one without a trace in its own counters: no steal
time, no process of ours. The CPU time of the same work shows it, whoever waits for whom here: it
grows when the core or the memory behind it gives less. It must be small: it runs beside the load.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

PERIOD_S = 0.25
ALSO_EVERY = 8  # pulses
WINDOW_S = 6.0
QUICK_QUANTILE = 0.2  # of a window: what is above is our own load on the caches
_FLOATS = 2_000_000  # 16 MB: beyond the cache of a core
_MATRIX, _PRODUCTS = 64, 40
_JOIN_S = 5.0


class Pulse:
    """Times the work in a thread, from entering the `with` block to leaving it. `samples`: UNIX
    time, CPU seconds of reading memory, CPU seconds of computing. `also` is called now and then."""

    def __init__(
        self, period_s: float = PERIOD_S, also: Callable[[], object] | None = None
    ) -> None:
        self.samples: list[tuple[float, float, float]] = []
        self._period_s, self._also = period_s, also
        self._memory = np.ones(_FLOATS)
        self._matrix = np.ones((_MATRIX, _MATRIX), dtype=np.float32)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            begin_s = time.thread_time()
            self._memory.sum()
            read_s = time.thread_time()
            for _ in range(_PRODUCTS):
                self._matrix @ self._matrix
            computed_s = time.thread_time()
            self.samples.append((time.time(), read_s - begin_s, computed_s - read_s))
            if self._also is not None and len(self.samples) % ALSO_EVERY == 0:
                self._also()


def windows_s(samples: Sequence[float], period_s: float = PERIOD_S) -> list[float]:
    """The quick end of each window of 6 s; a rest shorter than half a window is left out."""
    size = max(1, round(WINDOW_S / period_s))
    parts = [samples[at : at + size] for at in range(0, len(samples), size)]
    return [float(np.quantile(part, QUICK_QUANTILE)) for part in parts if 2 * len(part) >= size]
