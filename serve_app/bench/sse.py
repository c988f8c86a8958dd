"""Server-sent events from bytes that arrive in any pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Data:
    """The data of one event."""

    text: str


@dataclass(frozen=True, slots=True)
class Comment:
    """A line that starts with a colon; no event."""

    text: str


class SseParser:
    r"""Turns chunks into events and comments, as the HTML standard's event stream has them.

    Data lines of one event are joined by newlines; event names, ids and retry times are ignored.
    Lines end in \n or \r\n (the standard's bare \r is not in use).
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Data | Comment]:
        """Yield what is complete after this chunk."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            yield from self._line(line.removesuffix(b"\r").decode("utf-8", "replace"))

    def _line(self, line: str) -> Iterator[Data | Comment]:
        if line.startswith(":"):
            yield Comment(line[1:].removeprefix(" "))
        elif line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
        elif not line and self._data:
            yield Data("\n".join(self._data))
            self._data.clear()
