"""Where a program of another project is, if it is on this machine: on PATH, or in the folder that
scripts/test_tools.sh fills."""

import os
import shutil

from serve_app.models.cache import cache_root


def installed(name):
    """The program's path, None if it is not here."""
    found = shutil.which(name)
    if found is not None:
        return found
    inside = (path for path in sorted((cache_root() / "tools").rglob(name)) if path.is_file())
    return next((str(path) for path in inside if os.access(path, os.X_OK)), None)
