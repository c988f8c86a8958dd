"""The socket: one thread, one loop, no client that can hold it up.

Every client is served in turns of one frame, may send so many frames a second, and is closed when
it sends what is no request, reads too slowly, or says nothing for too long. Touching a limit is for
members of the socket's group; the kernel says who they are.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from policies.core.errors import ActuationError, ActuationRefused
from serve_app.power_agent.audit import AuditLog
from serve_app.power_agent.connections import (
    FRAMES_PER_S,
    MAX_BAD_FRAMES,
    Connection,
    Connections,
    peer_of,
)
from serve_app.power_agent.leases import Holder, Lease, UnknownLease
from serve_app.power_agent.node import Node, Unavailable
from serve_app.power_agent.protocol import (
    MAX_FRAME_BYTES,
    BadRequest,
    Request,
    frame,
    parse_request,
    refusal,
)

_ACCEPTS = 16  # at once; others wait in the kernel
_BACKLOG = 1024


def listen(path: Path, gid: int | None) -> socket.socket:
    """A socket file of mode 0660 that `gid` owns. ActuationRefused: it cannot be made, or a living
    process listens there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            _remove_dead(path)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(mask)
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(0o660)
        server.listen(_BACKLOG)
    except OSError as error:
        raise ActuationRefused(f"{path}: {error.strerror or error}") from error
    return server


def _remove_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ActuationRefused(f"{path}: another process listens there")


class Server:
    """Serves `node` on `listener`, until `stop` is called from a signal handler."""

    def __init__(
        self,
        listener: socket.socket,
        node: Node,
        audit: AuditLog,
        clock: Callable[[], float],
    ) -> None:
        self._listener, self._node, self._audit, self._clock = listener, node, audit, clock
        self._path = Path(listener.getsockname())
        self._gid = self._path.stat().st_gid
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._connections = Connections()
        self._paused: list[Connection] = []

    def turn(self, wait_s: float) -> None:
        """Serve what there is to serve, waiting at most `wait_s` for it. Never raises for what a
        client does."""
        if self._paused:
            wait_s = min(wait_s, 1.0 / FRAMES_PER_S)
        for key, events in self._selector.select(max(wait_s, 0.0)):
            if key.data is None:
                self._accept()
            else:
                self._serve(key.data, events)
        self._resume()
        for one in self._connections.idle(self._clock()):
            self._close(one)

    def close(self) -> None:
        """Close all of them and remove the socket file."""
        for one in self._connections:
            self._close(one)
        self._selector.close()
        self._listener.close()
        with suppress(OSError):
            self._path.unlink()

    # ---- connections

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                connection, _ = self._listener.accept()
            except OSError:  # nobody left, or no descriptor left
                return
            connection.setblocking(False)
            try:
                peer = peer_of(connection)
            except OSError:
                connection.close()
                continue
            now_s = self._clock()
            one = Connection(socket=connection, peer=peer, active_s=now_s, filled_s=now_s)
            self._selector.register(connection, selectors.EVENT_READ, one)
            silent = self._connections.add(one)
            if silent is not None:
                self._close(silent)
            if not peer.may(self._gid):
                one.stranger = True
                self._audit.refused(pid=peer.pid, uid=peer.uid, why="not in the socket's group")

    def _serve(self, one: Connection, events: int) -> None:
        if one.socket.fileno() < 0:  # closed since the kernel said that it is ready
            return
        if events & selectors.EVENT_WRITE and not one.send():
            self._close(one)
            return
        if events & selectors.EVENT_READ:
            try:
                there = one.read()
            except BlockingIOError:
                there = True
            except OSError:
                there = False
            if not there:
                self._close(one)
                return
            self._one_frame(one)
        self._watch(one)

    def _one_frame(self, one: Connection) -> None:
        """Answer one frame, if one has come and its client may go on."""
        now_s = self._clock()
        if one.too_long:
            self._audit.refused(pid=one.peer.pid, uid=one.peer.uid, why="frame too long")
            text = f"a request is one line of at most {MAX_FRAME_BYTES} bytes"
            self._answer(one, refusal("bad_request", text))
            self._close(one)
            return
        if one.stranger:
            self._answer(one, refusal("refused", "you are not in the group of this socket"))
            self._close(one)
            return
        one.fill(now_s)
        if one.tokens < 1.0:
            self._pause(one)
            return
        line = one.next_frame()
        if line is None:
            return
        one.tokens -= 1.0
        self._connections.touch(one, now_s)
        answer = self.answer(line, one.peer.pid, one.peer.uid)
        one.holds = one.holds or "lease" in answer
        if answer.get("error") == "bad_request":
            one.bad_frames += 1
        self._answer(one, answer)
        if one.bad_frames >= MAX_BAD_FRAMES:
            self._close(one)
        elif b"\n" in one.unread:
            self._pause(one)  # its next turn, after all others had theirs

    def _answer(self, one: Connection, answer: dict[str, Any]) -> None:
        one.unsent += frame(answer)
        if not one.send():
            self._close(one)

    def _pause(self, one: Connection) -> None:
        if not one.paused:
            one.paused = True
            self._paused.append(one)

    def _resume(self) -> None:
        """Give those that have waited their next turn."""
        waiting, self._paused = self._paused, []
        now_s = self._clock()
        for one in waiting:
            one.paused = False
            if one.socket.fileno() < 0:
                continue
            one.fill(now_s)
            if one.tokens < 1.0:
                self._pause(one)
                continue
            self._one_frame(one)
            self._watch(one)

    def _watch(self, one: Connection) -> None:
        """Wait for what this client may do next."""
        if one.socket.fileno() < 0:
            return
        events = selectors.EVENT_WRITE if one.unsent else 0
        if not one.paused and len(one.unsent) == 0:
            events |= selectors.EVENT_READ
        try:
            present = self._selector.get_key(one.socket).events
        except KeyError:
            present = 0
        if events == present:
            return
        if not present:
            self._selector.register(one.socket, events, one)
        elif not events:
            self._selector.unregister(one.socket)
        else:
            self._selector.modify(one.socket, events, one)

    def _close(self, one: Connection) -> None:
        if one.socket.fileno() < 0:
            return
        with suppress(KeyError):
            self._selector.unregister(one.socket)
        self._connections.remove(one)
        one.socket.close()

    # ---- requests

    def answer(self, line: bytes, pid: int, uid: int) -> dict[str, Any]:
        """The answer to one frame of this process. Never raises."""
        now_s = self._clock()
        try:
            request = parse_request(line)
        except BadRequest as error:
            self._audit.refused(pid=pid, uid=uid, why=str(error))
            return refusal("bad_request", str(error))
        if request.op == "status":
            return {"ok": True, **self._node.status(now_s)}
        try:
            lease = self._do(request, now_s, pid, uid)
        except ActuationError as error:
            self._audit.refused(pid=pid, uid=uid, op=request.op, why=str(error))
            return refusal(_code(error), str(error))
        return {"ok": True, **self._of_lease(lease)}

    def _do(self, request: Request, now_s: float, pid: int, uid: int) -> Lease:
        if request.op == "acquire":
            assert request.wish is not None
            holder = Holder(name=request.holder, pid=pid, uid=uid)
            lease = self._node.acquire(now_s, request.uuids, holder, request.wish, request.ttl_s)
            wish = {"watts": request.wish.watts, "clock_mhz": request.wish.clock_mhz}
            gpus = list(lease.uuids)
            self._audit.tell("leased", holder=str(holder), gpus=gpus, ttl_s=lease.ttl_s, **wish)
            return lease
        if request.op == "renew":
            return self._node.renew(now_s, request.lease, request.wish)
        lease = self._node.release(now_s, request.lease)
        self._audit.tell("released", holder=str(lease.holder), gpus=list(lease.uuids))
        return lease

    def _of_lease(self, lease: Lease) -> dict[str, Any]:
        return {
            "lease": lease.id,
            "ttl_s": lease.ttl_s,
            "budget_watts": self._node.budget_watts,
            "gpus": self._node.gpus_of(lease),
        }


def _code(error: ActuationError) -> str:
    if isinstance(error, UnknownLease):
        return "unknown_lease"
    return "unavailable" if isinstance(error, Unavailable) else "refused"
