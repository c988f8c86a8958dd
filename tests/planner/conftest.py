"""Makes `planner_cases` and the random models of the policies' tests importable."""

import sys
from pathlib import Path

# importlib mode leaves test folders out
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "policies")]
