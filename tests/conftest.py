"""Settings shared by all tests."""

import os

from hypothesis import HealthCheck, settings

from serve_app.simulator.compiled import folder

# One place for all tests: compiling the simulator takes a minute, and `make test` has done it.
os.environ.setdefault("NUMBA_CACHE_DIR", str(folder()))

settings.register_profile(
    "ci",
    max_examples=30,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("nightly", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
