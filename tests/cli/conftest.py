"""Makes the bench's test server importable from here, and runs the command line in this process."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.cli import main

for name in ("bench", "decisions", "web"):
    sys.path.insert(0, str(Path(__file__).parents[1] / name))


@pytest.fixture
def jouleserve(monkeypatch, capsys):
    """Run the command line in this process; what it printed and its exit status."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jouleserve", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        printed = capsys.readouterr()
        return SimpleNamespace(
            returncode=ended.value.code or 0, stdout=printed.out, stderr=printed.err
        )

    yield run
    signal.signal(signal.SIGTERM, before)
