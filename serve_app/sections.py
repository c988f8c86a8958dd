"""A part of a page that a command writes, between two HTML comments. The rest of the page stays."""

from __future__ import annotations

from pathlib import Path

from policies.core.errors import ConfigError


def require_section(page: Path, name: str) -> None:
    """ConfigError unless the page has the section's two comments, once and in order."""
    _split(page, name)


def read_section(page: Path, name: str) -> str:
    """What stands between the comments, without the line breaks at its ends."""
    return _split(page, name)[1].strip("\n")


def write_section(page: Path, name: str, body: str) -> None:
    """Put `body` between the comments. ConfigError as `require_section`."""
    before, _, after = _split(page, name)
    begin, end = _comments(name)
    page.write_text(f"{before}{begin}\n{body}\n{end}{after}", encoding="utf-8")


def _comments(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def _split(page: Path, name: str) -> tuple[str, str, str]:
    begin, end = _comments(name)
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{page}: {error.strerror}") from error
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ConfigError(f"{page}: expected {begin} and, after it, {end}, each once")
    before, rest = text.split(begin)
    inner, after = rest.split(end)
    return before, inner, after
