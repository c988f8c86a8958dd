"""Makes `workload_planted` and the request log's rows importable: importlib mode leaves test
folders out of sys.path."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "request_log")]
