"""Settings shared by all tests."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

from serve_app.simulator.compiled import folder

# One place for all tests: compiling the simulator takes a minute, and `make test` has done it.
os.environ.setdefault("NUMBA_CACHE_DIR", str(folder()))

TESTS = Path(__file__).parent
# They measure no time and wait for nobody: `make test` runs them beside the starts of engines.
ONLY_COMPUTE = (
    "decisions/test_counterfactual.py", "peers", "planner", "policies", "policies_sim",
    "profiler/test_fit.py", "properties", "published", "report", "results", "simulate", "traces",
    "workload",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    folders = [TESTS / one for one in ONLY_COMPUTE]
    for item in items:
        if any(folder == item.path or folder in item.path.parents for folder in folders):
            item.add_marker("compute")


settings.register_profile(
    "ci",
    max_examples=30,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("nightly", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
