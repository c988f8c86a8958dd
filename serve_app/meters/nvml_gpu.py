"""One GPU behind NVML: which way its energy is read, what is known, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.core.errors import MeterError, MeterPermission, MeterStale, MeterUnavailable
from serve_app.meters.base import Anomaly, Device, DeviceKind, DeviceReading, Source
from serve_app.meters.counters import CounterTracker, PowerIntegrator
from serve_app.meters.cross_check import CrossCheck
from serve_app.meters.gpu_selection import GpuIdentity, Selected
from serve_app.meters.nvml_power import PowerSensor
from serve_app.meters.nvml_sharing import GpuSharing, gpu_sharing
from serve_app.nvml_library import GpuLost, Nvml, NvmlNotSupported

_MAX_WATTS = 3000.0  # above any board on the market; used where the GPU does not tell its limit
_LIMIT_FACTOR = 2.0  # short excursions above the power limit are real; twice it is not
_COUNTER_SLACK_S = 1.0  # far above the counter's update interval (20-100 ms)
_STALL_S = 5.0  # the same: a counter that stands still for so long does not count
_MAX_GAP_S = 2.0  # two power samples further apart say nothing about the time between
_LATE_PERIODS = 4.0  # a sample so many periods after the last one is late


class NvmlGpu:
    """One GPU's state. `source` is fixed at open; a lost GPU keeps its floor for ever.

    `sample_period_s`: how often `read` is called at least where power is integrated.
    """

    def __init__(
        self,
        nvml: Nvml,
        which: Selected,
        broken: Mapping[str, MeterError],
        *,
        sample_period_s: float,
        allotted_ratio: float = 1.0,
    ) -> None:
        self._nvml = nvml
        self._sample_period_s = sample_period_s
        self._allotted_ratio = allotted_ratio
        self._handle: Any = None
        self._stopped = False
        self._counter: CounterTracker | None = None
        self._check = CrossCheck()
        self._sensor: PowerSensor | None = None
        self._power: PowerIntegrator | None = None
        self._known_s: float | None = None
        self._draw_watts: float | None = None
        self.sharing: GpuSharing | None = None
        self.source = Source.UNAVAILABLE
        self.reason: str | None = None
        self.denied = False
        if not isinstance(which, GpuIdentity):
            self.device = Device(id=which.entry, kind=DeviceKind.GPU, name=which.name)
            self.stop(which.reason)
            return
        name = which.name or "unreadable GPU"
        self.device = Device(id=which.uuid, kind=DeviceKind.GPU, name=name)
        try:
            if which.uuid in broken:
                raise broken[which.uuid]
            self._open(which.index)
        except MeterError as error:
            self.denied = isinstance(error, MeterPermission)
            self.stop(str(error))

    def _open(self, index: int) -> None:
        api = self._nvml.api
        self._handle = self._nvml.call(api.nvmlDeviceGetHandleByIndex, index)
        if self._mig_is_on():
            raise MeterUnavailable("MIG is on: the board's counter covers all of its instances")
        max_watts = _LIMIT_FACTOR * limit if (limit := self._max_limit_watts()) else _MAX_WATTS
        try:
            self._nvml.call(api.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        except NvmlNotSupported:
            self._sensor = PowerSensor(self._nvml, self._handle)
            late_s = min(_MAX_GAP_S, _LATE_PERIODS * self._sample_period_s)
            self._power = PowerIntegrator(max_watts=max_watts, max_gap_s=_MAX_GAP_S, late_s=late_s)
            self.source = Source.INTEGRATED
        else:
            self._counter = CounterTracker(
                joules_per_unit=1e-3, max_watts=max_watts, slack_s=_COUNTER_SLACK_S
            )
            self.source = Source.COUNTER

    def _mig_is_on(self) -> bool:
        try:
            return bool(self._nvml.call(self._nvml.api.nvmlDeviceGetMigMode, self._handle)[0])
        except NvmlNotSupported:
            return False

    def _max_limit_watts(self) -> float | None:
        query = self._nvml.api.nvmlDeviceGetPowerManagementLimitConstraints
        try:
            return float(self._nvml.call(query, self._handle)[1]) / 1e3
        except MeterError:
            return None

    def stop(self, reason: str) -> None:
        """No further call; `reason` is what every reading says from now on. The first one stays."""
        if not self._stopped:
            self._stopped, self.reason, self._draw_watts = True, reason, None

    # ---- readings

    def read(self, now_s: float) -> DeviceReading:
        """Return the reading at `now_s`: unavailable after a failed call, for good if lost."""
        if not self._stopped:
            try:
                self._sample(now_s)
                self.reason = None
            except GpuLost as error:
                self.stop(str(error))
            except MeterError as error:
                self.reason, self._draw_watts = str(error), None
                self._check.restart()
        tracker = self._counter or self._power
        known = tracker.joules if tracker is not None and self._known_s is not None else None
        mine = None if known is None else known * self._allotted_ratio
        readable = self.reason is None
        return DeviceReading(
            device=self.device,
            joules=mine if readable else None,
            source=self.source if readable else Source.UNAVAILABLE,
            reason=self.reason,
            draw_watts=None
            if self._draw_watts is None
            else self._draw_watts * self._allotted_ratio,
            last_known_joules=mine,
            last_known_s=self._known_s,
            anomalies=tracker.anomalies if tracker is not None else 0,
            anomaly_counts=dict(tracker.counts) if tracker is not None else {},
            whole_joules=known if self._allotted_ratio < 1.0 else None,
            averaged_s=self._sensor.averaged_s if self._sensor is not None else 0.0,
            cross_check_ratio=self._check.ratio,
            caveat=self._caveat(),
        )

    def _sample(self, now_s: float) -> None:
        if self._counter is not None:
            self._sample_counter(self._counter, now_s)
        elif self._power is not None and self._sensor is not None:
            self._sample_power(self._power, self._sensor, now_s)

    def _sample_counter(self, counter: CounterTracker, now_s: float) -> None:
        faults = counter.anomalies
        query = self._nvml.api.nvmlDeviceGetTotalEnergyConsumption
        counter.advance(self._nvml.call(query, self._handle), now_s)
        self._draw_watts = watts = self._draw()
        still_s = now_s - counter.moved_s
        if still_s >= _STALL_S and (watts is not None or self._is_busy()):
            counter.note_stall()
            self._known_s = counter.moved_s
            drawing = f"draws {watts:.0f} W" if watts is not None else "is busy"
            raise MeterStale(
                f"the energy counter has stood still for {still_s:.1f} s while the GPU {drawing}"
            )
        self._known_s = now_s
        if watts is None or counter.anomalies != faults:
            self._check.restart()
        elif self._check.add(counter.joules, watts, now_s):
            counter.counts[Anomaly.DISAGREEMENT] += 1

    def _sample_power(self, power: PowerIntegrator, sensor: PowerSensor, now_s: float) -> None:
        watts = sensor.watts()
        self._draw_watts = watts if power.add(watts, now_s) else None
        self._known_s = power.known_s
        if self._known_s is None or now_s - self._known_s > _MAX_GAP_S:
            raise MeterStale(f"the power sensor reads {watts:g} W, which cannot be")

    def _draw(self) -> float | None:
        """Return the draw beside a counter; None where it cannot be read or reads 0."""
        try:
            query = self._nvml.api.nvmlDeviceGetPowerUsage
            return float(self._nvml.call(query, self._handle)) / 1e3 or None
        except GpuLost:
            raise
        except MeterError:
            return None

    def _is_busy(self) -> bool:
        try:
            query = self._nvml.api.nvmlDeviceGetUtilizationRates
            return bool(self._nvml.call(query, self._handle).gpu)
        except GpuLost:
            raise
        except MeterError:
            return False

    # ---- what else is known

    def check_sharing(self) -> None:
        """Ask who else computes on this GPU."""
        if not self._stopped:
            try:
                self.sharing = gpu_sharing(self._nvml, self._handle)
            except GpuLost as error:
                self.stop(str(error))

    def _caveat(self) -> str | None:
        if self._allotted_ratio < 1.0:
            return f"{self._allotted_ratio:g} of the board's joules, as much as was allotted"
        return None if self.sharing is None else self.sharing.caveat()

    def power_limit_watts(self) -> float | None:
        """Return the enforced limit, watts; None if it cannot be read."""
        if self._stopped:
            return None
        try:
            query = self._nvml.api.nvmlDeviceGetEnforcedPowerLimit
            return float(self._nvml.call(query, self._handle)) / 1e3
        except MeterError:
            return None
