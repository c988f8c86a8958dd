"""Which part of a host's energy one replica is charged.

    share = idle_ratio x allotted_cores / host_cores + (1 - idle_ratio) x tree_cpu_s / host_busy_s

The dynamic part of the energy follows CPU seconds, the idle part the cores a replica was given. The
idle part of a window is `idle_watts x dt` where the host's baseline is known; where it is not, the
share of core seconds that nobody used stands for it. Both parts are partitions: over processes that
together own at most all cores and all busy seconds, the shares sum to at most 1, so several
replicas on one host never count a joule twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from policies.core.errors import ConfigError
from serve_app.meters.process_tree import ProcessTree


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessShare:
    """Charge the tree under `pid` its part of the host.

    `allotted_cores`: what the scheduler gave it (Ray's num_cpus of all its actors); there is no
    default, since two replicas that both claim the whole host would count its idle energy twice.
    `pid` None: this process.
    """

    allotted_cores: float
    pid: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.allotted_cores) and self.allotted_cores >= 0.0):
            raise ConfigError(
                f"meter.share.allotted_cores: {self.allotted_cores!r}; allowed: finite, >= 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class HostWindow:
    """CPU time of one window. `idle_ratio`: known idle part of the energy, None = not known."""

    duration_s: float
    tree_cpu_s: float
    host_busy_s: float
    host_cores: float
    allotted_cores: float
    idle_ratio: float | None = None


def host_share(window: HostWindow) -> float:
    """Return the share of the host's energy, 0..1, by the rule at the top of this file."""
    capacity_s = window.duration_s * window.host_cores
    busy_s = max(window.host_busy_s, window.tree_cpu_s)  # the two are not read at one instant
    if window.idle_ratio is not None:
        idle_ratio = _clamp(window.idle_ratio)
    else:
        idle_ratio = 1.0 - _clamp(busy_s / capacity_s) if capacity_s > 0.0 else 1.0
    of_idle = _clamp(window.allotted_cores / window.host_cores)
    if busy_s <= 0.0:
        return of_idle  # nothing ran: all of the window is idle
    return idle_ratio * of_idle + (1.0 - idle_ratio) * _clamp(window.tree_cpu_s / busy_s)


class ShareMeter:
    """Reads the CPU times behind `host_share`, one window after the other."""

    def __init__(
        self,
        settings: ProcessShare,
        pid: int,
        *,
        idle_watts: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._idle_watts = idle_watts
        self._tree = ProcessTree(pid, clock=clock)
        self._host_cores = float(psutil.cpu_count(logical=True) or 1)
        self._last = (clock(), 0.0, _host_busy_s())

    def next_share(self, now_s: float, host_joules: float) -> float:
        """Return the share for the window since the last call; the host used `host_joules`."""
        last_s, last_tree_s, last_busy_s = self._last
        tree_s = self._tree.cpu_seconds()
        busy_s = _host_busy_s()
        self._last = (max(now_s, last_s), tree_s, busy_s)
        duration_s = max(0.0, now_s - last_s)
        idle_ratio = None
        if self._idle_watts is not None and host_joules > 0.0:
            idle_ratio = self._idle_watts * duration_s / host_joules
        return host_share(
            HostWindow(
                duration_s=duration_s,
                tree_cpu_s=max(0.0, tree_s - last_tree_s),
                host_busy_s=max(0.0, busy_s - last_busy_s),
                host_cores=self._host_cores,
                allotted_cores=self._settings.allotted_cores,
                idle_ratio=idle_ratio,
            )
        )

    def idle_share(self) -> float:
        """Return the part of the host's idle energy that is ours."""
        return _clamp(self._settings.allotted_cores / self._host_cores)


def _host_busy_s() -> float:
    """Busy CPU seconds of the host since boot (guest time is part of user time)."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def _clamp(value: float) -> float:
    return min(1.0, max(0.0, value))
