"""Runs a child process that ends when its parent gives up, and whose last words are kept."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from policies.core.errors import EnergyServeError

_TAIL_LINES = 15
_POLL_S = 0.2
_GRACE_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A command: what it does (for messages), its arguments, its environment, the lock it keeps."""

    what: str
    command: list[str]
    environment: dict[str, str]
    lock_descriptor: int


def run_child(child: Child, while_running: Callable[[], None] = lambda: None) -> None:
    """Run to the end, calling `while_running` about five times a second.

    Raises EnergyServeError with the end of the child's output when it fails. An exception here, an
    interrupt included, ends the child first. The child inherits the lock, so that one that outlives
    a killed parent is waited for and not raced.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            child.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child.environment,
            pass_fds=(child.lock_descriptor,),
        )
        try:
            while process.poll() is None:
                while_running()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            _end(process)
        if process.returncode != 0:
            output.seek(0)
            tail = "".join(output.readlines()[-_TAIL_LINES:]).strip()
            raise EnergyServeError(
                f"{child.what} failed with exit status {process.returncode}:\n{tail}"
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
