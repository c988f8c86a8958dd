"""CPU packages and DRAM through the kernel's powercap tree (Intel and AMD RAPL). Reads only.

Counters wrap at `max_energy_range_uj`, within minutes under load, so a background thread reads them
often enough that no wrap is missed. The kernel's counter holds one unit more than that range (15 to
61 µJ); the published range is used, so a wrap counts at most one unit too little.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serve_app.meters.base import Device, DeviceReading, Source
from serve_app.meters.counters import CounterTracker
from serve_app.meters.poller import Poller
from serve_app.meters.powercap import POWERCAP_ROOT, Zone, find_zones
from serve_app.meters.share import ProcessShare, ShareMeter

_MAX_WATTS = 2000.0  # of one zone: above any socket on the market, so a reset is no wrap
_SLACK_S = 0.1  # RAPL updates every millisecond
_POLL_BOUNDS_S = (0.5, 30.0)


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
    """One zone's counter, its charged joules and whether it can be read now."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.tracker = CounterTracker(
            joules_per_unit=1e-6,
            max_watts=_MAX_WATTS,
            slack_s=_SLACK_S,
            wrap_units=zone.wrap_uj,
        )
        self.charged_joules = 0.0
        self.known_s: float | None = None
        self.draw_watts: float | None = None
        self.reason: str | None = None

    def step(self, now_s: float) -> float:
        """Joules of the whole zone since the last good value; 0 while it cannot be read."""
        try:
            raw = self.zone.read_uj()
        except (OSError, ValueError) as error:
            self.reason, self.draw_watts = f"{self.zone.energy_file}: {error}", None
            return 0.0
        self.reason = None
        return self.tracker.advance(raw, now_s)

    def charge(self, joules: float, now_s: float) -> None:
        """Book the replica's part of a step."""
        self.charged_joules += joules
        if self.known_s is not None and now_s > self.known_s:
            self.draw_watts = joules / (now_s - self.known_s)
        self.known_s = now_s if self.known_s is None else max(now_s, self.known_s)


class RaplBackend:
    """Joules per package and DRAM zone. Raises MeterUnavailable or MeterPermission at open."""

    name = "rapl"

    def __init__(
        self,
        settings: RaplSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings or RaplSettings()
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        self._zones = [_ZoneState(zone) for zone in find_zones(self._settings.root)]
        share = self._settings.share
        self._share: ShareMeter | None = None
        if share != "host":
            pid = os.getpid() if share.pid is None else share.pid
            self._share = ShareMeter(share, pid, idle_watts=self._settings.idle_watts, clock=clock)
        self.read(clock())
        fastest_wrap_s = min(s.zone.wrap_uj for s in self._zones) * 1e-6 / _MAX_WATTS
        low_s, high_s = _POLL_BOUNDS_S
        period_s = min(high_s, max(low_s, 0.5 * fastest_wrap_s))
        self._poller = Poller("rapl-wrap", period_s, self._poll)

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
        steps = [(state, state.step(now_s)) for state in self._zones]
        share = 1.0
        if self._share is not None:
            share = self._share.next_share(now_s, sum(joules for _, joules in steps))
        for state, joules in steps:
            if state.reason is None:
                state.charge(joules * share, now_s)

    def _reading(self, state: _ZoneState) -> DeviceReading:
        # The tracker's own sum is exact over any number of readings; a share has to be added up.
        total = state.tracker.joules if self._share is None else state.charged_joules
        known = None if state.known_s is None else total
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
                state.reason, state.draw_watts = "the meter is closed", None
