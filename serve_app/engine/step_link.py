"""The wire between the scheduler (in vLLM's EngineCore process) and the replica: one message when a
step starts, one when it ends, over a Unix stream socket, in order, never blocking the engine.

The scheduler is the only place that knows which request got how many tokens in which step; the
replica is the only place with a meter. Both run on one host (EngineCore is the replica's child),
so `time.monotonic()` means the same on both ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from policies.core.attribution import StepShare

SOCKET_ENV = "JOULESERVE_STEP_SOCKET"
_HEADER = struct.Struct("<I")
_MAX_BACKLOG_BYTES = 1 << 20


class StepMessage(msgspec.Struct, array_like=True, gc=False):
    """One event of the engine. `kind`: "a" a request arrives (its prompt tokens stand in `shares`,
    `time_s` is when the replica took it), "b" a step begins, "e" the oldest step ends, "f" requests
    are gone (aborted), "d" messages were dropped. `names` introduces new (handle, internal request
    id) pairs; `shares` is flat: handle, prefill tokens, decode tokens, context tokens."""

    kind: str
    time_s: float
    names: list[tuple[int, str]] = []
    shares: list[int] = []
    finished: list[int] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StepMessage).decode


class StepSender:
    """Sends step messages from the scheduler; drops them (and says so) rather than wait."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._socket.setblocking(False)
        self._backlog = b""
        self._dropped = False

    @staticmethod
    def from_environment() -> StepSender | None:
        """The sender for this engine, or None where no replica listens (plain vLLM)."""
        path = os.environ.get(SOCKET_ENV)
        if not path:
            return None
        try:
            return StepSender(path)
        except OSError:
            return None

    def send(self, message: StepMessage) -> None:
        """Queue and flush. A reader that is gone or far behind costs messages, not steps."""
        self.queue(message)
        self.flush()

    def queue(self, message: StepMessage) -> None:
        """Keep a message for the next flush. No system call, unless a reader was behind."""
        if self._backlog:
            self.flush()  # a reader that has caught up loses nothing more
        if len(self._backlog) > _MAX_BACKLOG_BYTES:
            self._dropped = True
        else:
            if self._dropped:
                self._dropped = False
                self._append(StepMessage(kind="d", time_s=message.time_s))
            self._append(message)

    def _append(self, message: StepMessage) -> None:
        body = _encode(message)
        self._backlog += _HEADER.pack(len(body)) + body

    def flush(self) -> None:
        """Hand what is queued to the kernel, as far as the reader has room."""
        try:
            while self._backlog:
                sent = self._socket.send(self._backlog)
                self._backlog = self._backlog[sent:]
        except BlockingIOError:
            return
        except OSError:
            self._backlog = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEvent:
    """A decoded message with request ids in place of handles."""

    kind: str
    time_s: float
    shares: tuple[StepShare, ...] = ()
    finished: tuple[str, ...] = ()


class StepReceiver:
    """Listens for one engine and hands each `StepEvent` to `on_event`, in order.

    `drain()` reads what is there without waiting: call it before every settlement and every meter
    window. (A reader that wakes up for each message costs more than handling the message.) A step
    whose request was introduced in a dropped message is reported under the id "": its energy ends
    as unattributed.
    """

    def __init__(self, on_event: Callable[[StepEvent], None]) -> None:
        self._dir = tempfile.mkdtemp(prefix="jouleserve-")
        self.path = str(Path(self._dir) / "steps.sock")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._listener.setblocking(False)
        self._connection: socket.socket | None = None
        self._buffer = bytearray()
        self._names: dict[int, str] = {}
        self._on_event = on_event
        self.dropped_gaps = 0

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def drain(self) -> None:
        """Handle every message that has arrived; returns at once."""
        if self._connection is None:
            try:
                self._connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            self._connection.setblocking(False)
        while True:
            try:
                data = self._connection.recv(1 << 18)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._disconnect()
                break
            self._buffer += data
        self._parse()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _parse(self) -> None:
        offset = 0
        while len(self._buffer) - offset >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer, offset)
            end = offset + _HEADER.size + size
            if len(self._buffer) < end:
                break
            self._handle(_decode(bytes(self._buffer[offset + _HEADER.size : end])))
            offset = end
        del self._buffer[:offset]

    def _handle(self, message: StepMessage) -> None:
        self._names.update(message.names)
        if message.kind == "d":
            self.dropped_gaps += 1
        flat = message.shares
        shares = tuple(
            StepShare(
                request_id=self._names.get(flat[i], ""),
                prefill_tokens=flat[i + 1],
                decode_tokens=flat[i + 2],
                context_tokens=flat[i + 3],
            )
            for i in range(0, len(flat), 4)
        )
        finished = tuple(self._names.pop(handle, "") for handle in message.finished)
        self._on_event(
            StepEvent(kind=message.kind, time_s=message.time_s, shares=shares, finished=finished)
        )

    def close(self) -> None:
        """Close the socket and remove its folder."""
        self._disconnect()
        self._listener.close()
        with contextlib.suppress(OSError):
            Path(self.path).unlink()
            Path(self._dir).rmdir()
