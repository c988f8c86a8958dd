"""The GPUs under test, through the getters of NVML alone."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.core.errors import MeterError
from serve_app.meters import NvmlBackend, NvmlSettings, Source
from serve_app.nvml_library import Nvml

_GETTERS = ("nvmlDeviceGet", "nvmlSystemGet")


class ReadOnlyNvml:
    """NVML without its setters: a function whose name is not a getter's is refused."""

    def __init__(self) -> None:
        self._nvml = Nvml()

    def read(self, name: str, *args: Any) -> Any:
        """Return what the getter `name` answers. Raises MeterError, ValueError for a setter."""
        if not name.startswith(_GETTERS):
            raise ValueError(f"{name}: only getters are called here: {', '.join(_GETTERS)}")
        return self._nvml.call(getattr(self._nvml.api, name), *args)

    def try_read(self, name: str, *args: Any) -> Any:
        """Return what the getter answers; None where it cannot."""
        try:
            return self.read(name, *args)
        except MeterError:
            return None

    def instant_milliwatts(self, handle: Any) -> float | None:
        """Return the present draw where the driver has it apart from the average; else None."""
        field = self._nvml.api.NVML_FI_DEV_POWER_INSTANT
        values = self.try_read("nvmlDeviceGetFieldValues", handle, [field])
        if values is None or values[0].nvmlReturn != 0:
            return None
        return float(values[0].value.uiVal)

    def close(self) -> None:
        """Give the library back."""
        self._nvml.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU under test. `has_counter`, `has_instant`: which sensors it has besides power."""

    index: int
    uuid: str
    name: str
    handle: Any
    has_counter: bool
    has_instant: bool
    power_limit_watts: float | None

    def facts(self) -> dict[str, Any]:
        """What a report may tell: the UUID as a hash, since reports are published."""
        return {
            "index": self.index,
            "name": self.name,
            "uuid_sha256": hashlib.sha256(self.uuid.encode()).hexdigest()[:16],
            "has_counter": self.has_counter,
            "has_instant_power": self.has_instant,
            "power_limit_watts": self.power_limit_watts,
        }


def open_gpus(
    nvml: ReadOnlyNvml, wanted: tuple[str, ...] | None, environ: Mapping[str, str] = os.environ
) -> tuple[list[Gpu], dict[str, str]]:
    """Return the GPUs that the meter would read, and by id why each other one is left out.

    `wanted`: indices or UUIDs; None: what CUDA shows. There is at least one. Raises MeterError when
    none can be read, ConfigError for an entry that names none.
    """
    backend = NvmlBackend(NvmlSettings(gpus=wanted), environ=environ)
    try:
        readings = backend.read(time.monotonic())
    finally:
        backend.close()
    left_out = {
        r.device.id: r.reason or "unreadable" for r in readings if r.source is Source.UNAVAILABLE
    }
    chosen = [r.device for r in readings if r.device.id not in left_out]
    return [_gpu(nvml, device.id, device.name) for device in chosen], left_out


def _gpu(nvml: ReadOnlyNvml, uuid: str, name: str) -> Gpu:
    handle = nvml.read("nvmlDeviceGetHandleByUUID", uuid.encode())
    limit = nvml.try_read("nvmlDeviceGetEnforcedPowerLimit", handle)
    return Gpu(
        index=nvml.read("nvmlDeviceGetIndex", handle),
        uuid=uuid,
        name=name,
        handle=handle,
        has_counter=nvml.try_read("nvmlDeviceGetTotalEnergyConsumption", handle) is not None,
        has_instant=nvml.instant_milliwatts(handle) is not None,
        power_limit_watts=None if limit is None else limit / 1e3,
    )


def driver_facts(nvml: ReadOnlyNvml) -> dict[str, Any]:
    """Versions of driver, NVML and the CUDA that the driver speaks; None for what is not told."""
    cuda = nvml.try_read("nvmlSystemGetCudaDriverVersion")
    return {
        "driver": _text(nvml.try_read("nvmlSystemGetDriverVersion")),
        "nvml": _text(nvml.try_read("nvmlSystemGetNVMLVersion")),
        "cuda": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
    }


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
