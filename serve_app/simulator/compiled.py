"""Where the simulator's compiled code is kept.

numba asks only whether the file of a function itself has changed, not those of the functions that
it calls, so the folder is named after a digest of all of the simulator's sources.
"""

from __future__ import annotations

import hashlib

import numba

from serve_app.models.cache import cache_root
from serve_app.repository import REPOSITORY

SOURCES = REPOSITORY / "policies" / "sim"


def keep_compiled() -> None:
    """Keep compiled code from now on. To be called before `policies.sim.kernel` is imported."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(SOURCES.glob("*.py")):
        digest.update(path.read_bytes())
    folder = cache_root() / "compiled" / digest.hexdigest()[:16]
    numba.config.CACHE_DIR = str(folder)
