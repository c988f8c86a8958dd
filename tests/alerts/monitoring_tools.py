"""Prometheus, promtool, Alertmanager and amtool: from PATH, or where scripts/test_tools.sh unpacks
them. Without them the tests skip."""

import subprocess
from pathlib import Path

import pytest
from installed import installed

from serve_app.models.cache import cache_root

FOLDER = cache_root() / "tools" / "usr" / "bin"


def find(*names: str) -> str | None:
    """The first of these programs that there is."""
    return next(filter(None, map(installed, names)), None)


def need(*names: str) -> str:
    """As `find`; skips the test where there is none."""
    found = find(*names)
    if found is None:
        pytest.skip(f"{names[0]} is not installed; scripts/test_tools.sh fetches it from Debian")
    return found


def working_folder(program: str) -> Path | None:
    """Where an unpacked program finds its files (the Alertmanager its templates)."""
    return FOLDER.parents[1] if Path(program).parent == FOLDER else None


def promtool(*arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run promtool; what it says is in `stdout` and `stderr`."""
    command = [need("promtool"), *map(str, arguments)]
    limits = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    return subprocess.run(command, **{**limits, **options})
