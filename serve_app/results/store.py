"""Finished runs as JSON lines by key, shared by processes: what was run once is not run again."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError, EnergyServeError


class NotStoredError(EnergyServeError):
    """A run that nobody has done yet, where none is to be done."""


class Store:
    """Lines of {"key": ..., ...}; the last one of a key counts. A line that was cut off is left
    out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        self._read = 0

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry of that key, also one that another process has written; None: there is none."""
        if key not in self._known:
            self._refresh()
        return self._known.get(key)

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an entry. Raises ConfigError where the folder cannot be written."""
        line = json.dumps({"key": key, **entry}, allow_nan=False) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as lines:
                fcntl.flock(lines, fcntl.LOCK_EX)
                if lines.tell() and not self._ends_whole():
                    line = "\n" + line  # whoever wrote last was stopped in the middle
                lines.write(line.encode())
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}") from None
        self._known[key] = {"key": key, **entry}

    def _ends_whole(self) -> bool:
        with self._path.open("rb") as lines:
            lines.seek(-1, 2)
            return lines.read() == b"\n"

    def _refresh(self) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and "key" in entry:
                    self._known[entry["key"]] = entry


class Finished(Store):
    """The same, to which nothing is added."""

    def get(self, key: str) -> dict[str, Any]:
        """The entry of that key. Raises NotStoredError."""
        found = super().get(key)
        if found is None:
            raise NotStoredError(f"{self._path}: no run {key}")
        return found
