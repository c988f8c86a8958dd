"""Loads that run and rest on command: matrix products by torch, or the user's own program."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from importlib import metadata
from typing import Protocol

from policies.core.errors import ConfigError, EngineError

_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0


class Load(Protocol):
    """`start` returns when the load is ready and rests. All raise EngineError once it has ended."""

    description: str

    def start(self) -> None: ...

    def on(self) -> None: ...

    def off(self) -> None: ...

    def check(self) -> None: ...

    def close(self) -> None: ...


def choose_load(command: str | None, uuids: list[str], warm_up_s: float) -> Load | str:
    """Return the user's load, else torch's on the GPUs `uuids`, else why there is none."""
    if command is not None:
        return CommandLoad(command, warm_up_s)
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    if metadata.version("torch").endswith("+cpu"):
        return f"torch {metadata.version('torch')} is built without CUDA"
    return TorchLoad(uuids)


class CommandLoad:
    """A program that computes from start to end. It rests by SIGSTOP: what it has given to the GPU
    still runs out, milliseconds for most. The whole process group is stopped and ended."""

    def __init__(self, command: str, warm_up_s: float) -> None:
        self.description = f"command: {command}"
        self._words = shlex.split(command)
        self._warm_up_s = warm_up_s
        self._process: subprocess.Popen[bytes] | None = None
        if not self._words:
            raise ConfigError("--load: expected a command")

    def start(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"--load {self._words[0]}: {error.strerror}") from error
        time.sleep(self._warm_up_s)
        self.off()

    def on(self) -> None:
        self._signal(signal.SIGCONT)

    def off(self) -> None:
        self._signal(signal.SIGSTOP)

    def check(self) -> None:
        if self._process is None or self._process.poll() is not None:
            status = None if self._process is None else self._process.returncode
            raise EngineError(f"the load ended before the check did (status {status})")

    def _signal(self, number: int) -> None:
        self.check()
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            if number != signal.SIGTERM:  # a stopped process takes SIGTERM when it goes on
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=_STOP_TIMEOUT_S)


class TorchLoad:
    """One child process per GPU that multiplies matrices while it is told to."""

    def __init__(self, uuids: list[str]) -> None:
        self.description = "torch: bfloat16 matrix products, one process per GPU"
        self._uuids = uuids
        self._children: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        for uuid in self._uuids:
            self._children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "serve_app.gpu_check.matmul"],
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": uuid},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        for child in self._children:
            said = _line(child, deadline_s - time.monotonic())
            if said != "ready":
                raise EngineError(f"the load of torch did not start: {said or 'no answer'}")

    def on(self) -> None:
        self._tell("on")

    def off(self) -> None:
        self._tell("off")

    def check(self) -> None:
        for child in self._children:
            if child.poll() is not None:
                raise EngineError(f"the load of torch ended (status {child.returncode})")

    def _tell(self, word: str) -> None:
        self.check()
        for child in self._children:
            if child.stdin is not None:
                child.stdin.write(f"{word}\n")
                child.stdin.flush()

    def close(self) -> None:
        for child in self._children:
            if child.stdin is not None:
                with contextlib.suppress(OSError):
                    child.stdin.close()
        for child in self._children:
            try:
                child.wait(timeout=_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _line(child: subprocess.Popen[str], timeout_s: float) -> str:
    """The child's next line; empty when none comes in time."""
    if child.stdout is None:
        return ""
    ready, _, _ = select.select([child.stdout], [], [], max(0.0, timeout_s))
    return child.stdout.readline().strip() if ready else ""
