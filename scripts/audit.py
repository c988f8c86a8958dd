"""Known vulnerabilities of what is installed beside this Python, by pip-audit.

    make audit [AUDIT="--vulnerability-service osv --osv-url https://mirror.example/v1/query"]

pip-audit by itself says "no known vulnerabilities" of packages that its service does not know, or
does not answer for; here those are counted and named. Exit status: 0 all were looked up and none
is vulnerable; 1 some are; 2 some, or all, could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

PIP_AUDIT = "pip-audit==2.10.1"
OURS = {"jouleserve"}  # on no index
_TIMEOUT_S = 900.0
_SHOWN = 8


def summary(dependencies: list[dict[str, Any]]) -> tuple[int, str]:
    """The exit status and what to say of pip-audit's list."""
    found = [d for d in dependencies if d.get("vulns")]
    skipped = [d["name"] for d in dependencies if "skip_reason" in d and d["name"] not in OURS]
    looked_up = len([d for d in dependencies if "skip_reason" not in d])
    lines = [
        f"{d['name']} {d['version']}: {one['id']}"
        f" (fixed in {', '.join(one['fix_versions']) or 'no release'})"
        for d in found
        for one in d["vulns"]
    ]
    lines.append(f"{looked_up} packages looked up, {len(found)} with known vulnerabilities")
    if skipped:
        more = ", ..." if len(skipped) > _SHOWN else ""
        lines.append(
            f"{len(skipped)} packages NOT looked up: {', '.join(skipped[:_SHOWN])}{more}. The "
            "service does not know them, or is not to be had here: run this where it is, or give "
            "the SBOM (make sbom) to a scanner there"
        )
    return (1 if found else 2 if skipped else 0), "\n".join(lines)


def main() -> int:
    """Run pip-audit in an environment of its own, and say what it found."""
    command = [
        str(Path(sys.executable).parent / "uv"), "tool", "run", "--quiet", "--from", PIP_AUDIT,
        "pip-audit", "--path", sysconfig.get_path("purelib"), "--format", "json",
        "--progress-spinner", "off", *sys.argv[1:],
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"audit: pip-audit did not look anything up: {last}", file=sys.stderr)
        return 2
    status, text = summary(dependencies)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
