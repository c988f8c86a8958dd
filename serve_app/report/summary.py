"""Reads request logs into a report: one pass, groups and a timeline, no row kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError
from policies.core.types import SLO
from serve_app.report.figures import Figures
from serve_app.report.tariff import Gaps, Tariff
from serve_app.request_log.reader import ReadCounts, read_rows
from serve_app.request_log.row import Row

Key = tuple[str | None, ...]
KEYS: dict[str, Callable[[Row], str | None]] = {
    "model": lambda row: row.model,
    "tenant": lambda row: row.tenant,
    "hour": lambda row: row.start.astimezone(UTC).strftime("%Y-%m-%dT%H:00Z"),
    "application": lambda row: row.application,
    "deployment": lambda row: row.deployment,
    "replica": lambda row: row.replica,
    "outcome": lambda row: row.outcome,
}
_WIDTHS_S = (60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400)
_MAX_BARS = 96
_MAX_REASONS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked. A request belongs to the time at which it arrived: `since` <= start <
    `until`."""

    folder: Path
    since: datetime | None = None
    until: datetime | None = None
    by: tuple[str, ...] = ("model",)
    slo: SLO | None = None
    tariff: Tariff = field(default_factory=Tariff)

    def selects(self, row: Row) -> bool:
        """Whether the row is in the period."""
        early = self.since is not None and row.start < self.since
        late = self.until is not None and row.start >= self.until
        return not (early or late)


@dataclass(slots=True)
class Timeline:
    """Figures by time, in about `_MAX_BARS` bars at most; their width grows with the span."""

    width_s: int = _WIDTHS_S[0]
    bars: dict[int, Figures] = field(default_factory=dict)  # by start, seconds since 1970

    def at(self, time: datetime) -> Figures:
        """The figures of the bar that holds a time."""
        time_s = int(time.timestamp())
        found = self.bars.get(time_s - time_s % self.width_s)
        if found is not None:
            return found
        self.bars[time_s - time_s % self.width_s] = Figures()
        while self._span() > _MAX_BARS and self.width_s < _WIDTHS_S[-1]:
            self._widen()
        return self.bars[time_s - time_s % self.width_s]

    def _span(self) -> int:
        return (max(self.bars) - min(self.bars)) // self.width_s + 1

    def _widen(self) -> None:
        self.width_s = next(width for width in _WIDTHS_S if width > self.width_s)
        old, self.bars = self.bars, {}
        for start_s, figures in sorted(old.items()):
            self.bars.setdefault(start_s - start_s % self.width_s, Figures()).merge(figures)


@dataclass(slots=True)
class Report:
    """The answer. Groups by the key values in the order of `question.by`."""

    question: Question
    counts: ReadCounts = field(default_factory=ReadCounts)
    total: Figures = field(default_factory=Figures)
    groups: dict[Key, Figures] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)
    gaps: Gaps = field(default_factory=Gaps)
    missing: Counter[str] = field(default_factory=Counter)  # meters, by reason: requests
    first: datetime | None = None
    last: datetime | None = None

    def add(self, row: Row) -> None:
        """Count one row of the period."""
        question = self.question
        grams = question.tariff.grams(row.joules, row.start)
        key = tuple(KEYS[name](row) for name in question.by)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Figures()
        for figures in (self.total, group, self.timeline.at(row.start)):
            figures.add(row, grams, question.slo)
        intensity = question.tariff.intensity
        if intensity is not None and grams is None and row.joules is not None:
            self.gaps.add(intensity, row.start, row.joules)
        if row.unavailable and row.outcome != "rejected":
            known = row.unavailable in self.missing or len(self.missing) < _MAX_REASONS
            self.missing[row.unavailable if known else "other reasons"] += 1
        self.first = row.start if self.first is None else min(self.first, row.start)
        self.last = row.end if self.last is None else max(self.last, row.end)

    def ordered(self) -> list[tuple[Key, Figures]]:
        """The groups: by hour where that is asked for, else the largest first."""

        def size(item: tuple[Key, Figures]) -> tuple[Any, ...]:
            key, figures = item
            hour = key[self.question.by.index("hour")] if "hour" in self.question.by else ""
            return hour, -figures.joules, -figures.requests, tuple(k or "" for k in key)

        return sorted(self.groups.items(), key=size)


def summarise(question: Question) -> Report:
    """Read the folder. Raises ConfigError where there is nothing to read."""
    report = Report(question)
    for row in selected(question, report.counts):
        report.add(row)
    return report


def selected(question: Question, counts: ReadCounts) -> Iterator[Row]:
    """The rows of the period."""
    return (row for row in read_rows(question.folder, counts) if question.selects(row))


def parse_by(text: str) -> tuple[str, ...]:
    """Group keys from "model,tenant". Raises ConfigError that lists them."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in KEYS]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(f"--by {text}: allowed, each once: {', '.join(KEYS)}")
    return names
