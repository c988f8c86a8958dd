"""What all pictures of the command line share: their format by the ending, and matplotlib."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError

FORMATS = (".png", ".svg", ".pdf")


def matplotlib(module: str) -> Any:
    """A module of matplotlib; ConfigError where it is not installed."""
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError:
        raise ConfigError("--picture needs matplotlib: pip install 'jouleserve[report]'") from None


def check_format(path: Path) -> None:
    """ConfigError for an ending that is no picture's; ask before long work."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"--picture {path}: allowed endings: {', '.join(FORMATS)}")


def save(figure: Any, path: Path, title: str) -> None:
    """Write the figure; ConfigError where that is not possible."""
    try:
        figure.savefig(path, metadata={"Title": title} if path.suffix != ".svg" else None)
    except OSError as error:
        raise ConfigError(f"--picture {path}: {error.strerror or error}") from None
