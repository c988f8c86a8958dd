"""A request log as columns: one model's requests, and the batch that each of them ran in."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from policies.core.errors import ConfigError
from policies.model.batch import Floats
from policies.model.binned import Bools, Ints
from serve_app.request_log.reader import ReadCounts, read_rows
from serve_app.request_log.row import Row

MIN_COVERAGE_RATIO = 0.95  # a meter that saw less of a request's work says too little of its joules
_COLUMNS = (
    "start_s", "begin_s", "end_s", "prompt_tokens", "output_tokens", "cached_tokens",
    "num_sequences", "joules", "coverage_ratio", "replica",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LogTable:
    """The rows of one model, in the order of their files. NaN is "not known".

    `start_s`: arrival, seconds since 1970; `begin_s`: the same and the wait in the engine's queue;
    `replica`: numbered from 0; `devices`: kinds of device whose joules are known, and how many rows
    have them.
    """

    source: str
    model: str
    columns: dict[str, Floats]
    devices: Counter[str]
    sources: Counter[str]
    counts: ReadCounts

    def __len__(self) -> int:
        return len(self.columns["start_s"])

    def metered_joules(self) -> Floats:
        """Joules by row, > 0; NaN where no meter saw at least 95 % of the request's work."""
        seen = self.columns["coverage_ratio"] >= MIN_COVERAGE_RATIO
        seen &= self.columns["joules"] > 0.0  # work that cost nothing was not metered
        return np.where(seen, self.columns["joules"], np.nan)

    def single(self) -> tuple[Bools, Counter[str]]:
        """Which rows are one answered sequence of known lengths; of the others how many, by why."""
        unanswered = np.isnan(self.columns["prompt_tokens"]) | (self.columns["output_tokens"] < 1)
        unanswered |= np.isnan(self.columns["output_tokens"])
        several = ~unanswered & (self.columns["num_sequences"] != 1)
        left_out = Counter(
            {
                "without an answer, so of unknown lengths": int(unanswered.sum()),
                "of several sequences in one row": int(several.sum()),
            }
        )
        return ~unanswered & ~several, +left_out


def read_log(folder: Path, model: str | None) -> LogTable:
    """The rows of `model`, or of the only one that there is; rejected requests did no work and are
    left out. ConfigError: no log, or several models and none was named."""
    counts = ReadCounts()
    tables: dict[str, _Builder] = {}
    for row in read_rows(folder, counts):
        if row.outcome != "rejected":
            tables.setdefault(row.model, _Builder()).add(row)
    names = ", ".join(f"{name} ({len(t)} requests)" for name, t in sorted(tables.items()))
    if not tables:
        raise ConfigError(f"{folder}: the request log holds no request that was served")
    if model is None and len(tables) > 1:
        raise ConfigError(
            f"{folder}: requests of {len(tables)} models: {names}; choose one by --model"
        )
    name = next(iter(tables)) if model is None else model
    if name not in tables:
        raise ConfigError(f"--model {name}: allowed, in {folder}: {names}")
    return tables[name].table(str(folder), name, counts)


@dataclass(slots=True)
class _Builder:
    columns: dict[str, array[float]] = field(
        default_factory=lambda: {name: array("d") for name in _COLUMNS}
    )
    replicas: dict[str, int] = field(default_factory=dict)
    devices: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.columns["start_s"])

    def add(self, row: Row) -> None:
        start_s = row.start.timestamp()
        values = (
            start_s,
            start_s + (row.queue_s or 0.0),
            row.end.timestamp(),
            *map(_or_nan, (row.prompt_tokens, row.output_tokens, row.cached_tokens)),
            max(row.num_sequences, 1),
            *map(_or_nan, (row.joules, row.coverage_ratio)),
            self.replicas.setdefault(row.replica, len(self.replicas)),
        )
        for name, value in zip(_COLUMNS, values, strict=True):
            self.columns[name].append(value)
        if row.joules is not None:
            self.devices["+".join(sorted(row.device_joules)) or "unknown"] += 1
            self.sources[row.source] += 1

    def table(self, source: str, model: str, counts: ReadCounts) -> LogTable:
        return LogTable(
            source=source,
            model=model,
            columns={name: np.array(column) for name, column in self.columns.items()},
            devices=self.devices,
            sources=self.sources,
            counts=counts,
        )


def shared_batches(table: LogTable) -> Floats:
    """The batch of each request: the harmonic mean, over its time in the engine, of the sequences
    that ran on its replica, its own included. At least 1.

    1/batch is what a step's shared energy is divided by, so its mean over time is taken. From the
    times in the log: what has no row (lost, still running) is not seen.
    """
    found = np.ones(len(table))
    replica = table.columns["replica"].astype(np.int64)
    for one in np.unique(replica):
        mine = replica == one
        begin_s, end_s = table.columns["begin_s"][mine], table.columns["end_s"][mine]
        end_s = np.maximum(begin_s, end_s)
        found[mine] = _overlaps(begin_s, end_s, table.columns["num_sequences"][mine])
    return found


def _overlaps(begin_s: Floats, end_s: Floats, sequences: Floats) -> Floats:
    count = len(begin_s)
    times_s = np.concatenate([begin_s, end_s])
    order = np.argsort(times_s, kind="stable")
    running = np.cumsum(np.concatenate([sequences, -sequences])[order])
    spans_s = np.diff(times_s[order])
    shares = np.concatenate([[0.0], np.cumsum(spans_s / np.maximum(running[:-1], 1.0))])
    place: Ints = np.empty(2 * count, dtype=np.int64)
    place[order] = np.arange(2 * count)
    life_s, share_s = end_s - begin_s, shares[place[count:]] - shares[place[:count]]
    batch = np.divide(life_s, share_s, out=np.ones(count), where=share_s > 0.0)
    return np.asarray(np.maximum(batch, 1.0), dtype=np.float64)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
