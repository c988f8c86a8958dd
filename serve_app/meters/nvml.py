"""NVIDIA GPUs through NVML: the energy counter (Volta and later), else integrated power.

Reads only: nothing here sets anything.

The counter (`nvmlDeviceGetTotalEnergyConsumption`, mJ since the driver was loaded) costs one call
per reading; the draw beside it costs another and checks it (`cross_check.py`). Without a counter a
background thread samples the draw and integrates it (`nvml_power.py`).

A GPU is a board. MIG: the board's counter covers all instances, and an instance has none, so a
sliced GPU is unavailable rather than charged to everybody. Time slicing and MPS: the joules are the
whole board's and say so; with `allotted_ratio` they are split by what the scheduler allotted.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from policies.core.errors import ConfigError, MeterError, MeterPermission, MeterUnavailable
from serve_app.meters.base import Device, DeviceReading, Source
from serve_app.meters.gpu_selection import GpuIdentity, select_gpus, visible_gpus
from serve_app.meters.nvml_gpu import NvmlGpu
from serve_app.meters.nvml_sharing import GpuSharing
from serve_app.meters.poller import Poller
from serve_app.nvml_library import Nvml

_SHARING_PERIOD_S = 10.0  # how often it is asked who else computes on the GPUs


@dataclass(frozen=True, kw_only=True, slots=True)
class NvmlSettings:
    """Which GPUs, and what NVML cannot tell.

    `gpus`: indices or UUIDs; None = what CUDA_VISIBLE_DEVICES shows, all where it is not set.
    `sample_period_s`: of the power sampling, used only without a counter. `idle_watts_per_gpu`:
    measured baseline of one GPU (an H100 draws about 72 W bare and 121 W once a CUDA context
    exists); NVML does not know it. `allotted_ratio`: the part of each GPU that the scheduler gave
    this replica (Ray's fractional `num_gpus`), whose share of the board's joules it is charged.
    Raises ConfigError for figures out of range.
    """

    gpus: tuple[str, ...] | None = None
    sample_period_s: float = 0.05
    idle_watts_per_gpu: float | None = None
    allotted_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_period_s < math.inf:
            raise ConfigError(f"meter.sample_period_s: {self.sample_period_s!r}; allowed: > 0")
        if not 0.0 < self.allotted_ratio <= 1.0:
            raise ConfigError(
                f"meter.gpu_allotted_ratio: {self.allotted_ratio!r}; allowed: > 0, <= 1"
            )


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
        self._pollers: list[Poller] = []
        self._nvml = Nvml()
        try:
            self._gpus = self._open_gpus(os.environ if environ is None else environ)
        except BaseException:
            self._nvml.close()
            raise
        self.read(clock())
        self.check_sharing()
        self._pollers.append(Poller("nvml-sharing", _SHARING_PERIOD_S, self.check_sharing))
        if any(gpu.source is Source.INTEGRATED for gpu in self._gpus):
            period_s = self._settings.sample_period_s
            self._pollers.append(Poller("nvml-power", period_s, self._sample))

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
        settings = self._settings
        gpus = [
            NvmlGpu(
                self._nvml,
                one,
                broken,
                sample_period_s=settings.sample_period_s,
                allotted_ratio=settings.allotted_ratio,
            )
            for one in chosen
        ]
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

    def check_sharing(self) -> None:
        """Ask the driver who else computes on our GPUs; readings say so from then on."""
        for gpu in self._gpus:
            gpu.check_sharing()

    def sharing(self) -> dict[str, GpuSharing | None]:
        """Return how each GPU is shared, by UUID, as last asked; None = it could not be asked."""
        return {gpu.device.id: gpu.sharing for gpu in self._gpus}

    def power_limit_watts(self) -> dict[str, float | None]:
        """Return the enforced power limit of each GPU by UUID, watts; None where not readable."""
        with self._lock:
            return {gpu.device.id: gpu.power_limit_watts() for gpu in self._gpus}

    def idle_watts(self) -> float | None:
        """Return the configured baseline of our part of the GPUs; None when not configured."""
        per_gpu = self._settings.idle_watts_per_gpu
        if per_gpu is None:
            return None
        return per_gpu * len(self._gpus) * self._settings.allotted_ratio

    def close(self) -> None:
        """Stop sampling and give NVML back. May be called twice."""
        for poller in self._pollers:
            poller.close()
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
    identities: list[GpuIdentity] = []
    broken: dict[str, MeterError] = {}
    for index in range(nvml.call(api.nvmlDeviceGetCount)):
        name: str | None = None
        try:
            handle = nvml.call(api.nvmlDeviceGetHandleByIndex, index)
            uuid = nvml.text(api.nvmlDeviceGetUUID, handle)
            name = nvml.text(api.nvmlDeviceGetName, handle)
        except MeterError as error:
            uuid = f"gpu-index-{index}"
            broken[uuid] = error
        identities.append(GpuIdentity(index=index, uuid=uuid, name=name))
    return identities, broken
