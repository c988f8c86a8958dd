"""Says on stderr what a long piece of work does and how long each step took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status


class Steps:
    """One line per finished step; on a terminal also a spinner while it runs.

    `seconds` maps the name of each finished step to its duration.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}
        self._status: Status | None = None

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(escape(text))

    def update(self, text: str) -> None:
        """Change the text behind the spinner of the running step."""
        if self._status is not None:
            self._status.update(escape(text))

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Time a step. A step that fails or is interrupted prints no line and leaves no time."""
        begin = time.perf_counter()
        if not self.console.is_terminal:
            self.say(f"  {text} ...")
        with self.console.status(escape(text)) as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None
        self.seconds[name] = time.perf_counter() - begin
        self.say(f"  {text}: done in {self.seconds[name]:.1f} s")
