"""Arrivals as columns: what the generators make and what is cheap to merge, scale and count.

A row as an object costs a microsecond and a hundred bytes, a row of a block some nanoseconds and 24
bytes. A trace is an iterator of blocks in order of arrival, so that its length costs no memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import ConfigError
from policies.sim.arrivals import TraceRow

BLOCK_ROWS = 65_536


class Block(NamedTuple):
    """Requests as columns of one length: seconds since the start of the trace, ascending, and the
    tokens of prompt and output, each at least 1."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """How many requests it holds; `len` is that of the tuple."""
        return len(self.arrival_s)

    def between(self, first: int, end: int) -> Block:
        """The rows first..end, without the last."""
        return Block(
            self.arrival_s[first:end], self.prompt_tokens[first:end], self.output_tokens[first:end]
        )

    def taking(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> Block:
        """The rows that an index or a mask names."""
        return Block(self.arrival_s[chosen], self.prompt_tokens[chosen], self.output_tokens[chosen])


def block_of(rows: Iterable[TraceRow]) -> Block:
    """One block of all rows, which are in order of arrival."""
    held = list(rows)
    return Block(
        np.array([row.arrival_s for row in held], dtype=np.float64),
        np.array([row.prompt_tokens for row in held], dtype=np.int64),
        np.array([row.output_tokens for row in held], dtype=np.int64),
    )


def blocks_of(rows: Iterable[TraceRow]) -> Iterator[Block]:
    """Rows in order of arrival as blocks of BLOCK_ROWS."""
    rest = iter(rows)
    while (block := block_of(islice(rest, BLOCK_ROWS))).rows:
        yield block


def joined(blocks: Iterable[Block]) -> Block:
    """All blocks as one."""
    held = list(blocks)
    if not held:
        return block_of(())
    return Block(*(np.concatenate(columns) for columns in zip(*held, strict=True)))


def rows_of_blocks(blocks: Iterable[Block]) -> Iterator[TraceRow]:
    """The rows of the blocks, one object each."""
    for block in blocks:
        columns = (column.tolist() for column in block)
        for arrival_s, prompt_tokens, output_tokens in zip(*columns, strict=True):
            yield TraceRow(
                arrival_s=arrival_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens
            )


def pieces(block: Block) -> Iterator[Block]:
    """The block in pieces of at most BLOCK_ROWS; none of an empty one."""
    for first in range(0, block.rows, BLOCK_ROWS):
        yield block.between(first, first + BLOCK_ROWS)


def window(block: Block, begin_s: float, end_s: float) -> Block:
    """The arrivals within begin_s..end_s (without the end), counted from begin_s."""
    first, end = np.searchsorted(block.arrival_s, (begin_s, end_s))
    cut = block.between(int(first), int(end))
    return cut._replace(arrival_s=cut.arrival_s - begin_s)


def scaled_time(blocks: Iterable[Block], factor: float) -> Iterator[Block]:
    """Every arrival time multiplied: 0.5 plays a trace at twice its speed. ConfigError."""
    if not 0 < factor < math.inf:
        raise ConfigError(f"time scale {factor:g}: expected a number > 0")
    return (block._replace(arrival_s=block.arrival_s * factor) for block in blocks)
