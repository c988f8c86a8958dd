"""Trace files: opened, and read to columns in few bytes a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policies.core.errors import ConfigError
from policies.sim.arrivals import RateCurve
from policies.sim.blocks import Block, block_of
from policies.sim.trace import TraceFormat, parse_trace, sniff
from policies.sim.trace_columns import NotPlain, read_columns

HEAD_LINES = 200


def read_trace(path: Path) -> Block | RateCurve:
    """The requests of a file, or its rate curve. Raises ConfigError that names file and line."""
    with _lines(path) as lines:
        head = next(lines, "")
    if head.strip() and sniff(head, str(path)) is TraceFormat.CSV:
        try:
            with _lines(path) as lines:
                return read_columns(lines)
        except NotPlain:
            pass  # the reader of everything else follows
    with _lines(path) as lines:
        found = parse_trace(lines, str(path))
    return found if isinstance(found, RateCurve) else block_of(found)


def check_head(path: Path, name: str) -> None:
    """ConfigError unless the first lines are those of a trace."""
    with _lines(path) as lines:
        head = [line for line, _ in zip(lines, range(HEAD_LINES), strict=False)]
    parse_trace(head, name)


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            yield lines
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from None
