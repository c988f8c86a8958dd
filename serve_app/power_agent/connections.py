"""The clients of the socket: who they are, what they have sent, how fast they may go on."""

from __future__ import annotations

import grp
import os
import socket
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from policies.core.errors import ConfigError
from serve_app.power_agent.protocol import MAX_FRAME_BYTES

MAX_CONNECTIONS = 512
MAX_UNSENT_BYTES = 64 * 1024
MAX_BAD_FRAMES = 3
FRAMES_PER_S, BURST_FRAMES = 10.0, 20.0
IDLE_S = 120.0
_SO_PEERGROUPS = 59  # linux/asm-generic/socket.h, since 4.13; Python has no name for it
_MAX_GROUPS = 65536


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """The process at the other end, as the kernel knows it. 0: it lies in another pid namespace."""

    pid: int
    uid: int
    gids: frozenset[int]

    def may(self, gid: int) -> bool:
        """Root, who runs this agent, or a member of the socket's group."""
        return self.uid in {0, os.geteuid()} or gid in self.gids


def peer_of(connection: socket.socket) -> Peer:
    """Who opened this connection (SO_PEERCRED, SO_PEERGROUPS). OSError."""
    size = struct.calcsize("3i")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, gid = struct.unpack("3i", raw)
    gids = {gid}
    try:
        more = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
        gids |= set(struct.unpack(f"{len(more) // 4}I", more))
    except OSError:  # an old kernel: the primary group decides
        pass
    return Peer(pid=pid, uid=uid, gids=frozenset(gids))


def gid_of(group: str) -> int:
    """The id of a group, by name or number. ConfigError."""
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"--group {group}: no such group on this host") from None


@dataclass(slots=True, eq=False)
class Connection:
    """One client. `tokens`: frames that it may still send at once. `holds`: it has a lease.
    `stranger`: it may ask for nothing."""

    socket: socket.socket
    peer: Peer
    active_s: float
    unread: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    tokens: float = BURST_FRAMES
    filled_s: float = 0.0
    bad_frames: int = 0
    paused: bool = False
    holds: bool = False
    stranger: bool = False

    def fill(self, now_s: float) -> None:
        """Give it the frames that time has earned it."""
        earned = (now_s - self.filled_s) * FRAMES_PER_S
        self.tokens = min(self.tokens + earned, BURST_FRAMES)
        self.filled_s = now_s

    def read(self) -> bool:
        """Take in what has come, no more than a frame; False: the client is gone. OSError."""
        room = MAX_FRAME_BYTES + 1 - len(self.unread)
        if room <= 0:
            return True
        data = self.socket.recv(room)
        self.unread += data
        return bool(data)

    def next_frame(self) -> bytes | None:
        """The next whole frame; None = there is none yet."""
        end = self.unread.find(b"\n")
        if end < 0:
            return None
        line = bytes(self.unread[:end])
        del self.unread[: end + 1]
        return line

    @property
    def too_long(self) -> bool:
        """Whether what has come is longer than any frame may be."""
        return len(self.unread) > MAX_FRAME_BYTES and b"\n" not in self.unread

    def send(self) -> bool:
        """Send what can be sent; False: it reads too slowly, or is gone."""
        try:
            while self.unsent:
                sent = self.socket.send(self.unsent)
                del self.unsent[:sent]
        except BlockingIOError:
            return len(self.unsent) <= MAX_UNSENT_BYTES
        except OSError:
            return False
        return True


class Connections:
    """All of them, the one that was silent for the longest first."""

    def __init__(self) -> None:
        self._all: OrderedDict[int, Connection] = OrderedDict()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._all.values()))

    def add(self, one: Connection) -> Connection | None:
        """Add it; where there are too many, the most silent one without a lease is returned, to be
        closed."""
        self._all[one.socket.fileno()] = one
        if len(self._all) <= MAX_CONNECTIONS:
            return None
        return next((other for other in self._all.values() if not other.holds), one)

    def touch(self, one: Connection, now_s: float) -> None:
        one.active_s = now_s
        self._all.move_to_end(one.socket.fileno())

    def remove(self, one: Connection) -> None:
        self._all.pop(one.socket.fileno(), None)

    def idle(self, now_s: float) -> list[Connection]:
        """Those that have said nothing for too long."""
        found = []
        for one in self._all.values():
            if now_s < one.active_s + IDLE_S:
                break
            found.append(one)
        return found
