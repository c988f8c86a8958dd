"""The trace formats: text lines in, arrivals, rate curves and length distributions out.

Pure: a caller opens the file and hands its lines over, with a name for the error messages. Every
error is a ConfigError that says `name: line N`, what stands there and what was expected. Formats:

* CSV `TIMESTAMP,ContextTokens,GeneratedTokens`: ISO date and time (up to seven fractional digits)
  or seconds, one kind throughout a file. The form of the Azure public LLM traces.
* Mooncake JSONL: `timestamp` (milliseconds), `input_length`, `output_length`.
* Rate curve CSV `minute,rps`: a rate holds from its minute to the next row's; the last one as long
  as the one before it (one minute where there is only one row).
* Length CDF CSV `cdf_pct,tokens`: percent of the requests that are at most so long.

Column order is free and further columns and keys are ignored. A length of 0 becomes 1: no engine
takes an empty prompt or makes no token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from itertools import chain

from policies.core.errors import ConfigError
from policies.sim.arrivals import (
    BurstShape,
    LengthCdf,
    Lengths,
    RateCurve,
    TraceRow,
    burst,
    from_rate_curve,
    poisson,
    scale_time,
)
from policies.sim.trace_cells import decimal_of, fail, number_of, rows_of, tokens_of

__all__ = [
    "BurstShape",
    "LengthCdf",
    "Lengths",
    "RateCurve",
    "TraceFormat",
    "TraceRow",
    "burst",
    "from_rate_curve",
    "parse_csv",
    "parse_length_cdf",
    "parse_mooncake",
    "parse_rate_curve",
    "parse_trace",
    "poisson",
    "scale_time",
    "sniff",
]

CSV_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")
RATE_COLUMNS = ("minute", "rps")
CDF_COLUMNS = ("cdf_pct", "tokens")
MIN_CDF_END_PCT = 95.0
"""A CDF that stops lower would pile too much of the load onto its last length."""

_ISO = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(\.\d{1,7})?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TraceFormat(StrEnum):
    """What a file of lines holds, by its first line that is not blank."""

    CSV = "csv"
    MOONCAKE = "mooncake"
    RATE_CURVE = "rate_curve"
    LENGTH_CDF = "length_cdf"


def sniff(first_line: str, name: str = "trace") -> TraceFormat:
    """Return the format that a file starting with this line has."""
    line = first_line.lstrip("\ufeff").strip()
    if line.startswith("{"):
        return TraceFormat.MOONCAKE
    columns = {column.strip() for column in line.split(",")}
    for columns_of_format, found in (
        (CSV_COLUMNS, TraceFormat.CSV),
        (RATE_COLUMNS, TraceFormat.RATE_CURVE),
        (CDF_COLUMNS, TraceFormat.LENGTH_CDF),
    ):
        if columns.issuperset(columns_of_format):
            return found
    raise ConfigError(
        f"{name}: first line {line[:80]!r} is of no known trace format; expected a header with the "
        f"columns {','.join(CSV_COLUMNS)} or {','.join(RATE_COLUMNS)} or {','.join(CDF_COLUMNS)}, "
        f"or a JSON object with the keys {', '.join(MOONCAKE_KEYS)}"
    )


def parse_trace(lines: Iterable[str], name: str = "trace") -> tuple[TraceRow, ...] | RateCurve:
    """Return the rows of a trace, or the rate curve, whichever format the lines have."""
    rest = iter(lines)
    head: list[str] = []
    for line in rest:
        head.append(line)
        if line.lstrip("\ufeff").strip():
            break
    else:
        raise ConfigError(f"{name}: empty; expected a trace")
    found = sniff(head[-1], name)
    every = chain(head, rest)
    match found:
        case TraceFormat.CSV:
            return parse_csv(every, name)
        case TraceFormat.MOONCAKE:
            return parse_mooncake(every, name)
        case TraceFormat.RATE_CURVE:
            return parse_rate_curve(every, name)
        case TraceFormat.LENGTH_CDF:
            raise ConfigError(f"{name}: holds a length CDF; expected a trace or a rate curve")


def parse_csv(lines: Iterable[str], name: str = "trace") -> tuple[TraceRow, ...]:
    """Return the rows of a `TIMESTAMP,ContextTokens,GeneratedTokens` table, sorted, from 0 s."""
    time_column, prompt_column, output_column = CSV_COLUMNS
    parse_time: Callable[[str], Decimal] | None = None
    timed: list[tuple[Decimal, int, int]] = []
    for number, cells in rows_of(lines, CSV_COLUMNS, name):
        text = cells[time_column]
        if parse_time is None:
            parse_time = _iso_seconds if _ISO.fullmatch(text) else decimal_of
        try:
            time = parse_time(text)
        except ValueError:
            first = "an ISO date and time or seconds"
            later = "seconds" if parse_time is decimal_of else "an ISO date and time"
            expected = f"{later}, as in the first row" if timed else first
            fail(name, number, f"{time_column} {text!r}; expected {expected}")
        timed.append(
            (
                time,
                tokens_of(cells[prompt_column], f"{name}: line {number}: {prompt_column}"),
                tokens_of(cells[output_column], f"{name}: line {number}: {output_column}"),
            )
        )
    return _normalised(timed, name)


def parse_mooncake(lines: Iterable[str], name: str = "trace") -> tuple[TraceRow, ...]:
    """Return the rows of a Mooncake JSONL trace, sorted, from 0 s."""
    time_key, prompt_key, output_key = MOONCAKE_KEYS
    timed: list[tuple[Decimal, int, int]] = []
    for number, line in enumerate(lines, start=1):
        if not line.lstrip("\ufeff").strip():
            continue
        try:
            record = json.loads(line.lstrip("\ufeff"), parse_float=Decimal, parse_int=Decimal)
        except json.JSONDecodeError as error:
            fail(name, number, f"{error.msg} in column {error.colno}; expected one JSON object")
        if not isinstance(record, dict) or any(key not in record for key in MOONCAKE_KEYS):
            keys = ", ".join(MOONCAKE_KEYS)
            fail(name, number, f"{line.strip()[:80]!r}; expected a JSON object with {keys}")
        try:
            time = decimal_of(str(record[time_key])) / 1000
        except ValueError:
            fail(name, number, f"{time_key} {record[time_key]!r}; expected milliseconds")
        timed.append(
            (
                time,
                tokens_of(record[prompt_key], f"{name}: line {number}: {prompt_key}"),
                tokens_of(record[output_key], f"{name}: line {number}: {output_key}"),
            )
        )
    return _normalised(timed, name)


def parse_rate_curve(lines: Iterable[str], name: str = "rate curve") -> RateCurve:
    """Return the arrival rate of a `minute,rps` table, from 0 s at its first row."""
    minutes: list[float] = []
    rates: list[float] = []
    for number, cells in rows_of(lines, RATE_COLUMNS, name):
        minute = number_of(cells["minute"], f"{name}: line {number}: minute")
        rate = number_of(cells["rps"], f"{name}: line {number}: rps")
        if minutes and minute <= minutes[-1]:
            fail(name, number, f"minute {minute:g}; expected more than {minutes[-1]:g}")
        if rate < 0:
            fail(name, number, f"rps {rate:g}; expected requests per second ≥ 0")
        minutes.append(minute)
        rates.append(rate)
    if not minutes:
        raise ConfigError(f"{name}: no rows; expected minute,rps")
    last_step = minutes[-1] - minutes[-2] if len(minutes) > 1 else 1.0
    return RateCurve(
        starts_s=tuple((minute - minutes[0]) * 60 for minute in minutes),
        rates_per_s=tuple(rates),
        end_s=(minutes[-1] + last_step - minutes[0]) * 60,
    )


def parse_length_cdf(lines: Iterable[str], name: str = "length CDF") -> LengthCdf:
    """Return the length distribution of a `cdf_pct,tokens` table."""
    points = [(0.0, 0.0)]
    for number, cells in rows_of(lines, CDF_COLUMNS, name):
        percent = number_of(cells["cdf_pct"], f"{name}: line {number}: cdf_pct")
        tokens = number_of(cells["tokens"], f"{name}: line {number}: tokens")
        if not points[-1][0] <= percent <= 100 or tokens < points[-1][1]:
            fail(
                name,
                number,
                f"{percent:g},{tokens:g}; expected cdf_pct within {points[-1][0]:g}..100 "
                f"and tokens ≥ {points[-1][1]:g}",
            )
        points.append((percent, tokens))
    if points[-1][0] < MIN_CDF_END_PCT:
        raise ConfigError(f"{name}: ends at {points[-1][0]:g} %; expected {MIN_CDF_END_PCT:g}..100")
    return LengthCdf(
        shares=tuple(percent / 100 for percent, _ in points[1:]),
        tokens=tuple(tokens for _, tokens in points[1:]),
    )


def _normalised(timed: list[tuple[Decimal, int, int]], name: str) -> tuple[TraceRow, ...]:
    if not timed:
        raise ConfigError(f"{name}: no requests; expected at least one row")
    timed.sort(key=lambda row: row[0])
    start = timed[0][0]
    return tuple(
        TraceRow(arrival_s=float(time - start), prompt_tokens=prompt, output_tokens=output)
        for time, prompt, output in timed
    )


def _iso_seconds(text: str) -> Decimal:
    """Return seconds since 1970, exact to the last digit. A time without a zone counts as UTC."""
    matched = _ISO.fullmatch(text)
    if matched is None:
        raise ValueError(text)
    whole, fraction, zone = matched.groups()
    moment = datetime.fromisoformat(whole + (zone or "Z"))
    return Decimal(round((moment - _EPOCH).total_seconds())) + Decimal(fraction or 0)
