"""Compiles the simulator once for all runs of the tests, and makes the planted tables importable."""

import sys
from pathlib import Path

from serve_app.simulator.compiled import keep_compiled

keep_compiled()
FOLDER = str(Path(__file__).parent)
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)
