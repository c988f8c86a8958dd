"""The sweep's progress bar on stderr."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class SweepProgress:
    """Shows what is measured and the time left; plain lines where stderr is no terminal. Use it in
    `with`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            # Redrawing costs CPU time that the meter counts as the replica's.
            refresh_per_second=1,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._total_s = self._done_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line about what begins now."""
        self._console.print(text, highlight=False)

    def begin(self, total_s: float) -> None:
        """A sweep begins and is expected to take this long, seconds."""
        self.say(f"measuring for about {total_s:.0f} s")
        self._total_s, self._done_s = total_s, 0.0
        self._bar.start()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task("", total=total_s)

    def advance(self, done_s: float, text: str) -> None:
        """A run has ended that was expected to take `done_s`; `text` says which."""
        self._done_s += done_s
        if self._bar.disable:
            self.say(f"[{self._done_s / max(self._total_s, 1e-9):4.0%}] {text}")
        elif self._task is not None:
            self._bar.update(self._task, advance=done_s, description=text)
