"""What runs as root imports nvidia-ml-py and the standard library alone."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import sys
before = set(sys.modules)
import serve_app.power_agent.agent, serve_app.power_agent.status, pynvml
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(loaded - sys.stdlib_module_names))
"""


def test_the_agent_loads_nothing_else():
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["policies", "pynvml", "serve_app"]
