"""The power limits that were found before they were changed, kept in a file for the next start.

One file per host, held by one process at a time: the power agent or a profile run. It outlives a
reboot: a limit does not, so that one that was found below the driver's default is set again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.core.errors import ActuationError, ActuationRefused

STATE_FILE = Path("/var/lib/jouleserve/power-limits.json")
_SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One GPU before the first change. `watts`: its power limit; `asked_watts`: the limits that it
    may have from us now; `clocks`: whether its clocks may be locked by us."""

    watts: float
    asked_watts: tuple[float, ...] = ()
    clocks: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitRecord:
    """What was found on each GPU that was changed, by UUID."""

    gpus: Mapping[str, Found] = field(default_factory=dict)


def read_record(path: Path) -> LimitRecord | None:
    """The record at `path`; None where there is none. ActuationError for a file that is no record.

    A record that no living process holds is a killed run's, whose limits are still set.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = data["schema_version"] == _SCHEMA_VERSION
        gpus = {str(uuid): _found_of(one) for uuid, one in data["gpus"].items()} if known else {}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ActuationError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        known = False
    if not known:
        raise ActuationError(
            f"{path}: not a record of power limits; set them by hand (nvidia-smi -pl WATTS) and "
            "delete the file"
        )
    return LimitRecord(gpus=gpus)


def _found_of(data: Mapping[str, Any]) -> Found:
    asked = tuple(float(watts) for watts in data["asked_watts"])
    return Found(watts=float(data["found_watts"]), asked_watts=asked, clocks=bool(data["clocks"]))


class RecordFile:
    """The record, locked for this process until `close`. ActuationRefused: another process holds
    it, or it cannot be written.

    The kernel lets go of the lock when its process ends, and forked children do not inherit it: a
    file that can be locked and holds a record was left over by a run that was killed.
    """

    def __init__(self, path: Path = STATE_FILE) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ActuationRefused(
                f"{path}: {error.strerror}; the limits that are found are written there before any "
                "is changed, so none is changed"
            ) from error
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 20, 0).decode().strip()
            os.close(self._lock)
            raise ActuationRefused(
                f"{path}: process {holder} sets power limits here; one at a time may"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def read(self) -> LimitRecord | None:
        """As `read_record`."""
        return read_record(self.path)

    def write(self, record: LimitRecord) -> None:
        """Replace the record; it is on disk when this returns. ActuationRefused if it cannot be."""
        data = {
            "schema_version": _SCHEMA_VERSION,
            "gpus": {
                uuid: {
                    "found_watts": one.watts,
                    "asked_watts": list(one.asked_watts),
                    "clocks": one.clocks,
                }
                for uuid, one in record.gpus.items()
            },
        }
        draft = self.path.with_name(f".{self.path.name}.part")
        try:
            with draft.open("w", encoding="utf-8") as file:
                json.dump(data, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
            self._sync_folder()
        except OSError as error:
            raise ActuationRefused(f"{self.path}: {error.strerror}") from error

    def remove(self) -> None:
        """Forget: every limit is as it was found."""
        self.path.unlink(missing_ok=True)
        self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._lock)
