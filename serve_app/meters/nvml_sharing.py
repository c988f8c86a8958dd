"""Who else computes on a GPU. A board has one energy counter, however many processes share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policies.core.errors import MeterError
from serve_app.nvml_library import GpuLost, Nvml

# nvmlComputeMode_t
_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSharing:
    """How one GPU is shared. None = the driver does not tell (in a container it may not).

    `compute_mode`: default (time slicing is possible), exclusive_process, prohibited.
    `num_processes`: processes with a CUDA context; an engine has one per GPU. `num_mps_clients`:
    those of them that go through the Multi-Process Service (its server is a process as well).
    """

    compute_mode: str | None
    num_processes: int | None
    num_mps_clients: int | None

    def caveat(self) -> str | None:
        """Return what this means for the joules; None where the GPU is not shared."""
        if self.num_mps_clients:
            count, how = self.num_mps_clients, "through MPS"
        else:
            count, how = self.num_processes or 0, "by time slicing"
        if count > 1:
            return f"{count} processes share this GPU {how}: the joules are the whole board's"
        return None


def gpu_sharing(nvml: Nvml, handle: Any) -> GpuSharing:
    """Ask the driver who shares a GPU: three calls, milliseconds each on a busy host.

    Raises GpuLost; any other value that cannot be had is None.
    """
    api = nvml.api
    mode = _asked(nvml, api.nvmlDeviceGetComputeMode, handle)
    processes = _asked(nvml, api.nvmlDeviceGetComputeRunningProcesses_v3, handle)
    clients = _asked(nvml, api.nvmlDeviceGetMPSComputeRunningProcesses_v3, handle)
    return GpuSharing(
        compute_mode=None if mode is None else _MODES.get(mode, str(mode)),
        num_processes=None if processes is None else len(processes),
        num_mps_clients=None if clients is None else len(clients),
    )


def _asked(nvml: Nvml, function: Any, handle: Any) -> Any:
    try:
        return nvml.call(function, handle)
    except GpuLost:
        raise
    except MeterError:
        return None
