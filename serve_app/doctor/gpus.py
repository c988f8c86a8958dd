"""What can be seen of each NVIDIA GPU. Reads only: no setter of NVML is called."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from policies.core.errors import ConfigError, MeterError
from serve_app.doctor.findings import Finding, Level
from serve_app.doctor.granting import gpu_library
from serve_app.doctor.host import Host
from serve_app.doctor.scope import Scope
from serve_app.meters import DeviceReading, NvmlBackend, Source
from serve_app.nvml_library import Nvml

Facts = dict[str, Any]


def gpu_findings(scope: Scope, host: Host) -> list[Finding]:
    """One finding per GPU, or one that says why there is none."""
    try:
        nvml = Nvml()
    except MeterError as error:
        return [_no_library(scope, host, error)]
    try:
        found, broken = _all_gpus(nvml)
    finally:
        nvml.close()
    if not found and not broken:
        return [Finding(level=_missing(scope), subject="GPUs", text="the driver lists no GPU")]
    try:
        backend = NvmlBackend(environ=scope.environ)
    except (MeterError, ConfigError) as error:
        return [*_unusable(scope, found, str(error)), *broken]
    try:
        readings = {r.device.id: r for r in backend.read(time.monotonic())}
    finally:
        backend.close()
    of_gpus = [_of_gpu(facts, readings.pop(facts["uuid"], None)) for facts in found]
    others = [_unreadable(reading) for reading in readings.values()]
    return [*of_gpus, *others, *_sharing(scope)]


def _missing(scope: Scope) -> Level:
    return Level.PROBLEM if scope.wants_gpu() else Level.OK


def _no_library(scope: Scope, host: Host, error: MeterError) -> Finding:
    if host.has_nvidia_driver:
        text = f"a driver is loaded, but NVML does not answer here: {error}"
        fix = gpu_library(host)
        return Finding(level=Level.PROBLEM, subject="GPUs", text=text, fix=fix)
    fix = gpu_library(host) if scope.wants_gpu() else ()
    return Finding(level=_missing(scope), subject="GPUs", text=str(error), fix=fix)


def _unusable(scope: Scope, found: list[Facts], reason: str) -> list[Finding]:
    """The driver lists GPUs, and none of them is ours to read."""
    names = ", ".join(f"{facts['name']} {facts['uuid']}" for facts in found)
    return [
        Finding(
            level=Level.PROBLEM if scope.wants_gpu() else Level.NOTE,
            subject="GPUs",
            text=f"none can be metered: {reason}. The driver lists: {names or 'unreadable ones'}",
            facts={"gpus": found},
        )
    ]


def _of_gpu(facts: Facts, reading: DeviceReading | None) -> Finding:
    subject = f"GPU {facts['index']} {facts['uuid']}"
    if reading is None:
        text = f"{facts['name']}: not in scope of this process (CUDA_VISIBLE_DEVICES)"
        return Finding(level=Level.NOTE, subject=subject, text=text, facts=facts)
    facts = {**facts, "source": reading.source.value, "draw_watts": reading.draw_watts}
    if reading.source is Source.UNAVAILABLE:
        text = f"{facts['name']}: energy unavailable: {reading.reason}"
        fix = _mig_fix(facts)
        return Finding(level=Level.PROBLEM, subject=subject, text=text, fix=fix, facts=facts)
    level, notes = Level.OK, [_how(reading), _draw(reading), _limit(facts)]
    if reading.source is Source.INTEGRATED:
        level = Level.NOTE
    if reading.caveat is not None:
        level = Level.WARNING
        notes.append(reading.caveat)
    text = f"{facts['name']}: {'; '.join(note for note in notes if note)}"
    return Finding(level=level, subject=subject, text=text, facts=facts)


def _unreadable(reading: DeviceReading) -> Finding:
    """A GPU, or a MIG instance, that the driver names but does not let read."""
    text = f"{reading.device.name}: energy unavailable: {reading.reason}"
    return Finding(level=Level.PROBLEM, subject=reading.device.id, text=text)


def _how(reading: DeviceReading) -> str:
    if reading.source is Source.COUNTER:
        return "energy counter"
    return (
        "no energy counter: power is sampled and integrated, so windows under a few seconds are "
        "smeared"
    )


def _draw(reading: DeviceReading) -> str:
    if reading.draw_watts is None:
        return "present draw not readable"
    return f"draws {reading.draw_watts:.0f} W"


def _limit(facts: Facts) -> str:
    """The power limit."""
    if facts["power_limit_watts"] is None:
        return "power limit not readable"
    low, high = facts["min_limit_watts"], facts["max_limit_watts"]
    span = "range not readable" if low is None else f"{low:.0f} to {high:.0f} W allowed"
    return f"power limit {facts['power_limit_watts']:.0f} W ({span})"


def _mig_fix(facts: Facts) -> tuple[str, ...]:
    if not facts["mig"]:
        return ()
    command = f"sudo nvidia-smi -i {facts['index']} -mig 0   # ends what runs on it"
    return ("an instance has no counter of its own: give replicas whole GPUs", command)


def _sharing(scope: Scope) -> list[Finding]:
    if "CUDA_MPS_PIPE_DIRECTORY" not in scope.environ:
        return []
    text = "CUDA MPS is set up: programs that share a GPU share its counter, nothing splits it"
    return [Finding(level=Level.WARNING, subject="MPS", text=text)]


def _all_gpus(nvml: Nvml) -> tuple[list[Facts], list[Finding]]:
    """The facts of each GPU that tells its name, and findings about those that do not."""
    api = nvml.api
    found, broken = [], []
    for index in range(nvml.call(api.nvmlDeviceGetCount)):
        try:
            handle = nvml.call(api.nvmlDeviceGetHandleByIndex, index)
            uuid = nvml.text(api.nvmlDeviceGetUUID, handle)
            name = nvml.text(api.nvmlDeviceGetName, handle)
        except MeterError as error:
            text = f"does not tell its name: {error}"
            broken.append(Finding(level=Level.PROBLEM, subject=f"GPU {index}", text=text))
            continue
        found.append({"index": index, "uuid": uuid, "name": name, **_facts(nvml, handle)})
    return found, broken


def _facts(nvml: Nvml, handle: Any) -> Facts:
    """What one GPU tells of its power limit and its slicing; None for what it does not."""
    api = nvml.api
    limits = _asked(nvml, api.nvmlDeviceGetPowerManagementLimitConstraints, handle)
    mode = _asked(nvml, api.nvmlDeviceGetMigMode, handle)
    return {
        "power_limit_watts": _watts(_asked(nvml, api.nvmlDeviceGetEnforcedPowerLimit, handle)),
        "default_limit_watts": _watts(
            _asked(nvml, api.nvmlDeviceGetPowerManagementDefaultLimit, handle)
        ),
        "min_limit_watts": _watts(limits and limits[0]),
        "max_limit_watts": _watts(limits and limits[1]),
        "mig": bool(mode and mode[0]),
    }


def _asked(nvml: Nvml, function: Callable[..., Any], handle: Any) -> Any:
    try:
        return nvml.call(function, handle)
    except MeterError:
        return None


def _watts(milliwatts: Any) -> float | None:
    return None if milliwatts is None else float(milliwatts) / 1e3
