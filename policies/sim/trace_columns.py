"""A quick reader of large `TIMESTAMP,ContextTokens,GeneratedTokens` tables: columns, not objects.

It takes plain tables only and says so of the rest: `policies.sim.trace` decides about those, and
has the words for what is wrong. What it takes, it reads to the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from policies.sim.blocks import BLOCK_ROWS, Block
from policies.sim.trace import CSV_COLUMNS
from policies.sim.trace_cells import MAX_NUMBER

_MAX_PLAIN_S = 1e7
"""Seconds since 1970 lose digits as floats: the exact reader takes those."""
_UTC_ENDINGS = ("+00:00", "Z")
_ISO_LENGTH = len("2023-11-16 18:15:46")


class NotPlain(Exception):
    """The table has to be read by `policies.sim.trace`."""


def read_columns(lines: Iterable[str]) -> Block:
    """All rows of a plain table, sorted, from 0 s, in 24 bytes a row. Raises NotPlain."""
    rest = iter(lines)
    header = [cell.strip() for cell in next(rest, "").lstrip("\ufeff").split(",")]
    if any(column not in header for column in CSV_COLUMNS):
        raise NotPlain
    positions = [header.index(column) for column in CSV_COLUMNS]
    times: list[NDArray[np.int64 | np.float64]] = []
    tokens: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    while chunk := list(islice(rest, BLOCK_ROWS)):
        cells = [line.rstrip("\r\n").split(",") for line in chunk]
        if any(len(row) != len(header) for row in cells):
            raise NotPlain  # blank lines, quotes, or a mistake
        columns = list(zip(*cells, strict=True))
        times.append(_times(columns[positions[0]]))
        for held, position in zip(tokens, positions[1:], strict=True):
            held.append(_tokens(columns[position]))
    if len({part.dtype for part in times}) != 1:
        raise NotPlain  # no rows, or ISO times and seconds
    return _normalised(np.concatenate(times), np.concatenate(tokens[0]), np.concatenate(tokens[1]))


def _normalised(
    times: NDArray[np.int64 | np.float64],
    prompts: NDArray[np.int64],
    outputs: NDArray[np.int64],
) -> Block:
    if np.any(times[1:] < times[:-1]):
        order = np.argsort(times, kind="stable")
        times, prompts, outputs = times[order], prompts[order], outputs[order]
    since = times - times[0]
    seconds = since / 1e9 if since.dtype.kind == "i" else since
    return Block(
        np.asarray(seconds, dtype=np.float64), np.maximum(prompts, 1), np.maximum(outputs, 1)
    )


def _times(texts: Sequence[str]) -> NDArray[np.int64 | np.float64]:
    """Nanoseconds since 1970 of ISO times, or seconds."""
    ending = next((one for one in _UTC_ENDINGS if texts[0].endswith(one)), "")
    if ending or "-" in texts[0][1:]:
        return _nanoseconds(texts, ending)
    try:
        seconds = np.array(texts).astype(np.float64)
    except ValueError:
        raise NotPlain from None
    if not np.all(np.abs(seconds) < _MAX_PLAIN_S):  # and not NaN
        raise NotPlain
    return seconds


def _nanoseconds(texts: Sequence[str], ending: str) -> NDArray[np.int64]:
    if any(not text.endswith(ending) for text in texts):
        raise NotPlain
    bare = [text.removesuffix(ending) for text in texts] if ending else list(texts)
    # numpy also takes dates without a time, and words such as "now".
    if any(len(text) < _ISO_LENGTH or not text[:4].isdigit() for text in bare):
        raise NotPlain
    if any("+" in text or text.count("-") != 2 for text in bare):
        raise NotPlain  # another time zone
    try:
        datetime.fromisoformat(bare[0])
        return np.array(bare, dtype="datetime64[ns]").astype(np.int64)
    except ValueError:
        raise NotPlain from None


def _tokens(texts: Sequence[str]) -> NDArray[np.int64]:
    try:
        counts = np.array(texts).astype(np.int64)
    except (ValueError, OverflowError):
        raise NotPlain from None
    if np.any((counts < 0) | (counts > MAX_NUMBER)):
        raise NotPlain
    return counts
