"""Makes `planner_cases`, the policies' random models and the rows of request logs importable."""

import sys
from pathlib import Path

# importlib mode leaves test folders out
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("planner", "policies", "request_log")]
