"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console

UNFOLDED_COLUMNS = 160


def table_console() -> Console:
    """A terminal as wide as it is; anything else, which folds nothing, wide enough for a table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=UNFOLDED_COLUMNS)
