"""The section "meters": what is measured how on this host, who may limit it, and how to grant what
is not."""

from __future__ import annotations

import time

from policies.core.errors import ConfigError, MeterError
from serve_app.doctor.cpus import estimate_finding, pyrapl_finding, rapl_findings
from serve_app.doctor.findings import Finding, Level, Section
from serve_app.doctor.gpus import gpu_findings
from serve_app.doctor.host import Host
from serve_app.doctor.limits import limit_findings
from serve_app.doctor.scope import Scope
from serve_app.meters import DEFAULT_BACKENDS, DeviceKind, EnergyMeter, MeterOptions, Reading

# Longer than the update interval of any counter read here (RAPL 1 ms, NVML 20-100 ms).
_WATCHED_S = 0.3


def meters_section(scope: Scope, host: Host) -> Section:
    """Return the whole section. Takes `_WATCHED_S`: it watches whether the counters move."""
    summary, used = _in_use(scope)
    gpus = [*gpu_findings(scope, host), *limit_findings(scope, host)]
    cpus = [*rapl_findings(scope, host), pyrapl_finding()]
    estimated = used.get(DeviceKind.CPU) == "estimated"
    return Section(
        name="meters",
        findings=(*summary, *gpus, *cpus, estimate_finding(scope, used=estimated)),
    )


def _in_use(scope: Scope) -> tuple[list[Finding], dict[DeviceKind, str]]:
    """Open the meter as a replica would; say what it measures, and whether it moves."""
    names = DEFAULT_BACKENDS if scope.energy is None else scope.energy.meter.backends
    try:
        meter = EnergyMeter(names, options=MeterOptions(powercap_root=scope.powercap_root))
    except (MeterError, ConfigError) as error:
        return [Finding(level=Level.PROBLEM, subject="joules", text=str(error))], {}
    with meter:
        used = meter.backends()
        before = meter.read()
        time.sleep(_WATCHED_S)
        after = meter.read()
        found = [_summary(scope, meter, after), *_still(before, after)]
    return found, used


def _summary(scope: Scope, meter: EnergyMeter, reading: Reading) -> Finding:
    used = meter.backends()
    sources = {r.device.kind: r.source for r in reading.devices}
    text = ", ".join(f"{kind} from {name} ({sources[kind]})" for kind, name in used.items())
    missing = meter.missing()
    facts = {
        "devices": {kind.value: name for kind, name in used.items()},
        "sources": {kind.value: source.value for kind, source in sources.items()},
        "missing": {kind.value: reason for kind, reason in missing.items()},
    }
    if not used:
        reasons = "; ".join(f"{kind}: {reason}" for kind, reason in missing.items())
        text = f"nothing can be metered: energy will be unavailable ({reasons})"
        return Finding(level=Level.PROBLEM, subject="joules", text=text, facts=facts)
    if missing:
        text += f"; not metered: {', '.join(missing)}"
    if scope.wants_gpu() and DeviceKind.GPU not in used:
        text += ", although the engine computes on a GPU"
        return Finding(level=Level.PROBLEM, subject="joules", text=text, facts=facts)
    return Finding(level=Level.OK, subject="joules", text=text, facts=facts)


def _still(before: Reading, after: Reading) -> list[Finding]:
    """A finding for each readable device whose joules did not move."""
    found = []
    for first, last in zip(before.devices, after.devices, strict=True):
        if first.joules is None or last.joules is None or last.joules > first.joules:
            continue
        text = (
            f"its counter did not move in {_WATCHED_S:g} s: some virtual machines and drivers show "
            "one that stands still; its joules would be too low"
        )
        found.append(Finding(level=Level.WARNING, subject=last.device.id, text=text))
    return found
