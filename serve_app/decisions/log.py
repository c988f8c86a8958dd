"""The decision log: JSON lines in files of bounded size, and how they are read back.

Four kinds of lines: a record, `{"outcome_of": id, ...}` once the next decision of the same owner
is made, `{"approval_of": id, "by": name, "time_utc_s"}` where an operator has said yes, and
`{"profile": fingerprint, "data": {...}}`, which every file begins with, so that each file can be
replayed alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError
from serve_app.decisions.record import Record, read_record

SUFFIX = ".decisions.jsonl"
_FILES = 4

log = logging.getLogger("ray.serve")


class DecisionLog(RotatingFileHandler):
    """Appends lines; the oldest of four files goes when all together reach `max_bytes`. A disk that
    takes nothing costs lines, never the caller."""

    def __init__(self, folder: Path, application: str, max_bytes: int) -> None:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._profiles: dict[str, Mapping[str, Any]] = {}
        self._told = False
        super().__init__(
            folder / f"{_safe(application)}{SUFFIX}",
            maxBytes=max_bytes // _FILES,
            backupCount=_FILES - 1,
            encoding="utf-8",
        )

    def profile(self, fingerprint: str, data: Mapping[str, Any]) -> None:
        """Write a profile down, once per file."""
        if fingerprint not in self._profiles:
            self._profiles[fingerprint] = data
            self.line(_profile_line(fingerprint, data))

    def line(self, text: str) -> None:
        """Append one line."""
        self.emit(logging.LogRecord("", logging.INFO, "", 0, text, None, None))

    def doRollover(self) -> None:  # noqa: N802 - the name is logging's
        """A new file begins with the profiles that the decisions in it refer to."""
        super().doRollover()
        self.stream = self.stream or self._open()
        for fingerprint, data in self._profiles.items():
            self.stream.write(_profile_line(fingerprint, data) + "\n")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002
        """Say once that the disk does not take it."""
        if not self._told:
            self._told = True
            log.error("the decision log %s takes nothing", self.baseFilename, exc_info=True)  # noqa: LOG014


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a log holds, oldest first. `outcomes` and `approvals`: by the id of the decision."""

    records: list[Record] = field(default_factory=list)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    approvals: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, line: str) -> None:
        """One line. Raises ConfigError where it is not one of ours."""
        try:
            data = json.loads(line)
        except ValueError:
            raise ConfigError("decision record: not JSON") from None
        if not isinstance(data, dict):
            raise ConfigError("decision record: expected an object")
        if "profile" in data and "data" in data:
            self.profiles[data["profile"]] = data["data"]
        elif "outcome_of" in data:
            self.outcomes[data.pop("outcome_of")] = data
        elif "approval_of" in data:
            self.approvals[data.pop("approval_of")] = data
        else:
            self.records.append(read_record(line))


def read_decisions(path: Path) -> Decisions:
    """The decisions of one file, or of all logs in a folder. Raises ConfigError that names file and
    line; the last line of a file may be cut off, by a crash while it was written."""
    paths = _files(path)
    if not paths:
        raise ConfigError(f"{path}: no decision log (*{SUFFIX})")
    found = Decisions()
    for one in paths:
        try:
            lines = one.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{one}: not readable: {error}") from None
        for number, line in enumerate(lines, 1):
            try:
                found.take(line)
            except ConfigError as error:
                if number == len(lines):
                    continue
                raise ConfigError(f"{one}:{number}: {error}") from None
    found.records.sort(key=lambda record: record.time_utc_s)
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob(f"*{SUFFIX}*"))
    return [path] if path.is_file() else []


def outcome_line(decision: str, outcome: Mapping[str, Any]) -> str:
    """What came of a decision."""
    return json.dumps({"outcome_of": decision, **outcome})


def approval_line(decision: str, by: str | None, time_utc_s: float) -> str:
    """That an operator has said yes."""
    return json.dumps({"approval_of": decision, "by": by, "time_utc_s": time_utc_s})


def _profile_line(fingerprint: str, data: Mapping[str, Any]) -> str:
    return json.dumps({"profile": fingerprint, "data": data})


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
