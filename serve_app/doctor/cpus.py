"""What can be seen of CPU packages and memory: RAPL, pyRAPL, and the estimate that is left."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from policies.core.errors import MeterPermission, MeterUnavailable
from serve_app.doctor.findings import Finding, Level
from serve_app.doctor.granting import (
    MASKED,
    RAPL_MODULE,
    WHY_ROOT_ONLY,
    rapl_container,
    rapl_permission,
)
from serve_app.doctor.host import Host
from serve_app.doctor.scope import Scope
from serve_app.meters import BACKENDS, EstimateSettings
from serve_app.meters.powercap import Zone, find_zones

_USUAL_WATTS = 200.0  # of a server socket at work, where the zone does not tell its own limit


def rapl_findings(scope: Scope, host: Host) -> list[Finding]:
    """One finding per zone that is metered, or one that says why there is none."""
    root = scope.powercap_root
    try:
        zones = find_zones(root)
    except MeterPermission as error:
        text = f"the counters are there, this process may not read them ({error}): {WHY_ROOT_ONLY}"
        return [_none(text, rapl_permission(host))]
    except MeterUnavailable as error:
        return [_absent(root, host, str(error))]
    found = [_of_zone(zone) for zone in zones]
    if not any(zone.device.kind == "dram" for zone in zones):
        text = f"this {host.vendor} processor counts no memory energy: DRAM is not metered"
        found.append(Finding(level=Level.NOTE, subject="RAPL dram", text=text))
    return found


def _none(text: str, fix: tuple[str, ...] = ()) -> Finding:
    return Finding(level=Level.WARNING, subject="RAPL", text=text, fix=fix)


def _absent(root: Path, host: Host, reason: str) -> Finding:
    """Say which of the usual causes it is: masked by the container, virtual machine, no driver."""
    if host.container and _links_lead_nowhere(root):
        text = f"{root} has entries, but the container runtime masks {MASKED} behind them"
        return _none(text, rapl_container(host, root))
    if host.virtual_machine:
        text = (
            f"{reason}. This is a virtual machine: its host keeps the counters; bare metal has "
            "them. Until then CPU energy is an estimate"
        )
        return Finding(level=Level.NOTE, subject="RAPL", text=text)
    if host.container:
        return _none(f"{reason}. In a container it is usually hidden", rapl_container(host, root))
    return _none(reason, (f"{RAPL_MODULE}   # the driver for Intel and AMD",))


def _links_lead_nowhere(root: Path) -> bool:
    try:
        return any(entry.is_symlink() and not entry.exists() for entry in root.iterdir())
    except OSError:
        return False


def _of_zone(zone: Zone) -> Finding:
    range_joules = zone.wrap_uj * 1e-6
    limit_watts = _limit_watts(zone.energy_file.parent)
    watts = limit_watts or _USUAL_WATTS
    at = "its long-term limit" if limit_watts else "a usual load"
    text = (
        f"counter {zone.energy_file}; wraps after {_duration(range_joules / watts)} at "
        f"{watts:.0f} W ({at}), read often enough that no wrap is missed"
    )
    return Finding(
        level=Level.OK,
        subject=f"RAPL {zone.device.id}",
        text=text,
        facts={
            "range_joules": range_joules,
            "wrap_s": range_joules / watts,
            "limit_watts": limit_watts,
        },
    )


def _limit_watts(zone: Path) -> float | None:
    try:
        watts = int((zone / "constraint_0_power_limit_uw").read_text()) * 1e-6
    except (OSError, ValueError):
        return None
    return watts if watts > 0.0 else None


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120.0 else f"{seconds:.0f} s"


def pyrapl_finding() -> Finding:
    """Whether pyRAPL is there, and that it does not matter unless it is named."""
    installed = importlib.util.find_spec("pyRAPL") is not None
    how = "used only where meter.backends names it" if "pyrapl" in BACKENDS else "not used"
    text = (
        f"{'installed' if installed else 'not installed, not needed'}; {how}: `rapl` reads the "
        "same counters, and minds their wraps"
    )
    return Finding(level=Level.OK, subject="pyRAPL", text=text, facts={"installed": installed})


def estimate_finding(scope: Scope, *, used: bool) -> Finding:
    """What the estimate would say, and whether its watts are anybody's measurement."""
    default = EstimateSettings()
    settings = scope.energy.meter.estimated if scope.energy is not None else None
    watts_per_core, idle_watts = (
        (default.watts_per_busy_core, default.idle_watts)
        if settings is None
        else (settings.watts_per_busy_core, settings.idle_watts)
    )
    placeholder = (watts_per_core, idle_watts) == (default.watts_per_busy_core, default.idle_watts)
    text = (
        f"CPU seconds x {watts_per_core:g} W per busy core + {idle_watts:g} W idle"
        f"{': placeholders, not figures of this machine' if placeholder else ', as configured'}"
        f"{'' if used else '; not in use, CPU energy is measured'}"
    )
    advice = (
        "set energy.meter.estimated.watts_per_busy_core (package TDP / cores is the order of "
        "magnitude) and idle_watts"
    )
    doubtful = used and placeholder
    return Finding(
        level=Level.WARNING if doubtful else Level.OK,
        subject="estimate",
        text=text,
        fix=(advice,) if doubtful else (),
        facts={"watts_per_busy_core": watts_per_core, "idle_watts": idle_watts, "used": used},
    )
