"""What the agent did and refused, one JSON object per line, appended and never rewritten."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MAX_REFUSALS = 10  # lines a second about what was refused: a hostile client does not fill the disk


class AuditLog:
    """Lines to a file, or to standard error where there is none. Writing never raises: a full disk
    must not keep limits from being put back; `lost` counts the lines that it cost."""

    def __init__(self, path: Path | None, clock: Callable[[], float]) -> None:
        self.lost = 0
        self._path, self._clock = path, clock
        self._fd = self._open()
        self._second = -1
        self._refused = self._silent = 0

    def _open(self) -> int:
        if self._path is None:
            return os.dup(sys.stderr.fileno())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o640)

    def reopen(self) -> None:
        """After the file was rotated away. Keeps the old one where there can be no new one."""
        with suppress(OSError):
            new = self._open()
            os.close(self._fd)
            self._fd = new

    def tell(self, event: str, **facts: Any) -> None:
        """One line: UTC time, event, facts."""
        self._write({"event": event, **facts})

    def refused(self, **facts: Any) -> None:
        """As `tell`, for what was refused; beyond ten a second they are counted alone."""
        second = int(self._clock())
        if second != self._second:
            if self._silent:
                self._write({"event": "refused", "more": self._silent})
            self._second, self._refused, self._silent = second, 0, 0
        self._refused += 1
        if self._refused > MAX_REFUSALS:
            self._silent += 1
        else:
            self._write({"event": "refused", **facts})

    def _write(self, facts: dict[str, Any]) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            os.write(self._fd, json.dumps({"time": time, **facts}).encode() + b"\n")
        except OSError:
            self.lost += 1

    def close(self) -> None:
        os.close(self._fd)
