"""Where the simulator's compiled code is kept; `python -m serve_app.simulator.compiled` makes it.

numba asks only whether the file of a function itself has changed, not those of the functions that
it calls, so the folder is named after a digest of all of the simulator's sources.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from serve_app.models.cache import cache_root
from serve_app.repository import REPOSITORY

SOURCES = REPOSITORY / "policies" / "sim"
_POLICIES = ("energy_slo", "static:router=least", "static:router=two")
_PRESET, _PROFILE, _DURATION_S = "chat-2023", "llama-3.1-8b-instruct@h100", 20.0


def folder() -> Path:
    """Of the sources as they are now."""
    digest = hashlib.sha256(version("numba").encode())
    for path in sorted(SOURCES.glob("*.py")):
        digest.update(path.read_bytes())
    return cache_root() / "compiled" / digest.hexdigest()[:16]


def keep_compiled() -> None:
    """Keep compiled code from now on. To be called before `policies.sim.kernel` is imported."""
    import numba

    numba.config.CACHE_DIR = str(folder())


def main() -> None:
    """Compile by playing seconds of a load under each router: a minute once, then nothing."""
    from policies.sim.blocks import joined
    from serve_app.simulator.models import truth_of
    from serve_app.simulator.run import simulate_trace
    from serve_app.simulator.scenario import Scenario
    from serve_app.simulator.specs import parse_spec
    from serve_app.traces.load import TraceOptions, load_trace

    keep_compiled()
    block = joined(load_trace(_PRESET, TraceOptions(duration_s=_DURATION_S), seed=0).blocks())
    truth = truth_of(_PROFILE, "profile")
    for policy in _POLICIES:
        scenario = Scenario(truth=truth, belief=truth)
        simulate_trace((_PRESET, block), parse_spec(policy), scenario)


if __name__ == "__main__":
    main()
