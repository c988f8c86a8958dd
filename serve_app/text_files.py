"""Text files that users name."""

from __future__ import annotations

from pathlib import Path

from policies.core.errors import ConfigError


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, line ends as they are. ConfigError that names the file."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return list(lines)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from None
