"""Makes `random_models` importable: importlib mode leaves test folders out of sys.path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
