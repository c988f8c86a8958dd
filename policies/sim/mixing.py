"""Several loads at once, and more or less of one load at its own time scale."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from policies.core.errors import ConfigError
from policies.sim.arrivals import TraceRow
from policies.sim.blocks import BLOCK_ROWS, Block, joined

MIN_SHIFT_S = 60.0
MIN_SHIFT_GAPS = 20.0


def superposed(traces: Iterable[Iterable[TraceRow]]) -> Iterator[TraceRow]:
    """The rows of several traces, each in order of arrival, as one. Holds one row of each."""
    return heapq.merge(*traces, key=lambda row: row.arrival_s)


def superposed_blocks(traces: Sequence[Iterable[Block]]) -> Iterator[Block]:
    """`superposed` for blocks. Holds one block of each trace."""
    sources = [iter(trace) for trace in traces]
    held = [_next_of(source) for source in sources]
    while any(block is not None for block in held):
        # Up to the earliest last arrival that is held, nothing earlier can follow from any trace.
        horizon_s = min(block.arrival_s[-1] for block in held if block is not None)
        parts: list[Block] = []
        for index, block in enumerate(held):
            if block is None:
                continue
            end = int(np.searchsorted(block.arrival_s, horizon_s, side="right"))
            parts.append(block.between(0, end))
            rest = block.between(end, block.rows)
            held[index] = rest if rest.rows else _next_of(sources[index])
        yield _in_order(parts)


def default_shift_s(trace: Block, span_s: float) -> float:
    """How far `scaled_rate` moves copies unless told: a minute, 20 mean gaps where that is longer,
    and never more than half the trace."""
    return min(max(MIN_SHIFT_S, MIN_SHIFT_GAPS * span_s / max(trace.rows, 1)), span_s / 2)


def scaled_rate(
    trace: Block, factor: float, seed: int, *, shift_s: float | None = None
) -> Iterator[Block]:
    """`factor` times the requests of a trace, at the trace's own time scale. Raises ConfigError.

    The trace itself, and further copies of it, each turned in a circle over the trace's length by
    its own offset; of the last copy only as many requests, drawn by chance, as the fraction of
    `factor` asks for. A factor of 1 gives the trace. The offsets lie within ±`shift_s`, one in each
    of as many equal parts of it as there are copies. Fluctuations longer than `shift_s` stay as
    deep as they are: all users are more at the same time. Shorter ones are averaged, as those of
    independent users are; without a shift, every request would become a batch of requests.
    """
    if not 0 < factor < math.inf:
        raise ConfigError(f"rate scale {factor:g}: expected a number > 0")
    if shift_s is not None and not 0 <= shift_s < math.inf:
        raise ConfigError(f"shift {shift_s:g}: expected seconds ≥ 0")
    if not trace.rows:
        return
    # One mean gap after the last arrival the circle closes.
    span_s = float(trace.arrival_s[-1]) * (1 + 1 / trace.rows) or 1.0
    most_s = default_shift_s(trace, span_s) if shift_s is None else min(shift_s, span_s / 2)
    copies = _copies(trace, factor, np.random.default_rng(seed), most_s)
    windows = math.ceil(sum(copy.rows for copy, _ in copies) / BLOCK_ROWS)
    # Open ends: no rounding may lose the first or the last arrival of a copy.
    edges_s = (-math.inf, *np.linspace(0.0, span_s, windows + 1)[1:-1].tolist(), math.inf)
    for window_s in pairwise(edges_s):
        parts = [
            part for copy, offset_s in copies for part in _turned(copy, offset_s, span_s, window_s)
        ]
        found = _in_order(parts)
        if found.rows:
            yield found


def _copies(
    trace: Block, factor: float, rng: np.random.Generator, most_s: float
) -> list[tuple[Block, float]]:
    """Each copy with its offset in seconds; the first one stays where it is."""
    whole = math.floor(factor)
    count = whole + (factor > whole)
    others = max(count - 1, 1)
    offsets_s = ((np.arange(others) + rng.random(others)) / others * 2 - 1) * most_s
    found = [(trace, offset_s) for offset_s in (0.0, *rng.permutation(offsets_s).tolist())[:count]]
    if factor > whole:
        kept = rng.random(trace.rows) < factor - whole
        found[-1] = (trace.taking(kept), found[-1][1])
    return found


def _turned(
    copy: Block, offset_s: float, span_s: float, window_s: tuple[float, float]
) -> Iterator[Block]:
    """The rows of a copy that its turn brings into the window: before and after the closing."""
    times, least_s = copy.arrival_s, max(window_s[0], 0.0)
    behind = int(np.searchsorted(times, span_s - offset_s)) if offset_s >= 0 else copy.rows
    ahead = int(np.searchsorted(times, -offset_s)) if offset_s < 0 else 0
    for low, high, turn_s in (
        (0, ahead, offset_s + span_s),
        (ahead, behind, offset_s),
        (behind, copy.rows, offset_s - span_s),
    ):
        bounds = np.searchsorted(times, np.array(window_s) - turn_s)
        first, end = (int(bound) for bound in np.clip(bounds, low, high))
        part = copy.between(first, end)
        yield part._replace(arrival_s=np.clip(part.arrival_s + turn_s, least_s, window_s[1]))


def _in_order(parts: Sequence[Block]) -> Block:
    block = joined(parts)
    return block.taking(np.argsort(block.arrival_s, kind="stable"))


def _next_of(source: Iterator[Block]) -> Block | None:
    """The next block that is not empty; None after the last one."""
    return next((block for block in source if block.rows), None)
