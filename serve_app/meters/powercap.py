"""The zones of a Linux powercap tree that may be summed: packages and DRAM, each exactly once.

A package contains its core and uncore zones, psys contains the packages, and `intel-rapl-mmio`
shows the same package a second time; none of those is added. AMD processors appear under the same
names (kernel driver intel_rapl_msr). On several sockets and dies the kernel names zones
`package-0-die-1`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from policies.core.errors import MeterPermission, MeterUnavailable
from serve_app.meters.base import Device, DeviceKind

POWERCAP_ROOT = Path("/sys/class/powercap")
_TOP = re.compile(r"(?:intel|amd)-rapl:\d+")
HOW_TO_GRANT = (
    "energy counters are root-only since CVE-2020-8694; grant with `chmod a+r "
    "{root}/*-rapl:*/energy_uj` at every boot (tmpfiles.d or udev), or run the meter as root"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Zone:
    """One zone: where its counter stands and the value at which it wraps, microjoules.

    `reader`: reads the counter in another way than from its file.
    """

    device: Device
    energy_file: Path
    wrap_uj: int
    reader: Callable[[], int] | None = None

    def read_uj(self) -> int:
        """Return the counter, microjoules. Raises OSError or ValueError."""
        return int(self.energy_file.read_text()) if self.reader is None else self.reader()


def find_zones(root: Path) -> tuple[Zone, ...]:
    """Return the packages (psys only where there is none) and DRAM under `root`, all readable.

    Raises MeterUnavailable when there is none and MeterPermission when any of them is not readable:
    a sum over some sockets would look like a measurement of the host.
    """
    try:
        tops = [entry for entry in sorted(root.iterdir()) if _TOP.fullmatch(entry.name)]
    except PermissionError as error:
        raise MeterPermission(f"{root}: {HOW_TO_GRANT.format(root=root)}") from error
    except OSError as error:
        raise MeterUnavailable(f"{root} is absent: no powercap driver (usual in a VM)") from error
    try:
        named = {top: _text(top / "name") for top in tops}
        packages = {top: name for top, name in named.items() if name.startswith("package-")}
        # Two entries of one name are two views of one counter: the first stands for both.
        counted = {name: top for top, name in reversed(packages.items())}
        zones = [
            zone for name, top in reversed(counted.items()) for zone in _package_zones(top, name)
        ]
        if not zones:
            psys = [top for top, name in named.items() if name == "psys"]
            zones = [_zone(top, "psys", DeviceKind.CPU) for top in psys[:1]]
        for zone in zones:
            zone.read_uj()
    except PermissionError as error:
        raise MeterPermission(f"{error.filename}: {HOW_TO_GRANT.format(root=root)}") from error
    except (OSError, ValueError) as error:
        raise MeterUnavailable(f"{root}: a zone cannot be read: {error}") from error
    if not zones:
        raise MeterUnavailable(f"{root} has no package zone (hidden in most containers)")
    return tuple(zones)


def _package_zones(top: Path, name: str) -> list[Zone]:
    """Return the package itself and the DRAM zones below it."""
    zones = [_zone(top, name, DeviceKind.CPU)]
    children = sorted(top.glob(f"{top.name}:*"))
    dram = [child for child in children if _text(child / "name") == "dram"]
    return [*zones, *(_zone(child, name, DeviceKind.DRAM) for child in dram)]


def _zone(path: Path, name: str, kind: DeviceKind) -> Zone:
    wrap_uj = int(_text(path / "max_energy_range_uj"))
    if wrap_uj <= 0:
        raise ValueError(f"{path}/max_energy_range_uj is {wrap_uj}")
    return Zone(
        device=Device(id=f"{kind.value}:{name}", kind=kind, name=name),
        energy_file=path / "energy_uj",
        wrap_uj=wrap_uj,
    )


def _text(path: Path) -> str:
    return path.read_text().strip()
