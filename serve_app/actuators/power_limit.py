"""The power limit and the clocks of one GPU: read, set, put back to what was found.

The only file that calls NVML's setters, and the only one of the actuators that knows milliwatts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from policies.core.errors import ActuationError, ActuationRefused, MeterError, MeterPermission
from serve_app.actuators.limit_record import Found, LimitRecord, RecordFile
from serve_app.nvml_library import Nvml, NvmlNotSupported

SAME_WATTS = 0.5  # a driver may round what it is told to whole watts
LOWEST_MHZ = 210  # the lower end of a locked range: as idle GPUs have it
_SW_POWER_CAP = 0x4  # nvml.h, nvmlClocksThrottleReasonSwPowerCap

Say = Callable[[str], None]


class GpuPowerLimit:
    """The power limit of one GPU, watts. Raises ActuationError where NVML does not answer.

    `min_watts`, `max_watts`: what the board allows; `default_watts`: after the driver was loaded.
    """

    def __init__(self, nvml: Nvml, uuid: str) -> None:
        self._nvml = nvml
        self.uuid = self.label = uuid
        self._handle = self._ask("nvmlDeviceGetHandleByUUID", uuid.encode())
        name = self._ask("nvmlDeviceGetName")
        self.label = f"{name.decode() if isinstance(name, bytes) else name} {uuid}"
        low, high = self._ask("nvmlDeviceGetPowerManagementLimitConstraints")
        self.min_watts, self.max_watts = low / 1e3, high / 1e3
        self.default_watts = self._ask("nvmlDeviceGetPowerManagementDefaultLimit") / 1e3

    def limit_watts(self) -> float:
        """What was last set through the driver."""
        return float(self._ask("nvmlDeviceGetPowerManagementLimit")) / 1e3

    def enforced_watts(self) -> float:
        """What holds: the lowest of that limit, the board's own, and one set out of band."""
        return float(self._ask("nvmlDeviceGetEnforcedPowerLimit")) / 1e3

    def check(self, watts: float) -> None:
        """ActuationRefused, with the range, for a limit that the board does not allow."""
        if not self.min_watts <= watts <= self.max_watts:
            raise ActuationRefused(f"{self.label}: power limit {watts:g} W; {self._allowed()}")

    def write(self, watts: float) -> None:
        """Set it. ActuationRefused: out of range, not supported, or this process may not set it;
        ActuationError: anything else that keeps the driver from it."""
        setter = self._nvml.api.nvmlDeviceSetPowerManagementLimit
        self._set("power limit", f"{watts:g} W; {self._allowed()}", setter, round(watts * 1e3))

    def shared_as_mig(self) -> bool:
        """Whether instances of MIG share this GPU, and with it one power limit."""
        try:
            mode, _ = self._nvml.call(self._nvml.api.nvmlDeviceGetMigMode, self._handle)
        except NvmlNotSupported:
            return False
        except MeterError as error:
            raise ActuationError(f"{self.label}: MIG mode not readable: {error}") from error
        return bool(mode)

    def power_capped(self) -> bool | None:
        """Whether the driver lowers the clocks to keep the limit right now; None = it does not
        tell."""
        api = self._nvml.api
        try:
            reasons = self._nvml.call(api.nvmlDeviceGetCurrentClocksThrottleReasons, self._handle)
        except MeterError:
            return None
        return bool(reasons & _SW_POWER_CAP)

    def max_clock_mhz(self) -> int | None:
        """The highest graphics clock; None = the driver does not tell."""
        api = self._nvml.api
        kind = api.NVML_CLOCK_GRAPHICS
        try:
            return int(self._nvml.call(api.nvmlDeviceGetMaxClockInfo, self._handle, kind))
        except MeterError:
            return None

    def lock_clocks(self, mhz: int) -> None:
        """Let the graphics clock go no higher. Errors as `write`."""
        setter = self._nvml.api.nvmlDeviceSetGpuLockedClocks
        self._set("graphics clock", f"at most {mhz} MHz", setter, LOWEST_MHZ, mhz)

    def unlock_clocks(self) -> None:
        """Give the clocks back to the driver. NVML does not tell whether they had been locked, so
        that what another program had locked before is not put back. Errors as `write`."""
        setter = self._nvml.api.nvmlDeviceResetGpuLockedClocks
        self._set("graphics clock", "not locked", setter)

    def _set(self, knob: str, value: str, setter: Callable[..., Any], *args: Any) -> None:
        try:
            self._nvml.call(setter, self._handle, *args)
        except MeterPermission as error:
            raise ActuationRefused(
                f"{self.label}: this process may not set a {knob}, root may: {value}"
            ) from error
        except NvmlNotSupported as error:
            raise ActuationRefused(f"{self.label}: {knob} {value}: {error}") from error
        except MeterError as error:
            raise ActuationError(f"{self.label}: {knob} {value}: {error}") from error

    def _allowed(self) -> str:
        return (
            f"allowed: {self.min_watts:g} to {self.max_watts:g} W (default {self.default_watts:g})"
        )

    def _ask(self, name: str, *args: Any) -> Any:
        try:
            return self._nvml.call(getattr(self._nvml.api, name), *(args or (self._handle,)))
        except MeterError as error:
            raise ActuationError(f"{self.label}: power limit not readable: {error}") from error


def put_back(
    record: LimitRecord, file: RecordFile, open_gpu: Callable[[str], GpuPowerLimit], say: Say
) -> None:
    """Put back what was found, on each GPU whose limit is one of ours, and say so. A limit that
    another program has set since is left alone. ActuationError names the GPUs where that failed:
    they stay in the record."""
    lines, left = [], {}
    for uuid, found in record.gpus.items():
        try:
            line = put_back_one(open_gpu(uuid), found)
        except ActuationError as error:
            left[uuid] = found
            line = f"power limit not put back to {found.watts:g} W: {error}"
        lines += [line] if line else []
    if left:
        file.write(LimitRecord(gpus=left))
    else:
        file.remove()
    for line in lines:
        with suppress(OSError):  # a terminal that is gone
            say(line)
    if left:
        raise ActuationError(
            f"power limits not put back: {', '.join(left)}; {file.path} keeps what was found"
        )


def put_back_one(gpu: GpuPowerLimit, found: Found) -> str | None:
    """Put one GPU back to what was found, and say what was done; None: there was nothing to do.

    The driver's default is taken for what a reboot or a reload of the driver left. ActuationError
    where it cannot be put back.
    """
    if found.clocks:
        gpu.unlock_clocks()
    now = gpu.limit_watts()
    if now == found.watts:  # exactly: what was found was read from the driver as well
        return f"{gpu.label}: clocks given back" if found.clocks else None
    ours = (*found.asked_watts, gpu.default_watts)
    if not any(same(now, one) for one in ours):
        return (
            f"{gpu.label}: the power limit is {now:g} W, which another program has set: left so "
            f"(found: {found.watts:g} W)"
        )
    gpu.write(found.watts)
    if not same(now := gpu.limit_watts(), found.watts):
        raise ActuationError(f"{gpu.label}: the power limit stays at {now:g} W")
    return f"{gpu.label}: power limit put back to {found.watts:g} W"


def restore_left_over(nvml: Nvml, file: RecordFile, say: Say) -> None:
    """Put back what a run that was killed has left. ActuationError as `put_back`."""
    record = file.read()
    if record is not None:
        say(f"{file.path}: a run that set power limits was killed")
        put_back(record, file, partial(GpuPowerLimit, nvml), say)


def same(one: float, other: float) -> bool:
    """Whether two limits, watts, are one and the same."""
    return abs(one - other) <= SAME_WATTS
