"""The state of each metered device, for whoever exports it: age, faults by kind, cross-check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.meters.base import Anomaly, Device, Reading, Source


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceHealth:
    """One device's sensor.

    `age_s`: since its joules were last known; None = never. `anomaly_counts`: totals since the
    meter opened, by kind, only those that happened. `reason`: why it cannot be read, None where it
    can. `cross_check_ratio` and `caveat`: see DeviceReading.
    """

    device: Device
    source: Source
    age_s: float | None
    anomaly_counts: Mapping[Anomaly, int]
    reason: str | None
    cross_check_ratio: float | None
    caveat: str | None


def device_health(reading: Reading, now_s: float) -> tuple[DeviceHealth, ...]:
    """Return the health of every device of a reading, as seen at `now_s` (monotonic seconds)."""
    return tuple(
        DeviceHealth(
            device=one.device,
            source=one.source,
            age_s=None if one.last_known_s is None else max(0.0, now_s - one.last_known_s),
            anomaly_counts=one.anomaly_counts,
            reason=one.reason,
            cross_check_ratio=one.cross_check_ratio,
            caveat=one.caveat,
        )
        for one in reading.devices
    )
