"""The files of a request log: one live file per replica, closed and compressed segments, and a
bound on all of them.

    llm.EnergyLLMServer_m.abc123.requests.jsonl                     live: its writer holds a lock
    llm.EnergyLLMServer_m.abc123.20261121T143009.123456Z.requests.jsonl.gz   closed

Only names with our suffix are ever deleted: the folder may hold other people's files.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import re
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

LIVE_SUFFIX = ".requests.jsonl"
CLOSED_SUFFIX = ".requests.jsonl.gz"
PARTIAL_SUFFIX = ".requests.jsonl.gz.part"
_ROTATE_AFTER_S = 86_400.0  # so that a quiet replica's rows can grow old enough to be deleted
_ABANDONED_AFTER_S = 3600.0
_GZIP_LEVEL = 1  # 60 MB/s and 1:8 on these rows; level 6 takes four times the time for 1:11


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a folder may hold. Rows live at most `max_age_s` and one day."""

    max_bytes: int
    max_file_bytes: int
    max_age_s: float


class LogFile:
    """The live file of one replica: append whole lines, rotate, compress, prune.

    Not thread-safe: its writer's thread owns it. Every method may raise OSError, and may be called
    again after that; nothing is kept open that has failed.
    """

    def __init__(self, folder: Path, name: str, bounds: Bounds) -> None:
        self.folder = folder
        self.path = folder / f"{_safe(name)}{LIVE_SUFFIX}"
        self._bounds = bounds
        self._fd: int | None = None
        self._size = 0
        self._opened_s = 0.0

    def append(self, lines: bytes) -> int:
        """Append as many of these lines as fit the file, at least one, with one write(2).

        Returns how many bytes were taken. On OSError none was: what a full disk took is cut off
        again, so that a line is in the file whole or not at all.
        """
        fd = self._ready(first_line=lines.index(b"\n") + 1)
        room = self._bounds.max_file_bytes - self._size
        taken = len(lines)
        if taken > room:
            taken = (lines.rfind(b"\n", 0, max(room, 0)) + 1) or lines.index(b"\n") + 1
        try:
            _write_all(fd, memoryview(lines)[:taken])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self._size)
            self._close()
            raise
        self._size += taken
        return taken

    def close(self) -> None:
        """Hand all to the disk and release the file; the next `append` opens it again."""
        if self._fd is not None:
            with contextlib.suppress(OSError):  # a device without fdatasync
                os.fdatasync(self._fd)
        self._close()

    def tidy(self) -> None:
        """Do what no append has done for long: close an old file, delete what is too old."""
        if self._fd is not None and self._size and self._is_old():
            self._rotate()
        if self.folder.is_dir():
            prune(self.folder, self._bounds, but=self.path)

    def _is_old(self) -> bool:
        return time.monotonic() - self._opened_s > _ROTATE_AFTER_S

    def _ready(self, first_line: int) -> int:
        """The descriptor to write to: of a file that still has a name, and has room."""
        if self._fd is not None and not self._still_there(self._fd):
            self._close()  # someone deleted the file or its folder: start a new one
        if self._fd is None:
            self._open()
        full = self._size + first_line > self._bounds.max_file_bytes
        if self._size and (full or self._is_old()):
            self._rotate()
            self._open()
        assert self._fd is not None
        return self._fd

    def _still_there(self, fd: int) -> bool:
        try:
            named = self.path.stat()
        except OSError:
            return False
        mine = os.fstat(fd)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)

    def _open(self) -> None:
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        prune(self.folder, self._bounds, but=self.path)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            _lock(fd)
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                size += os.write(fd, b"\n")  # a writer died in the middle of a line: end it
        except OSError:
            os.close(fd)
            raise
        self._fd, self._size, self._opened_s = fd, size, time.monotonic()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None

    def _rotate(self) -> None:
        """Close the file under a name with a time; compress it if the disk has room for that."""
        segment = _free_name(self.path)
        self.path.rename(segment)
        self.close()
        with contextlib.suppress(OSError):  # stays uncompressed: as readable, only larger
            compress(segment)


def compress(segment: Path) -> None:
    """Replace a closed segment by its gzip form, atomically. Raises OSError; then it is as before.

    Killed in between it may leave both: readers take the compressed one.
    """
    final = segment.with_name(segment.name + ".gz")
    partial = segment.with_name(segment.name + ".gz.part")
    try:
        with segment.open("rb") as source, partial.open("wb") as raw:
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as target:
                shutil.copyfileobj(source, target, 1 << 18)
            raw.flush()
            os.fsync(raw.fileno())
        stat = segment.stat()
        partial.chmod(stat.st_mode & 0o777)
        os.utime(partial, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # its age is its rows'
        partial.rename(final)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    segment.unlink(missing_ok=True)


def prune(folder: Path, bounds: Bounds, *, but: Path | None = None) -> None:
    """Delete the oldest closed files until all files fit the bounds, however large the live ones
    (and `but`, about to be opened) will grow. Never deletes a file that a living writer holds: many
    replicas in one folder may therefore use `max_file_bytes` each."""
    now_s = time.time()
    room = bounds.max_bytes - bounds.max_file_bytes  # kept free for a file being compressed
    closed: list[tuple[float, int, Path]] = []
    for path in log_files(folder, partial=True):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        if path == but or _is_live(path):
            room -= bounds.max_file_bytes
        elif not path.name.endswith(PARTIAL_SUFFIX):
            closed.append((stat.st_mtime, stat.st_size, path))
        elif now_s - stat.st_mtime > _ABANDONED_AFTER_S:
            closed.append((0.0, stat.st_size, path))
    if but is not None and not but.exists():
        room -= bounds.max_file_bytes
    for mtime_s, size, path in sorted(closed, reverse=True):  # newest first
        room -= size
        if room < 0 or now_s - mtime_s > bounds.max_age_s:
            with contextlib.suppress(OSError):  # another user's, or gone
                path.unlink()


def log_files(folder: Path, *, partial: bool = False) -> list[Path]:
    """The files of request logs in a folder, by name. Raises OSError."""
    suffixes = (LIVE_SUFFIX, CLOSED_SUFFIX, *((PARTIAL_SUFFIX,) if partial else ()))
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffixes))


def _is_live(path: Path) -> bool:
    """Whether a living writer holds the file."""
    if not path.name.endswith(LIVE_SUFFIX):
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _lock(fd: int) -> None:
    """Mark the file as live. Another writer that prunes may be looking at it just now."""
    for _ in range(5):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return
        else:
            return


def _free_name(live: Path) -> Path:
    """A name for a closed segment; names of one replica sort by time."""
    stem = live.name.removesuffix(LIVE_SUFFIX)
    while True:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        segment = live.with_name(f"{stem}.{stamp}{LIVE_SUFFIX}")
        if not segment.exists() and not segment.with_name(f"{segment.name}.gz").exists():
            return segment


def _write_all(fd: int, data: memoryview) -> None:
    """One write(2), and another for what a nearly full disk left over, to hear its error."""
    while data:
        data = data[os.write(fd, data) :]


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:160]
