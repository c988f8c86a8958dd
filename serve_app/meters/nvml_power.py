"""The power sensor of one GPU: the most direct value that it has, and over how long that averages.

`nvmlDeviceGetPowerUsage` is a mean over one second on Ampere and later, except for GA100 (nvml.h;
arXiv 2312.02741 measured it). Newer drivers also have the present draw, as a field value. A window
that is cut out of averaged power shows, at both of its ends, what was drawn up to a second before:
of its own energy E over T seconds it sees (T - 0.5 s)/T and of the second before it the rest.
"""

from __future__ import annotations

from typing import Any

from policies.core.errors import MeterError
from serve_app.nvml_library import Nvml, NvmlNotSupported

_MEAN_S = 1.0
_AMPERE = 7  # nvmlDeviceArchitecture_t: NVML_DEVICE_ARCH_AMPERE
_GA100 = (8, 0)  # its compute capability; the other Ampere chips have 8.6 and 8.7


class PowerSensor:
    """Reads one GPU's draw. `averaged_s`: over how long a value is a mean, 0 = the present draw.

    Raises the errors of `Nvml.call` when there is no value of either sort.
    """

    def __init__(self, nvml: Nvml, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._instant = True
        self.averaged_s = 0.0
        try:
            self._instant = self.watts() > 0.0  # 0 W: the field is there, but nobody fills it
        except NvmlNotSupported:
            self._instant = False
        if not self._instant:
            self.watts()
            self.averaged_s = _MEAN_S if self._averages() else 0.0

    def watts(self) -> float:
        """Return the draw, watts."""
        api = self._nvml.api
        if not self._instant:
            return float(self._nvml.call(api.nvmlDeviceGetPowerUsage, self._handle)) / 1e3
        return self._nvml.field(self._handle, api.NVML_FI_DEV_POWER_INSTANT) / 1e3

    def _averages(self) -> bool:
        """Whether nvmlDeviceGetPowerUsage is a mean on this chip; assumed where it cannot tell."""
        api, call = self._nvml.api, self._nvml.call
        try:
            architecture = int(call(api.nvmlDeviceGetArchitecture, self._handle))
            if architecture != _AMPERE:
                return architecture > _AMPERE
            return tuple(call(api.nvmlDeviceGetCudaComputeCapability, self._handle)) != _GA100
        except MeterError:
            return True
