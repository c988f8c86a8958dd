"""What was used between two readings. Pure: a Measurement is a function of its two ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.meters.base import (
    Anomaly,
    Device,
    DeviceKind,
    DeviceReading,
    Reading,
    Source,
    weakest,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceMeasurement:
    """One device over a window.

    `joules` covers `covered_s` seconds of it: all of it for a device readable at both ends, less
    for one lost on the way, 0 with `joules` None for one that was not readable at the start.
    `reason` says why it is not all. `anomalies`, `anomaly_counts`: sensor faults in the window, see
    DeviceReading. `resolved_ratio`: which part of the joules was drawn inside the window, see the
    function of that name. `caveat`: what else to know about what the joules cover.
    """

    device: Device
    joules: float | None
    source: Source
    covered_s: float
    reason: str | None = None
    anomalies: int = 0
    anomaly_counts: Mapping[Anomaly, int] = field(default_factory=dict)
    resolved_ratio: float = 1.0
    caveat: str | None = None

    @property
    def average_watts(self) -> float | None:
        """Mean draw over the covered time; None if nothing was covered."""
        if self.joules is None or self.covered_s <= 0.0:
            return None
        return self.joules / self.covered_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Energy of one window.

    `joules`: sum over the devices that could be read, None if none could. `average_watts`: sum of
    the devices' mean draws, each over its covered time. `source`: the weakest that entered the
    sum. `coverage_ratio`: covered device-seconds, less what a sensor cannot resolve, over
    device-seconds of all devices in scope, 0..1; below 1 `joules` is a lower bound (see
    `unavailable`) or smeared (see `caveats`). Meters that could not be opened have no devices and
    count only in `unavailable`, which maps a back-end or a device id to its reason. `caveats`, by
    device id: what the joules of a device contain that a reader would not expect.
    """

    duration_s: float
    joules: float | None
    joules_by_device: Mapping[str, float | None]
    average_watts: float | None
    source: Source
    coverage_ratio: float
    unavailable: Mapping[str, str]
    name: str | None = None
    devices: tuple[DeviceMeasurement, ...] = field(default=())
    caveats: Mapping[str, str] = field(default_factory=dict)

    @property
    def joules_by_kind(self) -> dict[DeviceKind, float | None]:
        """Joules per kind that has a device; None where none of it could be read."""
        kinds: dict[DeviceKind, float | None] = {}
        for one in self.devices:
            before = kinds.setdefault(one.device.kind, None)
            if one.joules is not None:
                kinds[one.device.kind] = (before or 0.0) + one.joules
        return kinds


def resolved_ratio(duration_s: float, averaged_s: float) -> float:
    """Return which part of a window's joules was drawn inside of it, at constant draw, 0..1.

    A sensor that shows the mean over the last `averaged_s` = w is integrated over a window of
    T seconds. A moment inside of it enters with the time during which the mean contains it, over w:
    1, but for the last w seconds, in which that falls to 0. The sum is T - w/2 for T >= w and
    T^2/(2w) below; what is missing was drawn in the w seconds before the window.
    """
    if averaged_s <= 0.0:
        return 1.0
    if duration_s < averaged_s:
        return 0.5 * max(0.0, duration_s) / averaged_s
    return 1.0 - 0.5 * averaged_s / duration_s


def measure(
    begin: Reading,
    end: Reading,
    *,
    name: str | None = None,
    unavailable: Mapping[str, str] | None = None,
) -> Measurement:
    """Return the window between two readings of the same devices in the same order."""
    duration_s = max(0.0, end.time_s - begin.time_s)
    devices = tuple(
        _measure_device(first, last, begin.time_s, end.time_s)
        for first, last in zip(begin.devices, end.devices, strict=True)
    )
    known = [device for device in devices if device.joules is not None]
    watts = [device.average_watts for device in known if device.average_watts is not None]
    reasons = dict(unavailable or {})
    reasons.update({d.device.id: d.reason for d in devices if d.reason is not None})
    return Measurement(
        duration_s=duration_s,
        joules=math.fsum(device.joules or 0.0 for device in known) if known else None,
        joules_by_device={device.device.id: device.joules for device in devices},
        average_watts=math.fsum(watts) if watts else None,
        source=weakest([device.source for device in known]),
        coverage_ratio=_coverage(devices, duration_s),
        unavailable=reasons,
        name=name,
        devices=devices,
        caveats={d.device.id: d.caveat for d in devices if d.caveat is not None},
    )


def _measure_device(
    first: DeviceReading, last: DeviceReading, begin_s: float, end_s: float
) -> DeviceMeasurement:
    faults: dict[str, Any] = {
        "anomalies": last.anomalies - first.anomalies,
        "anomaly_counts": {
            kind: more
            for kind, count in last.anomaly_counts.items()
            if (more := count - first.anomaly_counts.get(kind, 0)) > 0
        },
    }
    if first.joules is None or last.last_known_joules is None:
        return DeviceMeasurement(
            device=first.device,
            joules=None,
            source=Source.UNAVAILABLE,
            covered_s=0.0,
            reason=f"not readable when the window began: {first.reason}",
            **faults,
        )
    if last.joules is not None:
        covered_s, reason = end_s - begin_s, None
    else:
        known_s = begin_s if last.last_known_s is None else last.last_known_s
        covered_s = known_s - begin_s
        reason = f"measured for {max(0.0, covered_s):.3f} s, then: {last.reason}"
    covered_s = min(max(0.0, covered_s), max(0.0, end_s - begin_s))
    resolved = resolved_ratio(covered_s, last.averaged_s)
    return DeviceMeasurement(
        device=first.device,
        joules=max(0.0, last.last_known_joules - first.joules),
        source=first.source,
        covered_s=covered_s,
        reason=reason,
        resolved_ratio=resolved,
        caveat=_caveat(last, resolved),
        **faults,
    )


def _caveat(reading: DeviceReading, resolved: float) -> str | None:
    notes = [reading.caveat] if reading.caveat is not None else []
    if resolved < 1.0:
        notes.append(
            f"power is a mean over {reading.averaged_s:g} s: about {1.0 - resolved:.0%} of the "
            "joules were drawn before the window began"
        )
    return "; ".join(notes) or None


def _coverage(devices: tuple[DeviceMeasurement, ...], duration_s: float) -> float:
    """Covered share of the device-seconds; for an empty window the share of readable devices."""
    if not devices:
        return 0.0
    if duration_s <= 0.0:
        return sum(device.joules is not None for device in devices) / len(devices)
    resolved_s = math.fsum(device.covered_s * device.resolved_ratio for device in devices)
    return resolved_s / (duration_s * len(devices))
