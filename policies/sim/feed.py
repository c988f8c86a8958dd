"""A trace as the blocks of arrays that compiled code reads, in fixed memory."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

import numpy as np

from policies.sim.arrivals import TraceRow
from policies.sim.fleet_state import Arrivals, Floats, Ints

BLOCK = 65_536  # arrivals handed to the kernel at a time
# One request, or many as arrays: arrival in seconds, prompt tokens, output tokens.
Requests = TraceRow | tuple[Floats, Ints, Ints]


class Feed:
    """The block under way, the place in it, and whether it is the last."""

    def __init__(self, trace: Iterable[Requests]) -> None:
        self._rest = iter(trace)
        first = next(self._rest, None)
        self._of_rows = isinstance(first, TraceRow)
        if first is not None:
            self._rest = chain([first], self._rest)
        self.block = self._read()
        self.next, self.last, self.count = 0, False, 0
        self.end_s: float | None = None  # of the last arrival, once that is known

    def take(self) -> None:
        """Go on to the next block; without one, the present one was the last."""
        self.count += len(self.block.times_s)
        block = self._read()
        if len(block.times_s):
            self.block, self.next = block, 0
            return
        times = self.block.times_s
        self.last, self.end_s = True, float(times[-1]) if len(times) else 0.0

    def _read(self) -> Arrivals:
        if not self._of_rows:
            for times_s, prompts, outputs in self._rest:  # type: ignore[misc]
                if len(times_s):
                    return Arrivals(
                        np.ascontiguousarray(times_s, dtype=np.float64),
                        np.ascontiguousarray(prompts, dtype=np.int64),
                        np.ascontiguousarray(outputs, dtype=np.int64),
                    )
        rows = list(islice(self._rest, BLOCK)) if self._of_rows else []
        return Arrivals(
            np.array([row.arrival_s for row in rows], dtype=np.float64),  # type: ignore[union-attr]
            np.array([row.prompt_tokens for row in rows], dtype=np.int64),  # type: ignore[union-attr]
            np.array([row.output_tokens for row in rows], dtype=np.int64),  # type: ignore[union-attr]
        )
