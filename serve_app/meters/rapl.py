"""CPU packages and DRAM through the kernel's powercap tree (Intel and AMD RAPL). Reads only.

Counters wrap at `max_energy_range_uj`, within minutes under load, so a background thread reads them
often enough that no wrap is missed. The kernel's counter holds one unit more than that range (15 to
61 µJ); the published range is used, so a wrap counts at most one unit too little.

A package that runs this code draws power: a counter that stands still for seconds does not count
(usual for DRAM on client processors, and in some virtual machines) and is unavailable.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serve_app.meters.base import Device, DeviceReading, Source
from serve_app.meters.counters import CounterTracker
from serve_app.meters.poller import Poller
from serve_app.meters.powercap import POWERCAP_ROOT, Zone, find_zones
from serve_app.meters.share import SLOT_S, ProcessShare, ShareMeter

_MAX_WATTS = 2000.0  # of one zone: above any socket on the market, so a reset is no wrap
_SLACK_S = 0.1  # RAPL updates every millisecond
_STALL_S = 5.0  # the same: a counter that stands still for so long does not count
_POLL_BOUNDS_S = (0.5, 30.0)
_DRAW_WINDOW_S = 0.1  # shorter ones show the counter's update interval, not the draw


@dataclass(frozen=True, kw_only=True, slots=True)
class RaplSettings:
    """What is read, and for whom.

    `share`: "host" charges the whole host (right for one program alone on it); a ProcessShare
    charges one replica its part by the rule in `share.py`, DRAM by the same key. `idle_watts`:
    measured baseline of the whole host's packages and DRAM; RAPL does not know it.
    """

    root: Path = POWERCAP_ROOT
    share: ProcessShare | Literal["host"] = "host"
    idle_watts: float | None = None


class _ZoneState:
    """One zone's counter, our joules of it and whether it can be read now."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.tracker = CounterTracker(
            joules_per_unit=1e-6,
            max_watts=_MAX_WATTS,
            slack_s=_SLACK_S,
            wrap_units=zone.wrap_uj,
        )
        self.joules = 0.0
        self.known_s: float | None = None
        self.draw_watts: float | None = None
        self.reason: str | None = None
        self._draw_base = (0.0, 0.0)  # time, joules

    def read(self, now_s: float) -> None:
        """Take the counter's present value, or note why there is none."""
        try:
            raw = self.zone.read_uj()
        except (OSError, ValueError) as error:
            self.fail(f"{self.zone.energy_file}: {error}")
            return
        self.tracker.advance(raw, now_s)
        still_s = now_s - self.tracker.moved_s
        if still_s >= _STALL_S:
            self.tracker.note_stall()
            self.fail(f"{self.zone.energy_file} has stood still for {still_s:.1f} s")
            self.known_s = self.tracker.moved_s
            return
        self.reason = None

    def fail(self, reason: str) -> None:
        """No reading now."""
        self.reason, self.draw_watts = reason, None

    def book(self, joules: float, now_s: float) -> None:
        """Set our joules of this zone so far."""
        self.joules = joules
        begin_s, begin_joules = self._draw_base
        if self.known_s is None or now_s < begin_s:
            self._draw_base = (now_s, joules)
        elif now_s - begin_s >= _DRAW_WINDOW_S:
            self.draw_watts = (joules - begin_joules) / (now_s - begin_s)
            self._draw_base = (now_s, joules)
        self.known_s = now_s


class RaplBackend:
    """Joules per package and DRAM zone. Raises MeterUnavailable or MeterPermission at open.

    `zones`: read these instead of those found under the root.
    """

    name = "rapl"

    def __init__(
        self,
        settings: RaplSettings | None = None,
        *,
        zones: Sequence[Zone] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings or RaplSettings()
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        found = find_zones(self._settings.root) if zones is None else zones
        self._zones = [_ZoneState(zone) for zone in found]
        share = self._settings.share
        self._share: ShareMeter | None = None
        if share != "host":
            pid = os.getpid() if share.pid is None else share.pid
            self._share = ShareMeter(share, pid, idle_watts=self._settings.idle_watts, clock=clock)
        self.read(clock())
        self._poller = self._poll_counters()

    def _poll_counters(self) -> Poller:
        """Read before any zone can have wrapped twice; shares are settled once per slot."""
        if self._share is not None:
            return Poller("rapl-share", SLOT_S, self._poll, aligned=True)
        fastest_wrap_s = min(s.zone.wrap_uj for s in self._zones) * 1e-6 / _MAX_WATTS
        low_s, high_s = _POLL_BOUNDS_S
        return Poller("rapl-wrap", min(high_s, max(low_s, 0.5 * fastest_wrap_s)), self._poll)

    def devices(self) -> tuple[Device, ...]:
        """Return the zones in scope."""
        return tuple(state.zone.device for state in self._zones)

    def read(self, now_s: float) -> tuple[DeviceReading, ...]:
        """One reading per zone: one small file each."""
        with self._lock:
            self._advance(now_s)
            return tuple(self._reading(state) for state in self._zones)

    def _poll(self) -> None:
        with self._lock:
            self._advance(self._clock())

    def _advance(self, now_s: float) -> None:
        if self._closed:
            return
        for state in self._zones:
            state.read(now_s)
        # The tracker's own sum is exact over any number of readings.
        joules: Sequence[float] = [state.tracker.joules for state in self._zones]
        if self._share is not None:
            joules = self._share.charge(now_s, joules)
        for state, mine in zip(self._zones, joules, strict=True):
            if state.reason is None:
                state.book(mine, now_s)

    def _reading(self, state: _ZoneState) -> DeviceReading:
        known = None if state.known_s is None else state.joules
        readable = state.reason is None
        return DeviceReading(
            device=state.zone.device,
            joules=known if readable else None,
            source=Source.COUNTER if readable else Source.UNAVAILABLE,
            reason=state.reason,
            draw_watts=state.draw_watts,
            last_known_joules=known,
            last_known_s=state.known_s,
            anomalies=state.tracker.anomalies,
            anomaly_counts=dict(state.tracker.counts),
            whole_joules=None if self._share is None else state.tracker.joules,
            caveat=None if self._share is None else "this replica's share of the host",
        )

    def idle_watts(self) -> float | None:
        """Return the configured baseline, times our part of the cores where the host is shared."""
        watts = self._settings.idle_watts
        if watts is None or self._share is None:
            return watts
        return watts * self._share.idle_share()

    def close(self) -> None:
        """Stop reading; later readings are unavailable. May be called twice."""
        self._poller.close()
        with self._lock:
            self._closed = True
            for state in self._zones:
                state.fail("the meter is closed")
