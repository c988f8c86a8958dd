"""The whole examination, in the order it is shown. Starts nothing, sets nothing, imports no engine.

To add a section, add a function `Scope -> Section` to the list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError
from serve_app.doctor.findings import Diagnosis
from serve_app.doctor.host import look_at_host
from serve_app.doctor.meters import meters_section
from serve_app.doctor.scope import Scope
from serve_app.doctor.serving import serving_section
from serve_app.doctor.software import engine_kind, software_section
from serve_app.meters.powercap import POWERCAP_ROOT
from serve_app.settings import EnergySettings, parse_energy, read_yaml

DEFAULT_FILE = Path("serve_config.yaml")


def scope_of(file: Path | None, powercap_root: Path | None) -> Scope:
    """Return what to look at. `file` None: the default file where there is one.

    Raises ConfigError for a named file that is not there. What is wrong inside of one is a finding.
    """
    if file is not None and not file.is_file():
        raise ConfigError(f"{file}: no such file")
    if file is None:
        file = DEFAULT_FILE if DEFAULT_FILE.is_file() else None
    data, energy = _read(file)
    return Scope(
        file=file,
        data=data,
        energy=energy,
        powercap_root=powercap_root or _configured_root(energy) or POWERCAP_ROOT,
        engine=engine_kind(),
    )


def _configured_root(energy: EnergySettings | None) -> Path | None:
    """Where the file says that RAPL is to be found, if the settings know such a key."""
    found = None if energy is None else getattr(energy.meter, "powercap_root", None)
    return None if found is None else Path(found)


def _read(file: Path | None) -> tuple[dict[str, Any], EnergySettings | None]:
    """The file's data and its first `energy:` block; empty where it is faulty."""
    try:
        data = read_yaml(file) if file is not None else {}
    except ConfigError:
        return {}, None
    if not isinstance(data, dict):
        return {}, None
    for arguments in Scope(data=data).arguments():
        try:
            if "energy" in arguments:
                return data, parse_energy(arguments["energy"], str(file))
        except ConfigError:
            break
    return data, None


def diagnose(scope: Scope) -> Diagnosis:
    """Return the findings of all sections."""
    host = look_at_host(scope.root, scope.environ)
    return Diagnosis((meters_section(scope, host), software_section(scope), serving_section(scope)))
