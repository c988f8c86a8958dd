"""Which part of a host's energy one replica is charged.

    share = idle_ratio x allotted_cores / host_cores + (1 - idle_ratio) x tree_cpu_s / host_busy_s

The dynamic part of the energy follows CPU seconds, the idle part the cores a replica was given. The
idle part of a window is `idle_watts x dt` where the host's baseline is known; where it is not, the
share of core seconds that nobody used stands for it. Both parts are partitions: over processes that
together own at most all cores and all busy seconds, the shares of one window sum to at most 1.

A sum over windows keeps that only if all replicas cut time alike: one that looked once per minute
would be charged at a mean price for what another, looking every second, was charged at the peak. So
shares are settled in slots of SLOT_S on the monotonic clock, which a host's processes have in
common: what the replicas are charged for whole slots is never more than the host used. A reading
inside a slot shows a provisional part; where the slot's end is below it, the reading waits there
until the charge has caught up. What no replica is charged is the host's remainder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

from policies.core.errors import ConfigError
from serve_app.meters.process_tree import ProcessTree

SLOT_S = 1.0


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


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSample:
    """A host at one moment: CPU seconds of the replica's tree and of everybody, joules by zone.

    All but the time are cumulative.
    """

    time_s: float
    tree_cpu_s: float
    host_busy_s: float
    host_joules: tuple[float, ...]


class Charge:
    """One replica's cumulative charge by zone, by the rules at the top of this file. Pure.

    `take` returns it after one sample; what it returns never decreases. `settled` is the charge for
    whole slots. `idle_watts`: the host's known baseline.
    """

    def __init__(
        self, allotted_cores: float, host_cores: float, *, idle_watts: float | None
    ) -> None:
        self._allotted_cores = allotted_cores
        self._host_cores = host_cores
        self._idle_watts = idle_watts
        self.settled: tuple[float, ...] = ()
        self._until: HostSample | None = None  # what `settled` is charged up to
        self._shown: tuple[float, ...] = ()

    def take(self, sample: HostSample) -> tuple[float, ...]:
        """Return the joules charged so far, by zone."""
        begin = self._until
        if begin is None:
            self._until = sample
            self.settled = self._shown = (0.0,) * len(sample.host_joules)
            return self._shown
        share = self._share(begin, sample)
        charged = tuple(
            base + share * (new - old)
            for base, new, old in zip(
                self.settled, sample.host_joules, begin.host_joules, strict=True
            )
        )
        if _slot(sample.time_s) != _slot(begin.time_s):
            self._until, self.settled = sample, charged
        self._shown = tuple(map(max, self._shown, charged))
        return self._shown

    def _share(self, begin: HostSample, end: HostSample) -> float:
        duration_s = max(0.0, end.time_s - begin.time_s)
        joules = sum(end.host_joules) - sum(begin.host_joules)
        idle_ratio = None
        if self._idle_watts is not None and joules > 0.0:
            idle_ratio = self._idle_watts * duration_s / joules
        return host_share(
            HostWindow(
                duration_s=duration_s,
                tree_cpu_s=max(0.0, end.tree_cpu_s - begin.tree_cpu_s),
                host_busy_s=max(0.0, end.host_busy_s - begin.host_busy_s),
                host_cores=self._host_cores,
                allotted_cores=self._allotted_cores,
                idle_ratio=idle_ratio,
            )
        )


class ShareMeter:
    """Reads the CPU times behind a `Charge`."""

    def __init__(
        self,
        settings: ProcessShare,
        pid: int,
        *,
        idle_watts: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tree = ProcessTree(pid, clock=clock)
        host_cores = float(psutil.cpu_count(logical=True) or 1)
        self._core_ratio = _clamp(settings.allotted_cores / host_cores)
        self._charge = Charge(settings.allotted_cores, host_cores, idle_watts=idle_watts)

    def charge(self, now_s: float, host_joules: Iterable[float]) -> tuple[float, ...]:
        """Return what the replica has been charged so far of the host's joules so far, by zone."""
        return self._charge.take(
            HostSample(
                time_s=now_s,
                tree_cpu_s=self._tree.cpu_seconds(),
                host_busy_s=_host_busy_s(),
                host_joules=tuple(host_joules),
            )
        )

    def idle_share(self) -> float:
        """Return the part of the host's idle energy that is ours."""
        return self._core_ratio


def _slot(time_s: float) -> int:
    return math.floor(time_s / SLOT_S)


def _host_busy_s() -> float:
    """Busy CPU seconds of the host since boot (guest time is part of user time)."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def _clamp(value: float) -> float:
    return min(1.0, max(0.0, value))
