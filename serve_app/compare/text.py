"""Figures and tables as Markdown; what is not known is called unavailable, never 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NONE = "unavailable"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    rule = ["---"] * len(header)
    return [f"| {' | '.join(cells)} |" for cells in [header, rule, *rows]]


def number(value: float | None, digits: int) -> str:
    """Return the value with so many digits, or that it is not known."""
    return NONE if value is None else f"{value:,.{digits}f}"


def ms(value_s: float | None) -> str:
    """Return seconds as milliseconds."""
    return number(None if value_s is None else value_s * 1e3, 1)


def pair(distribution: dict[str, float | None]) -> str:
    """Return the median and the 99th percentile of a distribution, in milliseconds."""
    return f"{ms(distribution['p50'])} / {ms(distribution['p99'])}"


def percent(ratio: float | None) -> str:
    """Return a ratio as per cent."""
    return NONE if ratio is None else f"{ratio:.1%}"
