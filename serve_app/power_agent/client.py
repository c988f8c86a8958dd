"""The other end of the agent's socket: one question, one answer, at most so long."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.core.errors import ActuationError, ActuationRefused, ActuationTimeout
from serve_app.power_agent.leases import UnknownLease
from serve_app.power_agent.protocol import frame

SOCKET = Path("/run/jouleserve/power-agent.sock")
TIMEOUT_S = 1.0
_MAX_ANSWER_BYTES = 1 << 20


class AgentUnavailable(ActuationError):
    """The agent says that it cannot set these GPUs now, or there is no agent."""


class AgentClient:
    """One connection, opened anew when it was lost. Not for two threads at once.

    Every method raises ActuationRefused: not allowed, out of bounds, held by another;
    UnknownLease; AgentUnavailable: no agent, or a GPU out of reach; ActuationTimeout.
    """

    def __init__(self, path: Path = SOCKET, timeout_s: float = TIMEOUT_S) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def status(self) -> dict[str, Any]:
        """All GPUs of the node, their limits and holders; watts."""
        return self._ask({"op": "status"})

    def acquire(
        self,
        uuids: Sequence[str],
        *,
        watts: float | None,
        ttl_s: float,
        holder: str,
        clock_mhz: int | None = None,
    ) -> dict[str, Any]:
        """Lease these GPUs; the answer has `lease` and `gpus`."""
        question = {"op": "acquire", "gpus": list(uuids), "ttl_s": ttl_s, "holder": holder}
        return self._ask(question | _wish(watts, clock_mhz))

    def renew(
        self, lease: str, *, watts: float | None = None, clock_mhz: int | None = None
    ) -> dict[str, Any]:
        """Keep a lease; without a limit or a clock it stays as it is."""
        return self._ask({"op": "renew", "lease": lease} | _wish(watts, clock_mhz))

    def release(self, lease: str) -> dict[str, Any]:
        """End a lease: what was found is put back."""
        return self._ask({"op": "release", "lease": lease})

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        fresh = self._socket is None
        try:
            answer = self._exchange(question)
        except (ConnectionError, BrokenPipeError) as error:
            self.close()
            if fresh or question["op"] == "acquire":  # it may have been done
                raise AgentUnavailable(f"{self.path}: {error}") from error
            answer = self._again(question)
        if answer.get("ok"):
            return answer
        message = str(answer.get("message", "refused"))
        kinds = {"unknown_lease": UnknownLease, "unavailable": AgentUnavailable}
        raise kinds.get(str(answer.get("error")), ActuationRefused)(message)

    def _again(self, question: dict[str, Any]) -> dict[str, Any]:
        """Once more on a new connection: the old one had been closed."""
        try:
            return self._exchange(question)
        except OSError as error:
            self.close()
            raise AgentUnavailable(f"{self.path}: {error}") from error

    def _exchange(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            one = self._connected()
            one.sendall(frame(question))
            return self._answer(one)
        except TimeoutError as error:
            self.close()
            raise ActuationTimeout(
                f"{self.path}: no answer within {self._timeout_s:g} s"
            ) from error

    def _connected(self) -> socket.socket:
        if self._socket is None:
            one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            one.settimeout(self._timeout_s)
            try:
                self._connect(one)
            except TimeoutError:
                one.close()
                raise
            except OSError as error:
                one.close()
                raise AgentUnavailable(
                    f"{self.path}: {error.strerror}: is `jouleserve power-agent` running?"
                ) from error
            self._socket = one
        return self._socket

    def _connect(self, one: socket.socket) -> None:
        """A full queue of connections does not block on a Unix socket, it refuses: ask again."""
        until_s = time.monotonic() + self._timeout_s
        while True:
            try:
                one.connect(str(self.path))
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise TimeoutError from None
                time.sleep(0.01)
            else:
                return

    def _answer(self, one: socket.socket) -> dict[str, Any]:
        read = bytearray()
        while not read.endswith(b"\n"):
            data = one.recv(65536)
            if not data:
                raise ConnectionResetError("the agent closed the connection")
            read += data
            if len(read) > _MAX_ANSWER_BYTES:
                raise ConnectionResetError("the answer is too long")
        answer = json.loads(read)
        if not isinstance(answer, dict):
            raise ConnectionResetError("the answer is no JSON object")
        return answer


def _wish(watts: float | None, clock_mhz: int | None) -> dict[str, Any]:
    wish = {"watts": watts, "clock_mhz": clock_mhz}
    return {key: value for key, value in wish.items() if value is not None}
