"""How far a check is, on stderr: a bar on a terminal, a line per phase anywhere else."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class CheckProgress:
    """Use it in `with`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=2,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, total_s: float) -> None:
        """Expected duration of all phases, seconds."""
        self._console.print(f"checking for about {total_s:.0f} s; nothing is set on any GPU")
        self._bar.start()
        self._task = self._bar.add_task("", total=total_s)

    def phase(self, text: str) -> None:
        """A phase begins."""
        if self._bar.disable:
            self._console.print(text)
        elif self._task is not None:
            self._bar.update(self._task, description=text)

    def advance(self, seconds: float) -> None:
        """Time has passed in a phase."""
        if self._task is not None:
            self._bar.advance(self._task, seconds)
