"""Where prepared models live, and the lock that keeps two preparations of one model apart."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from policies.core.errors import ConfigError

CACHE_VARIABLE = "JOULESERVE_CACHE"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolders:
    """The paths of one model.

    `final` appears whole, by a rename; `partial` holds what a later run can go on with; `lock` is
    held by the process that prepares, and by its children.
    """

    final: Path
    partial: Path
    lock: Path

    @classmethod
    def of(cls, name: str, cache: Path | None = None) -> ModelFolders:
        """Return the paths of a model under `cache`, or under the user's cache."""
        models = cache_root(cache) / "models"
        return cls(
            final=models / name, partial=models / f"{name}.partial", lock=models / f".{name}.lock"
        )


def cache_root(cache: Path | None = None) -> Path:
    """Return `cache`, else $JOULESERVE_CACHE, else `jouleserve` in the user's cache folder."""
    if cache is not None:
        return cache.expanduser().absolute()
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not xdg.is_absolute():  # the XDG specification: relative paths are to be ignored
        xdg = Path("~/.cache").expanduser()
    return xdg / "jouleserve"


@contextmanager
def locked(lock: Path, on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold the lock; `on_wait` is called once when another process has it. Yields its descriptor.

    A kernel lock on an open file: it ends with its last holder, so that no stale lock is left by a
    killed process. A child that inherits the descriptor holds the lock as well.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the model cache {lock.parent}: {error.strerror}; "
            f"name another folder with --cache or {CACHE_VARIABLE}"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
