"""A trace as a file of the form TIMESTAMP,ContextTokens,GeneratedTokens, seconds as time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from policies.core.errors import ConfigError
from policies.sim.trace import CSV_COLUMNS
from serve_app.traces.load import Trace

DECIMALS = 6


def write_trace(trace: Trace, path: Path) -> int:
    """Write all requests, a block at a time; how many. The file appears whole or not at all; a file
    that is there is replaced. Raises ConfigError, and for a trace without requests."""
    partial = path.with_name(f"{path.name}.partial")
    written = 0
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(",".join(CSV_COLUMNS) + "\n")
            for text, rows in _texts(trace):
                file.write(text)
                written += rows
        if not written:
            raise ConfigError(f"{trace.name}: no request; raise the rate or the duration")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return written


def _texts(trace: Trace) -> Iterator[tuple[str, int]]:
    for block in trace.blocks():
        columns = zip(*(column.tolist() for column in block), strict=True)
        lines = (f"{time:.{DECIMALS}f},{prompt},{output}\n" for time, prompt, output in columns)
        yield "".join(lines), block.rows
