"""One GPU behind NVML: which way its energy is read, what is known, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.core.errors import MeterError, MeterPermission, MeterUnavailable
from serve_app.meters.base import Device, DeviceKind, DeviceReading, Source
from serve_app.meters.counters import CounterTracker, PowerIntegrator
from serve_app.meters.gpu_selection import GpuIdentity, MigInstance
from serve_app.meters.nvml_errors import GpuLost, Nvml, NvmlNotSupported

_MAX_WATTS = 3000.0  # above any board on the market; used where the GPU does not tell its limit
_LIMIT_FACTOR = 2.0  # short excursions above the power limit are real; twice it is not
_COUNTER_SLACK_S = 1.0  # far above the counter's update interval (20-100 ms)
_MAX_GAP_S = 2.0  # two power samples further apart say nothing about the time between


class NvmlGpu:
    """One GPU's state. `source` is fixed at open; a lost GPU keeps its floor for ever."""

    def __init__(
        self, nvml: Nvml, which: GpuIdentity | MigInstance, broken: Mapping[str, MeterError]
    ) -> None:
        self._nvml = nvml
        self._handle: Any = None
        self._stopped = False
        self._counter: CounterTracker | None = None
        self._power: PowerIntegrator | None = None
        self._known_s: float | None = None
        self._draw_watts: float | None = None
        self.source = Source.UNAVAILABLE
        self.reason: str | None = None
        self.denied = False
        if isinstance(which, MigInstance):
            self.device = Device(id=which.entry, kind=DeviceKind.GPU, name="MIG instance")
            self.stop("a MIG instance has no energy counter of its own")
            return
        self.device = Device(id=which.uuid, kind=DeviceKind.GPU, name=which.name)
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
            self._nvml.call(api.nvmlDeviceGetPowerUsage, self._handle)
            self._power = PowerIntegrator(max_watts=max_watts, max_gap_s=_MAX_GAP_S)
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
        tracker = self._counter or self._power
        known = tracker.joules if tracker is not None and self._known_s is not None else None
        readable = self.reason is None
        return DeviceReading(
            device=self.device,
            joules=known if readable else None,
            source=self.source if readable else Source.UNAVAILABLE,
            reason=self.reason,
            draw_watts=self._draw_watts,
            last_known_joules=known,
            last_known_s=self._known_s,
            anomalies=tracker.anomalies if tracker is not None else 0,
        )

    def _sample(self, now_s: float) -> None:
        api, call = self._nvml.api, self._nvml.call
        if self._counter is not None:
            raw = call(api.nvmlDeviceGetTotalEnergyConsumption, self._handle)
            self._counter.advance(raw, now_s)
            self._known_s = now_s
        try:
            self._draw_watts = call(api.nvmlDeviceGetPowerUsage, self._handle) / 1e3
        except GpuLost:
            raise
        except MeterError:
            if self._power is not None:
                raise
            self._draw_watts = None  # the counter has answered: only the draw is not known
        if self._power is not None and self._draw_watts is not None:
            self._power.add(self._draw_watts, now_s)
            self._known_s = now_s

    def power_limit_watts(self) -> float | None:
        """Return the enforced limit, watts; None if it cannot be read."""
        if self._stopped:
            return None
        try:
            query = self._nvml.api.nvmlDeviceGetEnforcedPowerLimit
            return float(self._nvml.call(query, self._handle)) / 1e3
        except MeterError:
            return None
