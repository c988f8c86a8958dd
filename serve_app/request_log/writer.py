"""Takes rows on the event loop, writes them in a thread: serving never waits for a disk.

Rows are handed to the kernel at least twice a second with one write(2) a batch. What the kernel has
survives the death of this process, SIGKILL included; a host that loses power also loses what its
kernel had not written back. A file is synced when it is closed.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass

import msgspec

from serve_app.request_log.files import LogFile
from serve_app.request_log.row import ENCODER, Row

log = logging.getLogger("ray.serve")

FLUSH_S = 0.5
QUEUE_ROWS = 20_000  # ten seconds of 2,000 rows/s; about 30 MB
_BATCH_ROWS = 4096
_TIDY_S = 3600.0


@dataclass(slots=True)
class Counts:
    """What became of the rows. `errors`: attempts to write that failed."""

    written: int = 0
    dropped: int = 0
    errors: int = 0


class RequestLog:
    """An append-only log of rows.

    `write` never blocks and never raises. While the disk does not take rows they wait, up to
    `queue_rows`; then new ones are dropped and counted. The log says once when that begins and once
    when it is over, and tries again at every flush.
    """

    def __init__(
        self, file: LogFile, *, flush_s: float = FLUSH_S, queue_rows: int = QUEUE_ROWS
    ) -> None:
        self.counts = Counts()
        self._file = file
        self._flush_s = flush_s
        self._queue_rows = queue_rows
        self._rows: deque[Row] = deque()
        self._unwritten = b""  # whole lines that the disk has not taken
        self._unwritten_rows = 0
        self._failing = False
        self._tidied_s = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, row: Row) -> None:
        """Queue one row."""
        if len(self._rows) + self._unwritten_rows >= self._queue_rows:
            self.counts.dropped += 1
        else:
            self._rows.append(row)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued and stop. What cannot be written in time is dropped."""
        atexit.unregister(self.close)
        self._stop.set()
        self._thread.join(timeout_s)

    # ---- the thread

    def _run(self) -> None:
        while not self._stop.wait(self._flush_s):
            self._turn()
        self._turn()
        self._file.close()

    def _turn(self) -> None:
        """Write all that is there. Catches everything: a thread that dies would lose all rows."""
        try:
            self._flush()
            if time.monotonic() - self._tidied_s > _TIDY_S:
                self._tidied_s = time.monotonic()
                self._file.tidy()
        except OSError as error:
            self._failed(error.strerror or str(error))
        except Exception as error:
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self._recovered()

    def _flush(self) -> None:
        while True:
            if not self._unwritten:
                self._encode(min(len(self._rows), _BATCH_ROWS))
            if not self._unwritten:
                return
            while self._unwritten:
                taken = self._file.append(self._unwritten)
                rows = self._unwritten.count(b"\n", 0, taken)
                self._unwritten = self._unwritten[taken:]
                self._unwritten_rows -= rows
                self.counts.written += rows

    def _encode(self, count: int) -> None:
        rows = [self._rows.popleft() for _ in range(count)]
        self._unwritten_rows = count
        try:
            self._unwritten = ENCODER.encode_lines(rows)
        except (msgspec.MsgspecError, TypeError, ValueError):
            lines = [line for line in map(_line, rows) if line]
            self.counts.dropped += count - len(lines)
            self._unwritten_rows = len(lines)
            self._unwritten = b"".join(lines)

    def _failed(self, reason: str) -> None:
        self.counts.errors += 1
        if not self._failing:
            log.warning(
                "request log: cannot write %s: %s; serving goes on, up to %d rows wait, more are "
                "dropped",
                self._file.path,
                reason,
                self._queue_rows,
            )
        self._failing = True

    def _recovered(self) -> None:
        if self._failing:
            log.warning(
                "request log: writes %s again; %d rows dropped so far",
                self._file.path,
                self.counts.dropped,
            )
        self._failing = False


def _line(row: Row) -> bytes | None:
    """One line; None for a row that JSON cannot hold."""
    try:
        return ENCODER.encode(row) + b"\n"
    except (msgspec.MsgspecError, TypeError, ValueError):
        return None
