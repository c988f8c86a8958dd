"""Cells out of text lines, each checked; every error says `name: line N` and what was expected."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import NoReturn

from policies.core.errors import ConfigError

MAX_NUMBER = 10**12
"""No time, rate or length in a trace is as large (seconds since 1970 are 2e9): larger is a slip."""


def rows_of(
    lines: Iterable[str], columns: tuple[str, ...], name: str
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield (line number, the wanted columns) of each CSV row that is not blank."""
    reader = csv.reader(line.lstrip("\ufeff") for line in lines)
    positions: dict[str, int] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if positions is None:
                positions = _positions(cells, columns, f"{name}: line {reader.line_num}")
                continue
            if len(cells) <= max(positions.values()):
                fail(name, reader.line_num, f"{len(cells)} cells; expected {','.join(columns)}")
            yield reader.line_num, {key: cells[at].strip() for key, at in positions.items()}
    except csv.Error as error:
        fail(name, reader.line_num, f"{error}; expected {','.join(columns)}")


def decimal_of(text: str) -> Decimal:
    """Return the number, exact to the last digit. Raises ValueError."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError(text) from None
    if not number.is_finite() or abs(number) > MAX_NUMBER:
        raise ValueError(text)
    return number


def number_of(text: str, where: str) -> float:
    """Return the number; raises ConfigError that starts with `where`."""
    try:
        return float(decimal_of(text))
    except ValueError:
        raise ConfigError(f"{where} {text!r}; expected a number") from None


def tokens_of(value: object, where: str) -> int:
    """Return a whole number of tokens, at least 1. Text such as "12.0" is whole."""
    try:
        count = decimal_of(str(value))
    except ValueError:
        count = Decimal(-1)
    if isinstance(value, bool) or count < 0 or count != count.to_integral_value():
        raise ConfigError(f"{where} {value!s}; expected a whole number of tokens ≥ 0")
    return max(1, int(count))


def fail(name: str, line_number: int, problem: str) -> NoReturn:
    """Raise the ConfigError of one line."""
    raise ConfigError(f"{name}: line {line_number}: {problem}")


def _positions(header: list[str], columns: tuple[str, ...], where: str) -> dict[str, int]:
    names = [cell.strip() for cell in header]
    missing = [column for column in columns if column not in names]
    if missing:
        found = ",".join(names)[:80]
        raise ConfigError(
            f"{where}: no column {', '.join(missing)} in {found!r}; expected {','.join(columns)}"
        )
    return {column: names.index(column) for column in columns}
