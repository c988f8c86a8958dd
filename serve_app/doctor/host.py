"""Where this process runs: container, virtual machine, processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """`container`: which kind (kubernetes, podman, docker), None outside of one. `vendor`: Intel,
    AMD, or the processor's own word for itself. `has_nvidia_driver`: the kernel's part of it."""

    container: str | None
    virtual_machine: bool
    vendor: str
    has_nvidia_driver: bool


def look_at_host(root: Path, environ: Mapping[str, str]) -> Host:
    """Return what the files under `root` and the environment tell; what they do not is False."""
    cpuinfo = _cpuinfo(root / "proc" / "cpuinfo")
    vendor = cpuinfo.get("vendor_id", "unknown processor")
    devices = (root / "dev" / "nvidiactl", root / "proc" / "driver" / "nvidia" / "version")
    return Host(
        container=_container(root, environ),
        virtual_machine="hypervisor" in cpuinfo.get("flags", "").split(),
        vendor=_VENDORS.get(vendor, vendor),
        has_nvidia_driver=any(path.exists() for path in devices),
    )


def _container(root: Path, environ: Mapping[str, str]) -> str | None:
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    if (root / "run" / ".containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    return None


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's fields; empty where the file cannot be read."""
    try:
        first = path.read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
