"""Makes what these tests share importable."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in map(str, (HERE, HERE.parent / "web", HERE.parent / "decisions")):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from loop_cases import rig  # noqa: E402, F401 - a fixture of these tests
