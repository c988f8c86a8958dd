"""What every energy meter speaks: devices, readings, and the one Protocol of all back-ends.

Joules are cumulative since the back-end opened. Missing energy is None with a reason, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class DeviceKind(StrEnum):
    """What draws the power."""

    GPU = "gpu"
    CPU = "cpu"
    DRAM = "dram"


class Source(StrEnum):
    """How joules were obtained, best first."""

    COUNTER = "counter"  # a hardware energy counter
    INTEGRATED = "integrated"  # sampled power, integrated over time
    ESTIMATED = "estimated"  # a model of the draw, no sensor
    UNAVAILABLE = "unavailable"


def weakest(sources: list[Source]) -> Source:
    """Return the least trustworthy of `sources`, what a sum is worth; unavailable if empty."""
    order = list(Source)
    return max(sources, key=order.index, default=Source.UNAVAILABLE)


class Anomaly(StrEnum):
    """What a sensor did that a plain difference of two values would get wrong."""

    WRAP = "wrap"  # passed the end of its range; counted in full
    RESET = "reset"  # started again from zero
    BACKWARD = "backward"  # fell, not to near zero
    ZERO = "zero"  # reads 0 where it cannot be 0
    JUMP = "jump"  # rose by more than the device can draw; or an impossible power value
    STALL = "stall"  # stands still while the device draws power or is busy
    GAP = "gap"  # two values too far apart to know what went on between them
    LATE = "late"  # sampled later than planned, but soon enough; or out of order
    CLOCK = "clock"  # the time of the readings stepped back
    DISAGREEMENT = "disagreement"  # counter and integrated power differ by more than they may


# These leave energy out: their count is `DeviceReading.anomalies`. The others are set right (wrap,
# late, clock) or do not say which of two sensors is wrong (disagreement).
LOSSY = frozenset(
    {Anomaly.RESET, Anomaly.BACKWARD, Anomaly.ZERO, Anomaly.JUMP, Anomaly.STALL, Anomaly.GAP}
)


def lossy(counts: Mapping[Anomaly, int]) -> int:
    """Return how many of the counted anomalies leave energy out."""
    return sum(count for kind, count in counts.items() if kind in LOSSY)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One metered device. `id` is stable and unique on the host (a GPU's UUID, `cpu:package-0`)."""

    id: str
    kind: DeviceKind
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceReading:
    """One device at one moment.

    `joules`: cumulative since the back-end opened, never decreasing; None while the device cannot
    be read, and then `source` is unavailable and `reason` says why. What had been counted before
    is not lost: `last_known_joules` keeps it, as a floor, and `last_known_s` says up to which
    moment (monotonic seconds) it counts; for a readable device both repeat the present values.
    `draw_watts`: present draw where known. `anomalies`: how many counter resets, backward steps,
    zero readings, impossible jumps, stalls and sampling gaps were seen so far; their energy may be
    left out, so a rise means that `joules` is a lower bound. `anomaly_counts`: the same and the
    harmless ones by kind.

    `whole_joules`: of the whole device, where `joules` is only this replica's share of it.
    `averaged_s`: the sensor's values are means over this many seconds, so a window shorter than a
    few of them also shows what was drawn before it. `cross_check_ratio`: integrated power over
    counter energy in the last full check window, 1 = they agree; None where there is no second
    sensor or no full window yet. `caveat`: what else to know about what `joules` covers.
    """

    device: Device
    joules: float | None
    source: Source
    reason: str | None = None
    draw_watts: float | None = None
    last_known_joules: float | None = None
    last_known_s: float | None = None
    anomalies: int = 0
    anomaly_counts: Mapping[Anomaly, int] = field(default_factory=dict)
    whole_joules: float | None = None
    averaged_s: float = 0.0
    cross_check_ratio: float | None = None
    caveat: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """All devices at one moment. `time_s` is monotonic."""

    time_s: float
    devices: tuple[DeviceReading, ...]

    def joules_by_kind(self) -> dict[DeviceKind, float | None]:
        """Cumulative joules per kind that has a device; None where no device of it can be read.

        A device lost on the way adds its floor (`last_known_joules`), so that the sum of the kind
        never falls back; a kind that was never read is None.
        """
        kinds: dict[DeviceKind, float | None] = {}
        for kind in DeviceKind:
            here = [reading for reading in self.devices if reading.device.kind is kind]
            if not here:
                continue
            readable = any(reading.joules is not None for reading in here)
            floors = [r.last_known_joules if r.joules is None else r.joules for r in here]
            kinds[kind] = math.fsum(f for f in floors if f is not None) if readable else None
        return kinds

    def unavailable(self) -> dict[str, str]:
        """Return the devices that cannot be read now, by id, each with its reason."""
        return {r.device.id: r.reason or "no reason" for r in self.devices if r.joules is None}


class MeterBackend(Protocol):
    """One way to measure.

    Opening (the constructor) raises MeterUnavailable or MeterPermission when nothing can be
    measured; after that `read` never raises. All methods are thread-safe.
    """

    name: str

    def devices(self) -> tuple[Device, ...]:
        """Return the devices in scope, fixed at open, including those that cannot be read."""
        ...

    def read(self, now_s: float) -> tuple[DeviceReading, ...]:
        """One reading per device, in the order of `devices()`. `now_s`: monotonic seconds."""
        ...

    def idle_watts(self) -> float | None:
        """Draw of the metered scope when it does nothing; None if not known."""
        ...

    def close(self) -> None:
        """Release what is held. May be called twice."""
        ...
