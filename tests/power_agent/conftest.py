"""Makes the fakes and the agent's process importable from here."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "fakes"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from two_fake_gpus import fake  # noqa: E402, F401 - a fixture
