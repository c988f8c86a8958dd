"""Reads request logs back: every row that can be read, and a count of what cannot."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import msgspec

from policies.core.errors import ConfigError
from serve_app.request_log.files import log_files
from serve_app.request_log.row import DECODER, SCHEMA, Row


@dataclass(slots=True)
class ReadCounts:
    """What was read. `torn_rows`: last lines that a writer did not finish, at most one a file, as a
    kill leaves them. `bad_rows`: other lines that are no row; `first_fault` says where and why.
    `newer_rows`: written by a later version. `bad_files`: unreadable, or damaged from some point
    on, with the reason."""

    files: int = 0
    rows: int = 0
    torn_rows: int = 0
    bad_rows: int = 0
    newer_rows: int = 0
    first_fault: str | None = None
    bad_files: dict[str, str] = field(default_factory=dict)


class _Schema(msgspec.Struct):
    schema: int


def read_rows(folder: Path, counts: ReadCounts) -> Iterator[Row]:
    """All rows of a folder, file by file; rows of one replica in the order of their ends.

    Raises ConfigError for a folder that is not there or holds no request log. A damaged file gives
    the rows before the damage.
    """
    for path in _files(folder):
        counts.files += 1
        # A live file may be closed and compressed while the folder is read.
        for candidate in (path, path.with_name(f"{path.name}.gz")):
            try:
                yield from _rows_of(candidate, counts)
            except FileNotFoundError:
                continue
            except (OSError, EOFError, zlib.error) as error:
                counts.bad_files[path.name] = _reason(error)
            break


def _files(folder: Path) -> list[Path]:
    if not folder.exists():
        raise ConfigError(
            f"{folder}: no such folder; a service writes it with its first request, to "
            "energy.request_log.folder on the node of the replica"
        )
    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder; give the folder that holds the request logs")
    try:
        files = log_files(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be listed: {error.strerror}") from None
    if not files:
        raise ConfigError(f"{folder}: holds no request log (no file *.requests.jsonl or .gz)")
    names = {path.name for path in files}
    # A writer killed while it compressed leaves a segment twice; the compressed one is whole.
    return [path for path in files if f"{path.name}.gz" not in names]


def _rows_of(path: Path, counts: ReadCounts) -> Iterator[Row]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = DECODER.decode(line)
                _check(row)
            except (msgspec.MsgspecError, ValueError) as error:
                _count_fault(line, f"{path.name}:{number}: {error}", counts)
                continue
            if row.schema > SCHEMA:
                counts.newer_rows += 1
                continue
            counts.rows += 1
            yield row


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    return path.open("rb")


def _check(row: Row) -> None:
    """Refuse what no writer writes: a sum over it would be wrong."""
    if row.start.tzinfo is None or row.end.tzinfo is None:
        raise ValueError("a time without its zone")
    if row.joules is not None and not row.joules >= 0.0:
        raise ValueError(f"joules {row.joules}")


def _count_fault(line: bytes, fault: str, counts: ReadCounts) -> None:
    if not line.endswith(b"\n"):
        counts.torn_rows += 1
        return
    try:
        if msgspec.json.decode(line, type=_Schema).schema > SCHEMA:
            counts.newer_rows += 1
            return
    except msgspec.MsgspecError:
        pass
    counts.bad_rows += 1
    counts.first_fault = counts.first_fault or fault


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
