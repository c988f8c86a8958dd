"""NVIDIA GPUs through NVML: the energy counter (Volta and later), else integrated power.

Reads only: nothing here sets anything.

The counter (`nvmlDeviceGetTotalEnergyConsumption`, mJ since the driver was loaded) costs one call
per reading. Without it a background thread samples `nvmlDeviceGetPowerUsage` and integrates; on
Ampere and later that value is itself a one-second average (arXiv 2312.02741), so windows shorter
than a few seconds are smeared.

MIG: the board's counter covers all instances, and an instance has none, so a sliced GPU is
unavailable rather than charged to everybody.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from policies.core.errors import MeterError, MeterPermission, MeterUnavailable
from serve_app.meters.base import Device, DeviceReading, Source
from serve_app.meters.gpu_selection import GpuIdentity, select_gpus, visible_gpus
from serve_app.meters.nvml_errors import Nvml
from serve_app.meters.nvml_gpu import NvmlGpu
from serve_app.meters.poller import Poller


@dataclass(frozen=True, kw_only=True, slots=True)
class NvmlSettings:
    """Which GPUs, and what NVML cannot tell.

    `gpus`: indices or UUIDs; None = what CUDA_VISIBLE_DEVICES shows, all where it is not set.
    `sample_period_s`: of the power sampling, used only without a counter. `idle_watts_per_gpu`:
    measured baseline of one GPU (an H100 draws about 72 W bare and 121 W once a CUDA context
    exists); NVML does not know it.
    """

    gpus: tuple[str, ...] | None = None
    sample_period_s: float = 0.05
    idle_watts_per_gpu: float | None = None


class NvmlBackend:
    """Joules per GPU.

    Raises MeterUnavailable or MeterPermission when no GPU of ours can be read; with some readable,
    the others stay in `devices()` as unavailable with their reason.
    """

    name = "nvml"

    def __init__(
        self,
        settings: NvmlSettings | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings or NvmlSettings()
        self._lock = threading.Lock()
        self._clock = clock
        self._poller: Poller | None = None
        self._nvml = Nvml()
        try:
            self._gpus = self._open_gpus(os.environ if environ is None else environ)
        except BaseException:
            self._nvml.close()
            raise
        self.read(clock())
        if any(gpu.source is Source.INTEGRATED for gpu in self._gpus):
            self._poller = Poller("nvml-power", self._settings.sample_period_s, self._sample)

    def _open_gpus(self, environ: Mapping[str, str]) -> list[NvmlGpu]:
        identities, broken = _identities(self._nvml)
        if self._settings.gpus is not None:
            chosen = select_gpus(identities, self._settings.gpus)
            scope = f"meter.gpus={list(self._settings.gpus)}"
        else:
            visible = environ.get("CUDA_VISIBLE_DEVICES")
            pci_order = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
            chosen = visible_gpus(identities, visible, pci_order=pci_order)
            scope = "this host" if visible is None else f"CUDA_VISIBLE_DEVICES={visible!r}"
        if not chosen:
            raise MeterUnavailable(f"no GPU is in scope ({scope})")
        gpus = [NvmlGpu(self._nvml, one, broken) for one in chosen]
        if all(gpu.source is Source.UNAVAILABLE for gpu in gpus):
            reasons = "; ".join(f"{gpu.device.id}: {gpu.reason}" for gpu in gpus)
            denied = any(gpu.denied for gpu in gpus)
            raise (MeterPermission if denied else MeterUnavailable)(reasons)
        return gpus

    def devices(self) -> tuple[Device, ...]:
        """Return the GPUs in scope."""
        return tuple(gpu.device for gpu in self._gpus)

    def read(self, now_s: float) -> tuple[DeviceReading, ...]:
        """One reading per GPU: two NVML calls each."""
        with self._lock:
            return tuple(gpu.read(now_s) for gpu in self._gpus)

    def _sample(self) -> None:
        with self._lock:
            for gpu in self._gpus:
                if gpu.source is Source.INTEGRATED:
                    gpu.read(self._clock())

    def power_limit_watts(self) -> dict[str, float | None]:
        """Return the enforced power limit of each GPU by UUID, watts; None where not readable."""
        with self._lock:
            return {gpu.device.id: gpu.power_limit_watts() for gpu in self._gpus}

    def idle_watts(self) -> float | None:
        """Return the configured baseline times the number of GPUs; None when not configured."""
        per_gpu = self._settings.idle_watts_per_gpu
        return None if per_gpu is None else per_gpu * len(self._gpus)

    def close(self) -> None:
        """Stop sampling and give NVML back. May be called twice."""
        if self._poller is not None:
            self._poller.close()
        with self._lock:
            for gpu in self._gpus:
                gpu.stop("the meter is closed")
            self._nvml.close()


def _identities(nvml: Nvml) -> tuple[list[GpuIdentity], dict[str, MeterError]]:
    """List all GPUs of the host.

    Those that do not even tell their name get the id `gpu-index-<i>` and an entry in the second
    value.
    """
    api = nvml.api
    identities, broken = [], {}
    for index in range(nvml.call(api.nvmlDeviceGetCount)):
        try:
            handle = nvml.call(api.nvmlDeviceGetHandleByIndex, index)
            uuid = nvml.text(api.nvmlDeviceGetUUID, handle)
            name = nvml.text(api.nvmlDeviceGetName, handle)
        except MeterError as error:
            uuid, name = f"gpu-index-{index}", "unreadable GPU"
            broken[uuid] = error
        identities.append(GpuIdentity(index=index, uuid=uuid, name=name))
    return identities, broken
