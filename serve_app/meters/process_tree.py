"""CPU seconds of a process and everything it has started, cheap enough to ask every tick.

Linux adds a child's CPU time to its parent when the parent waits for it. Summing own and reaped
time over the living processes therefore also catches children too short-lived to be listed. A
child that vanishes without being waited for keeps its last counted seconds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from policies.core.errors import MeterUnavailable

_TICK_S = 0.02  # /proc counts in ticks of 10 ms; own and reaped time are rounded apart


@dataclass(slots=True)
class _Node:
    """One living process. `own_s` and `reaped_s` as last read, `base_s` is not ours to count."""

    process: psutil.Process
    parent_pid: int
    base_s: float = 0.0
    own_s: float = 0.0
    reaped_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.own_s + self.reaped_s


@dataclass(frozen=True, slots=True)
class _Departed:
    """A vanished process: its parent's reaped time may or may not contain `total_s` now."""

    total_s: float
    base_s: float


class ProcessTree:
    """The tree under `pid`. Raises MeterUnavailable if there is no such process.

    Counts from now on: what the present processes used before is left out, later children count
    from their start. The list of children is refreshed once per `refresh_s`; orphans of the tree
    stay in it. Not thread-safe: the caller holds its own lock.
    """

    def __init__(
        self, pid: int, *, clock: Callable[[], float] = time.monotonic, refresh_s: float = 5.0
    ) -> None:
        self._clock = clock
        self._refresh_s = refresh_s
        self._nodes: dict[psutil.Process, _Node] = {}
        self._carried_s = 0.0
        try:
            self._add(psutil.Process(pid))
        except psutil.NoSuchProcess as error:
            raise MeterUnavailable(f"there is no process {pid}") from error
        self._discover()
        for node in self._nodes.values():
            _refresh(node)
            node.base_s = node.total_s
        if not self._nodes:
            raise MeterUnavailable(f"process {pid} has ended")
        self._refreshed_s = clock()

    @property
    def alive(self) -> bool:
        """Whether any process of the tree was alive at the last `cpu_seconds`."""
        return bool(self._nodes)

    def cpu_seconds(self) -> float:
        """User plus system seconds of the whole tree since this object was made."""
        now_s = self._clock()
        if now_s - self._refreshed_s >= self._refresh_s:
            self._discover()
            self._refreshed_s = now_s
        departed: dict[int, list[_Departed]] = {}
        # Children stand behind their parents: read backwards, a parent is read after its children
        # are found gone, so its reaped time already holds theirs.
        for process, node in reversed(list(self._nodes.items())):
            reaped_before_s = node.reaped_s
            if _refresh(node):
                gone = departed.pop(process.pid, [])
                self._absorb(node, node.reaped_s - reaped_before_s, gone)
                continue
            del self._nodes[process]
            gone = departed.pop(process.pid, [])
            gone.append(_Departed(node.total_s, node.base_s))
            departed.setdefault(node.parent_pid, []).extend(gone)
        for gone in departed.values():
            self._carried_s += sum(one.total_s - one.base_s for one in gone)
        return self._carried_s + sum(n.total_s - n.base_s for n in self._nodes.values())

    def _absorb(self, parent: _Node, reaped_s: float, gone: list[_Departed]) -> None:
        """Keep each vanished child exactly once.

        It is in the parent's reaped time where it fits in what that grew by (less what was not
        ours to count); else it is carried here.
        """
        left_s = reaped_s + _TICK_S * len(gone)
        for one in sorted(gone, key=lambda child: -child.total_s):
            if one.total_s <= left_s:
                left_s -= one.total_s
                parent.base_s += one.base_s
            else:
                self._carried_s += one.total_s - one.base_s

    def _discover(self) -> None:
        """List new children of the root and of orphans; note who is whose parent now."""
        pids = {process.pid for process in self._nodes}
        for process, node in list(self._nodes.items()):
            try:
                node.parent_pid = process.ppid()
                if node.parent_pid in pids:
                    continue
                children = process.children(recursive=True)
            except psutil.Error:
                continue  # gone, or about to be: the next sum notices
            for child in children:
                with contextlib.suppress(psutil.Error):
                    self._add(child)

    def _add(self, process: psutil.Process) -> None:
        if process not in self._nodes and process.status() != psutil.STATUS_ZOMBIE:
            self._nodes[process] = _Node(process=process, parent_pid=process.ppid())


def _refresh(node: _Node) -> bool:
    """Read one process; False if it is gone. A zombie keeps what was last read."""
    try:
        times = node.process.cpu_times()
    except psutil.ZombieProcess:
        return True
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    own_s = times.user + times.system
    reaped_s = times.children_user + times.children_system
    if own_s + _TICK_S < node.own_s:
        return False  # the number belongs to another process now
    node.own_s, node.reaped_s = max(own_s, node.own_s), max(reaped_s, node.reaped_s)
    return True
