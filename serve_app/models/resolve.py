"""From the name that a user wrote to what an engine can load."""

from __future__ import annotations

import difflib
from pathlib import Path

from policies.core.errors import ConfigError
from serve_app.models.cache import ModelFolders
from serve_app.models.catalog import KNOWN_MODELS
from serve_app.models.manifest import faults


def resolve_model(name: str, cache: Path | None = None) -> str:
    """Return the folder of a known model that has been prepared; any other name unchanged.

    Raises ConfigError, with the command to run, when a known model is not there or not whole.
    """
    if name not in KNOWN_MODELS:
        return name
    folder = ModelFolders.of(name, cache).final
    found = faults(folder, hashes=False)
    if not found:
        return str(folder)
    what = f"is damaged in {folder}: {'; '.join(found)}" if folder.exists() else "is not prepared"
    option = f" --cache {cache}" if cache is not None else ""
    raise ConfigError(f"model {name} {what}; run: jouleserve model prepare {name}{option}")


def check_foreign(name: str) -> str:
    """Return a Hugging Face id or the path of an existing folder, as given.

    Raises ConfigError for a path that does not exist, and for a name that is a slip of the pen.
    """
    if name.strip() and Path(name).expanduser().is_dir():
        return name
    known = ", ".join(sorted(KNOWN_MODELS))
    if name.startswith(("/", "./", "../", "~", ".")) or name.count("/") > 1 or not name.strip():
        raise ConfigError(f"model {name!r}: no such folder; known names: {known}")
    if "/" not in name and (
        near := difflib.get_close_matches(name.lower(), KNOWN_MODELS, n=1, cutoff=0.85)
    ):
        raise ConfigError(f"model {name!r}: did you mean {near[0]}? Known names: {known}")
    return name
