"""The keys in force, read again when their file changes. No request waits for the disk."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from policies.core.errors import ConfigError
from serve_app.security.key_file import Signature, parse_keys, signature_of
from serve_app.security.keys import KeyRing

log = logging.getLogger("ray.serve")


class WatchedKeys:
    """`ring` holds the keys of a file as of the last `check`.

    A file that cannot be read, or is gone, leaves the keys in force as they are (an empty list
    takes them all away): it is said once in the log, counted in `errors`, and `in_force` is False
    until it is well again. Before the first good read nobody is let in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ring = KeyRing()
        self.in_force = False  # whether `ring` is what the file says
        self.errors = 0
        self._seen: Signature | str | None = None  # of the file, or why it cannot be looked at
        self._checking = threading.Lock()
        self.check()

    def check(self) -> None:
        """Look at the file, and read it if it is another than before. Never raises."""
        with self._checking:
            try:
                now: Signature | str = signature_of(self.path.stat())
            except OSError as error:
                now = error.strerror or type(error).__name__
            if now == self._seen:
                return
            self._seen = now
            try:
                self._read()
            except (ConfigError, OSError) as error:
                self._refused(error)

    def _read(self) -> None:
        with self.path.open("rb") as file:
            self._seen = signature_of(os.fstat(file.fileno()))  # of what is read, not of its past
            keys = parse_keys(file, self.path)
        self.ring = KeyRing(keys)
        self.in_force = True
        log.info("%s: %d API keys in force", self.path, len(keys))

    def _refused(self, error: Exception) -> None:
        self.errors += 1
        self.in_force = False
        what = f"{self.path}: {error.strerror}" if isinstance(error, OSError) else str(error)
        log.error("API keys not read, the %d in force stay: %s", len(self.ring), what)
