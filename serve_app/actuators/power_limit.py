"""The power limit of one GPU: read, set, put back to what was found.

The only file that calls NVML's setters, and the only one of the actuators that knows milliwatts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from policies.core.errors import ActuationError, ActuationRefused, MeterError, MeterPermission
from serve_app.actuators.limit_record import LimitRecord, RecordFile
from serve_app.nvml_library import Nvml, NvmlNotSupported

SAME_WATTS = 0.5  # a driver may round what it is told to whole watts

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
        """Set it. ActuationRefused: out of range, not supported, or this process may not."""
        setter = self._nvml.api.nvmlDeviceSetPowerManagementLimit
        try:
            self._nvml.call(setter, self._handle, round(watts * 1e3))
        except MeterPermission as error:
            raise ActuationRefused(
                f"{self.label}: this process may not set a power limit, root may; {self._allowed()}"
            ) from error
        except NvmlNotSupported as error:
            raise ActuationRefused(
                f"{self.label}: power limit {watts:g} W: {error}; {self._allowed()}"
            ) from error
        except MeterError as error:
            raise ActuationError(f"{self.label}: power limit {watts:g} W: {error}") from error

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
    for uuid, watts in record.found_watts.items():
        try:
            line = _put_back_one(open_gpu(uuid), watts, record.asked_watts)
        except ActuationError as error:
            left[uuid] = watts
            line = f"power limit not put back to {watts:g} W: {error}"
        lines += [line] if line else []
    if left:
        file.write(replace(record, found_watts=left))
    else:
        file.remove()
    for line in lines:
        with suppress(OSError):  # a terminal that is gone
            say(line)
    if left:
        raise ActuationError(
            f"power limits not put back: {', '.join(left)}; {file.path} keeps what was found"
        )


def _put_back_one(gpu: GpuPowerLimit, watts: float, asked: Sequence[float]) -> str | None:
    now = gpu.limit_watts()
    if same(now, watts):
        return None
    if not any(same(now, ours) for ours in asked):
        return (
            f"{gpu.label}: the power limit is {now:g} W, which another program has set: left so "
            f"(found: {watts:g} W)"
        )
    gpu.write(watts)
    if not same(now := gpu.limit_watts(), watts):
        raise ActuationError(f"{gpu.label}: the power limit stays at {now:g} W")
    return f"{gpu.label}: power limit put back to {watts:g} W"


def restore_left_over(nvml: Nvml, file: RecordFile, say: Say) -> None:
    """Put back what a run that was killed has left. ActuationError as `put_back`."""
    record = file.read()
    if record is not None:
        say(f"{file.path}: a run that set power limits was killed")
        put_back(record, file, partial(GpuPowerLimit, nvml), say)


def same(one: float, other: float) -> bool:
    """Whether two limits, watts, are one and the same."""
    return abs(one - other) <= SAME_WATTS
