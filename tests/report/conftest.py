"""Rows come from the request log's tests."""

import sys
from pathlib import Path

# importlib mode leaves test folders out
sys.path.insert(0, str(Path(__file__).parents[1] / "request_log"))
