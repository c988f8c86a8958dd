"""Makes the fakes and the planted samples importable from here."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
for folder in (TESTS / "fakes", TESTS / "profiler"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from two_fake_gpus import fake  # noqa: E402, F401 - a fixture
