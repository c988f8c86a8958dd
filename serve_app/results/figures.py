"""From rows to the figures of tables: means and intervals over seeds, ratios, geometric means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

CONFIDENCE = 0.95
REFERENCE = "ray"  # tuned in hindsight, at full power

WHOLE, EXCERPTS = "whole", "excerpts"
LIMITLESS = frozenset({"ray", "ray_default", "static", "wva", "wva, hindsight"})
Row = dict[str, Any]
Cell = tuple[str, str]  # model, load


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One policy on one cell. `half_width`: of the 95 % interval of the mean over seeds (Student's
    t), None for one seed. `ratio`: to the reference, mean of the ratios per seed; None where there
    is no reference. `attained` None for a bound, which nobody runs. `sampled`: on excerpts only."""

    joules_per_request: float
    half_width: float | None
    ratio: float | None
    attained: float | None
    replicas: float | None
    actions: tuple[float, float, float] | None
    attains: bool
    seeds: int
    sampled: bool


def geometric_mean(values: Iterable[float]) -> float | None:
    """exp(mean(log)); None of nothing. Values above 0."""
    held = list(values)
    return math.exp(math.fsum(map(math.log, held)) / len(held)) if held else None


def half_width(values: Sequence[float]) -> float | None:
    """t(0.975, n - 1) s / sqrt(n); None for fewer than two."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (count - 1))
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2.0, count - 1)) * spread / math.sqrt(count)


class Results:
    """The rows of a result file, by who, where and under which response to limits."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._held: dict[tuple[str, str, str, str, str], dict[int, Row]] = {}
        for row in self.rows:
            place = (row["role"], row["model"], row["load"], row["cap_response"], row["part"])
            self._held.setdefault(place, {})[row["seed"]] = row
        self.responses = list(dict.fromkeys(row["cap_response"] for row in self.rows))

    def seeds(self, role: str, cell: Cell, response: str, part: str = WHOLE) -> dict[int, Row]:
        """Seed → row. A policy that sets no limits was run once for all responses."""
        found = self._held.get((role, *cell, response, part))
        if found is None and role in LIMITLESS and self.responses:
            found = self._held.get((role, *cell, self.responses[0], part))
        return found or {}

    def part_of(self, roles: Sequence[str], cell: Cell, response: str) -> str | None:
        """The whole trace, or the excerpts where not all of these were run on all of it; None where
        they have nothing in common."""
        for part in (WHOLE, EXCERPTS):
            if all(self.seeds(role, cell, response, part) for role in roles):
                return part
        return None

    def figure(self, role: str, cell: Cell, response: str, target: float = 0.99) -> Figure | None:
        """None where it was not run."""
        part = self.part_of([role], cell, response)
        rows = self.seeds(role, cell, response, part or WHOLE)
        run = {seed: row for seed, row in rows.items() if row["joules_per_request"] is not None}
        if not run:
            return None
        joules = [row["joules_per_request"] for row in run.values()]
        attained = _mean(run.values(), "slo_attainment_ratio")
        scale, limit, cap = (
            _mean(run.values(), f"{one}_actions") for one in ("scale", "limit", "cap")
        )
        return Figure(
            joules_per_request=math.fsum(joules) / len(joules),
            half_width=half_width(joules),
            ratio=self.ratio(role, REFERENCE, cell, response),
            attained=attained,
            replicas=_mean(run.values(), "mean_replicas"),
            actions=None if scale is None or limit is None or cap is None else (scale, limit, cap),
            attains=attained is None or attained >= target,
            seeds=len(run),
            sampled=part == EXCERPTS,
        )

    def ratio(self, role: str, other: str, cell: Cell, response: str) -> float | None:
        """J/request of one over that of another on the same part; mean over the seeds that both
        have. None where there are none."""
        part = self.part_of([role, other], cell, response)
        if part is None:
            return None
        mine = self.seeds(role, cell, response, part)
        theirs = self.seeds(other, cell, response, part)
        found = [
            row["joules_per_request"] / theirs[seed]["joules_per_request"]
            for seed, row in mine.items()
            if seed in theirs and row["joules_per_request"] and theirs[seed]["joules_per_request"]
        ]
        return math.fsum(found) / len(found) if found else None

    def mean_ratio(
        self, role: str, other: str, cells: Sequence[Cell], response: str
    ) -> float | None:
        """Geometric mean over the cells; None where one of them is missing."""
        found = [self.ratio(role, other, cell, response) for cell in cells]
        held = [one for one in found if one is not None]
        return geometric_mean(held) if len(held) == len(found) else None


def _mean(rows: Iterable[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return math.fsum(values) / len(values) if values else None
