"""Ours and pyRAPL's own Measurement over counter wraps, against the truth of a fake powercap tree.

    python tests/meters/rapl_wraps.py [--write docs/results/rapl-wraps]

Prints one row per window; --write also leaves report.md and summary.json. Needs root (a mount
namespace for the tree, since pyRAPL's paths are built in) and pyRAPL: importable, or in the folder
that $JOULESERVE_PYRAPL names (`uv pip install --target FOLDER --no-deps pyRAPL==0.2.3.1`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fakes")]

from fake_powercap import DRAM_RANGE_UJ, PACKAGE_RANGE_UJ, FakePowercap  # noqa: E402
from fake_sys_class import command_under, possible  # noqa: E402
from meter_contract import FakeClock  # noqa: E402

STEP_S, STEP_UJ = 60.0, {"package-0": 17_000_000_003, "dram": 2_900_000_001}
RANGES = {"package-0": PACKAGE_RANGE_UJ, "dram": DRAM_RANGE_UJ}
WINDOWS = (0, 1, 2, 3)  # wraps of the package counter in each


def pyrapl_folder() -> str | None:
    """Where pyRAPL is: "" = importable as it is, None = nowhere."""
    if importlib.util.find_spec("pyRAPL") is not None:
        return ""
    default = Path.home() / ".cache" / "jouleserve" / "oracles" / "pyRAPL"
    folder = Path(os.environ.get("JOULESERVE_PYRAPL", default))
    return str(folder) if (folder / "pyRAPL").is_dir() else None


def environment() -> dict[str, str]:
    """That of a process in which pyRAPL can be imported."""
    paths = [str(ROOT), pyrapl_folder() or "", os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def measure(tree_root: Path) -> list[dict[str, object]]:
    """The rows. Runs inside the namespace."""
    from serve_app.meters import EnergyMeter, PyRaplBackend, RaplBackend

    tree = FakePowercap(tree_root)
    entries = {"package-0": "intel-rapl:0", "dram": "intel-rapl:0:0"}
    zones = {name: tree.add(at, name, range_uj=RANGES[name]) for name, at in entries.items()}
    clock = FakeClock()
    backends = {"rapl": RaplBackend(clock=clock), "pyrapl": PyRaplBackend(clock=clock)}
    meters = {name: EnergyMeter([backend], clock=clock) for name, backend in backends.items()}
    import pyRAPL

    pyRAPL.setup()
    rows = []
    for wraps in WINDOWS:
        before = {name: zone.total_uj for name, zone in zones.items()}
        target = (zones["package-0"].total_uj // PACKAGE_RANGE_UJ + wraps) * PACKAGE_RANGE_UJ
        theirs = pyRAPL.Measurement(f"{wraps} wraps")
        theirs.begin()
        for meter in meters.values():
            meter.begin()
        first = True
        while first or zones["package-0"].total_uj < target:
            first = False
            for name, zone in zones.items():
                zone.add(STEP_UJ[name])
            clock.advance(STEP_S)
            for backend in backends.values():
                backend.read(clock())  # what its thread does in real time
        theirs.end()
        ours = {name: meter.end() for name, meter in meters.items()}
        shown = {"package-0": theirs.result.pkg, "dram": theirs.result.dram}
        for name, zone in zones.items():
            kind = "cpu" if name == "package-0" else "dram"
            values = shown[name]
            rows.append(
                {
                    "window_wraps": _wraps(zone, before[name]),
                    "zone": name,
                    "truth_joules": (zone.total_uj - before[name]) / 1e6,
                    "rapl_joules": ours["rapl"].joules_by_kind[kind],
                    "pyrapl_backend_joules": ours["pyrapl"].joules_by_kind[kind],
                    "pyRAPL_joules": None if values is None else values[0] / 1e6,
                }
            )
    for meter in meters.values():
        meter.close()
    return rows


def _wraps(zone, before_uj: int) -> int:
    def turns(total_uj: int) -> int:
        return (zone.start_uj + total_uj) // zone.range_uj

    return turns(zone.total_uj) - turns(before_uj)


def run() -> dict[str, object]:
    """pyRAPL's version and the rows, from a namespace of their own."""
    with tempfile.TemporaryDirectory() as folder:
        command = command_under(Path(folder), sys.executable, __file__, "--inside", folder)
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    names = ("rapl_joules", "pyrapl_backend_joules", "pyRAPL_joules")
    lines = [
        "| zone | wraps | truth, J | back-end `rapl` | back-end `pyrapl` | pyRAPL's Measurement |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [_cell(row[name], row["truth_joules"]) for name in names]
        first = f"| {row['zone']} | {row['window_wraps']} | {row['truth_joules']:.3f} | "
        lines.append(first + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(joules, truth) -> str:
    if joules is None:
        return "None"
    error = joules / truth - 1.0
    return f"{joules:.3f} ({'exact' if abs(joules - truth) < 1e-6 else f'{error:+.1%}'})"


def write(folder: Path, found: dict[str, object]) -> None:
    """report.md and summary.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (
        "# RAPL counters over wraps, ours and pyRAPL's\n\n"
        "Written by `python tests/meters/rapl_wraps.py --write docs/results/rapl-wraps`: a fake "
        "powercap tree whose true energy is known, read by both back-ends and by pyRAPL "
        f"{found['pyRAPL_version']}'s own `Measurement` around the same windows.\n\n"
        f"{table(found['rows'])}\n"
    )
    (folder / "report.md").write_text(text)
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside is not None:
        version = importlib.metadata.version("pyRAPL")
        print(json.dumps({"pyRAPL_version": version, "rows": measure(args.inside)}))
        return
    if not possible() or pyrapl_folder() is None:
        raise SystemExit("needs root, a mount namespace and pyRAPL: see --help")
    found = run()
    print(table(found["rows"]))
    if args.write is not None:
        write(args.write, found)


if __name__ == "__main__":
    main()
