"""Makes the fakes importable from here."""

import sys
from pathlib import Path

FAKES = Path(__file__).parents[1] / "fakes"
if str(FAKES) not in sys.path:
    sys.path.insert(0, str(FAKES))

from two_fake_gpus import fake  # noqa: E402, F401 - a fixture
