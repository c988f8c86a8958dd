"""What `workload describe` reads: a trace file of any known format, or a folder of request logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from policies.core.errors import ConfigError
from policies.model.batch import Floats
from policies.model.binned import Requests
from policies.sim.trace import (
    CSV_COLUMNS,
    RateCurve,
    TraceFormat,
    TraceRow,
    parse_trace,
    sniff,
)
from policies.sim.trace_cells import fail, rows_of
from serve_app.text_files import read_lines
from serve_app.workload.log import LogTable, read_log

REQUEST_LOG = "request_log"
# The calendar time of a row, by format; a rate curve may hold it beside its minutes.
_TIME_COLUMNS = {TraceFormat.CSV: CSV_COLUMNS[0], TraceFormat.RATE_CURVE: "timestamp_utc"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Workload:
    """What arrives. `start` is the calendar time of 0 s, None where the file has none.

    `arrivals_s`: every arrival, ascending from 0, empty for a rate curve; `requests`: those of
    known lengths, None for a rate curve; `left_out`: how many of the others, by why. Of a request
    log, `model` and `replicas` say whose it is, `cached_tokens` how many prompt tokens came from
    the prefix cache; `unreadable` counts what could not be read of it.
    """

    source: str
    format: str
    start: datetime | None
    arrivals_s: Floats
    curve: RateCurve | None = None
    requests: Requests | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    model: str | None = None
    replicas: int = 1
    cached_tokens: int = 0
    unreadable: int = 0

    @property
    def end_s(self) -> float:
        """Seconds from the first arrival to the last, or to the end of the rate curve."""
        if self.curve is not None:
            return self.curve.end_s
        return float(self.arrivals_s[-1])


def read_workload(source: Path, model: str | None = None) -> Workload:
    """The workload of a trace file or a folder of request logs. Raises ConfigError.

    `model` chooses one of a request log's models.
    """
    if source.is_dir():
        return _of_log(read_log(source, model))
    if model is not None:
        raise ConfigError(f"--model {model}: {source} is a trace, which names no model")
    lines = read_lines(source)
    found = parse_trace(lines, str(source))
    head = next(line for line in lines if line.lstrip("\ufeff").strip())
    trace_format = sniff(head, str(source))
    start = _start(trace_format, lines, str(source))
    if isinstance(found, RateCurve):
        return Workload(
            source=str(source),
            format=trace_format,
            start=start,
            arrivals_s=np.empty(0),
            curve=found,
        )
    requests = _of_rows(found)
    return Workload(
        source=str(source),
        format=trace_format,
        start=start,
        arrivals_s=requests.arrival_s,
        requests=requests,
    )


def _of_rows(rows: Sequence[TraceRow]) -> Requests:
    return Requests(
        arrival_s=np.array([row.arrival_s for row in rows]),
        prompt_tokens=np.array([row.prompt_tokens for row in rows], dtype=np.int64),
        output_tokens=np.array([row.output_tokens for row in rows], dtype=np.int64),
        replica=np.zeros(len(rows), dtype=np.int64),
        joules=np.full(len(rows), np.nan),
    )


def _of_log(table: LogTable) -> Workload:
    columns = {**table.columns, "joules": table.metered_joules()}
    order = np.argsort(columns["start_s"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    chosen, left_out = table.single()
    chosen = chosen[order]
    first_s = float(columns["start_s"][0])
    requests = Requests(
        arrival_s=columns["start_s"] - first_s,
        prompt_tokens=np.maximum(np.nan_to_num(columns["prompt_tokens"]), 1).astype(np.int64),
        output_tokens=np.nan_to_num(columns["output_tokens"]).astype(np.int64),
        replica=columns["replica"].astype(np.int64),
        joules=columns["joules"],
    ).where(chosen)
    counts = table.counts
    return Workload(
        source=table.source,
        format=REQUEST_LOG,
        start=datetime.fromtimestamp(first_s, UTC),
        arrivals_s=columns["start_s"] - first_s,
        requests=requests if len(requests) else None,
        left_out=left_out,
        model=table.model,
        replicas=len(np.unique(columns["replica"])),
        cached_tokens=int(np.nansum(columns["cached_tokens"][chosen])),
        unreadable=counts.bad_rows + len(counts.bad_files),
    )


def _start(found: TraceFormat, lines: Sequence[str], name: str) -> datetime | None:
    """The calendar time of the first arrival (of a curve: of its first row), UTC."""
    column = _TIME_COLUMNS.get(found)
    header = next(line for line in lines if line.lstrip("\ufeff").strip())
    if column is None or column not in (cell.strip("\ufeff \r\n") for cell in header.split(",")):
        return None
    earliest: datetime | None = None
    for number, cells in rows_of(lines, (column,), name):
        text = cells[column]
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            if found is TraceFormat.CSV:
                return None  # seconds: the parser has accepted the column
            fail(name, number, f"{column} {text!r}; expected an ISO date and time")
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        earliest = time if earliest is None else min(earliest, time)
        if found is TraceFormat.RATE_CURVE:
            break  # its rows ascend
    return earliest
