"""Where the source tree lies, with its configs. Needs the standard library alone."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
