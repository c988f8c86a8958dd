"""NVML's error codes as ours: one table. The classes say what a reading does next.

It needs nvidia-ml-py and the standard library alone: the power agent runs with no more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from policies.core.errors import MeterError, MeterPermission, MeterUnavailable


class NvmlNotSupported(MeterUnavailable):
    """The GPU or the driver does not have this value: another value may do."""


class NvmlTransient(MeterUnavailable):
    """The call failed this time; the next one may succeed."""


class GpuLost(MeterUnavailable):
    """The GPU is gone until the host resets it: no further call is made."""


# NVML return code (nvml.h, nvmlReturn_t) → (our error, words for people)
ERRORS: dict[int, tuple[type[MeterError], str]] = {
    1: (MeterUnavailable, "NVML is not initialised"),
    2: (NvmlNotSupported, "NVML refuses the argument"),
    3: (NvmlNotSupported, "not supported by this GPU"),
    4: (MeterPermission, "this process may not read it: run as a user who may open /dev/nvidia*"),
    6: (MeterUnavailable, "no such GPU"),
    8: (MeterUnavailable, "the GPU's external power cables are not all plugged in"),
    9: (MeterUnavailable, "the NVIDIA driver is not loaded"),
    10: (NvmlTransient, "the driver timed out"),
    12: (MeterUnavailable, "libnvidia-ml.so.1 is not installed: no NVIDIA driver here"),
    13: (NvmlNotSupported, "the installed driver is too old for this value"),
    15: (GpuLost, "the GPU has fallen off the bus"),
    16: (GpuLost, "the GPU needs a reset"),
    17: (MeterUnavailable, "the operating system blocks the GPU"),
    18: (MeterUnavailable, "driver and NVML library versions differ: reload the driver"),
    19: (NvmlTransient, "the GPU is in use"),
    20: (NvmlTransient, "out of memory"),
    23: (NvmlTransient, "the driver is out of resources"),
    27: (NvmlTransient, "the GPU is not ready"),
    28: (GpuLost, "the GPU is not found any more"),
    999: (NvmlTransient, "the driver reports an unknown error"),
}


def to_meter_error(error: Any) -> MeterError:
    """Our error for an `NVMLError`; codes outside the table are MeterUnavailable."""
    kind, words = ERRORS.get(error.value, (MeterUnavailable, "the driver reports an error"))
    return kind(f"{words} (NVML {error.value}: {error})")


class Nvml:
    """The NVML library, initialised, with our errors. `call` retries a transient failure once."""

    def __init__(self) -> None:
        import pynvml  # only where NVML is wanted

        self.api: Any = pynvml
        self._open = False
        self.call(pynvml.nvmlInit)
        self._open = True

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the function's result, or one of our errors with NVML's as its cause."""
        try:
            return function(*args)
        except self.api.NVMLError as error:
            failure = to_meter_error(error)
            if not isinstance(failure, NvmlTransient):
                raise failure from error
        try:
            return function(*args)
        except self.api.NVMLError as error:
            raise to_meter_error(error) from error

    def field(self, handle: Any, field_id: int) -> int:
        """Return one unsigned field value (`nvmlDeviceGetFieldValues`); errors as `call`."""

        def ask() -> int:
            value = self.api.nvmlDeviceGetFieldValues(handle, [field_id])[0]
            if value.nvmlReturn != self.api.NVML_SUCCESS:
                raise self.api.NVMLError(value.nvmlReturn)
            return int(value.value.uiVal)

        return int(self.call(ask))

    def text(self, function: Callable[..., Any], *args: Any) -> str:
        """Like `call`, for strings: older bindings return bytes."""
        value = self.call(function, *args)
        return value.decode() if isinstance(value, bytes) else str(value)

    def reopen(self) -> None:
        """Initialise the library anew, as after a reload of the driver; handles are void then."""
        with suppress(MeterError):
            self.close()
        self.call(self.api.nvmlInit)
        self._open = True

    def close(self) -> None:
        """Give the library back (NVML counts its users). May be called twice."""
        if self._open:
            self._open = False
            self.call(self.api.nvmlShutdown)
